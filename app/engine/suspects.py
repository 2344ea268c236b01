"""Runs that may be what kills their workers: which are given up, and which are driven alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from app.domain.failures import RunError
from app.storage.dispatch import Lease

_SUSPECT_AFTER = 2
"""Take-overs without an outcome. One is any crash; of two in a row the run itself may be the cause."""
_GIVEN_UP_AFTER = 5
"""By then it has been alone with three workers that died."""


def is_suspect(lease: Lease) -> bool:
    """Whether the run is to be alone in its process, where a death is charged to no other run."""
    return lease.takeovers >= _SUSPECT_AFTER


def crash_loop(lease: Lease) -> RunError:
    """The error of a run that is given up."""
    message = (
        f"{lease.takeovers} workers in a row were lost with this run before they recorded anything more of it. "
        f"POST /runs/{lease.run_id}/retry goes on from what has succeeded."
    )
    return RunError(code="worker_crash_loop", message=message)


@dataclass(frozen=True, kw_only=True, slots=True)
class SortedOut:
    """What is to become of the runs of one claim."""

    driven: Sequence[Lease]
    handed_back: Sequence[Lease]
    given_up: Sequence[Lease]

    @classmethod
    def of(cls, leases: Sequence[Lease]) -> Self:
        """With a suspect among them, the first one alone is driven."""
        given_up = [lease for lease in leases if lease.takeovers >= _GIVEN_UP_AFTER]
        others = [lease for lease in leases if lease.takeovers < _GIVEN_UP_AFTER]
        alone = next((lease for lease in others if is_suspect(lease)), None)
        driven = others if alone is None else [alone]
        return cls(driven=driven, handed_back=[lease for lease in others if lease not in driven], given_up=given_up)
