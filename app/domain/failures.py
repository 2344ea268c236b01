"""What a failure means: how it is stored, when the same thing is tried again, when it is given up."""

import math
from dataclasses import dataclass
from typing import Any

from app.domain.text import shortened, storable

MAX_TRANSPORT_TRIES = 8
"""How often one call is sent before its endpoint counts as away."""

MAX_REASKS = 2
"""How often planner, recovery and synthesizer are asked again after an answer that cannot be used."""

_MAX_MESSAGE_CHARACTERS = 2_000
MAX_WAIT_SECONDS = 86_400.0
"""However long an endpoint asks us to wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt or a call came to nothing; `retryable` when another try may help."""

    kind: str
    message: str
    retryable: bool

    def as_json(self) -> dict[str, Any]:
        """As stored and shown: bounded, and in characters that every database takes."""
        message = shortened(storable(self.message), _MAX_MESSAGE_CHARACTERS)
        return {"kind": self.kind, "message": message, "retryable": self.retryable}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunError:
    """Why a run failed; `code` is one of the contract's run error codes."""

    code: str
    message: str
    task_key: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As stored and shown."""
        message = shortened(storable(self.message), _MAX_MESSAGE_CHARACTERS)
        return {"code": self.code, "message": message, "task_key": self.task_key}


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    See "Exponential Backoff And Jitter" (AWS Architecture Blog): the wait is drawn evenly between nothing and the
    bound, so that calls which failed together do not come back together.
    """

    base_seconds: float
    cap_seconds: float

    def wait_seconds(self, tries: int, *, chance: float, retry_after_seconds: float | None = None) -> float:
        """How long to wait after `tries` failed tries; `chance` is a random number in [0, 1).

        What the endpoint asks for is the least we wait, with up to `base_seconds` on top so that callers spread.
        """
        bound: float = min(self.cap_seconds, self.base_seconds * 2 ** min(tries - 1, 60))
        if retry_after_seconds is None or not math.isfinite(retry_after_seconds) or retry_after_seconds < 0:
            return chance * bound
        return max(min(retry_after_seconds, MAX_WAIT_SECONDS) + chance * self.base_seconds, chance * bound)
