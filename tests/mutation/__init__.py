"""Mutants of modules whose every guard matters, and the tests run against each: `python -m tests.mutation`."""
