"""What a new generation may hold and drop, given how the run stands; what its dropping takes along."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.graph import validate
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem

Known = Mapping[TaskKey, tuple[str, frozenset[str]]]
"""Tasks of the run: what each says as last worded, and the keys that it depends on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """How a run stands when a new generation is proposed.

    `failed` are the tasks that it is about, `replaced` their unstarted dependents, which it supersedes; `carried` is
    every other live task, done, running or waiting, and `unstarted` are those of them that have not begun.
    """

    max_tasks: int
    failed: Known
    replaced: Known
    carried: Known
    unstarted: frozenset[TaskKey]


def problems_of(
    tasks: Sequence[PlannedTask],
    drop: Sequence[str],
    circumstances: Circumstances,
    *,
    tools: Collection[str] = frozenset(),
) -> list[PlanProblem]:
    """Everything that keeps these tasks from being the next generation; empty when they can be.

    Checked as hard as a first plan, with these `tools` and no others; beyond that nothing unknown is dropped, what
    failed is not tried again in the same words, and what is carried is not done twice. To drop a task that has begun,
    failed or is replaced is no problem.
    """
    gone = set(dropped(drop, circumstances))
    kept = {key: known for key, known in circumstances.carried.items() if key not in gone}
    problems = validate(tasks, min_tasks=1, max_tasks=circumstances.max_tasks, known_keys=kept, tools=tools)
    reasons = {
        **dict.fromkeys(circumstances.failed, "which failed and is replaced"),
        **dict.fromkeys(circumstances.replaced, "which is replaced with the failed task that it needs"),
        **dict.fromkeys(gone, "which this answer drops"),
    }
    problems = [_with_reason(problem, tasks, reasons) for problem in problems]
    problems += _unknown_drops(drop, circumstances)
    return problems + _repetitions(tasks, circumstances.failed, kept)


def dropped(drop: Collection[str], circumstances: Circumstances) -> list[TaskKey]:
    """The unstarted tasks that this drop supersedes: those named, and whatever unstarted task depends on one of them.

    A task that depends on a superseded one could never run.
    """
    dependents: dict[str, list[TaskKey]] = {}
    for key in circumstances.unstarted:
        for needed in circumstances.carried[key][1]:
            dependents.setdefault(needed, []).append(key)
    gone: set[TaskKey] = set()
    reached = [key for key in circumstances.unstarted if key in set(drop)]
    while reached:
        key = reached.pop()
        if key not in gone:
            gone.add(key)
            reached += dependents.get(key, ())
    return [key for key in circumstances.carried if key in gone]


def words_of(description: str) -> str:
    """What a description says, white space and case aside."""
    return " ".join(description.split()).casefold()


def _with_reason(problem: PlanProblem, tasks: Sequence[PlannedTask], reasons: Mapping[TaskKey, str]) -> PlanProblem:
    """The problem, said better where the dependency is a task that the new generation cannot build on."""
    if problem.code != "unknown_dependency":
        return problem
    _, _, index, _, n = problem.pointer.split("/")
    needed = tasks[int(index)].depends_on[int(n)]
    reason = reasons.get(TaskKey(needed), "which is neither a new task nor one of the run that goes on")
    return replace(problem, message=f"Task '{problem.task_id}' depends on '{needed[:80]}', {reason}.")


def _unknown_drops(drop: Sequence[str], circumstances: Circumstances) -> list[PlanProblem]:
    known = circumstances.carried.keys() | circumstances.failed.keys() | circumstances.replaced.keys()
    return [
        PlanProblem(
            code="unknown_drop",
            message=f"'{key[:80]}' cannot be dropped: the run has no such task.",
            pointer=f"/drop/{n}",
            task_id=key[:80],
        )
        for n, key in enumerate(drop)
        if key not in known
    ]


def _repetitions(tasks: Sequence[PlannedTask], failed: Known, carried: Known) -> list[PlanProblem]:
    """The tasks that say what another of the run says. One that needs a new task is itself another than any of them."""
    ids = {task.id for task in tasks}
    problems = []
    for known, code, advice in (
        (failed, "same_as_failed", "which failed, and would fail again; go about it in another way"),
        (carried, "repeats_task", "which the run has already; depend on '{}' instead"),
    ):
        said = {(words_of(description), needs): key for key, (description, needs) in reversed(list(known.items()))}
        for index, task in enumerate(tasks):
            key = said.get((words_of(task.description), frozenset(task.depends_on)))
            if key is not None and ids.isdisjoint(task.depends_on):
                message = f"Task '{task.id[:80]}' says the same as '{key}', {advice.format(key)}."
                pointer = f"/tasks/{index}/description"
                problems.append(PlanProblem(code=code, message=message, pointer=pointer, task_id=task.id[:80]))
    return problems
