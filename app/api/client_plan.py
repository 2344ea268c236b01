"""A client's own plan: checked as hard as a planner's, and made ready to be stored."""

from collections.abc import Collection, Iterator

from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.problems import MAX_ERRORS, Fault, Refused
from app.api.schemas.requests import MAX_PLAN_TASKS, ClientPlan
from app.domain.generation import NewPlan, NewTask, first_plan
from app.domain.graph import validate
from app.domain.ids import RunId, TenantId
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.status import PlanReason
from app.storage.plans import get_plan
from app.storage.tasks import list_tasks


def planned_tasks(
    plan: ClientPlan, known_keys: Collection[str] = frozenset(), *, tools: Collection[str] = frozenset()
) -> list[PlannedTask]:
    """The tasks of a plan that can be walked; raises `Refused` (`plan_invalid`) with one entry per problem.

    `known_keys` are tasks of the run that go on, which its dependencies may name too; `tools` those that its tasks may
    name.
    """
    planned = [
        PlannedTask(
            id=task.id,
            description=task.description,
            depends_on=tuple(dict.fromkeys(task.depends_on)),
            critical=task.critical,
            tools=tuple(dict.fromkeys(task.tools)),
            output_schema=task.output_schema,
        )
        for task in plan.tasks
    ]
    problems = validate(planned, min_tasks=1, max_tasks=MAX_PLAN_TASKS, known_keys=known_keys, tools=tools)
    if problems:
        raise Refused(
            "plan_invalid",
            f"The plan has {len(problems)} problem(s); `errors` lists them.",
            errors=_faults(problems[:MAX_ERRORS], plan),
        )
    return planned


def new_plan(plan: ClientPlan, *, tools: Collection[str] = frozenset()) -> NewPlan:
    """Generation 0 as the client drew it, of tasks that may name these tools; raises as `planned_tasks` does."""
    return first_plan(planned_tasks(plan, tools=tools), PlanReason.CLIENT)


async def plan_again(connection: AsyncConnection, tenant: TenantId, run_id: RunId) -> NewPlan | None:
    """The plan that a client drew for this run, to be stored for another; None when the planner drew it."""
    drawn = await get_plan(connection, tenant, run_id, 0)
    if drawn is None or drawn.reason is not PlanReason.CLIENT:
        return None
    tasks = await list_tasks(connection, tenant, run_id, limit=MAX_PLAN_TASKS, generation=0, with_results=False)
    return NewPlan(
        generation=0,
        reason=PlanReason.CLIENT,
        critical_path=drawn.critical_path,
        tasks=[
            NewTask(
                key=task.key,
                position=task.position,
                description=task.description,
                depends_on=tuple(task.depends_on),
                wave=task.wave,
                critical=task.critical,
                tools=tuple(task.tools),
                output_schema=task.output_schema,
            )
            for task in tasks
        ],
    )


def _faults(problems: list[PlanProblem], plan: ClientPlan) -> Iterator[Fault]:
    """The problems, each at its place in what the client sent, where repetitions have not collapsed yet."""
    places: dict[tuple[str, str], list[int]] = {}
    for found in problems:
        pointer = found.pointer
        match pointer.split("/"):
            case ["", "tasks", task, "depends_on" | "tools" as field, place]:
                if (task, field) not in places:
                    sent: list[str] = getattr(plan.tasks[int(task)], field)
                    places[task, field] = sorted({named: n for n, named in reversed(list(enumerate(sent)))}.values())
                pointer = f"/tasks/{task}/{field}/{places[task, field][int(place)]}"
            case _:
                pass
        more = {"task_id": found.task_id, "path": list(found.path) or None}
        yield Fault(
            code=found.code,
            message=found.message,
            pointer="/plan" + pointer,
            more={name: value for name, value in more.items() if value is not None},
        )
