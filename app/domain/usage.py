"""What model calls use, and what that costs."""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one call, as the endpoint counted them, or estimated where it did not."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a model takes, in USD per million tokens."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal

    def cost_nano_usd(self, usage: Usage) -> int:
        """In whole nano-USD (1e-9 USD), half a one rounded up. Fractions: a Decimal would round at 28 digits."""
        micro_usd = usage.input_tokens * Fraction(self.input_usd_per_million) + usage.output_tokens * Fraction(
            self.output_usd_per_million
        )
        return floor(micro_usd * 1000 + Fraction(1, 2))
