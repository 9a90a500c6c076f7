"""What a request used and what it cost."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["NANO", "Usage", "format_cost"]

#: Money inside is an integer of nano-dollars; this many make one dollar.
NANO = 1_000_000_000


class Usage(Struct, frozen=True, omit_defaults=True):
    """Token counts of one request or of many.

    `input_tokens` counts everything the model read, cached tokens included; `cache_read_tokens` and
    `cache_creation_tokens` are the parts of it that were served from, or written to, the prompt cache.
    `output_tokens` counts everything it wrote, `reasoning_tokens` included. `estimated` is True when the provider
    reported nothing and the counts are ours.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_creation_tokens + other.cache_creation_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


def format_cost(nano: int | None) -> str:
    """Return nano-dollars as a decimal, at least four places, without rounding away; `unknown` for None.

    >>> format_cost(1_500_000), format_cost(0), format_cost(12_345), format_cost(None)
    ('$0.0015', '$0.0000', '$0.000012345', 'unknown')
    """
    if nano is None:
        return "unknown"
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    digits = f"{nano % NANO:09d}".rstrip("0")
    return f"{sign}${nano // NANO}.{digits:0<4}"
