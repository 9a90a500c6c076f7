"""Write a stream of tokens as Server-Sent Events (WHATWG HTML, 9.2), byte for byte as reference E does.

One event per token, without spaces in the JSON and with its keys in this order; `text` is left out where a token has
none. A stream ends with one `complete` or one `error` event. JSON escapes line ends, so that each is one line.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from msgspec import UNSET, Struct, UnsetType

from windlass.core.errors import WindlassError
from windlass.core.json import dumps
from windlass.local.streaming import StreamingResponse, StreamingStats, TokenEvent

__all__ = ["format_complete", "format_error", "format_token", "sse", "sse_async"]


class _Token(Struct):
    token_id: int
    text: str | UnsetType
    position: int
    is_final: bool


class _Complete(Struct):
    event: str
    tokens_generated: int
    tokens_per_second: float
    time_to_first_token_ms: float | UnsetType = UNSET


class _Error(Struct):
    event: str
    error: str


def format_token(event: TokenEvent) -> bytes:
    r"""Return the event of one token.

    >>> format_token(TokenEvent(123, "hello", 5))
    b'data: {"token_id":123,"text":"hello","position":5,"is_final":false}\n\n'
    >>> format_token(TokenEvent(0, None, 6, True))
    b'data: {"token_id":0,"position":6,"is_final":true}\n\n'
    """
    text = UNSET if event.text is None else event.text
    return _event(_Token(event.token_id, text, event.position, event.is_final))


def format_complete(stats: StreamingStats, *, first_token: bool = False) -> bytes:
    r"""Return the event that ends a stream; `first_token` adds the time to the first token, in milliseconds.

    >>> format_complete(StreamingStats(tokens_generated=50, generation_time_ns=2_000_000_000))
    b'data: {"event":"complete","tokens_generated":50,"tokens_per_second":25.0}\n\n'
    """
    first = round(stats.time_to_first_token_ms, 3) if first_token else UNSET
    return _event(_Complete("complete", stats.tokens_generated, round(stats.tokens_per_second, 3), first))


def format_error(error: BaseException | str) -> bytes:
    r"""Return the event that ends a stream in its place when it failed.

    >>> format_error("out of memory")
    b'data: {"event":"error","error":"out of memory"}\n\n'
    """
    return _event(_Error("error", str(error)))


def sse(response: StreamingResponse, *, first_token: bool = False) -> Iterator[bytes]:
    """Yield a response as Server-Sent Events; a cancelled one ends without a last event. Closing it cancels."""
    with response:
        try:
            while (event := response.next()) is not None:
                yield format_token(event)
        except WindlassError as error:
            yield format_error(error)
            return
        if not response.is_cancelled:
            yield format_complete(response.stats, first_token=first_token)


async def sse_async(response: StreamingResponse, *, first_token: bool = False) -> AsyncIterator[bytes]:
    """Yield a response as `sse` does, waiting on the event loop."""
    with response:
        try:
            while (event := await response.anext()) is not None:
                yield format_token(event)
        except WindlassError as error:
            yield format_error(error)
            return
        if not response.is_cancelled:
            yield format_complete(response.stats, first_token=first_token)


def _event(data: Struct) -> bytes:
    return b"data: " + dumps(data) + b"\n\n"
