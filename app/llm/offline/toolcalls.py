"""Deciding whether a tool is called, which, and with what arguments."""

import json
import re
from hashlib import sha256

from app.llm.chat import ChatRequest, ToolCall, ToolOffer, tool_call
from app.llm.offline.arithmetic import expressions
from app.llm.offline.brief import Brief
from app.llm.offline.extracts import one_line, words
from app.llm.offline.instances import instance, resolved

_URL = re.compile(r"https?://[^\s<>\"'）)]{1,2000}")
_CALCULATES = re.compile(r"calc|arithm|math|evaluat|comput|expression", re.I)
_FETCHES = re.compile(r"fetch|http|url|web|brows|download|page|crawl|scrape", re.I)
_SEARCHES = re.compile(r"search|look.?up|find|query", re.I)
_NAMED = re.compile(r"\b(?:in|at|for|of|about|on)\s+((?:[A-ZÀ-Þ][\w'-]*)(?:\s+[A-ZÀ-Þ][\w'-]*){0,3})")
_PLAIN_VERBS = frozenset({"get", "set", "fetch", "call", "run", "use", "make", "add", "tool", "function", "api"})


def wanted(brief: Brief, request: ChatRequest) -> list[ToolCall]:
    """The calls that the question plainly wants: at most one for each tool, none once a tool has answered."""
    if request.tool_choice == "none" or brief.tools_answered:
        return []
    return chosen(brief.asked, request)


def chosen(asked: str, request: ChatRequest) -> list[ToolCall]:
    """The calls that the words ask for: at most one for each tool."""
    return [call_of(offer, asked, request) for offer in request.tools if wants(asked, offer)]


def call_of(offer: ToolOffer, asked: str, request: ChatRequest) -> ToolCall:
    """The call of this tool, its arguments drawn from the question; its id is the same for the same request."""
    arguments = instance(offer.parameters, asked=asked, text=_text_for(offer, asked))
    said = [offer.name, *([m.role, m.content, len(m.tool_calls)] for m in request.messages)]
    identity = sha256(json.dumps(said).encode()).hexdigest()[:24]
    return tool_call(
        id=f"call_{identity}",
        name=offer.name,
        arguments=json.dumps(arguments if isinstance(arguments, dict) else {}),
    )


def wants(asked: str, offer: ToolOffer) -> bool:
    """Whether the words plainly want this tool."""
    about = f"{offer.name} {offer.description}"
    if re.search(rf"\b{re.escape(offer.name)}\b", asked):
        return True
    if _CALCULATES.search(about) and _takes_text(offer) and expressions(asked):
        return True
    if _URL.search(asked):
        return _FETCHES.search(about) is not None and _takes_text(offer)
    if _SEARCHES.search(offer.name) and re.search(r"\b(?:search|look up|find out)\b", asked, re.I):
        return True
    # get_weather is wanted where the question speaks of the weather.
    parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+", offer.name)} - _PLAIN_VERBS
    return bool(parts) and not _CALCULATES.search(offer.name) and parts <= set(words(asked))


def _takes_text(offer: ToolOffer) -> bool:
    fields = resolved(offer.parameters, offer.parameters).get("properties", {})
    return any(resolved(field, offer.parameters).get("type", "string") == "string" for field in fields.values())


def _text_for(offer: ToolOffer, asked: str) -> str:
    """What a text argument of the tool holds."""
    about = f"{offer.name} {offer.description}"
    if _CALCULATES.search(about) and (found := expressions(asked)):
        return found[0]
    if _FETCHES.search(about) and (url := _URL.search(asked)):
        return url[0].rstrip(".,;:!?")
    if quoted := re.search(r"[\"“]([^\"“”]{1,300})[\"”]", asked):
        return quoted[1]
    if not _SEARCHES.search(offer.name) and (named := _NAMED.search(asked)):
        return named[1]
    return one_line(asked, 300)
