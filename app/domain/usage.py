"""What model calls use."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one call, as the endpoint counted them, or estimated where it did not."""

    input_tokens: int = 0
    output_tokens: int = 0
