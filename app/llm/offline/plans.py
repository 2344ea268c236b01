"""Making a plan of as many tasks as the count rule asks out of a draft."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from app.llm.chat import ToolOffer
from app.llm.offline.brief import Brief
from app.llm.offline.drafts import Branch, draft
from app.llm.offline.extracts import joined, one_line
from app.llm.offline.goals import read_goal, settled_by_one_call
from app.llm.offline.toolcalls import wants

_RANGE = re.compile(r"(\d{1,6})\s*(?:to|and|-|–)\s*(\d{1,6})\s+tasks?\b", re.I)
_AIM = re.compile(r"\baim\b|\bwhere the goal is more\b", re.I)
_EXACTLY = re.compile(r"\bexactly\s+(\d{1,6})\s+task", re.I)
_AT_MOST = re.compile(r"\b(?:at most|up to|more than the)\s+(\d{1,6})\b", re.I)
_AT_LEAST = re.compile(r"\b(?:at least|fewer than the)\s+(\d{1,6})\b", re.I)

_QUOTED = re.compile(r"“[^“”]*”")

_T = TypeVar("_T")
_USUAL = 7
_ANGLES = ("what it is", "why it matters", "examples", "limits", "costs", "risks", "alternatives", "open questions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How many tasks a plan may have. A single task is always right for a simple goal where `least` is only an aim."""

    least: int
    most: int
    aim: bool = False


def bounds(instructions: str, problems: str = "") -> Bounds:
    """The count rule in the planner's instructions, made right by the problems that a re-ask lists."""
    found = Bounds(least=3, most=_USUAL, aim=True)
    exact = _EXACTLY.search(instructions)
    ranges = [
        Bounds(
            least=int(match[1]),
            most=int(match[2]),
            aim=_AIM.search(instructions[max(0, match.start() - 20) : match.end() + 40]) is not None,
        )
        for match in _RANGE.finditer(instructions)
    ]
    if exact:
        found = Bounds(least=int(exact[1]), most=int(exact[1]))
    elif ranges:
        found = next((rule for rule in ranges if not rule.aim), ranges[0])
    else:
        least, most = _AT_LEAST.search(instructions), _AT_MOST.search(instructions)
        if least or most:
            low = int(least[1]) if least else 1
            found = Bounds(least=low, most=int(most[1]) if most else max(low, _USUAL))
    least, most = _AT_LEAST.search(problems), _AT_MOST.search(problems)
    low = int(least[1]) if least else found.least
    high = int(most[1]) if most else found.most
    aim = found.aim and not least
    return Bounds(least=max(1, low if least else min(low, high)), most=max(1, high, low if least else 1), aim=aim)


def plan(text: str, rule: Bounds) -> list[dict[str, Any]]:
    """The tasks for the goal, within the rule: `id`, `description` and `depends_on` each."""
    single_will_do = rule.aim or rule.least <= 1
    if rule.most == 1 or (single_will_do and settled_by_one_call(text)):
        return [_task(1, _whole(text), [])]
    branches, steps = draft(read_goal(text))
    least, most = (1 if rule.aim else rule.least), min(rule.most, max(_USUAL, rule.least))
    step_count = max(1, min(len(steps), most - len(branches)))
    branch_count = min(len(branches), most - step_count)
    texts = [_merged(group) for group in _groups(branches, branch_count)]
    texts = _spread(texts, max(len(texts), least - step_count))
    tasks = [_task(n, text, []) for n, text in enumerate(texts, 1)]
    place: dict[int, int] = {}
    for group in _groups(list(enumerate(steps)), step_count):
        number = len(tasks) + 1
        place |= {index: number for index, _ in group}
        after = {place[before] for _, step in group for before in step.after} - {number}
        if any(not step.after for _, step in group):
            after |= set(range(1, len(texts) + 1))
        tasks.append(_task(number, " ".join(step.text for _, step in group), sorted(after)))
    return tasks


def with_tools(tasks: list[dict[str, Any]], tools: Sequence[ToolOffer]) -> list[dict[str, Any]]:
    """The tasks, each with the tools that its words plainly want; as they are where there are none to give."""
    if not tools:
        return tasks
    # A goal that is quoted says what the task is about, not what it does.
    own = [_QUOTED.sub("", task["description"]) for task in tasks]
    return [
        task | {"tools": [tool.name for tool in tools if wants(words, tool)]}
        for task, words in zip(tasks, own, strict=True)
    ]


def replan(brief: Brief) -> list[dict[str, Any]]:
    """What failed, put differently, and what depends on it as it was; one task where more were refused."""
    if brief.asked_again or not brief.replaced:
        return [_task(1, _whole(brief.asked), [])]
    numbers = {listed.key: str(n) for n, listed in enumerate(brief.replaced, 1)}
    return [
        _task(
            n,
            listed.description if numbers.keys() & set(listed.depends_on) else _whole(listed.description),
            [numbers.get(key, key) for key in listed.depends_on],
        )
        for n, listed in enumerate(brief.replaced, 1)
    ]


def _task(number: int, description: str, after: Sequence[int | str]) -> dict[str, Any]:
    return {"id": str(number), "description": description, "depends_on": [str(n) for n in after]}


def _whole(text: str) -> str:
    goal = one_line(text, 1_000) or "the goal"
    return (
        f"Answer the question: {goal}" if goal.endswith(("?", "？")) else f"Do in one piece what the goal asks: {goal}"
    )


def _groups(entries: list[_T], count: int) -> list[list[_T]]:
    """The entries in `count` runs of nearly equal length."""
    size, larger = divmod(len(entries), count)
    ends = [n * size + min(n, larger) for n in range(count + 1)]
    return [entries[start:end] for start, end in pairwise(ends)]


def _merged(branches: list[Branch]) -> str:
    first = branches[0]
    if all((b.verb, b.rest) == (first.verb, first.rest) for b in branches):
        return f"{first.verb} {joined([b.part for b in branches])}{first.rest}"
    return " ".join(f"{b.verb} {b.part}{b.rest}" for b in branches)


def _spread(texts: list[str], count: int) -> list[str]:
    """At least `count` texts: each asked from several angles where there are too few."""
    if count <= len(texts):
        return texts
    spread = []
    for index, group in enumerate(_groups(list(range(count)), len(texts))):
        for n in range(len(group)):
            angle = f" Share {n + 1} of {len(group)}: {_ANGLES[n % len(_ANGLES)]}."
            spread.append(texts[index] + (angle if len(group) > 1 else ""))
    return spread
