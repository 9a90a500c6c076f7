"""One HTTP/1.1 connection: bytes in and out, framing by llhttp, one lazy timer, and the pool entry it belongs to."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import MutableMapping, Sequence
from math import inf
from typing import TypeAlias, cast

import httptools

from windlass.core import clock
from windlass.core._http_exchange import Exchange
from windlass.core._http_head import Headers
from windlass.core._http_url import Proxy
from windlass.core.errors import ConnectError, ProtocolError, TransportError, TransportTimeout

__all__ = ["Connection", "Host", "HostKey"]

#: Bytes of a body held for a slow reader before reading from the socket stops.
HIGH_WATER = 256 * 1024
#: Bytes written to the transport at a time when a body is large.
SLICE = 64 * 1024
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"keep-alive"))
_HINT = re.compile(rb"timeout=(\d{1,6})")

#: scheme, host, port, pinned address or "".
HostKey: TypeAlias = tuple[str, str, int, str]


class _Broken(Exception):
    """Carry out of a parser callback what the server did wrong."""


class Host:
    """The connections to one origin: at most `limit` in use, the rest of the callers in a first-come queue.

    A slot is counted in `active` from `acquire` until `release`. A released slot goes straight to the first in the
    queue, so nobody who comes later can take it.
    """

    __slots__ = ("_table", "active", "idle", "keepalive", "key", "limit", "max_idle", "proxy", "waiters")

    def __init__(
        self,
        key: HostKey,
        table: MutableMapping[HostKey, Host],
        *,
        proxy: Proxy | None,
        limit: int,
        max_idle: int,
        keepalive: float,
    ) -> None:
        self.key, self.proxy = key, proxy
        self.limit, self.max_idle, self.keepalive = limit, max_idle, keepalive
        self.active = 0
        self.idle: list[Connection] = []
        self.waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._table = table

    def take(self) -> bool:
        """Take a slot if one is free; while somebody waits none is, for `release` hands it on."""
        if self.active >= self.limit:
            return False
        self.active += 1
        return True

    def pop(self) -> Connection | None:
        """Return the idle connection used last, if one is still good."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def queue(self, seconds: float | None, phase: str, endpoint: str, *, first: bool) -> Connection | None:
        """Wait for a slot; returns the connection that came with it, if one did."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        (self.waiters.appendleft if first else self.waiters.append)(waiter)
        try:
            async with clock.deadline(seconds):
                connection = await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            elif waiter in self.waiters:
                self.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                text = f"All {self.limit} connections to {endpoint} stayed in use for {seconds} s."
                raise TransportTimeout(text, phase=phase, endpoint=endpoint, sent=False) from None
            raise
        return connection if connection is not None and connection.usable() else None

    def release(self, connection: Connection | None) -> None:
        """Give a slot back, with its connection where that can serve again."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self.active -= 1
        if connection is not None and len(self.idle) < self.max_idle:
            self.idle.append(connection)
            connection.park(self.keepalive)
        elif connection is not None:
            connection.abort()
        self._tidy()

    def forget(self, connection: Connection) -> None:
        """Drop an idle connection that was closed."""
        if connection in self.idle:
            self.idle.remove(connection)
        self._tidy()

    def _tidy(self) -> None:
        # By identity: another entry may have taken this one's place since.
        if not self.active and not self.idle and self._table.get(self.key) is self:
            del self._table[self.key]


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time.

    It returns to its host's pool only when the parser has seen the whole message, both sides keep alive, all of the
    request was written and no byte followed. Anything else closes it.
    """

    __slots__ = (
        "_all",
        "_at",
        "_came",
        "_fields",
        "_framed",
        "_head_size",
        "_keep",
        "_keepalive_hint",
        "_loop",
        "_max_head",
        "_parked_until",
        "_parser",
        "_quiet",
        "_sending",
        "_surplus",
        "_timer",
        "_transport",
        "_write_blocked",
        "exchange",
        "host",
        "lost",
        "on_body",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: Host, everyone: set[Connection], *, max_head: int
    ) -> None:
        self._loop, self.host, self._all, self._max_head = loop, host, everyone, max_head
        self.exchange: Exchange | None = None
        self.lost: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        #: What the parser found of a body in one read; it calls `on_body` for each chunk, which costs no frame of ours.
        self._came: list[bytes] = []
        self.on_body = self._came.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_size = self._quiet = 0
        self._framed = self._keep = self._sending = self._surplus = self._write_blocked = False
        self._keepalive_hint = inf
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._parked_until = inf

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._parser = None
        if not self.lost.done():
            self.lost.set_result(None)
        exchange = self.exchange
        if exchange is None:
            self.host.forget(self)
        elif exchange.status and not self._framed and exc is None:
            exchange.close_delimited = True
            self._end(exchange, keep=False)
        else:
            self.abort(self._lost_error(exchange, exc))

    def _lost_error(self, exchange: Exchange, exc: Exception | None) -> TransportError:
        how = f"broke off ({exc})" if exc is not None else "was closed by the server"
        if exchange.status:
            text = f"The connection to {exchange.endpoint} {how} before the end of the body."
        elif exchange.started:
            text = f"The connection to {exchange.endpoint} {how} inside the head of the answer."
        else:
            text = f"The connection to {exchange.endpoint} {how} before any answer."
        error = ProtocolError(text, endpoint=exchange.endpoint)
        error.__cause__ = exc
        return error

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or self._parser is None:
            self.abort()  # nobody asked
            return
        exchange.started = True
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not exchange.done:
                if self._came:
                    self._body(exchange)  # what was sound of it
                self._refuse(exchange, error)
                return
            self._surplus = True
        if self._came:
            self._body(exchange)
        if exchange.done:
            self._end(exchange, keep=self._keep and not self._surplus)
        elif self._quiet > self._max_head:
            # Head, trailers and chunk extensions alike: nothing here may grow without giving body bytes.
            self._refuse(exchange, _Broken(f"it sent more than {self._max_head} bytes without any of a body"))
        elif exchange.status:
            exchange.wake()

    def _body(self, exchange: Exchange) -> None:
        came = self._came
        if exchange.without_body:
            self._surplus = True
        else:
            self._quiet = 0
            data = came[0] if len(came) == 1 else b"".join(came)
            exchange.pieces.append(data)
            exchange.size += len(data)
            if exchange.size > HIGH_WATER and not exchange.paused and not exchange.done and self._transport is not None:
                exchange.paused = True
                self._transport.pause_reading()
        came.clear()

    def _refuse(self, exchange: Exchange, error: Exception) -> None:
        reason = error.__context__ if isinstance(error.__context__, _Broken) else error
        text = f"{exchange.endpoint} does not answer in valid HTTP/1.1: {reason}."
        self.abort(ProtocolError(text, endpoint=exchange.endpoint))

    def pause_writing(self) -> None:
        self._write_blocked = True

    def resume_writing(self) -> None:
        self._write_blocked = False
        if self.exchange is not None:
            self.exchange.wake()

    # The parser's side.

    def on_message_begin(self) -> None:
        if self.exchange is None or self.exchange.done:
            raise _Broken("bytes follow the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self.exchange
        if exchange is None or exchange.status:
            return  # a trailer
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._max_head:
            raise _Broken(f"its headers are larger than {self._max_head} bytes")
        self._fields.append((name.lower(), value.strip()))  # the parser leaves spaces at the end

    def on_headers_complete(self) -> None:
        exchange, parser = self.exchange, self._parser
        assert exchange is not None and parser is not None
        status = parser.get_status_code()
        lengths, codings = self._framing()
        if status < 200:
            # Interim answers are skipped (RFC 9110, 15.2); they share the head's budget of bytes.
            if status == 101 or lengths or codings:
                raise _Broken(f"an interim {status} answer that nobody asked for")
            self._fields = []
            return
        if codings and (lengths or [c.strip().lower() for c in codings] != [b"chunked"]):
            raise _Broken("content-length with transfer-encoding, or a transfer-encoding other than chunked")
        if len(lengths) > 1:
            raise _Broken("more than one content-length")
        self._framed = bool(lengths or codings)
        self._quiet = 0
        exchange.headers = Headers(self._fields)
        exchange.status = status
        self._fields = []
        if exchange.without_body or status in (204, 304):
            # The parser cannot know of HEAD and would wait for a 304's Content-Length; an unframed 204 it ends itself.
            exchange.done = exchange.without_body or self._framed
            exchange.without_body = True

    def _framing(self) -> tuple[list[bytes], list[bytes]]:
        lengths: list[bytes] = []
        codings: list[bytes] = []
        for name, value in self._fields:
            if name in _FRAMING:
                if name == b"content-length":
                    lengths.append(value)
                elif name == b"transfer-encoding":
                    codings.append(value)
                elif hint := _HINT.search(value):
                    self._keepalive_hint = float(hint[1])
        return lengths, codings

    def on_message_complete(self) -> None:
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None or exchange.done or not exchange.status:
            return
        exchange.done = True
        self._keep = parser.should_keep_alive()

    # The client's side.

    def usable(self) -> bool:
        """Say whether the connection can carry another exchange."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._loop.time() < self._parked_until

    def begin(self, exchange: Exchange) -> None:
        """Tie the connection to an exchange."""
        self.exchange = exchange
        exchange.source = self
        self._head_size = self._quiet = 0
        self._keep = False
        self._parked_until = inf

    def send_at_once(self, head: bytes, body: Sequence[bytes]) -> bool:
        """Write a request that needs no waiting, as most do; False when `send` must do it."""
        transport = self._transport
        if self.exchange is None or transport is None:
            return True  # closed since; the exchange holds the error
        if sum(map(len, body)) > SLICE:
            return False
        transport.write(b"".join((head, *body)))
        return True

    def send_whole(self, head: bytes, body: bytes) -> None:
        """Write a request whole, as one who listens does; what the socket does not take is held here."""
        transport = self._transport
        if transport is None:
            return
        if len(body) > SLICE:
            transport.writelines((head, body))
        else:
            transport.write(head + body)

    async def send(self, head: bytes, body: Sequence[bytes]) -> None:
        """Write a large request in slices as the socket takes them; stop when an answer comes."""
        exchange, transport = self.exchange, self._transport
        if exchange is None or transport is None:
            return
        self._sending = True
        transport.write(head)
        for piece in body:
            view = memoryview(piece)
            for start in range(0, len(view), SLICE):
                while self._write_blocked and exchange.source is self and not exchange.status:
                    await exchange.sendable()
                if exchange.source is not self or exchange.status:
                    return  # answered early: the unsent rest rules out another request on this connection
                transport.write(view[start : start + SLICE])
        self._sending = False

    def arm(self, at: float) -> None:
        """Make sure that the timer looks at `at` or before. Later deadlines cost nothing: it re-arms itself."""
        if at == inf or (self._timer is not None and self._at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        exchange = self.exchange
        at = self._parked_until if exchange is None else exchange.next_due()
        if at > self._loop.time():
            self.arm(at)
        else:
            self.abort(None if exchange is None else exchange.overdue())

    def resume(self) -> None:
        """Read on after the reader has caught up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def park(self, seconds: float) -> None:
        """Start the time a connection may rest in the pool; a server's own Keep-Alive hint shortens it by a second."""
        self._parked_until = self._loop.time() + min(seconds, max(0.0, self._keepalive_hint - 1))
        self.arm(self._parked_until)

    def abort(self, error: TransportError | None = None) -> None:
        """Close the socket at once; an exchange in progress ends with `error`."""
        exchange, self.exchange = self.exchange, None
        if self._transport is not None:
            self._transport.abort()
        if exchange is not None:
            exchange.fail(error or ConnectError("The exchange was given up.", endpoint=exchange.endpoint))
            self.host.release(None)

    def _end(self, exchange: Exchange, *, keep: bool) -> None:
        self.exchange = None
        transport = self._transport
        assert transport is not None
        good = keep and not self._sending and not transport.is_closing() and not transport.get_write_buffer_size()
        if not good:
            transport.abort()
        elif exchange.paused:
            exchange.paused = False
            self.resume()
        exchange.finish()
        self.host.release(self if good else None)
