"""A plan as somebody proposes it: tasks that name each other, and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.text import storable


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTask:
    """One task of a proposed plan; ids are the plan's own and become keys when it is stored.

    `depends_on` and `tools` name nothing twice.
    """

    id: str
    description: str
    depends_on: tuple[str, ...] = ()
    critical: bool = True
    tools: tuple[str, ...] = ()
    output_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanProblem:
    """One thing that is wrong with a plan, said so that a client or a model can mend it.

    `pointer` is a JSON pointer into the plan (`/tasks/3/depends_on/0`), `path` the cycle where there is one.
    """

    code: str
    message: str
    pointer: str
    task_id: str | None = None
    path: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The problem as an entry of an error's or event's `errors`, in text that every database takes."""
        entry: dict[str, Any] = {"code": self.code, "message": storable(self.message), "pointer": self.pointer}
        if self.task_id is not None:
            entry["task_id"] = storable(self.task_id)
        if self.path:
            entry["path"] = [storable(task_id) for task_id in self.path]
        return entry
