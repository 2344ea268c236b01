"""The names of things: who owns a run, which run, which task."""

from typing import NewType
from uuid import UUID

TenantId = NewType("TenantId", str)
GoalId = NewType("GoalId", UUID)
RunId = NewType("RunId", UUID)
TaskKey = NewType("TaskKey", str)
"""`GENERATION.ID`: the id a task has in its plan, made unique within its run."""

DEFAULT_TENANT = TenantId("default")
"""Owns everything until keys and tenants exist; part of every key from the first migration."""


def task_key(generation: int, task_id: str) -> TaskKey:
    """The key of the task that the plan of this generation calls `task_id`."""
    return TaskKey(f"{generation}.{task_id}")


def parse_uuid(text: str) -> UUID | None:
    """The UUID in its canonical 36-character form, or None: any other spelling is no id of ours."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None
