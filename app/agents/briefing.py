"""How material from outside is laid into a request: marked, and within a bound of characters."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from app.domain.text import shortened
from app.llm.chat import Message

USUAL_LIMIT = 60_000
"""Characters that the material of one kind may take in a request, where nothing else is set."""

_MAX_TROUBLE_CHARACTERS = 4_000

# Unicode's Default_Ignorable_Code_Point (joiners, bidi controls, variation selectors, tags ...) and the marks of
# interlinear notes: people see nothing there, while a model reads whole sentences written in them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """An instruction text from `prompts/`; its hash is stored with what it produced."""

    text: str
    hash: str

    def fill(self, **values: str) -> str:
        """The text with its `{name}` places filled."""
        return self.text.format(**values)


@cache
def prompt(name: str) -> Prompt:
    """The prompt in `prompts/NAME.md`."""
    text = resources.files("app.agents").joinpath("prompts", f"{name}.md").read_text(encoding="utf-8").strip()
    return Prompt(text=text, hash=sha256(text.encode()).hexdigest()[:12])


def mark(secret: str) -> str:
    """Eight characters for a run's block marks, which a text in a block cannot foresee."""
    return sha256(f"planwave block {secret}".encode()).hexdigest()[:8]


def visible(text: str) -> str:
    """The text without characters that show nothing; what is stored stays as it is."""
    return _INVISIBLE.sub("", text)


def block(kind: str, text: str, *, mark: str, label: str | None = None) -> str:
    """The text between `<kind-mark>` lines, `visible`; one that holds the mark itself, in any case, has it replaced."""
    attribute = "" if label is None else f" task={_unmarked(_quoted(label), mark)}"
    return f"<{kind}-{mark}{attribute}>\n{_unmarked(visible(text), mark)}\n</{kind}-{mark}>"


def _unmarked(text: str, mark: str) -> str:
    return re.sub(re.escape(mark), "�", text, flags=re.IGNORECASE)


def _quoted(key: str) -> str:
    """The key as JSON, from which it can be read back: what shows nothing is written as escapes."""
    return _INVISIBLE.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(key, ensure_ascii=False))


def context_blocks(context: Any, *, mark: str, limit: int = USUAL_LIMIT) -> list[str]:
    """The goal's context as one block within `limit` characters; nothing where there is none."""
    if context is None or context == {}:
        return []
    (text,) = share([json.dumps(context, ensure_ascii=False, indent=1)], limit)
    return [block("context", text, mark=mark)]


def result_blocks(results: Mapping[str, str], *, limit: int, mark: str) -> list[str]:
    """One labelled block per result, together within `limit` characters."""
    return _labelled("result", results, limit=limit, mark=mark)


def missing_blocks(missing: Mapping[str, str], *, limit: int, mark: str) -> list[str]:
    """One labelled block per task that has no result, with the reason, together within `limit` characters."""
    return _labelled("missing", missing, limit=limit, mark=mark)


def rejected_block(trouble: str | None, *, mark: str) -> list[str]:
    """What was wrong with the last answer, in a block because it quotes that answer; nothing where nothing was."""
    return [] if trouble is None else [block("rejected", shortened(trouble, _MAX_TROUBLE_CHARACTERS), mark=mark)]


def away_words(names: Sequence[str], advice: str) -> list[str]:
    """What is said of tools that a goal names and that are not there now; nothing where all are."""
    return [f"Tools that you were to have are not there now: {', '.join(names)}. {advice}"] if names else []


def _labelled(kind: str, texts: Mapping[str, str], *, limit: int, mark: str) -> list[str]:
    shared = share(list(texts.values()), limit)
    return [block(kind, text, mark=mark, label=key) for key, text in zip(texts, shared, strict=True)]


def going_on(partial: str | None, *, limit: int) -> list[Message]:
    """The last `limit` characters of an answer that was cut off at a length limit, and the wish for the rest of it."""
    if not partial:
        return []
    return [
        Message(role="assistant", content=partial[-limit:]),
        Message(role="user", content=prompt("continue").text),
    ]


def asked_json(schema: Mapping[str, Any] | None) -> str:
    """The end of the instructions where the answer has to fit a client's JSON Schema; empty where it has not."""
    if schema is None:
        return ""
    return "\n\n" + prompt("output").fill(schema=json.dumps(schema, ensure_ascii=False))


def share(texts: Sequence[str], limit: int) -> list[str]:
    """The texts whole while they all fit; otherwise the long ones cut to equal shares, head and tail kept."""
    room, left = limit, len(texts)
    cap = limit
    for length in sorted(len(text) for text in texts):
        # Texts shorter than an equal share leave what they do not need to the longer ones.
        cap = room // left
        if length > cap:
            return [_cut(text, cap) for text in texts]
        room -= length
        left -= 1
    return list(texts)


def _cut(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    note = f"\n[... {len(text) - cap:,} or more of {len(text):,} characters cut here ...]\n"
    keep = cap - len(note)
    if keep < len(note):  # too little room to say so
        return shortened(text, cap) if cap else ""
    tail = keep // 3
    return text[: keep - tail] + note + text[len(text) - tail :]
