"""Whether proposed tasks form a plan, and the shape of one that does: waves and critical path."""

import graphlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from app.domain.plan import PlannedTask, PlanProblem

Key = TypeVar("Key", bound=str)

MAX_ID_CHARACTERS = 200
MAX_DEPENDENCIES = 200_000  # of all tasks: a row each, written in one transaction that other writers wait for
_MAX_CYCLES = 20  # each costs a pass over what is left; nobody mends more than these at a time
_MAX_LISTED_TOOLS = 30


def validate(
    tasks: Sequence[PlannedTask],
    *,
    min_tasks: int,
    max_tasks: int,
    known_keys: Collection[str] = frozenset(),
    tools: Collection[str] = frozenset(),
) -> list[PlanProblem]:
    """Everything that keeps these tasks from being a plan, in the order a reader meets it; empty when it is one.

    `known_keys` are tasks of earlier generations that a dependency may name; an id of the plan itself wins over them.
    `tools` are those that a task may name.
    """
    if not tasks:
        return [PlanProblem(code="empty", message="The plan has no tasks; give at least one.", pointer="/tasks")]
    problems = _wrong_count(len(tasks), min_tasks, max_tasks)
    dependencies = sum(len(task.depends_on) for task in tasks)
    if dependencies > MAX_DEPENDENCIES:
        message = f"The plan has {dependencies} dependencies, more than the {MAX_DEPENDENCIES} allowed."
        return [*problems, PlanProblem(code="too_many_dependencies", message=message, pointer="/tasks")]
    ids = {task.id for task in tasks}
    allowed = frozenset(tools)
    seen: set[str] = set()
    for index, task in enumerate(tasks):
        problems += _wrong_in_itself(task, index, repeated=task.id in seen)
        problems += _wrong_dependencies(task, index, ids, known_keys)
        problems += _wrong_tools(task, index, allowed)
        seen.add(task.id)
    return problems + _cycles(tasks, ids)


def is_valid_id(task_id: str) -> bool:
    """1..200 characters, no `/` (ids stand in URLs), no control characters or lone surrogates."""
    return 0 < len(task_id) <= MAX_ID_CHARACTERS and not any(
        c == "/" or c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in task_id
    )


def depths(dependencies: Mapping[Key, Iterable[Key]], known: Mapping[Key, int] | None = None) -> dict[Key, int]:
    """The wave of each task: 1 + the longest path of dependencies before it. `known` holds waves of earlier tasks."""
    waves = dict(known or {})
    for task_id in _order(dependencies):
        waves[task_id] = 1 + max((waves[d] for d in dependencies[task_id]), default=0)
    return {task_id: waves[task_id] for task_id in dependencies}


def critical_path(dependencies: Mapping[Key, Sequence[Key]]) -> tuple[Key, ...]:
    """The longest chain of these tasks, by count; among equals the one that the plan names first."""
    inside = {i: [d for d in deps if d in dependencies] for i, deps in dependencies.items()}
    waves = depths(inside)
    if not waves:
        return ()
    last = max(waves, key=lambda i: waves[i])
    path = [last]
    while before := inside[path[-1]]:
        path.append(max(before, key=lambda i: waves[i]))
    return tuple(reversed(path))


def _order(dependencies: Mapping[Key, Iterable[Key]]) -> list[Key]:
    # graphlib makes a node of every name it meets: keep those that are tasks of this plan.
    return [i for i in graphlib.TopologicalSorter(dependencies).static_order() if i in dependencies]


def _wrong_count(count: int, min_tasks: int, max_tasks: int) -> list[PlanProblem]:
    if count > max_tasks:
        message = f"The plan has {count} tasks, more than the {max_tasks} allowed; merge tasks."
        return [PlanProblem(code="too_many_tasks", message=message, pointer="/tasks")]
    if count < min_tasks:
        message = f"The plan has {count} task(s), fewer than the {min_tasks} asked for; split tasks."
        return [PlanProblem(code="too_few_tasks", message=message, pointer="/tasks")]
    return []


def _wrong_in_itself(task: PlannedTask, index: int, *, repeated: bool) -> list[PlanProblem]:
    problems = []
    at = f"/tasks/{index}"
    if not is_valid_id(task.id):
        message = (
            f"Task {index + 1} has an invalid id: ids have 1 to {MAX_ID_CHARACTERS} characters, "
            "without '/' and control characters."
        )
        problems.append(PlanProblem(code="invalid_id", message=message, pointer=f"{at}/id", task_id=task.id[:80]))
    elif repeated:
        message = f"More than one task has the id '{task.id}'; give each its own."
        problems.append(PlanProblem(code="duplicate_id", message=message, pointer=f"{at}/id", task_id=task.id))
    if not task.description.strip():
        message = f"Task '{task.id[:80]}' has no description; say what is to be done."
        problems.append(
            PlanProblem(code="empty_description", message=message, pointer=f"{at}/description", task_id=task.id[:80])
        )
    return problems


def _wrong_dependencies(
    task: PlannedTask, index: int, ids: Collection[str], known_keys: Collection[str]
) -> list[PlanProblem]:
    problems = []
    for n, dependency in enumerate(task.depends_on):
        pointer = f"/tasks/{index}/depends_on/{n}"
        if dependency == task.id:
            message = f"Task '{task.id[:80]}' depends on itself."
            problems.append(PlanProblem(code="self_dependency", message=message, pointer=pointer, task_id=task.id[:80]))
        elif dependency not in ids and dependency not in known_keys:
            message = f"Task '{task.id[:80]}' depends on '{dependency[:80]}', which is not a task of the plan."
            problems.append(
                PlanProblem(code="unknown_dependency", message=message, pointer=pointer, task_id=task.id[:80])
            )
    return problems


def _wrong_tools(task: PlannedTask, index: int, allowed: frozenset[str]) -> list[PlanProblem]:
    problems = []
    for n, tool in enumerate(task.tools):
        if tool not in allowed:
            message = f"Task '{task.id[:80]}' names the tool '{tool[:80]}', but {_may_be_named(allowed)}."
            pointer = f"/tasks/{index}/tools/{n}"
            problems.append(PlanProblem(code="unknown_tool", message=message, pointer=pointer, task_id=task.id[:80]))
    return problems


def _may_be_named(tools: frozenset[str]) -> str:
    if not tools:
        return "no tools may be used"
    names = [f"'{name}'" for name in sorted(tools)[:_MAX_LISTED_TOOLS]]
    more = f" and {len(tools) - len(names)} more" if len(tools) > len(names) else ""
    return f"the tools that may be used are {', '.join(names)}{more}"


def _cycles(tasks: Sequence[PlannedTask], ids: Collection[str]) -> list[PlanProblem]:
    """One problem per cycle that shares no task with one reported before it."""
    index = {task.id: n for n, task in reversed(list(enumerate(tasks)))}
    left: dict[str, list[str]] = {i: [] for i in index}
    for task in tasks:
        left[task.id] += [d for d in task.depends_on if d in ids and d != task.id]
    problems: list[PlanProblem] = []
    while left and len(problems) < _MAX_CYCLES:
        try:
            graphlib.TopologicalSorter(left).prepare()
        except graphlib.CycleError as error:
            # graphlib lists each task before the one that depends on it: turn it round, so that "->" reads "needs".
            path = tuple(reversed(error.args[1]))
            first = min(range(len(path) - 1), key=lambda n: index[path[n]])
            path = (*path[first:-1], *path[: first + 1])
            message = "These tasks wait for each other: " + " -> ".join(f"'{i[:80]}'" for i in path) + "."
            problems.append(
                PlanProblem(
                    code="cycle",
                    message=message,
                    pointer=f"/tasks/{index[path[0]]}/depends_on",
                    task_id=path[0],
                    path=path,
                )
            )
            cut = set(path)
            left = {i: [d for d in deps if d not in cut] for i, deps in left.items() if i not in cut}
        else:
            break
    return sorted(problems, key=lambda problem: index[problem.path[0]])
