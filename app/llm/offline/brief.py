"""Reading a request: which seat asks, and the goal, context, results and task that it holds."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.domain.status import Seat
from app.llm.chat import ChatRequest

_MARK = re.compile(r"<(?:result|context)-(\w{1,64})[ >]")
_TASK_PLACE = "\n\nYour task: "
_TASK_LINE = re.compile(r"^(?:your |failed |the )?(?:task|description)[^:\n]{0,40}:\s*(\S.*)$", re.I | re.M)


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    """What a request comes down to. `results` are by label; `question` is the last thing that a user wrote."""

    seat: Seat | None
    instructions: str
    question: str
    goal: str
    task: str = ""
    context: str = ""
    results: Mapping[str, str] = field(default_factory=dict)
    asked_again: bool = False

    @property
    def asked(self) -> str:
        """The very thing to be done."""
        return self.task or self.goal


def read(request: ChatRequest, tool_results: Sequence[tuple[str, str]] = ()) -> Brief:
    """The brief in the request; a chat that is none of Planwave's is taken at its last user message."""
    instructions = "\n".join(m.content for m in request.messages if m.role == "system")
    asked = [m.content for m in request.messages if m.role == "user"] or [""]
    seat = _seat(request, instructions, asked[0])
    results = {
        f"{n}. {name}" if len(tool_results) > 1 else name: text for n, (name, text) in enumerate(tool_results, 1)
    }
    if seat is None:
        return Brief(seat=None, instructions=instructions, question=asked[-1], goal=asked[-1], results=results)
    first = asked[0]
    blocks = _blocks(first, instructions)
    start = min((at for at, *_ in blocks), default=len(first))
    end = max((stop for _, stop, *_ in blocks), default=0)
    goal, task = first[:start], ""
    if seat is Seat.EXECUTOR:
        place = first.find(_TASK_PLACE, end)
        if place >= 0:
            goal, task = first[: min(start, place)], first[place + len(_TASK_PLACE) :]
    elif seat is Seat.RECOVERY:
        named = _TASK_LINE.search(first)
        task = named[1] if named else ""
    elif seat is Seat.SYNTHESIZER:
        goal = re.split(r"\n\n(?:Earlier tasks whose results|Write the answer to the goal\.)", goal)[0]
    contexts = [text for _, _, kind, _, text in blocks if kind == "context"]
    given = {label: text for _, _, kind, label, text in blocks if kind == "result"}
    return Brief(
        seat=seat,
        instructions=instructions,
        question=asked[-1],
        goal=re.sub(r"^\s*Goal(?: of the plan)?:\s?", "", goal, count=1).strip(),
        task=task.strip(),
        context="\n".join(contexts),
        results=given | results,
        asked_again=len(asked) > 1,
    )


def _seat(request: ChatRequest, instructions: str, first: str) -> Seat | None:
    named = {name.lower(): value for name, value in request.headers.items()}.get("x-planwave-seat", "").lower()
    if named in set(Seat):
        return Seat(named)
    schema = dict(request.response.schema) if request.response else {}
    fields = schema.get("properties", {})
    if "strategy" in fields:
        return Seat.RECOVERY
    if first.startswith("Goal of the plan:") and _TASK_PLACE in first:
        return Seat.EXECUTOR
    if first.startswith("Goal:") and first.endswith("Write the answer to the goal."):
        return Seat.SYNTHESIZER
    if "depends_on" in instructions or ("tasks" in fields and "depends_on" in json.dumps(schema)):
        return Seat.PLANNER
    return None


def _blocks(text: str, instructions: str) -> list[tuple[int, int, str, str, str]]:
    """Start, end, kind, label and text of each marked block; the instructions name the mark, a text cannot."""
    mark = _MARK.search(instructions) or _MARK.search(text)
    if mark is None:
        return []
    tag = re.escape(mark[1])
    block = re.compile(rf'<(result|context)-{tag}(?: task=("(?:[^"\\\n]|\\.)*"))?>\n(.*?)\n</\1-{tag}>', re.DOTALL)
    found = []
    for n, match in enumerate(block.finditer(text), 1):
        label = str(json.loads(match[2])) if match[2] else str(n)
        found.append((match.start(), match.end(), match[1], label, match[3]))
    return found
