"""From a model's text to proposed tasks, or to a clear problem."""

from collections.abc import Sequence
from typing import Any

from app.agents.json_reading import Unreadable, read_answer
from app.domain.plan import PlannedTask
from app.domain.text import says_nothing, storable

_OTHER_NAMES = frozenset({"dependencies", "dependsOn", "depends", "dependency", "deps", "requires", "after"})


def read_plan(text: str, *, with_tools: bool = False) -> list[PlannedTask]:
    """The tasks that the text proposes, not yet validated as a graph.

    Takes `{"tasks": [...]}` or a bare array, alone, in a fence or within prose; ids may be integers, a single
    dependency a bare string, a task without dependencies may leave them out, and so with tools. Only `with_tools` are
    tools looked at: where none were offered, the word is one of the model's own, like any other that nobody asked for.
    Raises `Unreadable` (`not_json`, `no_tasks`).
    """
    return read_tasks(tasks_in(read_answer(text, tasks_in, word="plan")), with_tools=with_tools)


def read_tasks(entries: Sequence[Any] | None, *, with_tools: bool = False) -> list[PlannedTask]:
    """The entries of a list of tasks. Raises `Unreadable` where there is none or one cannot be understood."""
    if entries is None:
        raise Unreadable("no_tasks", 'The JSON holds no list of tasks; answer {"tasks": [...]}.')
    return [_task(entry, n, with_tools=with_tools) for n, entry in enumerate(entries)]


def tasks_in(value: Any) -> list[Any] | None:
    """The list of tasks that a JSON value is, or holds under `tasks`."""
    if isinstance(value, dict) and isinstance(value.get("tasks"), list):
        return list(value["tasks"])
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return value
    return None


def _task(entry: Any, index: int, *, with_tools: bool) -> PlannedTask:
    """The entry as a task; where a field has the wrong type, validation will name it as empty or invalid."""
    fields = entry if isinstance(entry, dict) else {}
    said = fields.get("description")
    description = storable(said) if isinstance(said, str) and not says_nothing(said) else ""
    if "depends_on" not in fields and (other := _OTHER_NAMES.intersection(fields)):
        # Read as a task without dependencies, it would start before what it needs.
        raise Unreadable("not_json", f"Task {index + 1}: say `depends_on`, not `{min(other)}`.")
    return PlannedTask(
        id=read_id(fields.get("id")),
        description=description,
        depends_on=_listed(fields.get("depends_on"), f"Task {index + 1}: depends_on is not a list of ids."),
        tools=_listed(fields.get("tools"), f"Task {index + 1}: tools is not a list of names.") if with_tools else (),
    )


def _listed(value: Any, wrong: str) -> tuple[str, ...]:
    """Ids or names, each once; a single one may stand alone."""
    if value is None:
        return ()
    listed = [value] if isinstance(value, str | int) and not isinstance(value, bool) else value
    if not isinstance(listed, list):
        raise Unreadable("not_json", wrong)
    return tuple(dict.fromkeys(read_id(entry) for entry in listed))


def read_id(value: Any) -> str:
    """Strings as they are, integers in digits; anything else is no id, which validation reports."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**100:
        return str(value)
    return ""
