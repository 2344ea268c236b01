"""The walk in any order of events, driven by a simulated engine that keeps rows of its own."""

import heapq
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import TaskKey
from app.domain.status import RunStatus, TaskStatus
from app.domain.steps import Finish, StartTasks, Synthesize, WalkTask
from app.domain.walk import Walk

DONE = (TaskStatus.SUCCEEDED, TaskStatus.SKIPPED)


@dataclass(kw_only=True)
class Simulation:
    """An engine with a virtual clock. `rows` is all that outlives a crash."""

    rows: dict[TaskKey, WalkTask]
    dice: random.Random
    max_parallel: int
    places: int
    durations: Mapping[TaskKey, int]
    synthesize: bool = True
    retry_chance: float = 0.0
    crash_chance: float = 0.0
    now: int = 0
    starts: Counter[TaskKey] = field(default_factory=Counter)
    lost: Counter[TaskKey] = field(default_factory=Counter)
    retried: Counter[TaskKey] = field(default_factory=Counter)
    succeeded: Counter[TaskKey] = field(default_factory=Counter)
    syntheses: int = 0
    ends: list[tuple[int, float, TaskKey | None]] = field(default_factory=list)
    """When each call in flight comes back; None is the synthesis."""

    def run(self) -> Finish:
        """Until the walk says that it is over."""
        self.walk = self.load()
        for _ in range(100 * len(self.rows) + 100):
            if (finish := self.decide()) is not None:
                return finish
            self.advance()
        raise AssertionError("the walk does not come to an end")

    def load(self) -> Walk:
        return Walk(max_parallel=self.max_parallel, synthesize=self.synthesize, tasks=list(self.rows.values()))

    def decide(self) -> Finish | None:
        free = self.places - len(self.ends)
        wanted = self.walk.wanted(self.now)
        startable = self.startable()
        for step in self.walk.next(self.now, min(free, wanted)):
            match step:
                case StartTasks(keys):
                    assert list(keys) == startable[: len(keys)], "ready tasks start in plan order"
                    assert len(keys) == min(free, wanted), "wanted and next agree"
                    for key in keys:
                        self.start(key)
                case Synthesize():
                    assert free > 0
                    assert all(row.status in DONE for row in self.rows.values())
                    self.syntheses += 1
                    self.ends.append((self.now + 1, 0, None))
                case Finish():
                    assert not self.ends
                    return step
                case _:
                    raise AssertionError(step)
        running = sum(key is not None for *_, key in self.ends)
        assert running <= self.max_parallel
        assert len(self.ends) <= self.places
        room = min(self.places - len(self.ends), self.max_parallel - running)
        assert not (room and self.startable()), "a free place and a ready task are idle together"
        assert self.walk.in_flight == len(self.ends)
        counts = Counter(row.status for row in self.rows.values())
        expected = {status.value: counts[status] for status in TaskStatus}
        assert self.walk.progress() == {"total": len(self.rows), **expected}
        return None

    def startable(self) -> list[TaskKey]:
        """By the rows alone, in plan order."""
        flying = {key for *_, key in self.ends}
        return [
            key
            for key, row in sorted(self.rows.items(), key=lambda item: item[1].position)
            if key not in flying
            and (
                row.status in (TaskStatus.PENDING, TaskStatus.RUNNING)
                or (row.status is TaskStatus.RETRYING and (row.due_at or 0) <= self.now)
            )
            and all(self.rows[d].status in DONE for d in row.depends_on)
        ]

    def start(self, key: TaskKey) -> None:
        self.starts[key] += 1
        self.rows[key] = replace(self.rows[key], status=TaskStatus.RUNNING)
        heapq.heappush(self.ends, (self.now + self.durations[key], self.dice.random(), key))

    def advance(self) -> None:
        if self.dice.random() < self.crash_chance:
            self.lost.update(key for *_, key in self.ends if key is not None)
            self.ends.clear()
            self.walk = self.load()
            return
        wake_at = self.walk.wake_at
        assert wake_at is None or wake_at > self.now, "the walk asks to be woken when it has just been asked"
        assert self.ends or wake_at is not None, "nothing can ever happen again"
        if wake_at is not None and (not self.ends or wake_at <= self.ends[0][0]):
            self.now = wake_at
            return
        self.now, _, key = heapq.heappop(self.ends)
        if key is None:
            self.walk.synthesized()
        elif self.dice.random() < self.retry_chance:
            self.retried[key] += 1
            due_at = self.now + self.dice.randrange(20)
            self.rows[key] = replace(self.rows[key], status=TaskStatus.RETRYING, due_at=due_at)
            self.walk.retry_at(key, due_at)
        else:
            self.succeeded[key] += 1
            self.rows[key] = replace(self.rows[key], status=TaskStatus.SUCCEEDED)
            self.walk.succeeded(key)


def random_rows(dice: random.Random, size: int) -> dict[TaskKey, WalkTask]:
    """A graph whose order of listing is not one of its topological orders."""
    order = dice.sample(range(size), size)
    density = dice.choice((0.5, 1.5, 3.0))
    rows = {}
    for n, position in enumerate(order):
        count = min(n, int(dice.expovariate(1 / density)))
        before = tuple(TaskKey(f"0.{i}") for i in dice.sample(order[:n], count))
        key = TaskKey(f"0.{position}")
        rows[key] = WalkTask(key=key, position=position, depends_on=before)
    return dict(sorted(rows.items(), key=lambda item: item[1].position))


def simulation(seed: int, size: int, **chances: float) -> Simulation:
    dice = random.Random(seed)
    rows = random_rows(dice, size)
    longest = dice.choice((1, 10))
    return Simulation(
        rows=rows,
        dice=dice,
        max_parallel=dice.randint(1, 10),
        places=dice.randint(1, 10),
        durations={key: dice.randint(1, longest) for key in rows},
        synthesize=dice.random() < 0.5,
        **chances,  # type: ignore[arg-type]
    )


seeds = st.integers(0, 2**32)
sizes = st.integers(1, 60)


@given(seed=seeds, size=sizes)
def test_every_graph_is_walked_to_its_end_with_each_task_started_once(seed: int, size: int) -> None:
    run = simulation(seed, size)
    assert run.run() == Finish(RunStatus.SUCCEEDED)
    assert run.starts == run.succeeded == Counter(run.rows.keys())
    assert run.syntheses == (run.synthesize and size > 1)


@given(seed=seeds, size=sizes)
def test_retries_and_crashes_repeat_what_was_in_flight_and_no_more(seed: int, size: int) -> None:
    run = simulation(seed, size, retry_chance=0.2, crash_chance=0.1)
    assert run.run() == Finish(RunStatus.SUCCEEDED)
    assert run.succeeded == Counter(run.rows.keys())
    assert run.starts == run.succeeded + run.retried + run.lost


@given(seed=seeds, size=sizes)
def test_a_run_takes_no_longer_than_grahams_bound(seed: int, size: int) -> None:
    run = simulation(seed, size)
    run.synthesize = False
    run.run()
    graph: nx.DiGraph[str] = nx.DiGraph()
    for row in run.rows.values():
        graph.add_edges_from((d, row.key, {"weight": run.durations[row.key]}) for d in ("start", *row.depends_on))
    path = nx.dag_longest_path_length(graph)
    work = sum(run.durations.values())
    machines = min(run.max_parallel, run.places)
    assert path <= run.now
    assert work <= machines * run.now <= work + (machines - 1) * path
