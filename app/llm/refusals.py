"""What an endpoint's errors mean: by status, and where that says too little by their words."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from app.domain.errors import AuthFailed, CallRefused, ModelError, SpoiledAnswer, ToolsRefused, TransportFault
from app.domain.text import shortened
from app.llm.chat import ChatRequest

_MAX_HEADER_CHARACTERS = 64
_MAX_ERROR_CHARACTERS = 4_000
_TRANSIENT_STATUSES = {408, 409, 425, 429}
_FORMAT_WORDS = re.compile(
    r"response_format|json_schema|json_object|structured[ _]output|grammar constraint", re.IGNORECASE
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_TOOLLESS_STATUSES = {400, 404, 405, 422, 500, 501}
# One that is followed by its index or a field is a tool that is wrong, not tools that are not taken.
_FIELD = r"['\"`]?(?:tools|tool_choice|functions)\b(?!\s*\[|\.\w|['\"`]?, ?\d)['\"`]?"
_CALLING = rf"(?:{_FIELD}|['\"`]?\b(?:tool|function)[ _-]?(?:use|usage|call(?:s|ing)?|choice)\b['\"`]?)"
_NO_TOOLS = re.compile(
    "|".join(
        [
            # Ollama, Bedrock, DeepSeek; LiteLLM names the parameters.
            rf"(?:(?:does|do|can)(?: not|n't)|cannot) support (?:the |native )?(?:param\w*:? )?[\[{{(]?{_CALLING}"
            r"(?! (?:of|that|named|with names|larger|longer)\b)",
            # OpenAI, Groq, Mistral, Gemini.
            rf"{_CALLING}(?: param\w*| values?)?(?: (?:is|are))?(?: currently)?"
            r" (?:not (?:currently |yet )?|un)(?:supported|enabled|available|implemented|permitted|allowed)\b",
            # OpenAI and Azure, llama.cpp, servers in Go and Python.
            r"\b(?:unsupported|unrecognized|unknown|unexpected)(?: request| keyword)?"
            rf" (?:param\w*|arguments?|fields?|keys?|names?)(?: supplied)?:? [\[(]?{_FIELD}",
            # Pydantic: in its own words, as text, and as JSON Schema's validator has it.
            rf"{_FIELD}[)\]]?(?:: |, ['\"]msg['\"]: ['\"])extra (?:inputs|fields) (?:are )?not permitted",
            rf"additional properties are not allowed \({_FIELD} (?:was|were) unexpected",
            # vLLM, llama.cpp, OpenRouter.
            r"--enable-auto-tool-choice|--tool-call-parser",
            rf"{_CALLING} param\w* requires? --jinja",
            r"no endpoints found that support (?:tool use|the provided 'tool_choice')",
            # Templates that know no tools, or one call at a time, as llama.cpp and vLLM report them.
            r"jinja (?:exception|template)|at row \d+, column \d+:|only supports single tool-calls",
        ]
    ),
    re.IGNORECASE,
)
_NO_TOOL_MESSAGES = re.compile(
    r"roles must alternate|only (?:user|system)\b.{0,40}\broles are supported"
    r"|(?:unknown|unsupported|unexpected|invalid)(?: message)? role:? ['\"`]?tool\b",
    re.IGNORECASE,
)


def named(
    status: int, headers: Mapping[str, str], text: str, request: ChatRequest, *, asked_for_json: bool
) -> ModelError:
    """The error for the HTTP status that this request met, in the endpoint's own words where it has any."""
    code, words = _error_words(text)
    message = f"HTTP {status}: {shortened(words, 500)}" if words else f"HTTP {status}"
    if code == "tool_use_failed":  # Groq's word for calls that it could not read
        return SpoiledAnswer(message, kind="bad_tool_call")
    of_the_format = asked_for_json and _FORMAT_WORDS.search(text) is not None
    if request.tools and status in _TOOLLESS_STATUSES and not of_the_format and _refuses_tools(words, request):
        return ToolsRefused(message, kind="tools_refused")
    if status >= 500 and of_the_format:
        return CallRefused(message, kind="bad_request")  # some servers fail on a format instead of refusing it
    if status in _TRANSIENT_STATUSES or status >= 500:
        kind = "rate_limited" if status == 429 else f"http_{status}"
        return TransportFault(message, kind=kind, retry_after_seconds=_retry_after(status, headers))
    if status in (401, 403):
        return AuthFailed(message, kind="llm_auth_failed")
    if status == 404 or status < 400:
        return CallRefused(message, kind="not_found" if status == 404 else "redirected")
    if code == "context_length_exceeded":
        return CallRefused(message, kind=code)
    return CallRefused(message, kind="bad_request")


def _refuses_tools(words: str, request: ChatRequest) -> bool:
    """Whether the words say that tools, calls of them or their results are what the endpoint does not take."""
    if any(message.role == "tool" for message in request.messages) and _NO_TOOL_MESSAGES.search(words):
        return True
    return _NO_TOOLS.search(words) is not None


def _error_words(text: str) -> tuple[str | None, str]:
    """Code and message of an error body as OpenAI or FastAPI write it, or the start of whatever came instead."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        start = re.sub(r"<[^<>]*>", " ", text[:_MAX_ERROR_CHARACTERS])
        return None, shortened(" ".join(start.split()), 300)
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return None, str(error)[:_MAX_ERROR_CHARACTERS]
    code, message = error.get("code"), error.get("message") or _detail(error.get("detail"))
    return code if isinstance(code, str) else None, str(message or "")[:_MAX_ERROR_CHARACTERS]


def _detail(detail: object) -> object:
    """A list of problems as FastAPI gives it in words: where, and what; without the input, which is our own text."""
    if not isinstance(detail, list):
        return detail
    problems = [entry for entry in detail[:20] if isinstance(entry, dict)]
    return "; ".join(f"{_place(problem.get('loc'))}: {problem.get('msg')}" for problem in problems)


def _place(steps: object) -> str:
    return ".".join(str(step) for step in steps) if isinstance(steps, list) else "?"


def _retry_after(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks us to wait (RFC 9110 section 10.2.3, and what OpenAI adds to it)."""
    if (ms := _number(_header(headers, "retry-after-ms"))) is not None:
        return ms / 1000
    if value := _header(headers, "retry-after"):
        if (seconds := _number(value)) is not None:
            return seconds
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    if status != 429:
        return None
    waits = [
        sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(_header(headers, f"x-ratelimit-reset-{what}")))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "0") == "0"
    ]
    return max(waits, default=0.0) or None


def _header(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "")[:_MAX_HEADER_CHARACTERS]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
