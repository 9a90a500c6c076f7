"""Asking vendors how many tokens a request has; where none can be asked, `core/estimate` says about how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.wire import anthropic_count

__all__ = ["COUNTERS", "Counter"]


class Counter(Struct, frozen=True):
    """Where a vendor counts, the body that asks it, and what its answer says."""

    path: str
    encode: Callable[[Request, Capabilities], bytes]
    decode: Callable[[bytes], int]


#: The name of a vendor's dialect -> its way to count.
COUNTERS: Final[Mapping[str, Counter]] = {
    "anthropic": Counter(anthropic_count.PATH, anthropic_count.encode_count_request, anthropic_count.decode_count),
}
