"""Routes on what a run is to do: end, stand still, go on, try again."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api import examples
from app.api.openapi import answer, body, problems
from app.api.problems import Fault, Refused, refused_for
from app.api.reading import parse, read_object
from app.api.runs import RunOfPath, no_such_run
from app.api.schemas.answers import Run
from app.api.schemas.requests import RunRetry
from app.api.services import Services, Tenant, Wired
from app.api.showing import allowed_actions, run_of
from app.api.terms import check_terms, options_of, taken_over
from app.domain.budget import Budget
from app.domain.ids import RunId, TenantId
from app.domain.status import FINISHED, RunStatus, Seat, StopRequest
from app.storage.faults import tried_again
from app.storage.records import RunRecord
from app.storage.runs import lock_run
from app.storage.steering import Steered, request_cancel, request_pause, request_resume, retry_run

router = APIRouter(tags=["runs"])


def _answers(moved: str, before: str, example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        202: answer(moved, example),
        200: {"model": Run, **answer(before, example)},
        **problems("run_not_found", "invalid_transition"),
    }


@router.post(
    "/runs/{run_id}/cancel",
    operation_id="cancelRun",
    summary="Ask a run to end",
    status_code=202,
    responses=_answers(
        "The run, which is or will be cancelled.", "It was cancelled, or asked to, before.", examples.CANCELLED_RUN
    ),
)
async def cancel_run(response: Response, services: Wired, tenant: Tenant, run_id: RunOfPath) -> Run:
    """A run that no worker holds is cancelled at once; otherwise its worker cuts the calls in flight and ends it."""
    run, moved = await _steer(services, tenant, run_id, request_cancel)
    if not moved:
        if run.status in FINISHED and run.status is not RunStatus.CANCELLED:
            raise _refused(run, f"The run is {run.status}: it cannot be cancelled any more.")
        response.status_code = 200
    return run_of(run)


@router.post(
    "/runs/{run_id}/pause",
    operation_id="pauseRun",
    summary="Ask a run to stand still",
    status_code=202,
    responses=_answers(
        "The run, which is or will be paused.", "It was paused, or asked to, before.", examples.PAUSED_RUN
    ),
)
async def pause_run(response: Response, services: Wired, tenant: Tenant, run_id: RunOfPath) -> Run:
    """Calls in flight come to their end and nothing else starts, until the run is resumed."""
    run, moved = await _steer(services, tenant, run_id, request_pause)
    if not moved:
        _refuse_ending(run, "paused")
        response.status_code = 200
    return run_of(run)


@router.post(
    "/runs/{run_id}/resume",
    operation_id="resumeRun",
    summary="Let a paused run go on",
    status_code=202,
    responses=_answers("The run, which goes on by itself.", "It was going on before.", examples.RUNNING_RUN),
)
async def resume_run(response: Response, services: Wired, tenant: Tenant, run_id: RunOfPath) -> Run:
    """A request to pause that has not been followed yet is taken back."""
    run, moved = await _steer(services, tenant, run_id, request_resume)
    if not moved:
        _refuse_ending(run, "resumed")
        if run.status is RunStatus.AWAITING_REVIEW:
            raise _refused(run, f"The run waits for a person: answer its review, see /runs/{run.id}/reviews.")
        response.status_code = 200
    return run_of(run)


@router.post(
    "/runs/{run_id}/retry",
    operation_id="retryRun",
    summary="Have a failed or cancelled run go on",
    status_code=202,
    responses={
        202: answer("The run, which goes on by itself.", examples.RETRIED_RUN),
        **problems(
            "run_not_found",
            "invalid_transition",
            "invalid_json",
            "body_too_large",
            "unsupported_media_type",
            "invalid_request",
            "unknown_field",
            "invalid_schema",
            "no_price",
            "unknown_tool",
            "budget_too_small",
        ),
    },
    openapi_extra=body(RunRetry, {"nothing changed": {}, "larger budget": examples.RUN_RETRY}, required=False),
)
async def retry_one_run(*, request: Request, services: Wired, tenant: Tenant, run_id: RunOfPath) -> Run:
    """What succeeded is kept and never run again; failed and cancelled tasks begin anew, with all their attempts.

    `options` and `budget` given here replace the run's one by one. What was used so far counts. The body may be empty.
    """
    wanted = parse(RunRetry, await read_object(request, optional=True))
    return run_of(await _retry(services, tenant, run_id, wanted))


@tried_again
async def _retry(services: Services, tenant: TenantId, run_id: RunId, wanted: RunRetry) -> RunRecord:
    async with services.database.write() as connection:
        run = await lock_run(connection, tenant, run_id)
        if run is None:
            raise no_such_run()
        if "retry" not in allowed_actions(run):
            raise _refused(run, f"The run is {run.status}: only a failed or cancelled one can be retried.")
        options, budget = taken_over(run.options, run.budget, wanted)
        check_terms(options, budget, services, given=wanted)
        _check_what_is_left(run, budget.model_dump())
        chosen = options_of(options)
        run = await retry_run(
            connection,
            run,
            options=chosen,
            budget=budget.model_dump(),
            model=services.settings.model_for(Seat.EXECUTOR, chosen),
        )
        await services.database.announce(connection, run_id)
    return run


@tried_again
async def _steer(
    services: Services,
    tenant: TenantId,
    run_id: RunId,
    request: Callable[[AsyncConnection, TenantId, RunId], Awaitable[Steered]],
) -> tuple[RunRecord, bool]:
    """The run after the request, and whether that did anything."""
    async with services.database.write() as connection:
        outcome = await request(connection, tenant, run_id)
        if outcome is None:
            raise no_such_run()
        run, moved = outcome
        if moved:
            await services.database.announce(connection, run_id)
    return run, moved


def _refuse_ending(run: RunRecord, wanted: str) -> None:
    if run.status in FINISHED:
        raise _refused(run, f"The run is {run.status}: it cannot be {wanted} any more.")
    if run.stop_requested is StopRequest.CANCEL:
        raise _refused(run, f"The run is being cancelled: it cannot be {wanted} any more.")


def _refused(run: RunRecord, detail: str) -> Refused:
    return Refused("invalid_transition", detail, allowed_actions=allowed_actions(run))


def _check_what_is_left(run: RunRecord, limits: dict[str, Any]) -> None:
    """Raises `Refused` for each limit that the run has reached: with it the run would end at once."""
    used = Budget(
        limits,
        llm_calls=run.llm_calls,
        tool_calls=run.tool_calls,
        tokens=run.input_tokens + run.output_tokens,
        cost_nano_usd=run.cost_nano_usd or 0,
        active_ms=run.active_ms,
    )
    faults = list(_used_up(used, limits))
    if faults:
        raise refused_for(faults)


def _used_up(budget: Budget, limits: dict[str, Any]) -> Iterator[Fault]:
    for name in limits:
        limit, use = budget.limit(name), budget.use_of(name, 0)
        # No tool call needs to be made, so a run may go on with none left.
        if limit is not None and use >= limit and name != "max_tool_calls":
            message = f"The run has used {use} of `{name}`, which is {limit}: give a larger budget."
            yield Fault(code="budget_too_small", message=message, pointer=f"/budget/{name}")
