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


@given(limit=st.integers(1, 4), moves=st.lists(st.tuples(st.sampled_from("twgl"), st.integers(0, 3)), max_size=60))
def test_places_are_neither_made_nor_lost_nor_idle_while_somebody_waits(
    limit: int, moves: list[tuple[str, int]]
) -> None:
    places = Places(limit)
    runs = [Run() for _ in range(4)]
    waiting: list[Callable[[], None]] = []
    for move, number in moves:
        run = runs[number]
        match move:
            case "t":
                taken = places.take(number)
                assert 0 <= taken <= number
                assert taken == 0 or not waiting
                run.held += taken
            case "w" if run.granted not in waiting:
                held = run.held
                places.wait(run.granted)
                if run.held == held:
                    waiting.append(run.granted)
            case "g" if run.held:
                run.held -= 1
                before = [r.held for r in runs]
                places.give_back()
                grown = [r for r, held in zip(runs, before, strict=True) if r.held > held]
                assert [r.granted for r in grown] == waiting[:1]
                waiting = waiting[1:]
            case "l":
                places.leave(run.granted)
                waiting = [w for w in waiting if w != run.granted]
        held = sum(r.held for r in runs)
        assert held <= limit
        assert held == limit or not waiting
    for run in runs:
        places.leave(run.granted)
    places.give_back(sum(run.held for run in runs))
    assert places.take(limit + 1) == limit
