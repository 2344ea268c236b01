"""`python -m tests.simulation --seed N [--mutant NAME]` replays one simulation and prints what happened in it."""

# ruff: noqa: T201
import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext

from tests.simulation.mutants import MUTANTS
from tests.simulation.world import simulate


def main() -> int:
    """One seed with its trace, or many without."""
    reading = argparse.ArgumentParser(prog="python -m tests.simulation")
    reading.add_argument("--seed", type=int, default=0)
    reading.add_argument("--mutant", choices=sorted(MUTANTS))
    reading.add_argument("--count", type=int, default=1, help="so many seeds from there on; stops at the first problem")
    given = reading.parse_args()
    with MUTANTS[given.mutant].planted() if given.mutant else nullcontext():
        seen: Counter[str] = Counter()
        began = time.process_time()
        for seed in range(given.seed, given.seed + given.count):
            outcome = simulate(seed)
            if given.count == 1:
                print("\n".join(outcome.trace))
            seen.update(outcome.seen)
            if outcome.problems:
                print(f"seed {seed}:", *outcome.problems, sep="\n  ")
                return 1
    print(dict(seen))
    speed = given.count / (time.process_time() - began)
    print(f"nothing wrong; trace {outcome.hash}; {speed:.1f} seeds per second of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
