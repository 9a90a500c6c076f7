"""One request and its response, as the reader sees it: what has arrived, what is awaited, until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from windlass.core._http_coding import CodingError, Decoder, make_decoder
from windlass.core._http_head import Headers
from windlass.core.errors import BodyTooLarge, ProtocolError, TransportError, TransportTimeout

__all__ = ["Exchange", "IdleOn", "Timeouts"]

#: What resets the idle clock: any byte, or only the caller's `mark_progress`.
IdleOn = Literal["bytes", "progress"]

_PHASES = {
    "send": "the server took no more of the request",
    "first_byte": "no answer came",
    "idle": "no more of the answer came",
    "total": "the exchange did not come to its end",
}


class Timeouts(Struct, frozen=True):
    """Limits in seconds; None means no limit.

    `connect`: address lookup, TCP, proxy and TLS together. `first_byte`: from the sent request to the whole head of
    the answer; also how long a blocked upload may stand still. `idle`: waiting for bytes (or progress) of the body.
    `total`: the whole exchange. `pool`: waiting for a free connection. `min_rate`: body bytes per second that must
    come on average over each `idle` seconds of waiting (60 where idle is None); 0 asks for none.
    """

    connect: float | None = 5.0
    first_byte: float | None = 60.0
    idle: float | None = 60.0
    total: float | None = None
    pool: float | None = 30.0
    min_rate: float = 0.0


class Source(Protocol):
    """Where an exchange's bytes come from: its connection."""

    def arm(self, at: float) -> None: ...
    def resume(self) -> None: ...
    def abort(self, error: TransportError | None = None) -> None: ...


class Exchange:
    """Collects a response. Its connection writes to it; one task reads from it.

    As an async iterator it gives decoded pieces of the body; all that has arrived comes as one piece. A `listener`
    is called in place of waking a task: when the head is here, more of the body, its end, or an error.
    """

    __slots__ = (
        "_accounted",
        "_began",
        "_body_left",
        "_decoder",
        "_due",
        "_expected",
        "_max_body",
        "_phase",
        "_progress",
        "_timeouts",
        "_total_at",
        "_waited",
        "_waiter",
        "_window",
        "_window_bytes",
        "close_delimited",
        "done",
        "endpoint",
        "error",
        "headers",
        "listener",
        "loop",
        "paused",
        "pieces",
        "reused",
        "size",
        "source",
        "started",
        "status",
        "without_body",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: str,
        timeouts: Timeouts,
        *,
        total_at: float,
        max_body: int,
        idle_on: IdleOn,
        without_body: bool,
    ) -> None:
        self.loop, self.endpoint = loop, endpoint
        self.without_body = without_body
        self.source: Source | None = None
        self.listener: Callable[[], None] | None = None
        self.reused = False
        self.status = 0
        self.headers: Headers | None = None
        #: True from the first byte of any answer on; before that a dead kept-alive connection may be replaced.
        self.started = False
        self.done = False
        self.close_delimited = False
        self.error: TransportError | None = None
        self.pieces: list[bytes] = []
        self.size = 0
        #: Set by the connection while it has stopped reading because too much is held here.
        self.paused = False
        self._timeouts = timeouts
        self._total_at = total_at
        self._max_body = self._body_left = max_body
        self._decoder: Decoder | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._phase = ""
        self._due = inf
        self._expected: float | None = None
        self._progress = idle_on == "progress"
        self._accounted = self._progress or timeouts.min_rate > 0
        self._began = self._waited = self._window = 0.0
        self._window_bytes = 0

    # What the connection calls.

    def wake(self) -> None:
        """Let the waiting task look again."""
        if self.listener is not None:
            self.listener()
            return
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: TransportError) -> None:
        """End with an error; what had arrived can still be read first."""
        self.source = None
        if self.error is None and not self.done:
            self.error = error
        self.wake()

    def finish(self) -> None:
        """End well: the whole body has arrived."""
        self.source = None
        self.done = True
        self.wake()

    def next_due(self) -> float:
        """Return the loop time at which something is overdue."""
        awaited = self.listener is not None or self._is_awaited()
        return min(self._due, self._total_at) if awaited else self._total_at

    def _is_awaited(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def overdue(self) -> TransportTimeout:
        """Return the error for the deadline that passed."""
        total = self.loop.time() >= self._total_at
        phase = "total" if total else self._phase
        limits = {"send": self._timeouts.first_byte, "total": self._timeouts.total}
        limit = limits.get(phase, getattr(self._timeouts, phase, None))
        if self.listener is not None and not total:
            limit = self._expected
        what = "no progress came, though bytes did," if phase == "idle" and self._progress else _PHASES[phase]
        return TransportTimeout(f"{self.endpoint}: {what} within {limit} s.", phase=phase, endpoint=self.endpoint)

    # What the reader calls.

    def wait(self, allow: float | None, phase: str) -> asyncio.Future[None]:
        """Return a future to await until the connection has something new, for at most `allow` seconds."""
        source = self.source
        assert source is not None  # neither done nor failed
        if self._is_awaited():
            raise RuntimeError("Two tasks use one response at the same time.")
        self._began = began = self.loop.time()
        self._phase = phase
        self._due = at = inf if allow is None else began + allow
        source.arm(min(self._total_at, at))
        # A plain future, no coroutine around it: this is the path of every streamed event.
        self._waiter = waiter = self.loop.create_future()
        return waiter

    def expect(self, seconds: float | None, phase: str) -> None:
        """Give what a listener waits for `seconds` from now on, None: without end; more than that is an error."""
        self._phase, self._expected = phase, seconds
        self._due = at = inf if seconds is None else self.loop.time() + seconds
        if self.source is not None:
            self.source.arm(min(self._total_at, at))

    async def head(self) -> None:
        """Wait for the head of the answer; raises the exchange's error when there will be none."""
        began = self.loop.time()
        limit = self._timeouts.first_byte
        while not self.status:
            if self.error is not None:
                raise self.error
            await self.wait(None if limit is None else began + limit - self.loop.time(), "first_byte")
        assert self.headers is not None
        coding = self.headers.get("content-encoding")
        if coding is not None and not self.without_body:
            try:
                self._decoder = make_decoder(coding)
            except CodingError as error:
                raise self._broken(error) from error

    def sendable(self) -> asyncio.Future[None]:
        """Return a future to await until more of the request may be written."""
        return self.wait(self._timeouts.first_byte, "send")

    def limit_idle(self, seconds: float | None) -> None:
        """Replace the idle limit."""
        if seconds != self._timeouts.idle:
            self._timeouts = replace(self._timeouts, idle=seconds)

    def mark_progress(self) -> None:
        """Reset the idle clock where the caller, not the bytes, says what progress is."""
        self._waited = 0.0

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        while True:
            piece = self.take()
            if piece:
                return piece
            if piece is not None:
                raise StopAsyncIteration
            await self._more()
            if self._accounted:
                self._account()

    async def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join([piece async for piece in self])

    def take(self) -> bytes | None:
        """Return decoded bytes that have arrived, b"" at the end of the body, None when there is only waiting."""
        if self._decoder is not None:
            return self._take_decoded(self._decoder)
        if self.pieces:
            data = self._arrived()
            self._body_left -= len(data)
            if self._body_left < 0:
                raise self._too_large()
            return data
        if self.error is not None:
            raise self.error
        return b"" if self.done else None

    def _arrived(self) -> bytes:
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        if self.paused:
            self.paused = False
            if self.source is not None:
                self.source.resume()
        return data

    def _take_decoded(self, decoder: Decoder) -> bytes | None:
        try:
            while True:
                piece = decoder.pull()
                if piece:
                    self._body_left -= len(piece)
                    if self._body_left < 0:
                        raise self._too_large()
                    return piece
                if self.pieces:
                    decoder.feed(self._arrived())
                elif self.error is not None:
                    raise self.error
                elif self.done:
                    decoder.finish()
                    return b""
                else:
                    return None
        except CodingError as error:
            raise self._broken(error) from error

    def _too_large(self) -> TransportError:
        text = f"The body is larger than {self._max_body} bytes, the cap on decoded bytes."
        hint = "Raise max_body_bytes if it should be."
        return self.abort(BodyTooLarge(text, endpoint=self.endpoint, hint=hint))

    def _broken(self, error: CodingError) -> TransportError:
        return self.abort(ProtocolError(f"The server's answer cannot be read: {error}.", endpoint=self.endpoint))

    def abort(self, error: TransportError) -> TransportError:
        """Close the connection, if it is still ours, and make `error` what every further read raises.

        A listener, who calls this, is told nothing more.
        """
        self.listener = None
        self.pieces.clear()
        self._decoder = None
        self.done = False
        source = self.source
        self.error = error
        if source is not None:
            source.abort(error)
        return error

    def _more(self) -> asyncio.Future[None]:
        idle = self._timeouts.idle
        return self.wait(None if idle is None else idle - self._waited, "idle")

    def _account(self) -> None:
        waited = self.loop.time() - self._began
        if self._progress:
            self._waited += waited
        rate = self._timeouts.min_rate
        if rate > 0:
            self._window += waited
            self._window_bytes += self.size  # all of it came during this wait
            span = self._timeouts.idle or 60.0
            if self._window >= span:
                if self._window_bytes < rate * self._window and not self.done:
                    text = f"The answer came slower than {rate} bytes a second over {span} s."
                    raise self.abort(TransportTimeout(text, phase="idle", endpoint=self.endpoint))
                self._window, self._window_bytes = 0.0, 0
