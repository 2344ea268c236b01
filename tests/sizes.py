"""How large the repeated tests are: small in `make test`, large in `make soak`, with the same code."""

import pytest
from _pytest.mark.structures import ParameterSet


def sizes(small: int, large: int) -> list[ParameterSet]:
    """The values of a parameter: `small` for every run of the tests, `large` under `make soak`."""
    return [pytest.param(small, id=f"{small}"), pytest.param(large, id=f"{large}", marks=pytest.mark.soak)]
