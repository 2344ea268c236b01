"""What a run may use: its limits, what is used, what calls in flight have reserved, and the time it has run."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_PARTS = {
    "max_seconds": 1_000,
    "max_tokens": 1,
    "max_llm_calls": 1,
    "max_tool_calls": 1,
    "max_cost_usd": 1_000_000_000,
}
"""Every limit, and in how many whole parts of its unit it is counted here: ms, nano-USD. Time first: it alone goes on
by itself, so where several are passed it is the one to tell of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What one call may use. The cost is None where its model's price is not known."""

    tokens: int
    cost_nano_usd: int | None


class Budget:
    """One run's budget. Reaching a limit is allowed, passing it is not; times are ms of whatever clock is passed in.

    Before each call: `refuses`, and if it does not, `opened` at once, so that the next question counts this call too.
    Use passes a limit only where a call uses more than was reserved for it.
    """

    def __init__(
        self,
        limits: Mapping[str, Any],
        *,
        llm_calls: int = 0,
        tool_calls: int = 0,
        tokens: int = 0,
        cost_nano_usd: int = 0,
        active_ms: int = 0,
        warned: Collection[str] = (),
    ) -> None:
        """`limits` as stored: null or nothing is no limit. The rest is what was used, and warned of, until now."""
        self._given = {name: limits[name] for name in _PARTS if limits.get(name) is not None}
        # By way of its shortest text a float is the number that was written; rounded down, it is still not passed.
        self._limits = {name: int(Decimal(str(given)) * _PARTS[name]) for name, given in self._given.items()}
        self._used = {
            "max_seconds": active_ms,
            "max_tokens": tokens,
            "max_llm_calls": llm_calls,
            "max_tool_calls": tool_calls,
            "max_cost_usd": cost_nano_usd,
        }
        self._open: dict[int, Reservation] = {}
        self._reserved = Counter[str]()  # the sum of what is open, by limit
        self._running_since: int | None = None
        self._warned = set(warned)

    @property
    def warned(self) -> list[str]:
        """The limits that `crossed` has told of, sorted."""
        return sorted(self._warned)

    def limit(self, name: str) -> int | float | None:
        """A limit as the client gave it; None: there is none."""
        return self._given.get(name)

    def use_of(self, name: str, now: int) -> int | float:
        """What is used, reservations left out, in the unit of the limit's name: seconds, USD, tokens, calls."""
        use, parts = self._use(name, now), _PARTS[name]
        return use if parts == 1 else use / parts

    def refuses(self, reservation: Reservation) -> str | None:
        """The limit that one more call could pass; None: it may be made.

        A call whose cost is not known is refused where the cost is limited: nothing would hold it within.
        """
        wanted = {"max_tokens": reservation.tokens, "max_llm_calls": 1, "max_cost_usd": reservation.cost_nano_usd}
        for name, more in wanted.items():
            limit = self._limits.get(name)
            if limit is not None and (more is None or self._used[name] + self._reserved[name] + more > limit):
                return name
        return None

    def refuses_tools(self, calls: int) -> str | None:
        """The limit that so many more tool calls would pass; None: they may be made."""
        limit = self._limits.get("max_tool_calls")
        return None if limit is None or self._used["max_tool_calls"] + calls <= limit else "max_tool_calls"

    def tools_opened(self, calls: int) -> None:
        """So many tool calls are recorded as sent."""
        self._used["max_tool_calls"] += calls

    def opened(self, number: int, reservation: Reservation) -> None:
        """The call of this number is recorded as sent. Raises ValueError if it is open already."""
        if number in self._open:
            raise ValueError(f"call {number} is open")
        self._open[number] = reservation
        self._used["max_llm_calls"] += 1
        self._reserve(reservation, 1)

    def closed(self, number: int, tokens: int, cost_nano_usd: int | None) -> None:
        """A call has ended: what it used replaces its reservation, if it has one here."""
        if number in self._open:
            self._reserve(self._open.pop(number), -1)
        self._used["max_tokens"] += tokens
        self._used["max_cost_usd"] += cost_nano_usd or 0

    def started(self, now: int) -> None:
        """The run's clock runs from here on: it is planning or running."""
        if self._running_since is None:
            self._running_since = now

    def stopped(self, now: int) -> None:
        """The run's clock stands: it is paused, waits for a person, or is over."""
        self._used["max_seconds"] = self.active_ms(now)
        self._running_since = None

    def active_ms(self, now: int) -> int:
        """How long the run's clock has run in all."""
        since = now if self._running_since is None else self._running_since
        return self._used["max_seconds"] + max(0, now - since)

    def deadline(self, now: int) -> int | None:
        """When `max_seconds` is used up, which may have been; None: it is not limited, or the clock stands."""
        return self._when(self._limits.get("max_seconds"), now)

    def warning_at(self, now: int) -> int | None:
        """When `crossed` has to tell of `max_seconds`; None: it has, it is not limited, or the clock stands."""
        limit = None if "max_seconds" in self._warned else self._limits.get("max_seconds")
        return self._when(limit and _mark(limit), now)

    def crossed(self, now: int) -> list[str]:
        """The limits of which 80 % is used, reservations left out; each is told of once ever."""
        crossed = [
            name
            for name, limit in self._limits.items()
            if name not in self._warned and 0 < self._use(name, now) >= _mark(limit)
        ]
        self._warned.update(crossed)
        return crossed

    def is_over(self, now: int) -> str | None:
        """The limit that is passed, `max_seconds` before others; None: all hold. Time is passed once it is reached."""
        for name, limit in self._limits.items():
            use = self._use(name, now)
            if use > limit or (name == "max_seconds" and use == limit):
                return name
        return None

    def _use(self, name: str, now: int) -> int:
        return self.active_ms(now) if name == "max_seconds" else self._used[name]

    def _reserve(self, reservation: Reservation, sign: int) -> None:
        self._reserved["max_tokens"] += sign * reservation.tokens
        self._reserved["max_cost_usd"] += sign * (reservation.cost_nano_usd or 0)

    def _when(self, active_ms: int | None, now: int) -> int | None:
        """The time at which the clock, if it runs, has run for so long."""
        if active_ms is None or self._running_since is None:
            return None
        return now + active_ms - self.active_ms(now)


def _mark(limit: int) -> int:
    """80 % of a limit, rounded up."""
    return -(-limit * 4 // 5)
