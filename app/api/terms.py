"""What a run keeps to: options and budget, taken over one by one, checked against each other and the settings."""

from collections.abc import Iterator, Mapping
from typing import Any

from app.api.problems import Fault, refused_for
from app.api.reading import parse
from app.api.schemas.requests import Budget, NewRun, Options, RunRetry
from app.domain.status import Seat
from app.settings import Settings


def taken_over(
    options: Mapping[str, Any], budget: Mapping[str, Any], given: NewRun | RunRetry
) -> tuple[Options, Budget]:
    """A run's options and budget, but for those that are given now."""
    return (
        parse(Options, {**options, **given.options.model_dump(exclude_unset=True)}),
        parse(Budget, {**budget, **given.budget.model_dump(exclude_unset=True)}),
    )


def check_terms(options: Options, budget: Budget, settings: Settings) -> None:
    """Raises `Refused` for options that contradict each other, and for a limit on a cost that nobody can tell."""
    faults = [*_contradictions(options)]
    if budget.max_cost_usd is not None:
        faults += _unpriced(options, settings)
    if faults:
        raise refused_for(faults)


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
