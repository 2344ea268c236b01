"""What is asked of a model about failed tasks, and whether its answer can be used."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, assert_never

from app.agents.briefing import away_words, block, context_blocks, prompt, result_blocks, share
from app.agents.json_reading import Unreadable, read_answer
from app.agents.plan_reading import read_id, read_tasks, tasks_in
from app.agents.planner import AWAY, Rejection, asked_again, closed, tasks_schema, tool_rules, tools_block
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.recovery import Asked
from app.domain.replan import Circumstances, problems_of, words_of
from app.domain.status import Strategy, TaskStatus
from app.domain.text import says_nothing, shortened, storable
from app.llm.chat import Message, ResponseSchema, ToolOffer

_MAX_FAILED = 50
_MAX_OTHERS = 500
_MAX_ERROR_CHARACTERS = 20_000
_MAX_DONE_CHARACTERS = 20_000
_DONE = (
    "What its tool calls have done outside already, one call to a line, is not undone: whatever you choose must not "
    "have it done again."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedTask:
    """A task that something has to be done about; `description` as last worded, `errors` oldest first.

    `done` says of each tool call that has changed something outside, or may have, what it did; oldest first.
    """

    key: TaskKey
    description: str
    errors: Sequence[str]
    depends_on: Sequence[TaskKey] = ()
    tools: Sequence[str] = ()
    done: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherTask:
    """Another task of the run, which goes on or would be replaced."""

    key: TaskKey
    description: str
    status: TaskStatus
    result: str | None = None
    depends_on: Sequence[TaskKey] = ()
    tools: Sequence[str] = ()
    skip_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Reword:
    """Run the task again in these words."""

    description: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Go on without the task."""


@dataclass(frozen=True, slots=True)
class Replan:
    """Put these tasks in the place of what failed, and drop these, which it names."""

    tasks: tuple[PlannedTask, ...]
    drop: tuple[str, ...]


Recovery = Reword | Skip | Replan


def prompt_hash(asked: Asked, *, with_tools: bool = False) -> str:
    """Of the instructions in force."""
    return sha256(_instructions(asked, with_tools=with_tools, mark="").encode()).hexdigest()[:12]


def response_schema(asked: Asked, tools: Sequence[ToolOffer] = ()) -> ResponseSchema:
    """The JSON that the answer should be; new tasks may be given `tools`."""
    text, keys = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    match asked:
        case Asked.RETRY:
            fields: dict[str, Any] = {"description": text}
        case Asked.REPLAN:
            fields = {"tasks": tasks_schema(tools), "drop": keys}
        case Asked.AUTO:
            unused = {"type": "null"}
            fields = {
                "strategy": {"type": "string", "enum": [strategy.value for strategy in Strategy]},
                "description": {"anyOf": [text, unused]},
                "tasks": {"anyOf": [tasks_schema(tools), unused]},
                "drop": {"anyOf": [keys, unused]},
            }
        case _:
            assert_never(asked)
    return ResponseSchema(name="recovery", schema=closed(fields))


# What is asked.


def messages(
    *,
    goal: str,
    context: Any,
    asked: Asked,
    task: FailedTask,
    also_failed: Sequence[FailedTask],
    others: Sequence[OtherTask],
    used_up: Collection[Strategy],
    instructions: str | None,
    rejections: Sequence[Rejection],
    limit: int,
    mark: str,
    replaced: Collection[TaskKey] = (),
    max_tasks: int | None = None,
    tools: Sequence[ToolOffer] = (),
    away: Sequence[str] = (),
) -> list[Message]:
    """The request about a failed task, and about the others that wait with it.

    A replan would replace the unstarted tasks among `others` that depend on a failed one or stand in `replaced`;
    `used_up` are the strategies that are no longer open, `instructions` the words of a person, `max_tasks` the most
    that a replan may hold, `tools` those that its tasks may be given, `away` those that are not there. Results,
    descriptions and context have `limit` characters each.
    """
    offered = () if asked is Asked.RETRY else tools
    failed = [task, *also_failed]
    behind = set() if asked is Asked.RETRY else _behind({t.key for t in failed} | set(replaced), others)
    shown = _shown(failed, others, behind)
    results: dict[str, str] = {t.key: t.result for t in shown if t.result is not None}
    parts = [
        f"Goal: {goal}",
        *context_blocks(context, mark=mark, limit=limit),
        *tools_block(offered, mark=mark),
        *away_words(away, AWAY),
        *_failures(failed, asked, mark=mark),
        *_standing(shown, len(others), behind, limit=limit, mark=mark),
        *result_blocks(results, limit=limit, mark=mark),
        *_rules(asked, used_up, max_tasks),
        *([] if instructions is None else [f"A person has looked at this and says: {instructions}"]),
    ]
    return [
        Message(role="system", content=_instructions(asked, with_tools=bool(offered), mark=mark)),
        Message(role="user", content="\n\n".join(parts)),
        *asked_again(rejections, word="answer"),
    ]


def _instructions(asked: Asked, *, with_tools: bool, mark: str) -> str:
    template = prompt(f"recovery_{asked.value}")
    text = template.fill(mark=mark, task_rules=prompt("recovery_tasks").text)
    return text + tool_rules(mark=mark) if with_tools and asked is not Asked.RETRY else text


def _behind(failed: Collection[TaskKey], others: Sequence[OtherTask]) -> set[TaskKey]:
    """The unstarted tasks that cannot run as they are once these are replaced."""
    dependents: dict[TaskKey, list[TaskKey]] = {}
    unstarted = {t.key for t in others if t.status is TaskStatus.PENDING}
    for other in others:
        for needed in other.depends_on:
            dependents.setdefault(needed, []).append(other.key)
    behind: set[TaskKey] = set()
    reached = list(failed)
    while reached:
        for key in [k for k in dependents.get(reached.pop(), ()) if k in unstarted and k not in behind]:
            behind.add(key)
            reached.append(key)
    return behind | (unstarted & set(failed))


def _shown(failed: Sequence[FailedTask], others: Sequence[OtherTask], behind: Collection[TaskKey]) -> list[OtherTask]:
    """The tasks to tell of, in their order: of thousands, those that bear on the failed ones before the rest."""
    near = {key for t in failed for key in t.depends_on} | set(behind)
    chosen = sorted(range(len(others)), key=lambda n: (others[n].key not in near, n))[:_MAX_OTHERS]
    return [others[n] for n in sorted(chosen)]


def _failures(failed: Sequence[FailedTask], asked: Asked, *, mark: str) -> list[str]:
    parts = []
    told = failed[:_MAX_FAILED]
    errors = iter(share([error for t in told for error in t.errors], _MAX_ERROR_CHARACTERS))
    done = share(["\n".join(" ".join(line.split()) for line in t.done) for t in told], _MAX_DONE_CHARACTERS)
    for n, t in enumerate(told):
        if n == 1 and asked is Asked.AUTO:
            parts.append(
                "These failed too. A new plan takes their place as well; any other choice leaves them for later."
            )
        parts += [f"Failed task {t.key}:", block("task", t.description, mark=mark, label=t.key)]
        if t.depends_on:
            parts.append(f"It depends on {json.dumps(list(t.depends_on), ensure_ascii=False)}.")
        if t.tools:
            parts.append(f"It may use the tools {json.dumps(list(t.tools), ensure_ascii=False)}.")
        parts += [block("error", next(errors), mark=mark, label=t.key) for _ in t.errors]
        if t.done:
            parts += [_DONE, block("done", done[n], mark=mark, label=t.key)]
    if len(failed) > len(told):
        parts.append(f"So did {len(failed) - len(told)} more tasks.")
    return parts


def _standing(
    shown: Sequence[OtherTask], count: int, behind: Collection[TaskKey], *, limit: int, mark: str
) -> list[str]:
    """Where the other tasks stand, one JSON object to a line."""
    if not shown:
        return []
    lines = []
    for other, description in zip(shown, share([t.description for t in shown], limit), strict=True):
        state = "to be replaced" if other.key in behind else _state(other.status)
        told = {"task": other.key, "state": state, "description": description, "depends_on": list(other.depends_on)}
        if other.tools:
            told["tools"] = list(other.tools)
        if other.skip_reason is not None:
            told["reason"] = other.skip_reason
        lines.append(json.dumps(told, ensure_ascii=False))
    heading = "The other tasks:" if len(shown) == count else f"{len(shown)} of the {count} other tasks:"
    return [heading, block("tasks", "\n".join(lines), mark=mark)]


def _state(status: TaskStatus) -> str:
    match status:
        case TaskStatus.SUCCEEDED:
            return "done"
        case TaskStatus.RUNNING | TaskStatus.RETRYING:
            return "running"
        case TaskStatus.PENDING:
            return "waiting"
        case TaskStatus.AWAITING_REVIEW:
            return "waiting for a person"
        case TaskStatus.SKIPPED | TaskStatus.FAILED | TaskStatus.CANCELLED | TaskStatus.SUPERSEDED:
            return status.value
        case _:
            assert_never(status)


def _rules(asked: Asked, used_up: Collection[Strategy], max_tasks: int | None) -> list[str]:
    """What this request alone bounds."""
    rules = []
    if asked is Asked.AUTO and used_up:
        names = " and ".join(f'"{strategy}"' for strategy in Strategy if strategy in used_up)
        left = " or ".join(f'"{strategy}"' for strategy in Strategy if strategy not in used_up)
        rules.append(f"Used up: {names}. To choose that gives the task up for good; still open: {left or 'nothing'}.")
    if max_tasks is not None and asked is not Asked.RETRY:
        rules.append(f"A new plan holds at most {max_tasks} tasks.")
    return rules


# What is answered.


def read(
    text: str, *, asked: Asked, circumstances: Circumstances, tools: Collection[str] = ()
) -> Recovery | list[PlanProblem]:
    """What the answer says is to be done, or everything that keeps it from being done.

    Beside the full form, a bare `{"description"}` is taken where a rewording was asked for, and `{"tasks"}` or a bare
    array where a new plan was. Fields that the strategy does not use are ignored, and
    what is said of tools where the goal names none; `tools` are those that it names.
    """
    try:
        answer = read_answer(text, lambda value: _answer_in(value, asked), word="answer")
        strategy = _strategy(answer, asked)
        match strategy:
            case Strategy.RETRY:
                return _reword(answer.get("description"), circumstances)
            case Strategy.SKIP:
                return Skip()
            case Strategy.REPLAN:
                tasks, drop = read_tasks(tasks_in(answer), with_tools=bool(tools)), _drop(answer)
            case _:
                assert_never(strategy)
    except Unreadable as unreadable:
        return [unreadable.problem]
    return problems_of(tasks, drop, circumstances, tools=tools) or Replan(tuple(tasks), drop)


def _answer_in(value: Any, asked: Asked) -> Any:
    """The value where it has the form that was asked for."""
    if isinstance(value, dict):
        plain = {Asked.RETRY: "description", Asked.REPLAN: "tasks", Asked.AUTO: "strategy"}[asked]
        return value if plain in value or "strategy" in value else None
    return tasks_in(value) if asked is Asked.REPLAN else None


def _strategy(answer: Any, asked: Asked) -> Strategy:
    """The strategy that the answer names or means."""
    if answer is None:
        form = {Asked.RETRY: "description", Asked.REPLAN: "tasks", Asked.AUTO: "strategy"}[asked]
        code = {Asked.RETRY: "empty_description", Asked.REPLAN: "no_tasks", Asked.AUTO: "wrong_strategy"}[asked]
        raise Unreadable(code, f"The JSON holds no `{form}`; answer in the form that was asked for.")
    named = answer.get("strategy") if isinstance(answer, dict) else None
    if named is None and asked is not Asked.AUTO:
        return Strategy(asked.value)
    allowed = list(Strategy) if asked is Asked.AUTO else [Strategy(asked.value)]
    found = named.strip().lower() if isinstance(named, str) else ""
    if found not in allowed:
        words = " or ".join(f'"{strategy}"' for strategy in allowed)
        raise Unreadable("wrong_strategy", f"The strategy '{shortened(found, 80)}' was not asked for; give {words}.")
    return Strategy(found)


def _reword(said: Any, circumstances: Circumstances) -> Reword | list[PlanProblem]:
    description = storable(said).strip() if isinstance(said, str) else ""
    if says_nothing(description):
        message = "The new wording is missing; say the whole task anew in `description`."
        return [PlanProblem(code="empty_description", message=message, pointer="/description")]
    if words_of(description) in {words_of(failed) for failed, _ in circumstances.failed.values()}:
        message = "The new wording is that of the task that failed, which would fail again; word it in another way."
        return [PlanProblem(code="same_as_failed", message=message, pointer="/description")]
    return Reword(description)


def _drop(answer: Any) -> tuple[str, ...]:
    drop = answer.get("drop") if isinstance(answer, dict) else None
    if isinstance(drop, str):
        drop = [drop]
    if drop is not None and not isinstance(drop, list):
        raise Unreadable("not_json", "`drop` is not a list of task keys.")
    return tuple(dict.fromkeys(read_id(key) for key in drop or ()))
