"""Budgets: what they refuse, what they hold for calls in flight, of what they warn, and the time they count."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.budget import Budget, Reservation
from app.domain.usage import Price, Usage

NO_LIMIT = {
    "max_tokens": None,
    "max_llm_calls": None,
    "max_tool_calls": None,
    "max_seconds": None,
    "max_cost_usd": None,
}
USD = 1_000_000_000


def call(tokens: int = 10, cost_nano_usd: int | None = 0) -> Reservation:
    return Reservation(tokens=tokens, cost_nano_usd=cost_nano_usd)


# --- prices


def price(given: str, written: str = "0") -> Price:
    return Price(input_usd_per_million=Decimal(given), output_usd_per_million=Decimal(written))


def test_a_call_costs_what_it_reads_and_what_it_writes() -> None:
    usage = Usage(input_tokens=1_000, output_tokens=500)
    assert price("0.15", "0.6").cost_nano_usd(usage) == 150_000 + 300_000


@pytest.mark.parametrize(
    ("usd_per_million", "cost"), [("0.0004", 0), ("0.0005", 1), ("0.0014", 1), ("0.0015", 2), ("0.0025", 3)]
)
def test_a_cost_is_rounded_half_up_to_whole_nano_usd(usd_per_million: str, cost: int) -> None:
    assert price(usd_per_million).cost_nano_usd(Usage(input_tokens=1)) == cost


def test_a_call_is_rounded_once_and_not_per_kind_of_token() -> None:
    assert price("0.0005", "0.0005").cost_nano_usd(Usage(input_tokens=1, output_tokens=1)) == 1


@given(tokens=st.integers(0, 2**53), price_pico=st.integers(0, 10**18))
def test_a_cost_is_exact_however_large(tokens: int, price_pico: int) -> None:
    """The price in units of 1e-12 USD per million tokens, which is 1e-9 nano-USD per token."""
    usage = Usage(output_tokens=tokens)
    exactly = (2 * tokens * price_pico + 10**9) // (2 * 10**9)
    assert price("0", f"{price_pico}E-12").cost_nano_usd(usage) == exactly


# --- what is refused


@pytest.mark.parametrize("limits", [{}, NO_LIMIT])
def test_without_limits_nothing_is_refused(limits: dict[str, Any]) -> None:
    budget = Budget(limits, tokens=10**12, llm_calls=10**9, cost_nano_usd=10**15)
    assert budget.refuses(call(10**12, None)) is None


@pytest.mark.parametrize(
    ("limits", "used", "reservation", "refused"),
    [
        ({"max_tokens": 100}, {"tokens": 90}, call(10), None),
        ({"max_tokens": 100}, {"tokens": 91}, call(10), "max_tokens"),
        ({"max_llm_calls": 3}, {"llm_calls": 2}, call(), None),
        ({"max_llm_calls": 3}, {"llm_calls": 3}, call(), "max_llm_calls"),
        ({"max_cost_usd": 0.5}, {"cost_nano_usd": USD // 4}, call(cost_nano_usd=USD // 4), None),
        ({"max_cost_usd": 0.5}, {"cost_nano_usd": USD // 4}, call(cost_nano_usd=USD // 4 + 1), "max_cost_usd"),
    ],
)
def test_a_limit_may_be_reached_and_not_passed(
    limits: dict[str, Any], used: dict[str, Any], reservation: Reservation, refused: str | None
) -> None:
    assert Budget(limits, **used).refuses(reservation) == refused


def test_a_call_too_large_for_what_is_left_is_refused_with_nothing_in_flight() -> None:
    assert Budget({"max_tokens": 100}).refuses(call(101)) == "max_tokens"


def test_a_call_that_reserves_nothing_is_refused_once_a_limit_is_passed() -> None:
    budget = Budget({"max_tokens": 100}, tokens=100)
    assert budget.refuses(call(0)) is None
    budget.closed(1, 1, 0)
    assert budget.refuses(call(0)) == "max_tokens"


def test_a_call_of_unknown_cost_is_refused_where_the_cost_is_limited_only() -> None:
    assert Budget({"max_cost_usd": 1}).refuses(call(cost_nano_usd=None)) == "max_cost_usd"
    assert Budget({"max_tokens": 100}).refuses(call(cost_nano_usd=None)) is None


@pytest.mark.parametrize(("usd", "nano"), [(0.1, USD // 10), (0.3, 3 * USD // 10), (1.1, 11 * USD // 10), (1e-9, 1)])
def test_a_limit_in_usd_is_the_number_that_was_written(usd: float, nano: int) -> None:
    budget = Budget({"max_cost_usd": usd})
    assert budget.refuses(call(cost_nano_usd=nano)) is None
    assert budget.refuses(call(cost_nano_usd=nano + 1)) == "max_cost_usd"


def test_a_limit_smaller_than_any_cost_allows_what_costs_nothing() -> None:
    budget = Budget({"max_cost_usd": 1e-12})
    assert budget.refuses(call(cost_nano_usd=0)) is None
    assert budget.refuses(call(cost_nano_usd=1)) == "max_cost_usd"


# --- calls in flight


def test_what_calls_in_flight_have_reserved_is_not_given_twice() -> None:
    budget = Budget({"max_tokens": 100, "max_cost_usd": 1})
    budget.opened(1, call(60, USD // 2))
    assert budget.refuses(call(41)) == "max_tokens"
    assert budget.refuses(call(40, USD)) == "max_cost_usd"
    assert budget.refuses(call(40, USD // 2)) is None


def test_what_a_call_used_replaces_what_it_had_reserved() -> None:
    budget = Budget({"max_tokens": 100, "max_cost_usd": 1})
    budget.opened(1, call(60, USD // 2))
    budget.closed(1, 20, USD // 10)
    assert budget.refuses(call(80, 9 * USD // 10)) is None
    assert budget.refuses(call(81)) == "max_tokens"
    assert budget.refuses(call(0, 9 * USD // 10 + 1)) == "max_cost_usd"


def test_a_call_counts_from_when_it_is_sent() -> None:
    budget = Budget({"max_llm_calls": 1})
    budget.opened(1, call())
    assert budget.refuses(call()) == "max_llm_calls"
    assert budget.use_of("max_llm_calls", 0) == 1


def test_the_end_of_a_call_that_is_not_known_adds_its_use() -> None:
    budget = Budget({"max_tokens": 100})
    budget.opened(2, call(50))
    budget.closed(1, 30, None)
    assert budget.use_of("max_tokens", 0) == 30
    assert budget.refuses(call(20)) is None
    assert budget.refuses(call(21)) == "max_tokens"


def test_a_call_cannot_be_opened_twice() -> None:
    budget = Budget({})
    budget.opened(1, call())
    with pytest.raises(ValueError, match="call 1 is open"):
        budget.opened(1, call())


# --- warnings


@pytest.mark.parametrize(
    ("limits", "used"),
    [
        ({"max_tokens": 100}, {"tokens": 80}),
        ({"max_llm_calls": 6}, {"llm_calls": 5}),
        ({"max_tool_calls": 1}, {"tool_calls": 1}),
        ({"max_seconds": 1.5}, {"active_ms": 1_200}),
        ({"max_cost_usd": 0.01}, {"cost_nano_usd": USD // 125}),
    ],
)
def test_a_limit_is_crossed_when_80_percent_of_it_are_used(limits: dict[str, Any], used: dict[str, Any]) -> None:
    (kind, use), (name,) = *used.items(), limits
    assert Budget(limits, **{kind: use - 1}).crossed(0) == []
    assert Budget(limits, **used).crossed(0) == [name]


def test_a_limit_is_told_of_once() -> None:
    budget = Budget({"max_tokens": 100}, tokens=80)
    assert budget.crossed(0) == ["max_tokens"]
    budget.closed(1, 20, 0)
    assert budget.crossed(0) == []
    assert Budget({"max_tokens": 100}, tokens=100, warned=budget.warned).crossed(0) == []


def test_what_was_told_of_is_kept_sorted() -> None:
    budget = Budget({"max_tokens": 1, "max_llm_calls": 1}, tokens=1, llm_calls=1, warned=["max_seconds"])
    budget.crossed(0)
    assert budget.warned == ["max_llm_calls", "max_seconds", "max_tokens"]


def test_what_is_only_reserved_warns_of_nothing() -> None:
    budget = Budget({"max_tokens": 100})
    budget.opened(1, call(100))
    assert budget.crossed(0) == []


def test_a_limit_of_nothing_warns_of_nothing_while_nothing_is_used() -> None:
    assert Budget({"max_tool_calls": 0}).crossed(0) == []


def test_use_and_limits_are_told_in_the_units_of_their_names() -> None:
    limits = {"max_tokens": 7, "max_llm_calls": 8, "max_tool_calls": None, "max_seconds": 2.5, "max_cost_usd": 0.3}
    budget = Budget(limits, tokens=5, llm_calls=4, tool_calls=3, active_ms=1_250, cost_nano_usd=USD // 10)
    assert {name: budget.limit(name) for name in limits} == limits
    assert {name: budget.use_of(name, 0) for name in limits} == {
        "max_tokens": 5,
        "max_llm_calls": 4,
        "max_tool_calls": 3,
        "max_seconds": 1.25,
        "max_cost_usd": 0.1,
    }


# --- time


def test_time_counts_while_the_clock_runs_only() -> None:
    budget = Budget({}, active_ms=100)
    assert budget.active_ms(5_000) == 100
    budget.started(5_000)
    assert budget.active_ms(5_300) == 400
    budget.stopped(5_500)
    assert budget.active_ms(9_000) == 600
    budget.started(10_000)
    assert budget.active_ms(10_001) == 601
    assert budget.use_of("max_seconds", 10_001) == 0.601


def test_a_clock_that_runs_is_not_started_again() -> None:
    budget = Budget({})
    budget.started(1_000)
    budget.started(1_500)
    assert budget.active_ms(2_000) == 1_000


def test_a_clock_that_stands_is_not_stopped_again() -> None:
    budget = Budget({})
    budget.stopped(1_000)
    assert budget.active_ms(2_000) == 0


def test_a_clock_that_is_set_back_takes_no_time_away() -> None:
    budget = Budget({"max_seconds": 1}, active_ms=100)
    budget.started(1_000)
    assert (budget.active_ms(900), budget.deadline(900)) == (100, 1_800)
    budget.stopped(900)
    assert budget.active_ms(900) == 100


def test_the_deadline_is_when_the_seconds_are_used_up() -> None:
    budget = Budget({"max_seconds": 2.5}, active_ms=500)
    budget.started(10_000)
    assert [budget.deadline(now) for now in (10_000, 11_000, 13_000)] == [12_000] * 3


@pytest.mark.parametrize("ask", [Budget.deadline, Budget.warning_at])
def test_no_time_is_named_without_a_limit_or_while_the_clock_stands(ask: Callable[[Budget, int], int | None]) -> None:
    unlimited, standing = Budget({}), Budget({"max_seconds": 1})
    unlimited.started(0)
    assert (ask(unlimited, 0), ask(standing, 0)) == (None, None)


def test_at_the_time_of_the_warning_the_seconds_are_crossed_and_not_before() -> None:
    budget = Budget({"max_seconds": 0.999})
    budget.started(10_000)
    assert budget.warning_at(10_000) == 10_800
    assert budget.crossed(10_799) == []
    assert budget.crossed(10_800) == ["max_seconds"]
    assert budget.warning_at(10_800) is None


def test_at_the_deadline_the_time_is_over_and_not_before() -> None:
    budget = Budget({"max_seconds": 1})
    budget.started(10_000)
    deadline = budget.deadline(10_000)
    assert deadline is not None
    assert budget.is_over(deadline - 1) is None
    assert budget.is_over(deadline) == "max_seconds"


def test_other_limits_are_over_when_they_are_passed() -> None:
    assert Budget({"max_tokens": 100}, tokens=100).is_over(0) is None
    assert Budget({"max_tokens": 100}, tokens=101).is_over(0) == "max_tokens"


def test_of_several_that_are_over_time_is_told_of() -> None:
    assert Budget({"max_tokens": 1, "max_seconds": 1}, tokens=2, active_ms=1_000).is_over(0) == "max_seconds"


# --- whatever happens

amounts = st.integers(0, 40)
moves = st.lists(st.tuples(st.sampled_from(["open", "open", "close", "close unknown"]), amounts, amounts), max_size=60)


@given(limits=st.fixed_dictionaries({"max_tokens": amounts, "max_llm_calls": amounts}), moves=moves, cost=amounts)
def test_calls_stay_within_their_limit_and_tokens_pass_theirs_by_what_calls_used_beyond_their_reservations(
    limits: dict[str, int], moves: list[tuple[str, int, int]], cost: int
) -> None:
    limits["max_cost_usd"] = cost
    budget = Budget({**limits, "max_cost_usd": cost / USD})
    in_flight: dict[int, Reservation] = {}
    calls = tokens = nano_usd = too_many_tokens = too_much_cost = 0
    for number, (move, first, second) in enumerate(moves):
        match move:
            case "open" if budget.refuses(call(first, second)) is None:
                budget.opened(number, call(first, second))
                in_flight[number] = call(first, second)
                calls += 1
            case "close" if in_flight:
                ended = list(in_flight)[first % len(in_flight)]
                reserved = in_flight.pop(ended)
                budget.closed(ended, second, first)
                tokens, nano_usd = tokens + second, nano_usd + first
                too_many_tokens += max(0, second - reserved.tokens)
                too_much_cost += max(0, first - (reserved.cost_nano_usd or 0))
            case "close unknown":
                budget.closed(-1, first, second)
                tokens, nano_usd = tokens + first, nano_usd + second
                too_many_tokens, too_much_cost = too_many_tokens + first, too_much_cost + second
        assert budget.use_of("max_llm_calls", 0) == calls <= limits["max_llm_calls"]
        assert budget.use_of("max_tokens", 0) == tokens <= limits["max_tokens"] + too_many_tokens
        assert budget.use_of("max_cost_usd", 0) == nano_usd / USD
        assert nano_usd <= cost + too_much_cost


@given(limits=st.fixed_dictionaries({"max_tokens": amounts, "max_llm_calls": amounts}), moves=moves, next_call=amounts)
def test_with_nothing_in_flight_a_budget_is_one_that_begins_with_what_was_used(
    limits: dict[str, int], moves: list[tuple[str, int, int]], next_call: int
) -> None:
    """As it is after a restart: no reservation outlives its call."""
    budget, in_flight, calls, tokens = Budget(limits), list[int](), 0, 0
    for number, (move, reserved, used) in enumerate(moves):
        if move == "open":  # whether refused or not
            budget.opened(number, call(reserved))
            in_flight.append(number)
            calls += 1
        elif in_flight:
            budget.closed(in_flight.pop(reserved % len(in_flight)), used, 0)
            tokens += used
    for number in in_flight:
        budget.closed(number, 1, 0)
        tokens += 1
    fresh = Budget(limits, llm_calls=calls, tokens=tokens)
    assert budget.refuses(call(next_call)) == fresh.refuses(call(next_call))
    left = max(0, limits["max_tokens"] - tokens)
    assert budget.refuses(call(left)) == fresh.refuses(call(left))
    assert budget.crossed(0) == fresh.crossed(0)
