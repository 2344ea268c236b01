"""Tools of an operator that let their secret out in every way that comes to mind; loaded by a service under test."""

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

from app.domain.errors import ToolFailed, ToolRetry
from app.tools.functions import tool
from app.tools.tool import ToolContext

SECRET = "LEAK_KEY"

WAYS: dict[str, Callable[[str], Any]] = {
    "plain": lambda secret: secret,
    "in a sentence": lambda secret: f"The key is '{secret}', keep it.",
    "often": lambda secret: secret * 50,
    "a URL": lambda secret: f"https://user:{quote(secret, safe='')}@example.test/?key={quote_plus(secret)}",
    "a query": lambda secret: f"/?key={quote(secret)}",
    "JSON": lambda secret: json.dumps({"key": secret}),
    "JSON in letters": lambda secret: json.dumps({"key": secret}, ensure_ascii=False),
    "structure": lambda secret: {"nested": [{"key": secret}]},
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "basic": lambda secret: "Basic " + base64.b64encode(f"user:{secret}".encode()).decode(),
    "basic, longer": lambda secret: "Basic " + base64.b64encode(f"a-user:{secret}:x".encode()).decode(),
    "at the cut": lambda secret: "x" * 59_990 + secret,
}


@tool(secrets=(SECRET,))
def leak(way: str, context: ToolContext) -> Any:
    """Give the secret away."""
    return WAYS[way](context.secrets[SECRET])


@tool(secrets=(SECRET,))
def leak_mended(way: str, context: ToolContext) -> str:
    """Give it away in an error that can be mended, and in its kind."""
    said = f"{'x' * 3_990 if way == 'at the cut' else ''}{WAYS[way](context.secrets[SECRET])}"
    raise ToolRetry(said, kind=context.secrets[SECRET])


@tool(secrets=(SECRET,))
def leak_finally(way: str, context: ToolContext) -> str:
    """Give it away in an error that ends the attempt."""
    raise ToolFailed(f"{WAYS[way](context.secrets[SECRET])}", kind="tool_failed")


@tool(secrets=(SECRET,))
def leak_broken(way: str, context: ToolContext) -> str:
    """Give it away in an error of Python's, with a cause."""
    nothing: dict[str, str] = {}
    try:
        return nothing[context.secrets[SECRET]]
    except KeyError as error:
        raise RuntimeError(WAYS[way](context.secrets[SECRET])) from error


@tool(secrets=(SECRET,))
async def leak_broken_async(way: str, context: ToolContext) -> str:
    """Do the same on the event loop."""
    raise RuntimeError(WAYS[way](context.secrets[SECRET]))
