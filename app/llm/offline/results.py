"""Reading results back: what an earlier result says, as lines that the next text can carry on."""

import json
import re
from collections.abc import Mapping

from app.llm.offline.extracts import distinct, one_line, sentences, telling

NOTE = "(Offline model: this arranges the words it was given; it has no knowledge of its own.)"
"""Ends whatever is not computed. A text with it is our own: its bullets are its content, the rest is frame."""

_BULLET = re.compile(r"^\s*(?:-|\d{1,3}\.)\s+(.*)$")
_VERB = re.compile(
    r"^(?:research|gather|list|look into|settle|work out|work on|describe|study|specify|define|find|choose|estimate|"
    r"note|say|plan the part on)\s+",
    re.I,
)
_SINGLE = re.compile(r"^(?:Answer the question|Do in one piece what the goal asks): ")


def title(text: str) -> str:
    """What a task or a result is about, in one line of at most 160 characters."""
    text = _SINGLE.sub("", without_note(text)[:2_000])
    line = next(iter(sentences(text)), "") or one_line(text, 100) or "No text"
    head = one_line(line if line.endswith(("?", "？")) else line.partition(": ")[0], 160).rstrip(".:")
    subject = _VERB.sub("", head)
    return subject[:1].upper() + subject[1:]


def points(task: str) -> list[str]:
    """What a description lists after its colon: `Settle the aims: date, place, and money`."""
    listed = re.split(r"[.!?](?:\s|$)", _SINGLE.sub("", task).partition(": ")[2].strip())[0]
    entries = [one_line(p, 100) for p in re.split(r",\s+(?:and\s+)?|;\s+", listed) if p.strip()]
    return entries[:6] if len(entries) > 1 else []


def carried(text: str, *, about: str, count: int = 3) -> list[str]:
    """The lines worth carrying on: `HEAD: point; point` from a text of ours, the telling sentences of any other."""
    if NOTE not in text:
        return telling(text, about=about, count=count, limit=240)
    head, lines = title(text), dict[str, list[str]]()
    for line in text.splitlines():
        if line.startswith("## "):
            head = line[3:].strip()
        elif bullet := _BULLET.match(line):
            before, colon, after = bullet[1].partition(": ")
            if bullet[1].endswith((".", "!", "?", "…")):
                lines[bullet[1]] = []  # a sentence stands for itself, a point needs its head
            else:
                lines.setdefault(before if colon else head, []).extend(after.split("; ") if colon else [before])
    return [f"{name}: {'; '.join(distinct(said))}" if said else name for name, said in lines.items()] or [head]


def sections(lines: list[str]) -> list[str]:
    """Carried lines as sections, a heading with its points each; plain sentences stay a list."""
    plain = [f"- {line}" for line in lines if "; " not in line.partition(": ")[2]]
    written = ["\n".join(plain)] if plain else []
    for line in lines:
        head, _, said = line.partition(": ")
        if "; " in said:
            written.append("\n".join([f"## {head}", *(f"- {point}" for point in said.split("; "))]))
    return written


def without_note(text: str) -> str:
    """The text without the closing note."""
    return text.replace(NOTE, "").strip()


def context_text(context: str) -> str:
    """A goal's context as lines: `name: value` for a JSON object."""
    try:
        fields = json.loads(context)
    except ValueError:
        return context
    if not isinstance(fields, Mapping):
        return context
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in fields.items()
    )
