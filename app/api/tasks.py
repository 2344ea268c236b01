"""Routes on tasks."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.api import examples
from app.api.openapi import answer, problems
from app.api.pages import MAX_INTEGER_POSITION, OptionalNumber, Paging
from app.api.problems import Refused
from app.api.runs import RunOfPath, require_run
from app.api.schemas.answers import Task, TaskPage
from app.api.services import Tenant, Wired
from app.api.showing import task_of
from app.domain.graph import MAX_ID_CHARACTERS, is_valid_id
from app.domain.ids import TaskKey
from app.domain.status import TaskStatus
from app.storage.tasks import get_task, list_attempts, list_tasks
from app.storage.tool_calls import list_tool_calls

router = APIRouter(tags=["tasks"])

_MAX_KEY_CHARACTERS = len(str(MAX_INTEGER_POSITION)) + 1 + MAX_ID_CHARACTERS


@router.get(
    "/runs/{run_id}/tasks",
    operation_id="listTasks",
    summary="A run's tasks in plan order",
    responses={
        200: answer("Tasks of all generations.", examples.page_of(examples.TASK)),
        **problems("run_not_found", "invalid_request", "invalid_cursor"),
    },
)
async def list_tasks_of_run(
    *,
    services: Wired,
    tenant: Tenant,
    run_id: RunOfPath,
    paging: Paging,
    generation: Annotated[OptionalNumber, Query(description="Only tasks that this generation added.")] = None,
    status: Annotated[Sequence[TaskStatus], Query(description="Only these; may be repeated.")] = (),
) -> TaskPage:
    """`attempts` is null here: ask for a task by its key to see them."""
    kind = f"tasks {run_id}"
    position = paging.integer(kind)
    async with services.database.read() as connection:
        found = await list_tasks(
            connection,
            tenant,
            run_id,
            limit=paging.fetch,
            after=-1 if position is None else position,
            generation=generation,
            statuses=status,
        )
        if not found:
            await require_run(connection, tenant, run_id)
    return TaskPage(**paging.page(kind, found, lambda task: task.position, task_of))


@router.get(
    "/runs/{run_id}/tasks/{task_key}",
    operation_id="getTask",
    summary="A task with its attempts and tool calls",
    responses={
        200: answer("The task.", examples.TASK_WITH_ATTEMPTS),
        **problems("run_not_found", "task_not_found"),
    },
)
async def get_task_of_run(
    services: Wired,
    tenant: Tenant,
    run_id: RunOfPath,
    task_key: Annotated[str, Path(description="`GENERATION.ID`, percent-encoded.", examples=["0.1"])],
) -> Task:
    """Every attempt with the wording it was given, the tools it called, what spoiled it, and what it used."""
    async with services.database.read() as connection:
        task = None
        if _can_be_key(task_key):
            task = await get_task(connection, tenant, run_id, TaskKey(task_key))
        if task is None:
            await require_run(connection, tenant, run_id)
            raise Refused("task_not_found", "The run has no task with this key.")
        attempts = await list_attempts(connection, tenant, run_id, [task.key])
        tool_calls = await list_tool_calls(connection, tenant, run_id, task.key)
    return task_of(task, attempts[task.key], tool_calls)


def _can_be_key(text: str) -> bool:
    generation, _, task_id = text.partition(".")
    return generation.isascii() and generation.isdecimal() and len(text) <= _MAX_KEY_CHARACTERS and is_valid_id(task_id)
