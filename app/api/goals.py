"""Routes on goals: asked, read, run again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api import examples
from app.api.client_plan import new_plan, plan_again
from app.api.conditions import Wait
from app.api.creation import KeyHeader, answer_made, key_of, made_earlier, make_once
from app.api.openapi import answer, body, problems
from app.api.pages import Paging
from app.api.problems import Refused
from app.api.reading import parse, read_object
from app.api.schemas.answers import Goal, GoalPage, Run
from app.api.schemas.requests import NewGoal, NewRun
from app.api.services import Tenant, Wired
from app.api.showing import goal_of
from app.api.terms import check_plan_again, check_terms, options_of, taken_over, tool_names
from app.api.unbuilt import refuse_unbuilt
from app.domain.generation import NewPlan
from app.domain.ids import GoalId, TenantId, parse_uuid
from app.domain.status import Mode, Seat
from app.storage.goals import create_goal, get_goal, list_goals
from app.storage.records import RunRecord
from app.storage.runs import FirstRun, create_run, get_run

router = APIRouter(tags=["goals"])

_BODY_PROBLEMS = (
    "invalid_json",
    "idempotency_in_progress",
    "run_deleted",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "unknown_field",
    "plan_invalid",
    "invalid_schema",
    "no_price",
    "unknown_tool",
    "invalid_idempotency_key",
    "idempotency_key_reused",
)
_MADE_HEADERS = ("Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied")
_MADE: dict[int | str, dict[str, Any]] = {
    202: answer("The run, which goes on by itself.", examples.QUEUED_RUN, *_MADE_HEADERS),
    200: {"model": Run, **answer("`Prefer: wait` saw the run finish.", examples.SUCCEEDED_RUN, *_MADE_HEADERS)},
}


def _no_such_goal() -> Refused:
    return Refused("goal_not_found", "There is no goal with this id.")


async def _goal_of_path(
    goal_id: Annotated[str, Path(json_schema_extra={"format": "uuid"}, examples=[examples.GOAL_ID])],
) -> GoalId:
    parsed = parse_uuid(goal_id)
    if parsed is None:
        raise _no_such_goal()
    return GoalId(parsed)


GoalOfPath = Annotated[GoalId, Depends(_goal_of_path)]


@router.post(
    "/goals",
    operation_id="createGoal",
    summary="Ask for something",
    response_model=Run,
    status_code=202,
    responses={**_MADE, **problems(*_BODY_PROBLEMS, "context_too_large", "not_supported")},
    openapi_extra=body(
        NewGoal,
        {
            "goal": examples.NEW_GOAL,
            "with tools": examples.NEW_GOAL_WITH_TOOLS,
            "own plan": examples.NEW_GOAL_WITH_PLAN,
        },
    ),
)
async def create_new_goal(
    *, request: Request, services: Wired, tenant: Tenant, wait: Wait = None, key: KeyHeader = None
) -> Response:
    """Stores the goal and its first run, which goes on by itself: poll it, or send `Prefer: wait=N`.

    With an `Idempotency-Key` a repeated request makes nothing new and answers with the run in its current state.
    """
    sent = await read_object(request)
    goal = parse(NewGoal, sent)
    refuse_unbuilt(goal)
    once = key_of(key, "createGoal", sent)
    try:
        check_terms(goal.options, goal.budget, services)
        plan = None if goal.plan is None else new_plan(goal.plan, tools=tool_names(services))
    except Refused:
        # Tools come and go: what is refused now may have been taken before.
        if (earlier := await made_earlier(services, tenant, once)) is None:
            raise
        return await answer_made(request, services, earlier, replayed=True, wait=wait)
    options = options_of(goal.options, plan)
    first = FirstRun(
        tenant_id=tenant,
        goal=goal.goal,
        context=goal.context,
        mode=Mode(goal.mode),
        options=options,
        budget=goal.budget.model_dump(),
        metadata=goal.metadata,
        model=services.settings.model_for(Seat.EXECUTOR, options),
    )
    if once is None and plan is None:
        run = await services.intake.take(first)
        return await answer_made(request, services, run, replayed=False, wait=wait)

    # A key may have to wait for another transaction, and a plan is large: neither is for others to wait for.
    async def make(connection: AsyncConnection) -> RunRecord:
        goal_id = await create_goal(connection, tenant, goal=goal.goal, context=goal.context, metadata=goal.metadata)
        return await create_run(
            connection,
            tenant,
            goal_id,
            mode=first.mode,
            options=first.options,
            budget=first.budget,
            metadata=first.metadata,
            model=first.model,
            plan=plan,
        )

    run, replayed = await make_once(services, tenant, once, make)
    return await answer_made(request, services, run, replayed=replayed, wait=wait)


@router.get(
    "/goals",
    operation_id="listGoals",
    summary="Goals, newest first",
    responses={
        200: answer("Goals.", examples.page_of(examples.GOAL)),
        **problems("invalid_request", "invalid_cursor"),
    },
)
async def list_all_goals(services: Wired, tenant: Tenant, paging: Paging) -> GoalPage:
    """Each with the ids of its runs, oldest first."""
    before = paging.uuid("goals")
    async with services.database.read() as connection:
        found = await list_goals(
            connection, tenant, limit=paging.fetch, before=None if before is None else GoalId(before)
        )
    return GoalPage(**paging.page("goals", found, lambda goal: goal.id, goal_of))


@router.get(
    "/goals/{goal_id}",
    operation_id="getGoal",
    summary="A goal",
    responses={200: answer("The goal.", examples.GOAL), **problems("goal_not_found")},
)
async def get_one_goal(services: Wired, tenant: Tenant, goal_id: GoalOfPath) -> Goal:
    """What was asked, with the ids of its runs, oldest first."""
    async with services.database.read() as connection:
        goal = await get_goal(connection, tenant, goal_id)
    if goal is None:
        raise _no_such_goal()
    return goal_of(goal)


@router.post(
    "/goals/{goal_id}/runs",
    operation_id="rerunGoal",
    summary="Run a goal again",
    response_model=Run,
    status_code=202,
    responses={**_MADE, **problems("goal_not_found", *_BODY_PROBLEMS)},
    openapi_extra=body(NewRun, {"nothing changed": {}, "fewer at once": examples.NEW_RUN}, required=False),
)
async def run_goal_again(
    *,
    request: Request,
    services: Wired,
    tenant: Tenant,
    goal_id: GoalOfPath,
    wait: Wait = None,
    key: KeyHeader = None,
) -> Response:
    """A fresh run of the goal, as its newest run was: nothing of earlier runs' work is reused.

    `options` and `budget` given here replace that run's one by one, `metadata` replaces all of it. If a client drew
    that run's first plan, the plan is used again unless `plan` is given; with `"plan": null` one is drawn. `mode` is
    `execute` unless given, so that the plan of a `plan_only` run can be executed. The body may be empty.
    """
    sent = await read_object(request, optional=True)
    wanted = parse(NewRun, sent)
    once = key_of(key, f"rerunGoal:{goal_id}", sent)
    try:
        plan = None if wanted.plan is None else new_plan(wanted.plan, tools=tool_names(services))
    except Refused:
        if (earlier := await made_earlier(services, tenant, once)) is None:
            raise
        return await answer_made(request, services, earlier, replayed=True, wait=wait)

    async def make(connection: AsyncConnection) -> RunRecord:
        before = await _earlier(connection, tenant, goal_id)
        options, budget = taken_over(before.options, before.budget, wanted)
        check_terms(options, budget, services, given=wanted)
        given = wanted.model_fields_set
        if "plan" not in given and before.plan is not None:
            check_plan_again(before.plan, services)
        walked = plan if "plan" in given else before.plan
        chosen = options_of(options, walked)
        return await create_run(
            connection,
            tenant,
            goal_id,
            mode=Mode(wanted.mode),
            options=chosen,
            budget=budget.model_dump(),
            metadata=wanted.metadata if "metadata" in given else before.metadata,
            model=services.settings.model_for(Seat.EXECUTOR, chosen),
            plan=walked,
        )

    run, replayed = await make_once(services, tenant, once, make)
    return await answer_made(request, services, run, replayed=replayed, wait=wait)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Earlier:
    """What a fresh run takes after."""

    options: dict[str, Any]
    budget: dict[str, Any]
    metadata: Mapping[str, str]
    plan: NewPlan | None


async def _earlier(connection: AsyncConnection, tenant: TenantId, goal_id: GoalId) -> _Earlier:
    """The goal's newest run, or the defaults when all its runs were deleted."""
    goal = await get_goal(connection, tenant, goal_id)
    if goal is None:
        raise _no_such_goal()
    newest = await get_run(connection, tenant, goal.run_ids[-1], with_context=False) if goal.run_ids else None
    if newest is None:
        return _Earlier(options={}, budget={}, metadata=goal.metadata, plan=None)
    return _Earlier(
        options=dict(newest.options),
        budget=dict(newest.budget),
        metadata=newest.metadata,
        plan=await plan_again(connection, tenant, newest.id),
    )
