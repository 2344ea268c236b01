"""Whatever happens to workers and database, in any order: nothing is lost, nothing is done twice, everything ends."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.world import Outcome, simulate
from tests.sizes import sizes

MANY_MUTANT_SEEDS = 1_000
CHEAP_MUTANTS = (
    "the fence lets every token through",
    "a call is sent before it is recorded",
    "a finished run is resumed",
    "the idempotency key holds the call's number",
)
BEFALLS = (
    *("crash", "stall", "drain", "away", "shaky", "take-over", "lease lost", "database away, outcomes wait"),
    *("called none", "called idempotent", "acted once", "tool gave nothing", "tool denied", "steps asked for"),
)


@pytest.mark.parametrize("count", sizes(200, 20_000))
def test_in_every_simulation_all_promises_are_kept(count: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(count):
        outcome = simulate(seed)
        assert not outcome.problems, told(outcome)
        seen.update(outcome.seen)
    assert not [trouble for trouble in BEFALLS if not seen[trouble]], f"did not happen: {seen}"


@pytest.mark.parametrize("count", sizes(10, 500))
def test_the_same_seed_gives_the_same_trace(count: int) -> None:
    for seed in range(count):
        first, second = simulate(seed), simulate(seed)
        assert first.trace == second.trace, f"seed {seed}"


def test_the_printed_command_replays_a_simulation_in_another_process() -> None:
    outcome = simulate(3)
    command = [sys.executable, *replay(3).split()[1:]]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    assert done.stdout.startswith("\n".join(outcome.trace))
    assert outcome.hash in done.stdout


@pytest.mark.parametrize("name", CHEAP_MUTANTS)
def test_a_planted_mistake_is_noticed(name: str) -> None:
    assert_noticed(name, within=200)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mistake_fits_the_source_and_is_taken_back(name: str) -> None:
    right = MUTANTS[name].code
    with MUTANTS[name].planted():
        assert MUTANTS[name].code is not right
    assert MUTANTS[name].code is right


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTANTS)
def test_each_planted_mistake_is_noticed(name: str) -> None:
    assert_noticed(name, within=MANY_MUTANT_SEEDS)


def assert_noticed(name: str, *, within: int) -> None:
    with MUTANTS[name].planted():
        noticed = next((seed for seed in range(within) if simulate(seed).problems), None)
    assert noticed is not None, f"nobody notices: {name}"
    assert not simulate(noticed).problems, f"seed {noticed} has problems without the mistake"


def replay(seed: int) -> str:
    return f"python -m tests.simulation --seed {seed}"


def told(outcome: Outcome) -> str:
    return "\n".join([f"seed {outcome.seed}", *outcome.problems, f"replay: {replay(outcome.seed)}"])
