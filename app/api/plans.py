"""Routes on plans: the generations of a run."""

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api import examples, mermaid
from app.api.conditions import RETRY_AFTER_SECONDS
from app.api.openapi import answer, problems
from app.api.pages import OptionalNumber, Paging
from app.api.problems import Refused
from app.api.runs import RunOfPath, require_run
from app.api.schemas.answers import Plan, PlanPage
from app.api.services import Tenant, Wired
from app.api.showing import plan_of
from app.domain.ids import RunId, TenantId
from app.domain.status import FINISHED
from app.storage.plans import get_plan, list_plans, usage_by_generation
from app.storage.records import PlanRecord, TaskRecord
from app.storage.tasks import list_tasks
from app.storage.tool_calls import tool_calls_by_generation

router = APIRouter(tags=["plans"])


class PlanFormat(StrEnum):
    """How a plan is shown."""

    JSON = "json"
    MERMAID = "mermaid"


_AS_MERMAID: dict[str, Any] = {mermaid.MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.MERMAID}}
_PLAN_ANSWER = answer("The plan.", examples.PLAN)


@router.get(
    "/runs/{run_id}/plan",
    operation_id="getPlan",
    summary="A generation of a run's plan",
    response_model=Plan,
    responses={
        200: _PLAN_ANSWER | {"content": _PLAN_ANSWER["content"] | _AS_MERMAID},
        **problems("run_not_found", "plan_not_ready", "plan_not_found", "invalid_request"),
    },
)
async def get_plan_of_run(
    services: Wired,
    tenant: Tenant,
    run_id: RunOfPath,
    generation: Annotated[OptionalNumber, Query(description="By default the newest.")] = None,
    format: Annotated[PlanFormat, Query(description="`mermaid` is a flowchart.")] = PlanFormat.JSON,  # noqa: A002 - the contract's name
) -> Plan | Response:
    """Waves are for reading: a task starts the moment its own dependencies are done."""
    async with services.database.read() as connection:
        plan = await get_plan(connection, tenant, run_id, generation)
        if plan is None:
            await _refuse_missing(connection, tenant, run_id)
            raise Refused("plan_not_found", "The run has no plan of this generation.")
        tasks = await _tasks_of(connection, tenant, run_id, plan)
        usage = await usage_by_generation(connection, tenant, run_id, [plan.generation])
        tool_calls = await tool_calls_by_generation(connection, tenant, run_id, [plan.generation])
    if format is PlanFormat.MERMAID:
        return Response(mermaid.flowchart(tasks), media_type=mermaid.MEDIA_TYPE)
    return plan_of(plan, tasks, usage[plan.generation], tool_calls[plan.generation])


@router.get(
    "/runs/{run_id}/plans",
    operation_id="listPlans",
    summary="All generations of a run's plan",
    responses={
        200: answer("Generations, oldest first.", examples.page_of(examples.PLAN)),
        **problems("run_not_found", "invalid_request", "invalid_cursor"),
    },
)
async def list_plans_of_run(services: Wired, tenant: Tenant, run_id: RunOfPath, paging: Paging) -> PlanPage:
    """Generation 0 is the first plan; each replan adds one."""
    kind = f"plans {run_id}"
    position = paging.integer(kind)
    after = -1 if position is None else position
    async with services.database.read() as connection:
        found = await list_plans(connection, tenant, run_id, limit=paging.fetch, after=after)
        if not found:
            await require_run(connection, tenant, run_id)
        numbers = [plan.generation for plan in found]
        usage = await usage_by_generation(connection, tenant, run_id, numbers)
        tool_calls = await tool_calls_by_generation(connection, tenant, run_id, numbers)
        shown = [
            plan_of(
                plan,
                await _tasks_of(connection, tenant, run_id, plan),
                usage[plan.generation],
                tool_calls[plan.generation],
            )
            for plan in found
        ]
    return PlanPage(**paging.page(kind, shown, lambda plan: plan.generation, lambda plan: plan))


async def _tasks_of(connection: AsyncConnection, tenant: TenantId, run_id: RunId, plan: PlanRecord) -> list[TaskRecord]:
    """What the generation added and what it carries, in plan order."""
    return await list_tasks(
        connection,
        tenant,
        run_id,
        limit=len(plan.added) + len(plan.carried),
        generation=plan.generation,
        keys=plan.carried,
        with_results=False,
    )


async def _refuse_missing(connection: AsyncConnection, tenant: TenantId, run_id: RunId) -> None:
    """Tell a plan that is still being drawn from one that will never be."""
    _, status = await require_run(connection, tenant, run_id)
    if status not in FINISHED and await get_plan(connection, tenant, run_id) is None:
        detail = "The plan is still being drawn; ask again."
        raise Refused("plan_not_ready", detail, headers={"Retry-After": RETRY_AFTER_SECONDS})
