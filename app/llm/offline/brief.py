"""Reading a request: which seat asks, and the goal, context, results and task that it holds."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.domain.status import Seat
from app.llm.chat import ChatRequest, Message, ToolOffer

_MARK = re.compile(r"<[a-z]{1,20}-(\w{1,64})[ >]")
_TASK_PLACE = "\n\nYour task: "
_USED_UP = re.compile(r"^Used up: ([^.\n]*)\.", re.M)
_NEEDS = re.compile(r"\n\nIt depends on (\[.*\])\.(?=\n|$)")
_TASK_LINE = re.compile(r"^(?:your |failed |the )?(?:task|description)[^:\n]{0,40}:\s*(\S.*)$", re.I | re.M)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A task that recovery is told of: one that failed, or one that a new plan would replace."""

    key: str
    description: str
    depends_on: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    """What a request comes down to. `results` are by label; `question` is the last thing that a user wrote.

    `missing` are the tasks without a result; `replaced` is what a new plan would replace, what failed first; `used_up`
    is the text that names the strategies which are no longer open. `tools` may be given to the tasks of a plan.
    `tools_answered` says that tools have given some of the results.
    """

    seat: Seat | None
    instructions: str
    question: str
    goal: str
    task: str = ""
    context: str = ""
    results: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    replaced: Sequence[Listed] = ()
    used_up: str = ""
    asked_again: bool = False
    tools: Sequence[ToolOffer] = ()
    tools_answered: bool = False

    @property
    def asked(self) -> str:
        """The very thing to be done."""
        return self.task or self.goal


def read(request: ChatRequest) -> Brief:
    """The brief in the request; a chat that is none of Planwave's is taken at its last user message."""
    instructions = "\n".join(m.content for m in request.messages if m.role == "system")
    asked = [m.content for m in request.messages if m.role == "user"] or [""]
    seat = _seat(request, instructions, asked[0])
    given_by_tools = _tool_results(request.messages, instructions, one_task=seat is Seat.EXECUTOR)
    results = {
        f"{n}. {name}" if len(given_by_tools) > 1 else name: text for n, (name, text) in enumerate(given_by_tools, 1)
    }
    if seat is None:
        return Brief(
            seat=None,
            instructions=instructions,
            question=asked[-1],
            goal=asked[-1],
            results=results,
            tools_answered=bool(results),
        )
    first = asked[0]
    blocks = _blocks(first, instructions)
    start = min((at for at, *_ in blocks), default=len(first))
    end = max((stop for _, stop, *_ in blocks), default=0)
    goal, task, replaced, used_up, tools = first[:start], "", [], None, []
    if seat in (Seat.PLANNER, Seat.RECOVERY):
        with suppress(ValueError, LookupError, TypeError):  # no request of ours
            tools = _tools(blocks)
    if seat is Seat.EXECUTOR:
        place = first.find(_TASK_PLACE, end)
        if place >= 0:
            goal, task = first[: min(start, place)], first[place + len(_TASK_PLACE) :]
    elif seat is Seat.RECOVERY:
        goal = goal.split("\n\nFailed task ")[0]
        with suppress(ValueError, LookupError, TypeError):  # no request of ours
            replaced = _replaced(first, blocks)
        used_up = _USED_UP.search(first, end)
        named = _TASK_LINE.search(first)
        task = replaced[0].description if replaced else named[1] if named else ""
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
        missing=[label for _, _, kind, label, _ in blocks if kind == "missing"],
        replaced=replaced,
        used_up=used_up[1] if used_up else "",
        asked_again=len(asked) > 1,
        tools=tools,
        tools_answered=bool(results),
    )


def _tool_results(messages: Sequence[Message], instructions: str, *, one_task: bool) -> list[tuple[str, str]]:
    """Names and texts of what tools gave: for the one task of the chat, or since the last thing that a user wrote."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    found: list[tuple[str, str]] = []
    for message in messages:
        if message.role == "user" and not one_task:
            found = []
        elif message.role == "tool":
            blocks = _blocks(message.content, instructions)
            text = "\n".join(body for *_, body in blocks) if blocks else message.content
            found.append((names.get(message.tool_call_id or "") or message.tool_call_id or "tool", text))
    return found


def _seat(request: ChatRequest, instructions: str, first: str) -> Seat | None:
    named = {name.lower(): value for name, value in request.headers.items()}.get("x-planwave-seat", "").lower()
    if named in set(Seat):
        return Seat(named)
    schema = dict(request.response.schema) if request.response else {}
    fields = schema.get("properties", {})
    if "strategy" in fields or (first.startswith("Goal:") and "\n\nFailed task " in first):
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
    block = re.compile(
        rf'<([a-z]{{1,20}})-{tag}(?: [a-z]{{1,20}}=("(?:[^"\\\n]|\\.)*"))?>\n(.*?)\n</\1-{tag}>', re.DOTALL
    )
    found = []
    for n, match in enumerate(block.finditer(text), 1):
        label = str(json.loads(match[2])) if match[2] else str(n)
        found.append((match.start(), match.end(), match[1], label, match[3]))
    return found


def _tools(blocks: Sequence[tuple[int, int, str, str, str]]) -> list[ToolOffer]:
    """What a plan's tasks may be given. A plan is not told of arguments: one text each is as good a guess as any."""
    takes_text = {"properties": {"text": {"type": "string"}}}
    lines = [line for _, _, kind, _, body in blocks if kind == "tools" for line in body.split("\n")]
    return [
        ToolOffer(name=entry["name"], description=entry["description"], parameters=takes_text)
        for entry in map(json.loads, lines)
    ]


def _replaced(text: str, blocks: Sequence[tuple[int, int, str, str, str]]) -> list[Listed]:
    """What failed, and what is listed as to be replaced with it."""
    found = []
    for _, stop, kind, label, body in blocks:
        if kind == "task":
            needs = _NEEDS.match(text, stop)
            found.append(Listed(key=label, description=body, depends_on=json.loads(needs[1]) if needs else ()))
        elif kind == "tasks":
            entries = (json.loads(line) for line in body.split("\n"))
            found += [
                Listed(key=entry["task"], description=entry["description"], depends_on=entry["depends_on"])
                for entry in entries
                if entry["state"] == "to be replaced"
            ]
    return found
