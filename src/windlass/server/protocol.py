"""The server's side of an HTTP/1.1 connection: limits first, then one request at a time.

Whatever could cost memory or time is bounded here, before a body is kept: the head's size and time, the body's size and
rate, the time a client may leave an answer unread, the number of connections. RFC 9112; the cases S60 to S73. Not
served, though the RFC has it: pipelining (the connection closes after the first answer), targets that are no path, and
keeping HTTP/1.0 connections.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable
from email.utils import formatdate
from math import inf
from typing import cast

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import RequestRefused
from windlass.server.http import App, Head, Work, encode_head, parse_head
from windlass.server.incoming import Incoming
from windlass.server.outgoing import WireCall
from windlass.server.refusals import late, malformed, overloaded, stopping, too_large

__all__ = ["App", "Limits", "Listener"]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: Bodies up to this size are taken even while all connections together hold too much.
_SMALL = 65_536
#: Bytes that may follow a request before its answer is complete.
_MAX_SURPLUS = 1 << 20
#: A longer head is not remembered for the next request of its connection.
_REMEMBERED = 4096
#: Seconds for which a refused client may go on sending, so that it reads why; and silence that ends them.
_LINGER, _SILENCE = 5.0, 1.0
#: Refused connections that may linger at once.
_LINGERING = 256


class Limits(Struct, frozen=True):
    """Bounds of the edge: bytes and seconds.

    `head_bytes` and `head_seconds` for a request's head; `idle_seconds` between requests; a body must come, and an
    answer be read, at `body_rate` bytes a second, of which a body may be `head_seconds` and an answer `stall_seconds`
    late; `connections` open at once, and `buffered_bytes` of bodies held at once for all of them.
    """

    head_bytes: int = 65_536
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_rate: int = 1024
    stall_seconds: float = 30.0
    connections: int = 4096
    buffered_bytes: int = 1 << 29


class Listener:
    """What all connections of one server share; a look every `sweep` seconds ends those that are overdue."""

    def __init__(self, app: App, limits: Limits | None = None, *, sweep: float = 1.0) -> None:
        self.app, self.limits, self._every = app, limits or Limits(), sweep
        self.connections: set[Connection] = set()
        #: Those that were refused and may still read why, the oldest first.
        self.lingering: dict[Connection, None] = {}
        self.tasks: set[Work] = set()
        self.buffered = 0
        self.draining = False
        #: Lines that every answer has.
        self.default_headers = ""
        self.loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        self._sweep()

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(self._every, self._sweep)
        self.default_headers = f"date: {formatdate(clock.now_ns() / 1e9, usegmt=True)}\r\n"
        now = self.loop.time()
        for connection in [one for one in (*self.connections, *self.lingering) if one.due <= now]:
            connection.overdue(now)

    def admit(self, connection: Connection) -> bool:
        """Take a new connection in; over the limit those that wait longest for a request go, and if none does this."""
        most = self.limits.connections
        if len(self.connections) >= most:
            # Several at once: a flood would have all of them looked at for each.
            for other in heapq.nsmallest(1 + most // 64, filter(Connection.waits, self.connections), Connection.age):
                other.abort()
                self.connections.discard(other)
        if len(self.connections) >= most:
            return False
        self.connections.add(connection)
        return True

    def linger(self, connection: Connection) -> None:
        """Count a connection no more that was refused; the oldest of too many goes."""
        self.connections.discard(connection)
        self.lingering[connection] = None
        if len(self.lingering) > _LINGERING:
            oldest = next(iter(self.lingering))
            del self.lingering[oldest]
            oldest.abort()

    def gone(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        self.lingering.pop(connection, None)
        if self.draining:
            self.settle()

    def settle(self) -> None:
        """Tell who drains when nothing is left."""
        if not self.connections and not self.tasks:
            self._settled.set()

    async def drain(self, seconds: float) -> int:
        """Let what is being answered end and be read, at most `seconds`; all else closes now. Returns what was left."""
        self.draining = True
        for connection in list(self.connections):
            connection.retire()
        await self._quiet(seconds)
        left = len(self.tasks)
        for task in list(self.tasks):
            task.cancel("the server is stopping")
        running = [task for task in self.tasks if isinstance(task, asyncio.Task)]
        if running:
            await asyncio.wait(running, timeout=5.0)
        # One that was cancelled before its first step ran nothing of its own.
        self.tasks = {task for task in self.tasks if not task.done()}
        await self._quiet(1.0 if left else 0.0)
        self._sweeper.cancel()
        for connection in (*self.connections, *self.lingering):
            connection.abort()
        await clock.sleep(0)  # until their sockets are closed
        return left

    def hurry(self) -> None:
        """Drain no longer: what is still being answered is broken off now."""
        self._settled.set()

    async def _quiet(self, seconds: float) -> None:
        self.settle()
        try:
            async with clock.deadline(seconds):
                await self._settled.wait()
        except TimeoutError:
            return


class Connection(asyncio.Protocol):
    """One client's connection: reads a head, asks the app, reads the body, and runs the app's answer as a task.

    It waits for a head (`_buffer` holds what came of one), or for a body (`_incoming`), or for its answer (`_task`), or
    was refused (`_lingers` until then). `due` is when that has taken too long, in the loop's time.
    """

    __slots__ = (
        "_buffer",
        "_call",
        "_drained",
        "_held",
        "_incoming",
        "_last_head",
        "_last_parsed",
        "_lingers",
        "_paused",
        "_surplus",
        "_task",
        "_transport",
        "_unread",
        "due",
        "keep",
        "listener",
        "peer",
    )

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._call: WireCall | None = None
        self._incoming: Incoming | None = None
        self._task: Work | None = None
        self._held = self._surplus = self._unread = 0
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._last_head = b""
        self._last_parsed: Head | None = None
        self._lingers = self.due = 0.0
        #: Whether another request may follow, as far as the client's head goes.
        self.keep = False
        self.peer = ""

    # -- the connection --------------------------------------------------------------------------------------------

    def waits(self) -> bool:
        """Tell whether nothing is owed to the client: no whole head is here, and it has what was sent."""
        return self._call is None and self._transport is not None and not self._transport.get_write_buffer_size()

    def age(self) -> tuple[bool, float]:
        """Return what orders waiting connections: idle ones first, and of those the ones due soonest."""
        return bool(self._buffer), self.due

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first head."""
        self._transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else "unix"
        listener = self.listener
        self.due = listener.loop.time() + listener.limits.head_seconds
        if listener.draining or not listener.admit(self):
            self._refuse(overloaded("The server has no room for another connection."))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Cancel what works for a client that is gone."""
        self._transport = self._incoming = None
        self.listener.gone(self)
        self._release()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        call = self._call
        if self._task is None:
            self._call = None
        elif call is not None and not call.answered:
            self._task.cancel("the client left")

    def eof_received(self) -> None:
        """Take a closed sending side for a client that left: there is no telling the two apart."""
        if self._call is not None and not self._call.answered:
            self.abort()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        if self._drained is None:
            self._drained = self.listener.loop.create_future()
            self._watch()

    def resume_writing(self) -> None:
        """The client has caught up."""
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._task is not None:
            self.due = inf
        elif self._incoming is not None:
            self.due = self.listener.loop.time() + self.listener.limits.head_seconds
        elif not self._lingers and self._transport is not None and not self._transport.is_closing():
            self._wait()

    def overdue(self, now: float) -> None:
        """End a connection that is too slow: between requests, in a head, in a body, or reading its answer."""
        transport, limits = self._transport, self.listener.limits
        if transport is None:
            return
        if self._task is not None or self._drained is not None or transport.is_closing():
            unread = transport.get_write_buffer_size()
            if 0 < unread <= self._unread - limits.body_rate * limits.stall_seconds:
                self._unread, self.due = unread, now + limits.stall_seconds
            else:
                transport.abort()
        elif self._incoming is not None:
            self._refuse(late("body came too slowly"), self._call)
        elif self._buffer:
            self._refuse(late("head did not come in time"))
        else:
            self._close()

    def retire(self) -> None:
        """Take no further request: what is not yet being answered is refused, an idle connection closes."""
        self.keep = False
        if self._task is not None:
            if self._call is not None:
                self._call.ending = stopping()
        elif self._call is not None or self._buffer:
            self._refuse(stopping(), self._call)
        else:
            self._close()

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        """Close after what was written, which the client must read in its time."""
        if self._transport is not None:
            self._transport.close()
            self._watch()

    def _watch(self) -> None:
        assert self._transport is not None
        self._unread = self._transport.get_write_buffer_size()
        self.due = self.listener.loop.time() + self.listener.limits.stall_seconds

    # -- requests --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Read a head, then its body; what comes while a request is answered closes the connection afterwards."""
        if self._task is not None or self._incoming is not None or self._lingers:
            self._more(data)
            return
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        limits = self.listener.limits
        if 0 <= end <= limits.head_bytes:
            self._buffer = b""
            self._take_head(data[: end + 4], data[end + 4 :])
            return
        if not self._buffer:
            self.due = self.listener.loop.time() + limits.head_seconds
        self._buffer = data
        if end > 0 or len(data) > limits.head_bytes:
            text = f"The request's head is larger than {limits.head_bytes} bytes."
            self._refuse(RequestRefused(431, text, reason="headers_too_large"))
        elif not 65 <= data[0] <= 90 or data.count(b"\n") != data.count(b"\r\n"):
            # Not HTTP, such as TLS, or another server's HTTP: more of it would not help.
            self._refuse(malformed("The request's head is not valid HTTP/1.1."))

    def _more(self, data: bytes) -> None:
        """Take what comes when it is no head's turn."""
        if self._lingers:
            self.due = min(self.listener.loop.time() + _SILENCE, self._lingers)
        elif self._incoming is not None:
            self._body(self._incoming, data)
        elif self._call is not None and self._call.answered and self.persistent():
            # The next request, before we are done with this one: nothing more is read until then.
            self._buffer += data
            self._pause()
        else:
            self._surplus += len(data)
            if self._surplus > _MAX_SURPLUS:
                self.abort()

    def _pause(self) -> None:
        if self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _take_head(self, raw: bytes, rest: bytes) -> None:
        listener = self.listener
        call: WireCall | None = None
        try:
            # Clients repeat themselves: the head of the request before is often the same bytes.
            if raw == self._last_head and self._last_parsed is not None:
                head = self._last_parsed
            else:
                head = parse_head(raw)
                if len(raw) <= _REMEMBERED:
                    self._last_head, self._last_parsed = raw, head
            call = WireCall(head, self.peer, clock.monotonic(), connection=self)
            self.keep = head.keep_alive
            limit = listener.app.admit(call)
            length = head.length
            if length is not None and length > limit:
                raise too_large(limit)
            if length == len(rest):
                if rest:
                    self._hold(len(rest))
                self._run(call, rest)
                return
        except RequestRefused as error:
            self._refuse(error, call)
            return
        self._call = call
        self._incoming = Incoming(length, limit)
        self.due = listener.loop.time() + listener.limits.head_seconds
        if "expect" in head.headers and not (rest or head.http10) and self._transport is not None:
            self._transport.write(_CONTINUE)
        self._body(self._incoming, rest)

    def _body(self, incoming: Incoming, data: bytes) -> None:
        call, before = self._call, incoming.size
        assert call is not None
        try:
            whole = incoming.feed(data)
            self._hold(incoming.size - before)
            if whole:
                # That took time, in which a key may have been revoked.
                self.listener.app.admit(call)
        except RequestRefused as error:
            self._refuse(error, call)
            return
        if not whole:
            # What comes buys time, and none can be saved up.
            limits = self.listener.limits
            bought = (incoming.size - before) / (limits.body_rate or 1)
            self.due = min(self.due + bought, self.listener.loop.time() + limits.head_seconds)
            return
        self._surplus, self._incoming = int(incoming.surplus), None
        self._run(call, incoming.take())

    def _hold(self, size: int) -> None:
        """Count bytes that this connection keeps; refuse a large body while all connections together hold too much."""
        listener = self.listener
        listener.buffered += size
        self._held += size
        if self._held > _SMALL and listener.buffered > listener.limits.buffered_bytes:
            raise overloaded("Too many large requests at once.")

    def _release(self) -> None:
        self.listener.buffered -= self._held
        self._held = 0

    def _run(self, call: WireCall, body: bytes) -> None:
        call.body = body
        self._call = call
        if self._drained is None:
            self.due = inf
        listener = self.listener
        straight = listener.app.express(call, self._ended)
        task = straight or listener.loop.create_task(self._serve(call, listener.app.serve(call)))
        call.task = self._task = task
        listener.tasks.add(task)

    def go_on(self, call: WireCall, work: Awaitable[None]) -> None:
        """Do in a task what could not be done without one.

        It takes its place when it begins: one that is cancelled before would not even note that it was.
        """
        task = self.listener.loop.create_task(self._serve(call, work, self._task))
        task.set_name(f"windlass-{call.id}")

    async def _serve(self, call: WireCall, work: Awaitable[None], before: Work | None = None) -> None:
        if before is not None:
            self.listener.tasks.discard(before)
            task = asyncio.current_task()
            assert task is not None
            call.task = self._task = task
            self.listener.tasks.add(task)
        try:
            await work
        finally:
            self._ended(call)

    def _ended(self, call: WireCall) -> None:
        listener, task, transport = self.listener, self._task, self._transport
        # A task that was cancelled holds the frames that hold its call.
        self._task = self._call = call.task = None
        if task is not None:
            listener.tasks.discard(task)
        if self._held:
            self._release()
        if transport is None:
            if listener.draining:
                listener.settle()
        elif not call.answered:
            transport.abort()  # an answer that was begun and not ended must not look whole
        elif not self.persistent():
            self._close()
        elif self._drained is not None:
            self._pause()  # who does not read what it asked for need not ask for more
        else:
            self._wait()

    def _wait(self) -> None:
        """Wait for the next request, or take what came of it already."""
        self.due = self.listener.loop.time() + self.listener.limits.idle_seconds
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            data, self._buffer = self._buffer, b""
            if data:
                self.data_received(data)

    def _refuse(self, error: RequestRefused, call: WireCall | None = None) -> None:
        """Answer with an error and close: what follows on this connection is not read."""
        transport = self._transport
        if transport is None:
            return
        self._release()
        self._call = self._incoming = None
        self._buffer = b""
        status, headers, body = self.listener.app.refusal(call, error)
        framing = f"content-length: {len(body)}\r\nconnection: close\r\n{self.listener.default_headers}"
        head = encode_head(status, headers, framing)
        transport.write(head if call is not None and call.head.method == "HEAD" else head + body)
        # A client that is still sending would lose the answer to a reset: it may go on for a moment.
        transport.write_eof()
        now = self.listener.loop.time()
        self._lingers, self.due = now + _LINGER, now + _SILENCE
        self.listener.linger(self)

    # -- answers ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Write, as far as the client is still there; returns what to await while it is slow."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)
        return self._drained

    def persistent(self) -> bool:
        """Whether another request may follow on this connection."""
        return self.keep and not self._surplus and not self.listener.draining
