"""Routes on reviews: what a run asks of a person, and the answer."""

import asyncio
import json
from typing import Annotated, Any, assert_never
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.output import read_output
from app.api import examples
from app.api.client_plan import planned_tasks
from app.api.openapi import answer, body, problems
from app.api.pages import Paging
from app.api.problems import Fault, Refused
from app.api.reading import parse, read_object
from app.api.runs import RunOfPath, no_such_run, require_run
from app.api.schemas.answers import Review, ReviewPage
from app.api.schemas.requests import (
    AnyAnswer,
    EditingAnswer,
    InstructingAnswer,
    PlainAnswer,
    RetryingAnswer,
    ReviewAnswer,
    SupplyingAnswer,
)
from app.api.services import Services, Tenant, Wired
from app.api.showing import review_of
from app.domain.ids import RunId, TaskKey, TenantId, parse_uuid
from app.domain.status import FINISHED, ReviewKind, StopRequest, TaskStatus
from app.storage.faults import tried_again
from app.storage.plans import get_plan
from app.storage.records import ReviewRecord, RunRecord
from app.storage.reviews import answer_review, get_review, list_reviews
from app.storage.runs import lock_run
from app.storage.tasks import get_task, list_tasks

router = APIRouter(tags=["reviews"])

_GIVEN_UP = (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SUPERSEDED)
_ALL_TASKS = 2**31 - 1


def _no_such_review() -> Refused:
    return Refused("review_not_found", "The run has no review with this id.")


async def _review_of_path(
    review_id: Annotated[str, Path(json_schema_extra={"format": "uuid"}, examples=[examples.REVIEW_ID])],
) -> UUID:
    parsed = parse_uuid(review_id)
    if parsed is None:
        raise _no_such_review()
    return parsed


ReviewOfPath = Annotated[UUID, Depends(_review_of_path)]


@router.get(
    "/runs/{run_id}/reviews",
    operation_id="listReviews",
    summary="What a run asks of a person",
    responses={
        200: answer("Reviews.", examples.page_of(examples.REVIEW, examples.TOOL_REVIEW)),
        **problems("run_not_found", "invalid_request", "invalid_cursor"),
    },
)
async def list_reviews_of_run(services: Wired, tenant: Tenant, run_id: RunOfPath, paging: Paging) -> ReviewPage:
    """All that it ever asked, in the order of asking; `Run.open_reviews` counts those that nobody has answered."""
    kind = f"reviews {run_id}"
    async with services.database.read() as connection:
        found = await list_reviews(connection, tenant, run_id, limit=paging.fetch, after=paging.uuid(kind))
        if not found:
            await require_run(connection, tenant, run_id)
    return ReviewPage(**paging.page(kind, found, lambda review: review.id, review_of))


@router.get(
    "/runs/{run_id}/reviews/{review_id}",
    operation_id="getReview",
    summary="A review",
    responses={200: answer("The review.", examples.REVIEW), **problems("run_not_found", "review_not_found")},
)
async def get_review_of_run(services: Wired, tenant: Tenant, run_id: RunOfPath, review_id: ReviewOfPath) -> Review:
    """What is asked, what may be answered, and the answer once there is one."""
    async with services.database.read() as connection:
        return review_of(await _required(connection, tenant, run_id, review_id))


@router.post(
    "/runs/{run_id}/reviews/{review_id}",
    operation_id="answerReview",
    summary="Answer a review",
    responses={
        200: answer("The review with its answer.", examples.ANSWERED_REVIEW),
        **problems(
            "run_not_found",
            "review_not_found",
            "already_answered",
            "review_closed",
            "not_allowed",
            "plan_invalid",
            "invalid_schema",
            "output_schema_mismatch",
            "invalid_json",
            "body_too_large",
            "unsupported_media_type",
            "invalid_request",
            "unknown_field",
        ),
    },
    openapi_extra=body(ReviewAnswer, examples.REVIEW_ANSWERS),
)
async def answer_review_of_run(
    *, request: Request, services: Wired, tenant: Tenant, run_id: RunOfPath, review_id: ReviewOfPath
) -> Review:
    """The first answer counts. A run that waited for it goes on by itself; a paused one once it is resumed."""
    given = parse(ReviewAnswer, await read_object(request)).root
    return review_of(await _answer(services, tenant, run_id, review_id, given))


@tried_again
async def _answer(
    services: Services, tenant: TenantId, run_id: RunId, review_id: UUID, given: AnyAnswer
) -> ReviewRecord:
    async with services.database.write() as connection:
        run = await lock_run(connection, tenant, run_id)
        if run is None:
            raise no_such_run()
        review = await _required(connection, tenant, run_id, review_id)
        _check_open(run, review)
        if given.decision not in review.allowed_answers:
            message = f"This review takes: {', '.join(review.allowed_answers)}."
            fault = Fault(code="not_allowed", message=message, pointer="/decision")
            raise Refused("not_allowed", message, errors=[fault])
        await answer_review(connection, run, review, await _stored(connection, run, review, given))
        await services.database.announce(connection, run_id)
        return await _required(connection, tenant, run_id, review_id)


async def _required(connection: AsyncConnection, tenant: TenantId, run_id: RunId, review_id: UUID) -> ReviewRecord:
    review = await get_review(connection, tenant, run_id, review_id)
    if review is None:
        await require_run(connection, tenant, run_id)
        raise _no_such_review()
    return review


def _check_open(run: RunRecord, review: ReviewRecord) -> None:
    if review.answered_at is not None:
        raise Refused("already_answered", "Somebody has answered this review; the first answer counts.")
    ends = run.status in FINISHED or run.stop_requested is StopRequest.CANCEL
    if ends or review.closed_at is not None:
        raise Refused("review_closed", "Nobody waits for an answer any more.")


async def _stored(
    connection: AsyncConnection, run: RunRecord, review: ReviewRecord, given: AnyAnswer
) -> dict[str, Any]:
    """The answer as a worker will find it: the decision and what was given with it, checked against the run."""
    decision = {"decision": given.decision}
    match given:
        case PlainAnswer():
            return decision
        case InstructingAnswer():
            return decision | _if_given(instructions=given.instructions)
        case RetryingAnswer():
            if given.description is not None and review.kind is ReviewKind.TOOL_CALL:
                message = "The tool is called again just as it was: there are no other words for it."
                fault = Fault(code="unknown_field", message=message, pointer="/description")
                raise Refused("unknown_field", message, errors=[fault])
            return decision | _if_given(description=given.description)
        case SupplyingAnswer():
            if review.kind is not ReviewKind.TOOL_CALL:  # whose result is not the task's
                await _check_result(connection, run, review.task_key, given.result)
            return decision | {"result": given.result}
        case EditingAnswer():
            known_keys = await _keys_that_go_on(connection, run, review.generation or 0)
            tasks = planned_tasks(given.plan, known_keys, tools=run.options["tools"])
            kept = [
                {
                    "id": task.id,
                    "description": task.description,
                    "depends_on": list(task.depends_on),
                    "critical": task.critical,
                    "tools": list(task.tools),
                    "output_schema": task.output_schema,
                }
                for task in tasks
            ]
            return decision | {"plan": {"tasks": kept}}
        case _:
            assert_never(given)


def _if_given(**fields: str | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


async def _keys_that_go_on(connection: AsyncConnection, run: RunRecord, generation: int) -> set[TaskKey]:
    """The tasks that a plan in place of this generation may depend on."""
    if generation == 0:
        return set()
    tasks = await list_tasks(connection, run.tenant_id, run.id, limit=_ALL_TASKS, with_results=False)
    replaced = {task.key for task in tasks if task.generation == generation}
    for task in sorted(tasks, key=lambda task: task.wave):  # a task's dependencies stand in earlier waves
        if not replaced.isdisjoint(task.depends_on):
            replaced.add(task.key)
    return {task.key for task in tasks if task.key not in replaced and task.status not in _GIVEN_UP}


async def _check_result(connection: AsyncConnection, run: RunRecord, key: TaskKey | None, result: Any) -> None:
    """Raises `Refused` for a result that does not match the task's schema, or that of the run whose only task it is."""
    task = None if key is None else await get_task(connection, run.tenant_id, run.id, key)
    newest = await get_plan(connection, run.tenant_id, run.id)
    if task is None or newest is None:
        return
    of_run = run.options["output_schema"] if len(newest.added) + len(newest.carried) == 1 else None
    schema = task.output_schema if of_run is None else of_run
    if schema is None:
        return
    # On a thread: against some schemas it takes a second.
    _, problem = await asyncio.to_thread(read_output, json.dumps(result), schema)
    if problem is not None:
        fault = Fault(code="output_schema_mismatch", message=problem, pointer="/result")
        raise Refused("output_schema_mismatch", problem, errors=[fault])
