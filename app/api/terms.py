"""What a run keeps to: options and budget, taken over one by one, checked against each other and what there is."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.api.problems import Fault, refused_for
from app.api.reading import parse
from app.api.schemas.requests import Budget, NewRun, Options, RunRetry
from app.api.services import Services
from app.domain.generation import NewPlan
from app.domain.status import Seat
from app.domain.text import shortened
from app.settings import Settings

_MAX_LISTED_TOOLS = 20


def taken_over(
    options: Mapping[str, Any], budget: Mapping[str, Any], given: NewRun | RunRetry
) -> tuple[Options, Budget]:
    """A run's options and budget, but for those that are given now."""
    return (
        parse(Options, {**options, **given.options.model_dump(exclude_unset=True)}),
        parse(Budget, {**budget, **given.budget.model_dump(exclude_unset=True)}),
    )


def check_terms(
    options: Options, budget: Budget, services: Services, *, given: NewRun | RunRetry | None = None
) -> None:
    """Raises `Refused` for options that contradict each other, unknown tools, a limit on a cost that nobody can tell.

    `given` are those that are given now, where the others are taken over from a run.
    """
    faults = [*_contradictions(options)]
    if options.tools:
        is_new = given is None or "tools" in given.options.model_fields_set
        faults += _unknown_tools(options.tools, tool_names(services), is_new=is_new)
    if budget.max_cost_usd is not None:
        faults += _unpriced(options, services.settings)
    if faults:
        raise refused_for(faults)


def check_plan_again(plan: NewPlan, services: Services) -> None:
    """Raises `Refused` where a plan that is to be used again names tools that are not there any more."""
    known = tool_names(services)
    faults = [
        Fault(
            code="unknown_tool",
            message=f"An earlier run's plan is used again. {_no_such_tool(name, known)} Give another `plan`.",
            pointer="/plan",
        )
        for name in _tools_of(plan)
        if name not in known
    ]
    if faults:
        raise refused_for(faults)


def options_of(options: Options, plan: NewPlan | None = None) -> dict[str, Any]:
    """The options as they are stored: `tools` by name, each once, with those that a client's own plan names."""
    named = {*options.tools, *(_tools_of(plan) if plan is not None else ())}
    return {**options.model_dump(), "tools": sorted(named)}


def tool_names(services: Services) -> list[str]:
    """The tools that runs may be given now, in order."""
    return [spec.name for spec in services.toolbox.specs]


def _tools_of(plan: NewPlan) -> Collection[str]:
    return dict.fromkeys(tool for task in plan.tasks for tool in task.tools)


def _unknown_tools(named: list[str], known: list[str], *, is_new: bool) -> Iterator[Fault]:
    there, places = frozenset(known), {name: place for place, name in reversed(list(enumerate(named)))}
    for name in dict.fromkeys(named):
        if name not in there:
            message = _no_such_tool(name, known)
            if not is_new:
                message = f"An earlier run's `tools` are taken over. {message} Give other `options.tools`."
            yield Fault(code="unknown_tool", message=message, pointer=f"/options/tools/{places[name]}")


def _no_such_tool(name: str, known: list[str]) -> str:
    shown = ", ".join(known[:_MAX_LISTED_TOOLS]) or "none"
    more = f" and {len(known) - _MAX_LISTED_TOOLS} more" if len(known) > _MAX_LISTED_TOOLS else ""
    return f"There is no tool '{shortened(name, 64)}' here. GET /tools lists those that there are: {shown}{more}."


def _contradictions(options: Options) -> Iterator[Fault]:
    if options.min_tasks > options.max_tasks:
        message = f"`min_tasks` ({options.min_tasks}) is more than `max_tasks` ({options.max_tasks})."
        yield Fault(code="out_of_range", message=message, pointer="/options/min_tasks")
    if options.output_schema is not None and not options.synthesize:
        message = "An `output_schema` is one of the answer that synthesis makes: it cannot go with `synthesize: false`."
        yield Fault(code="not_allowed", message=message, pointer="/options/output_schema")


def _unpriced(options: Options, settings: Settings) -> Iterator[Fault]:
    seats = [Seat.PLANNER, Seat.EXECUTOR, *([Seat.SYNTHESIZER] if options.synthesize else [])]
    chosen = options.model_dump()
    for model in dict.fromkeys(settings.model_for(seat, chosen) for seat in seats):
        if settings.price_of(model) is None:
            message = f"No price is known for the model `{model}`: set PLANWAVE_LLM_PRICES, or limit something else."
            yield Fault(code="no_price", message=message, pointer="/budget/max_cost_usd")
