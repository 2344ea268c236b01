"""Routes on runs: read, listed, deleted."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BeforeValidator, WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api import examples
from app.api.conditions import RETRY_AFTER_SECONDS, IfNoneMatch, OptionalId, OptionalTime, Wait, etag_of, matches
from app.api.openapi import answer, header_refs, problems
from app.api.pages import Paging
from app.api.problems import Fault, Refused
from app.api.schemas.answers import Run, RunPage, RunWithTasks
from app.api.services import Services, Tenant, Wired
from app.api.showing import allowed_actions, answer_shown, run_of, run_with_tasks_of
from app.domain.ids import GoalId, RunId, TenantId, parse_uuid
from app.domain.status import FINISHED, RunStatus
from app.domain.text import is_storable
from app.storage.faults import tried_again
from app.storage.plans import get_plan
from app.storage.records import RunRecord, TaskRecord
from app.storage.runs import RunFilter, delete_run, get_run, get_version, list_runs
from app.storage.tasks import list_tasks

router = APIRouter(tags=["runs"])

_MAX_TASKS_SHOWN = 500
_METADATA_FILTER = re.compile(r"metadata\[(.+)\]", re.DOTALL)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?", re.IGNORECASE | re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Only runs with all these entries: `metadata[ticket]=42`.",
    "schema": {"type": "object", "propertyNames": {"minLength": 1}, "additionalProperties": {"type": "string"}},
}


def _run_of_path(text: str) -> RunId:
    parsed = parse_uuid(text)
    if parsed is None:
        raise no_such_run()
    return RunId(parsed)


# Checked by a validator: a dependency of its own costs a request several times as much.
RunOfPath = Annotated[
    RunId,
    BeforeValidator(_run_of_path),
    WithJsonSchema({"type": "string", "format": "uuid", "examples": [examples.RUN_ID]}),
    Path(),
]


class Include(StrEnum):
    """What a run can be shown with."""

    TASKS = "tasks"


def no_such_run() -> Refused:
    """The 404 for a run that is not there, or another tenant's."""
    return Refused("run_not_found", "There is no run with this id.")


async def require_run(connection: AsyncConnection, tenant: TenantId, run_id: RunId) -> tuple[int, RunStatus]:
    """The run's version and status; raises `Refused` when there is none."""
    found = await get_version(connection, tenant, run_id)
    if found is None:
        raise no_such_run()
    return found


async def until(
    services: Services,
    request: Request,
    tenant: TenantId,
    run_id: RunId,
    met: Callable[[int, RunStatus], bool],
    *,
    seconds: int,
) -> tuple[int, RunStatus]:
    """The run's version and status once they are `met`, or as they are after these seconds."""

    async def given_up() -> bool:
        return services.draining.is_set() or await request.is_disconnected()

    found = await services.watch.until(
        met,
        tenant_id=tenant,
        run_id=run_id,
        for_its_end=met is is_finished,
        timeout_seconds=seconds,
        given_up=given_up,
    )
    if found is None:
        raise no_such_run()
    return found


def is_finished(version: int, status: RunStatus) -> bool:
    """What `Prefer: wait` waits for where nothing else is said."""
    return status in FINISHED


@router.get(
    "/runs",
    operation_id="listRuns",
    summary="Runs, newest first",
    responses={
        200: answer("Runs.", examples.page_of(examples.RUNNING_RUN)),
        **problems("invalid_request", "invalid_cursor"),
    },
    openapi_extra={"parameters": [_METADATA_PARAMETER]},
)
async def list_all_runs(
    *,
    request: Request,
    services: Wired,
    tenant: Tenant,
    paging: Paging,
    status: Annotated[Sequence[RunStatus], Query(description="Only these; may be repeated.")] = (),
    goal_id: Annotated[OptionalId, Query(description="Only of this goal.")] = None,
    created_after: Annotated[OptionalTime, Query(description="Only later ones.")] = None,
    created_before: Annotated[OptionalTime, Query(description="Only earlier ones.")] = None,
) -> RunPage:
    """`metadata[ticket]=42` shows the runs with this entry in their metadata; several must all be there."""
    where = RunFilter(
        statuses=status,
        goal_id=_goal_id(goal_id),
        created_after=_milliseconds("created_after", created_after),
        created_before=_milliseconds("created_before", created_before),
        metadata=_metadata(request.query_params.multi_items()),
    )
    before = paging.uuid("runs")
    async with services.database.read() as connection:
        found = await list_runs(
            connection, tenant, limit=paging.fetch, before=None if before is None else RunId(before), where=where
        )
    return RunPage(**paging.page("runs", found, lambda run: run.id, run_of))


@router.get(
    "/runs/{run_id}",
    operation_id="getRun",
    response_model=RunWithTasks | Run,
    summary="A run as it stands",
    responses={
        200: answer("The run.", examples.RUNNING_RUN, "ETag", "Retry-After", "Preference-Applied"),
        304: {
            "description": "What you have is still right.",
            "headers": header_refs("ETag", "Retry-After", "Preference-Applied"),
        },
        **problems("run_not_found", "invalid_request"),
    },
)
async def get_one_run(
    *,
    request: Request,
    services: Wired,
    tenant: Tenant,
    run_id: RunOfPath,
    wait: Wait = None,
    if_none_match: IfNoneMatch = None,
    include: Annotated[
        Sequence[Include], Query(description="`tasks`: the newest generation and what it carries, at most 500.")
    ] = (),
) -> Response:
    """Made for polling: with `If-None-Match` an unchanged run costs one small read.

    `Prefer: wait=N` waits until the run is finished or, with `If-None-Match`, until its version differs from that.
    """
    with_tasks = Include.TASKS in include

    def differs(version: int, status: RunStatus) -> bool:
        return not matches(if_none_match or "", etag_of(version, with_tasks=with_tasks))

    if if_none_match is not None or wait:

        def finished_or_differs(version: int, status: RunStatus) -> bool:
            return is_finished(version, status) or differs(version, status)

        met = is_finished if if_none_match is None else finished_or_differs
        version, status = await until(services, request, tenant, run_id, met, seconds=wait or 0)
        if if_none_match is not None and not differs(version, status):
            return Response(status_code=304, headers=_polling_headers(version, status, wait, with_tasks=with_tasks))
    async with services.database.read() as connection:
        run = await get_run(connection, tenant, run_id, with_context=False)
        if run is None:
            raise no_such_run()
        tasks = await _newest_tasks(connection, run) if with_tasks else []
    shown = run_with_tasks_of(run, tasks, most=_MAX_TASKS_SHOWN) if with_tasks else run_of(run)
    headers = _polling_headers(run.version, run.status, wait, with_tasks=with_tasks)
    return answer_shown(shown, headers=headers)


@router.delete(
    "/runs/{run_id}",
    operation_id="deleteRun",
    summary="Delete a finished run",
    status_code=204,
    response_description="The run is gone, with all that it held; its goal stays.",
    responses=problems("run_not_found", "run_not_finished"),
)
@tried_again
async def delete_one_run(services: Wired, tenant: Tenant, run_id: RunOfPath) -> None:
    """Cancel a run first that is not finished."""
    async with services.database.write() as connection:
        run = await delete_run(connection, tenant, run_id)
        if run is None:
            raise no_such_run()
        if run.status not in FINISHED:
            detail = f"The run is {run.status}; cancel it, or wait for its end."
            raise Refused("run_not_finished", detail, allowed_actions=allowed_actions(run))
        await services.database.announce(connection, run_id, requested=False)


async def _newest_tasks(connection: AsyncConnection, run: RunRecord) -> list[TaskRecord]:
    if run.generation is None:
        return []
    plan = await get_plan(connection, run.tenant_id, run.id, run.generation) if run.generation else None
    return await list_tasks(
        connection,
        run.tenant_id,
        run.id,
        limit=_MAX_TASKS_SHOWN + 1,
        generation=run.generation,
        keys=() if plan is None else plan.carried,
        with_results=False,
    )


def _polling_headers(version: int, status: RunStatus, wait: int | None, *, with_tasks: bool) -> dict[str, str]:
    headers = {"ETag": etag_of(version, with_tasks=with_tasks)}
    if status not in FINISHED:
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    return headers


def _goal_id(text: str | None) -> GoalId | None:
    if text is None:
        return None
    parsed = parse_uuid(text)
    if parsed is None:
        raise _bad("goal_id", "This is no id.")
    return GoalId(parsed)


def _milliseconds(name: str, text: str | None) -> int | None:
    """An ISO 8601 time, taken as UTC where it names no offset, in milliseconds since 1970."""
    if text is None:
        return None
    wrong = _bad(name, "Give an ISO 8601 time such as 2026-01-01T00:00:00.000Z.")
    if not _MOMENT.fullmatch(text):
        raise wrong
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        raise wrong from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def _metadata(query: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in query:
        if name.partition("[")[0] == "metadata":
            key = _METADATA_FILTER.fullmatch(name)
            if key is None:
                raise _bad(name, "Filter by metadata as in `metadata[ticket]=42`.")
            if not is_storable(key[1] + value):
                raise _bad(name, "No metadata holds NUL.")
            found[key[1]] = value
    return found


def _bad(name: str, message: str) -> Refused:
    return Refused("invalid_request", message, errors=[Fault(code="invalid_parameter", message=message, query=name)])
