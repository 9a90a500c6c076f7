"""The straight way: a request whose bytes pass through to one target, answered by callbacks and without a task.

Most requests of a gateway are such: their client and their target speak the same dialect, the target is in health, a
connection to it is idle, and what the key may use is at hand. Whatever is otherwise, at the start or later (an error, a
compressed answer, a connection that breaks), is handed to the way of all requests in `answer`, with what came so far.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from windlass.core import clock
from windlass.core.errors import ProtocolError, ProviderError, TransportError, WindlassError
from windlass.core.http import Exchange, Timeouts
from windlass.providers.target import Target
from windlass.server.answer import answer, passes, resumed
from windlass.server.body import asked_model, asked_stream, peek
from windlass.server.extras import is_plain
from windlass.server.http import Call
from windlass.server.ingress import CHAT
from windlass.server.job import Job, job_for
from windlass.server.relay import DRAIN, Passing, outgoing, timeouts, took_whole

__all__ = ["Express", "express"]

log = logging.getLogger("windlass.server")
#: Routes whose limits of time are remembered.
_KEPT = 1024
#: Seconds that a request's body may have taken for its limits to be those of all.
_AT_ONCE = 0.1


def express(gateway: Any, call: Call, ended: Callable[[Call], None]) -> Express | None:
    """Begin to answer a request the straight way; None, with nothing done, where it has to go the other.

    `ended` is called once the answer was given, or broken off.
    """
    ingress = call.endpoint.ingress
    if gateway.cache is not None:
        return None
    reservation: Any = None
    try:
        fields = peek(call.body)
        if ingress is CHAT and not is_plain(fields):
            return None
        job = job_for(gateway, call, ingress, model=asked_model(fields), stream=asked_stream(fields, False),
                      fields=fields)  # fmt: skip
        route = job.chosen = gateway.router.route(job.model)
        target = route.targets[0]
        if len(route.targets) > 1 or not target.breaker.sound or not passes(job, target):
            return None
        gateway.check_model(call.identity, job.model)
        body, hide = outgoing(job, target)
        reservation = gateway.reserve_now(job)
        if reservation is False:
            return None
        work = Express(gateway, job, target, reservation, ended)
        work.hide = hide
        limits = _limits(gateway, job)
        work.exchange = target.provider.forward_now(body, target.model, stream=job.stream, timeouts=limits,
                                                    listener=work.listen)  # fmt: skip
        if work.exchange is not None:
            work.begin(limits)
            return work
    except WindlassError as error:
        # The other way tells it better.
        log.debug("request %s cannot go the straight way: %s", call.id, error)
    if reservation:
        gateway.accounts.release(reservation)
    return None


def _limits(gateway: Any, job: Job) -> Timeouts:
    """Return the limits of a request, which are the same for all of a model that were sent at once."""
    if job.patience is not None or clock.monotonic() - job.call.received > _AT_ONCE:
        return timeouts(job)
    found: Timeouts | None = gateway.limits.get((job.model, job.stream))
    if found is None:
        if len(gateway.limits) >= _KEPT:
            gateway.limits.clear()
        found = gateway.limits[job.model, job.stream] = timeouts(job)
    return found


class Express:
    """One request on the straight way. Stands where a task does: it can be cancelled, and is done at its end."""

    __slots__ = (
        "_draining", "_ended", "_first", "_gateway", "_given_up", "_limits", "_over", "_passing", "_reservation",
        "_slow", "_target", "exchange", "hide", "job",
    )  # fmt: skip

    def __init__(self, gateway: Any, job: Job, target: Target, reservation: Any, ended: Callable[[Call], None]) -> None:
        self._gateway, self.job, self._target = gateway, job, target
        self._reservation, self._ended = reservation, ended
        self.exchange: Exchange | None = None
        self.hide = False
        self._passing: Passing | None = None
        self._slow = self._draining = self._over = self._given_up = False
        self._first = 0.0
        self._limits = Timeouts()

    def listen(self, exchange: Exchange) -> Callable[[], None]:
        """Return what the exchange calls at every change."""
        self.exchange = exchange
        return self.changed

    def begin(self, limits: Timeouts) -> None:
        """Note that the request is under way."""
        gateway, call, report, target = self._gateway, self.job.call, self.job.report, self._target
        report.target, report.model, report.attempts = target.name, target.model, 1
        self.job.upstream_since = clock.monotonic()
        assert limits.first_byte is not None
        self._limits = limits
        self._first = self.job.upstream_since + limits.first_byte
        gateway.stats.entered(call)
        gateway.running[id(call)] = call

    def done(self) -> bool:
        """Whether it is over."""
        return self._over

    # -- what the connections call -----------------------------------------------------------------------------------

    def changed(self) -> None:
        """Look at what came: the whole answer, a piece of a stream, or something that has to go the other way."""
        if self._over or self._slow:
            return
        exchange = self.exchange
        assert exchange is not None
        try:
            if self._draining:
                self._drained(exchange)
            elif self._passing is not None and (exchange.pieces or exchange.error is None):
                self._piece(exchange, self._passing)
                if exchange.error is not None:
                    self.changed()
            elif exchange.error is not None:
                self._failed(exchange, exchange.error)
            elif exchange.status:
                self._head(exchange)
        except TransportError as error:
            self._failed(exchange, error)  # too much came
        except Exception as error:
            self._broke(error)

    def cancel(self, msg: object = None) -> None:
        """Give the request up: the client left, its key was revoked, or the server stops."""
        if self._over:
            self._given_up = True  # who goes on has not begun
            return
        job, exchange = self.job, self.exchange
        ending = job.call.ending
        job.report.outcome = "client_gone" if ending is None else "interrupted"
        if exchange is not None and not exchange.done:
            exchange.abort(TransportError(f"The request was given up: {msg}.", endpoint=exchange.endpoint))
        if self._passing is not None:
            self._passing.tell()
        if ending is not None:
            job.fail(ending)
        self._close()

    # -- the answer --------------------------------------------------------------------------------------------------

    def _head(self, exchange: Exchange) -> None:
        headers = exchange.headers
        assert headers is not None
        kind = b""
        plain = exchange.status == 200
        for name, value in headers.raw:
            if name == b"content-type":
                kind = value
            elif name == b"content-encoding":
                plain = False
        if not plain:
            self._hand_over(exchange)
        elif self.job.stream:
            if not kind.startswith(b"text/event-stream"):
                self._hand_over(exchange)
                return
            self._passing = Passing(self.job, self._target, self.hide, self._plainly())
            # Of the body there is the time that is left of the head's.
            exchange.expect(self._first - clock.monotonic(), "idle")
            self._piece(exchange, self._passing)
        elif exchange.paused or not kind.startswith(b"application/json"):
            self._hand_over(exchange)
        elif exchange.done:
            try:
                took_whole(self.job, self._target, exchange.take() or b"", self._plainly())
            except ProviderError as error:
                self._go_on(error)
                return
            self._answered()
        else:
            exchange.expect(self._limits.idle, "idle")

    def _plainly(self) -> str | None:
        """Return the target's name where the answer needs no headers but those of all."""
        call, name = self.job.call, self._target.name
        plain = not call.extra_headers and not call.head.http10 and name.isascii() and name.isprintable()
        return name if plain else None

    def _piece(self, exchange: Exchange, passing: Passing) -> None:
        data = exchange.take()
        if data is None:
            return
        try:
            slow = passing.take(data, exchange.done) if data else passing.end()
        except ProviderError as error:
            passing.send_sound()
            passing.tell()
            self._go_on(error)
            return
        if passing.finished:
            passing.tell()
            self._draining = True
            exchange.expect(DRAIN, "idle")
            self._drained(exchange)
        elif slow is not None:
            # Meanwhile what comes is held, up to a limit, and the server is not to blame.
            self._slow = True
            exchange.expect(None, "idle")
            asyncio.ensure_future(slow).add_done_callback(self._caught_up)
        elif passing.progressed:
            self._wait(exchange)

    def _wait(self, exchange: Exchange) -> None:
        """Give the stream its time until the next event."""
        job = self.job
        exchange.expect(job.idle_timeout if job.call.started else self._first - clock.monotonic(), "idle")

    def _drained(self, exchange: Exchange) -> None:
        """End an answer that is whole once its body is, or a moment later."""
        if exchange.done or exchange.error is not None:
            self.job.call.finish()
            self._answered()
        else:
            exchange.pieces.clear()

    def _caught_up(self, _: asyncio.Future[None]) -> None:
        self._slow = False
        if self.exchange is not None and not self._over:
            self._wait(self.exchange)
        self.changed()

    def _answered(self) -> None:
        job, report = self.job, self.job.report
        job.upstream_done()
        first = None if report.first_at is None else report.first_at - job.call.received
        self._target.breaker.well(first)
        self._close()

    def _close(self) -> None:
        self._over = True
        call, gateway = self.job.call, self._gateway
        if self.exchange is not None:
            self.exchange.listener = None
        gateway.router.allowance.requested()
        self.job.write_down(self._reservation)
        gateway.running.pop(id(call), None)
        gateway.stats.left(call)
        # What points back to us goes: else the collector would have to find what a task frees by ending.
        self.exchange = None
        self._ended(call)

    # -- the other way -----------------------------------------------------------------------------------------------

    def _failed(self, exchange: Exchange, error: TransportError) -> None:
        passing = self._passing
        if isinstance(error, ProtocolError) and not exchange.started:
            self._go_on(None)  # a kept connection that was dead: nobody has seen the request
        elif passing is None and exchange.status:
            self._hand_over(exchange)  # of an error what there is of its body
        elif passing is None:
            self._go_on(error)
        else:
            whole = passing.end_though_broken()
            passing.tell()
            if whole:
                self._answered()
            else:
                self._go_on(error)

    def _hand_over(self, exchange: Exchange) -> None:
        """Let a task read the answer that has begun."""
        exchange.listener = None
        self._go_on(exchange)

    def _go_on(self, given: Exchange | TransportError | ProviderError | None) -> None:
        """Go on as all requests do, with what came of the first try (None: nothing)."""
        exchange, call, gateway = self.exchange, self.job.call, self._gateway
        if exchange is not None:
            exchange.listener = None
            if given is not exchange and not exchange.done and exchange.error is None:
                exchange.abort(TransportError("The stream was closed by its reader.", endpoint=exchange.endpoint))
        self._over = True
        self.job.report.attempts = 0
        connection: Any = call.connection  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        connection.go_on(call, gateway.serve(call, self._rest(given)))

    def _rest(self, given: Exchange | TransportError | ProviderError | None) -> Callable[[Any, Call], Awaitable[None]]:
        async def handle(_: Any, __: Call) -> None:
            try:
                await answer(self.job, _gave_up if self._given_up else resumed(given), reservation=self._reservation)
            finally:
                if isinstance(given, Exchange) and given.source is not None:
                    given.abort(TransportError("The request was given up.", endpoint=given.endpoint))

        return handle

    def _broke(self, error: Exception) -> None:
        call = self.job.call
        log.error("request %s failed", call.id, exc_info=error)
        if self._over:
            return
        exchange = self.exchange
        if exchange is not None:
            exchange.listener = None
            if not exchange.done and exchange.error is None:
                exchange.abort(TransportError("The stream was closed by its reader.", endpoint=exchange.endpoint))
        self.job.fail(error)
        if call.started and getattr(call, "open", False):
            call.cut()
        self._close()


async def _gave_up(_: Job) -> None:
    """Stand for a task that was cancelled before it began."""
    raise asyncio.CancelledError
