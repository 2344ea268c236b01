"""Places for calls in flight: never more than there are, in the order in which they were asked for."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from app.engine.places import Places


class Run:
    """Somebody who takes and waits, and counts what it holds."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name, self.held, self.log = name, 0, [] if log is None else log

    def granted(self) -> None:
        self.held += 1
        self.log.append(self.name)


def test_free_places_are_taken_at_once_up_to_the_limit() -> None:
    places = Places(3)
    assert places.take(2) == 2
    assert places.take(5) == 1
    assert places.take(1) == 0


def test_nothing_is_taken_where_nothing_is_wanted() -> None:
    places = Places(1)
    assert places.take(0) == 0
    assert places.take(1) == 1


def test_whoever_waits_gets_the_next_place_that_comes_free() -> None:
    places, run = Places(1), Run()
    places.take(1)
    places.wait(run.granted)
    assert run.held == 0
    places.give_back()
    assert run.held == 1
    assert places.take(1) == 0


def test_a_place_that_is_free_is_granted_at_once() -> None:
    places, run = Places(1), Run()
    places.wait(run.granted)
    assert run.held == 1


def test_places_are_handed_on_in_the_order_of_asking() -> None:
    places, log = Places(3), list[str]()
    places.take(3)
    for name in "abc":
        places.wait(Run(name, log).granted)
    places.give_back(2)
    assert log == ["a", "b"]
    places.give_back()
    assert log == ["a", "b", "c"]


def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    places, run = Places(1), Run()
    places.take(1)
    places.wait(run.granted)
    assert places.take(1) == 0
    places.give_back()
    assert (run.held, places.take(1)) == (1, 0)


def test_whoever_leaves_is_passed_over() -> None:
    places, log = Places(1), list[str]()
    runs = [Run(name, log) for name in "ab"]
    places.take(1)
    for run in runs:
        places.wait(run.granted)
    places.leave(runs[0].granted)
    places.give_back()
    assert log == ["b"]


def test_leaving_without_waiting_changes_nothing() -> None:
    places, run = Places(1), Run()
    places.leave(run.granted)
    assert places.take(2) == 1


def test_a_place_given_back_by_the_very_one_who_is_granted_it_goes_on() -> None:
    places, log = Places(1), list[str]()
    places.take(1)

    def refuse() -> None:
        log.append("refused")
        places.give_back()

    places.wait(refuse)
    places.wait(Run("next", log).granted)
    places.give_back()
    assert log == ["refused", "next"]


# --- after a 429


def room(places: Places) -> int:
    """How many places can be taken now; they are given back."""
    taken = places.take(1_000)
    places.give_back(taken)
    return taken


def test_a_slow_down_halves_how_many_may_be_in_flight() -> None:
    places = Places(8)
    places.slow_down()
    assert places.take(8) == 4
    places.give_back(4)
    places.slow_down()
    assert places.take(8) == 2


def test_one_call_may_always_be_in_flight() -> None:
    places = Places(1)
    places.slow_down()
    assert places.take(1) == 1


def test_calls_in_flight_at_a_slow_down_end_before_others_start() -> None:
    places, run = Places(4), Run()
    places.take(4)
    places.wait(run.granted)
    places.slow_down()
    places.give_back(2)
    assert run.held == 0
    places.give_back()
    assert run.held == 1


def test_a_burst_of_429s_slows_down_once() -> None:
    places = Places(8)
    places.take(8)
    for _ in range(8):
        places.slow_down()
        places.give_back()
    assert places.take(8) == 4


def test_a_429_after_the_burst_has_come_back_slows_down_again() -> None:
    places = Places(8)
    places.take(8)
    places.slow_down()
    places.give_back(8)
    places.take(4)
    places.slow_down()
    places.give_back(4)
    assert places.take(8) == 2


def test_each_answer_allows_one_more_up_to_the_limit() -> None:
    places = Places(8)
    places.slow_down()
    allowed = []
    for _ in range(6):
        places.speed_up()
        allowed.append(room(places))
    assert allowed == [5, 6, 7, 8, 8, 8]


def test_answers_to_calls_of_before_the_slow_down_do_not_undo_it() -> None:
    places = Places(8)
    places.take(8)
    places.slow_down()
    places.give_back()
    for _ in range(7):
        places.speed_up()
        places.give_back()
    assert places.take(8) == 4


def test_whoever_waits_gets_the_place_that_an_answer_allows() -> None:
    places, log = Places(4), list[str]()
    places.slow_down()
    places.take(2)
    for name in "ab":
        places.wait(Run(name, log).granted)
    assert log == []
    places.speed_up()
    assert log == ["a"]
    places.speed_up()
    assert log == ["a", "b"]


def test_a_slow_down_takes_no_place_away_for_good() -> None:
    places = Places(4)
    places.take(4)
    places.slow_down()
    places.give_back(4)
    assert places._free == 4


@given(limit=st.integers(1, 8), moves=st.lists(st.sampled_from("fau"), max_size=60))
def test_the_pace_changes_only_with_news_of_calls_sent_since_it_last_slowed_down(limit: int, moves: list[str]) -> None:
    """Calls that come back in the order in which they were sent: f with a 429, a with an answer, u with another fault.

    All places that can be taken are taken at once; each call is kept as the number of slow-downs before it was sent.
    """
    places, allowed, slowed = Places(limit), limit, 0
    in_flight = [0] * places.take(limit)
    for move in moves:
        current = in_flight.pop(0) == slowed
        if move == "f":
            places.slow_down()
            if current:
                allowed, slowed = max(1, allowed // 2), slowed + 1
        elif move == "a":
            places.speed_up()
            if current:
                allowed = min(limit, allowed + 1)
        places.give_back()
        in_flight += [slowed] * places.take(limit)
        assert len(in_flight) == allowed or (len(in_flight) > allowed and in_flight[0] < slowed)
    places.give_back(len(in_flight))
    assert places._free == limit
    assert places.take(limit) == allowed


# --- whatever happens


@given(limit=st.integers(1, 4), moves=st.lists(st.tuples(st.sampled_from("twglsu"), st.integers(0, 3)), max_size=60))
def test_places_are_neither_made_nor_lost_nor_idle_while_somebody_waits(
    limit: int, moves: list[tuple[str, int]]
) -> None:
    places = Places(limit)
    runs = [Run() for _ in range(4)]
    waiting: list[Callable[[], None]] = []
    allowed, outdated = limit, 0
    for move, number in moves:
        run = runs[number]
        before = [r.held for r in runs]
        in_flight = sum(before)
        match move:
            case "t":
                taken = places.take(number)
                assert 0 <= taken <= number
                assert taken == 0 or not waiting
                run.held += taken
            case "w" if run.granted not in waiting:
                waiting.append(run.granted)
                places.wait(run.granted)
            case "g" if run.held:
                run.held -= 1
                before = [r.held for r in runs]
                outdated = max(0, outdated - 1)
                places.give_back()
            case "l":
                places.leave(run.granted)
                waiting = [w for w in waiting if w != run.granted]
            case "s":
                places.slow_down()
                if not outdated:
                    allowed, outdated = max(1, allowed // 2), in_flight
            case "u":
                places.speed_up()
                if not outdated:
                    allowed = min(limit, allowed + 1)
        if move != "t":
            grown = [r.granted for r, held in zip(runs, before, strict=True) if r.held > held]
            assert grown == waiting[: len(grown)]
            waiting = waiting[len(grown) :]
        held = sum(r.held for r in runs)
        assert held <= max(allowed, in_flight)
        assert held >= allowed or not waiting
        assert places._free == limit - held
    for run in runs:
        places.leave(run.granted)
    places.give_back(sum(run.held for run in runs))
    assert places._free == limit
    assert places.take(limit + 1) == allowed
