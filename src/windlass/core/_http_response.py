"""What a request gives back: a whole answer, or one whose body is read as it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType

from windlass.core._http_exchange import Exchange
from windlass.core._http_head import Headers
from windlass.core.errors import TransportError

__all__ = ["Response", "StreamResponse", "Streaming"]


class Response:
    """A whole answer. `close_delimited` is True where only the end of the connection marked the end of the body."""

    __slots__ = ("body", "close_delimited", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes, close_delimited: bool) -> None:
        self.status, self.headers, self.body, self.close_delimited = status, headers, body, close_delimited

    def __repr__(self) -> str:
        return f"Response({self.status}, {len(self.body)} bytes)"


class StreamResponse:
    """An answer whose body is read as it arrives; one task reads it, inside the `async with` that opened it."""

    __slots__ = ("_exchange", "headers", "status")

    def __init__(self, exchange: Exchange) -> None:
        assert exchange.headers is not None
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the decoded body in pieces, never empty, cut anywhere; what is already here is one piece.

        A cut or broken body raises ProtocolError after the pieces that came, a passed deadline TransportTimeout, the
        cap on decoded bytes BodyTooLarge.
        """
        return self._exchange

    async def read(self) -> bytes:
        """Return the rest of the body; raises like `chunks`."""
        return await self._exchange.read()

    def mark_progress(self) -> None:
        """Reset the idle clock of a stream opened with `idle_on="progress"`: pings alone then do not keep it alive."""
        self._exchange.mark_progress()

    def limit_idle(self, seconds: float | None) -> None:
        """Replace the idle limit from the next wait on."""
        self._exchange.limit_idle(seconds)

    @property
    def complete(self) -> bool:
        """Whether the whole body has arrived, read or not."""
        return self._exchange.done

    @property
    def close_delimited(self) -> bool:
        """Whether only the end of the connection marked the end of the body, which then may be cut short unseen."""
        return self._exchange.close_delimited


class Streaming:
    """The context of `Client.stream`: sends on entry, closes the socket on exit unless the body had come to its end."""

    __slots__ = ("_exchange", "_open")

    def __init__(self, open_: Callable[[], Awaitable[Exchange]]) -> None:
        self._open = open_
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> StreamResponse:
        self._exchange = await self._open()
        return StreamResponse(self._exchange)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.done:
            exchange.abort(TransportError("The stream was closed by its reader.", endpoint=exchange.endpoint))
