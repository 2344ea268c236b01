"""When models may be called again whose endpoint has asked to be left alone: one account for all runs of a process."""

from math import ceil

from app.engine.clock import Clock


class Throttle:
    """What a 429 to one call says to all that would follow it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opens_at: dict[str, int] = {}

    def hold_off(self, model: str, seconds: float) -> None:
        """No call to this model for so long (finite); a wait that ends later than this one stands."""
        now = self._clock.now()
        opens_at = now + ceil(seconds * 1000)
        self._opens_at[model] = max(opens_at, self._opens_at.get(model, opens_at))
        # Clients choose the names of models, so those that are open again must go, asked for or not.
        self._opens_at = {name: at for name, at in self._opens_at.items() if at > now}

    def open_at(self, model: str) -> int | None:
        """When the model may be called again, in ms; None: now."""
        opens_at = self._opens_at.get(model)
        if opens_at is not None and opens_at <= self._clock.now():
            del self._opens_at[model]
            return None
        return opens_at
