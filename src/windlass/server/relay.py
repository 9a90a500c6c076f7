"""Pass a request and its answer through unchanged, where both sides speak the same dialect: the hot path."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from windlass.core import clock
from windlass.core.errors import (
    ProtocolError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    WireError,
)
from windlass.core.http import Exchange, Streaming, StreamResponse, Timeouts, endpoint
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.providers.target import Target
from windlass.server.body import rebuild
from windlass.server.ingress import NDJSON
from windlass.server.job import Job
from windlass.server.translate import check_streamed, deliver
from windlass.wire.base import excerpt
from windlass.wire.watch import Framing, Watcher, watcher_for
from windlass.wire.watch_whole import read_whole

__all__ = ["DRAIN", "Passing", "as_provider_error", "located", "outgoing", "relay", "timeouts", "took_whole"]

_ERROR_BYTES = 1 << 20
_USAGE = b'{"include_usage":true}'
_STREAMS = ("text/event-stream", NDJSON, "application/vnd.amazon.eventstream")
_FRAMINGS: dict[str, Framing] = {NDJSON: "lines", "application/vnd.amazon.eventstream": "frames"}
#: Seconds that the end of a body may take once the answer is complete; then its connection is not kept.
DRAIN = 0.5


async def relay(job: Job, target: Target, given: Exchange | None = None) -> None:
    """Send the client's bytes to a target and its bytes back. Raises ProviderError kinds.

    `given` is an answer that has begun already.
    """
    provider = target.provider
    body, hide = outgoing(job, target)
    asked = clock.monotonic() if given is None else job.upstream_since
    limits = timeouts(job)
    if given is None:
        opened = provider.forward(body, target.model, stream=job.stream, timeouts=limits)
    else:
        opened = Streaming(lambda: _begun(given))
    try:
        async with opened as response:
            streams = await _check(response, job, target)
            if streams is not job.stream:
                await _otherwise(job, target, response, streams)
            elif job.stream:
                assert limits.first_byte is not None
                response.limit_idle(limits.first_byte - (clock.monotonic() - asked))
                await Passing(job, target, hide).run(response)
            else:
                took_whole(job, target, await _read(response))
    except TransportError as error:
        raise as_provider_error(error, job, target) from error
    except ProviderError as error:
        located(error, target)
        raise


async def _begun(exchange: Exchange) -> Exchange:
    await exchange.head()
    return exchange


def outgoing(job: Job, target: Target) -> tuple[bytes, bool]:
    """Return the bytes to send, and whether the usage that comes back was asked for by us alone."""
    changes: dict[str, bytes] = {}
    if target.model != job.model and "model" in job.fields:
        changes["model"] = dumps(target.model)
    hide = False
    if job.stream and job.ingress.name == "openai-chat" and "stream_options" not in job.fields:
        if target.provider.capabilities(target.model).stream_usage:
            changes["stream_options"], hide = _USAGE, True
    elif job.stream and job.ingress.name == "openai-chat":
        options = job.stream_options()
        if not options.get("include_usage") and target.provider.capabilities(target.model).stream_usage:
            changes["stream_options"], hide = dumps({**options, "include_usage": True}), True
    for key, value in target.provider.extra_body.items():
        if key not in job.fields:
            changes[key] = dumps(value)
    return (rebuild(job.fields, changes) if changes else job.call.body), hide


def timeouts(job: Job) -> Timeouts:
    """Return the limits of one try; a stream's idle limit becomes the job's own once there is content."""
    left, first = job.left, job.first_limit
    idle = first if job.stream else max(job.idle_timeout, first)
    return Timeouts(job.settings.connect_timeout, first, idle, left, min(left, 30.0))


async def _check(response: StreamResponse, job: Job, target: Target) -> bool:
    """Return whether a stream is coming. Raises the classified error, and WireError for what is no model's answer."""
    provider = target.provider
    if response.status >= 400:
        headers = {name.lower(): value for name, value in response.headers.items()}
        raise provider.dialect.decode_error(
            response.status, headers, await _some(response), provider=provider.name, model=target.model,
            endpoint=endpoint(provider.url),
        )  # fmt: skip
    kind = (response.headers.get("content-type") or "").lower()
    if response.status == 200:
        if kind.startswith("application/json"):
            return False
        if kind.startswith(_STREAMS):
            return True
        if not kind.startswith(("text/html", "application/xhtml")):
            return job.stream  # some name no type, or a wrong one: the bytes tell
    text = excerpt(await _some(response))
    raise WireError(
        f"{provider.name} answered {response.status} with {kind[:100] or 'no content type'} instead of a model's "
        f"answer: {text}",
        hint="Check the base URL; a proxy or a login page may stand in between.",
    )


async def _some(response: StreamResponse) -> bytes:
    """Read the beginning of a body; one that breaks off is still an error's body."""
    data = bytearray()
    try:
        async for chunk in response:
            data += chunk
            if len(data) > _ERROR_BYTES:
                break
    except TransportError:
        pass
    return bytes(data[:_ERROR_BYTES])


async def _read(response: StreamResponse) -> bytes:
    """Read a whole body; blanks that some servers send while they work keep it alive until its time is over."""
    if response.complete:
        return await response.read()
    pieces: list[bytes] = []
    async for piece in response:
        pieces.append(piece)
        response.mark_progress()
    return b"".join(pieces)


def took_whole(job: Job, target: Target, body: bytes, plainly: str | None = None) -> None:
    """Pass a whole answer on. Raises ProviderError kinds for one that is none.

    `plainly` is the target's name as it may stand in a header, where no other header is needed than those of all.
    """
    report = job.report
    told = read_whole(target.provider.dialect, body)
    report.usage, report.finish_reason, report.cost = told.usage, told.finish_reason, told.cost
    report.model = told.model or report.model
    report.first_at = clock.monotonic()
    if plainly is None:
        job.answered(body)
    else:
        job.upstream_done()
        call: Any = job.call
        call.respond_plainly(body, job.plain_lines(plainly))


async def _otherwise(job: Job, target: Target, response: StreamResponse, streams: bool) -> None:
    """Answer from a stream that was not asked for, or from a whole answer where a stream was."""
    dialect = target.provider.dialect
    if not streams:
        await deliver(job, target, dialect.decode_response(await _read(response)))
        return
    decoder, finish = dialect.stream_decoder(), None
    async for chunk in response:
        response.mark_progress()
        finish = next((item for item in decoder.feed(chunk) if isinstance(item, Finish)), None)
        if finish is not None:
            break
    if finish is None:
        finish = next((item for item in decoder.close() if isinstance(item, Finish)), None)
    if finish is None:
        raise StreamInterrupted(f"{target.name} ended its answer without a terminal event.")
    check_streamed(target, finish)
    await deliver(job, target, finish)


class Passing:
    """Passes one stream on: nothing before its first content, then every whole event as it comes.

    `finished` says that the answer is whole and sent but for the end of its body, `progressed` that the last piece
    brought events: a ping is not progress.
    """

    __slots__ = ("_held", "_job", "_kept", "_plainly", "_watcher", "finished", "progressed")

    def __init__(self, job: Job, target: Target, hide: bool, plainly: str | None = None) -> None:
        self._job, self._plainly = job, plainly
        framing = _FRAMINGS.get(job.ingress.stream_kind, "sse")
        dialect = target.provider.dialect
        self._watcher: Watcher = watcher_for(dialect, hide_usage=hide, choices=job.choices, framing=framing)
        self._kept: list[bytes] | None = None
        if job.continuable or job.captured is not None:
            self._kept = job.kept = []
        #: What came before the first content.
        self._held: list[bytes] | None = []
        self.finished = self.progressed = False
        job.report.events = 0

    async def run(self, response: StreamResponse) -> None:
        """Pass it on to its end. Raises ProviderError and TransportError kinds."""
        try:
            await self._pass(response)
        except ProviderError:
            self.send_sound()
            raise
        except TransportError:
            if not self.end_though_broken():
                raise
        finally:
            self.tell()

    async def _pass(self, response: StreamResponse) -> None:
        call = self._job.call
        # Of a decoded body more may be to come when all of its bytes are here.
        plain = response.headers.get("content-encoding") is None
        started = False
        async for chunk in response:
            slow = self.take(chunk, plain and response.complete)
            if self.finished:
                await self._drain(response)
                return
            if not started and call.started:
                started = True
                response.limit_idle(self._job.idle_timeout)
            if self.progressed:
                response.mark_progress()
            if slow is not None:
                await slow
        self.end()

    def take(self, data: bytes, complete: bool) -> Awaitable[None] | None:
        """Take a piece of the body, the last one where it is `complete`; returns what to await for a slow client.

        Raises ProviderError kinds.
        """
        watcher, report, held = self._watcher, self._job.report, self._held
        data = watcher.feed(data)
        last = watcher.done or complete
        if held is not None:
            held.append(data)
            if not (last or watcher.begun or watcher.finished):
                return None
            data = b"".join(held)
            if last:
                data = self._closed(data)
            self._start()
        elif last:
            data = self._closed(data)
        self.progressed = watcher.events != report.events
        report.events = watcher.events
        self.finished = last
        return self._send(data, last=last and complete)

    def end(self) -> None:
        """Take the end of the body. Raises ProviderError kinds where the answer is not whole."""
        held = self._held
        rest = self._closed(b"".join(held or ()))
        if held is not None:
            self._start()
        self._send(rest, last=True)
        self.finished = True

    def end_though_broken(self) -> bool:
        """End an answer that said that it is whole before its connection broke; False where it did not."""
        if not (self._watcher.finished and self._job.call.started):
            return False
        self._send(self._watcher.close(), last=True)
        return True

    def tell(self) -> None:
        """Report what is known of the answer."""
        report, watcher = self._job.report, self._watcher
        report.usage = watcher.usage or report.usage
        report.model = watcher.model or report.model
        report.finish_reason, report.cost = watcher.finish_reason, watcher.cost

    def _closed(self, data: bytes) -> bytes:
        """Return the last bytes of a whole answer; of a broken one what came of it is kept. Raises ProviderError."""
        try:
            return data + self._watcher.close()
        except ProviderError:
            self._watcher.sound = data
            if self._held is not None:
                self._held = []
            raise

    def send_sound(self) -> None:
        """Send what came together with what broke the answer.

        Before anything was sent it is kept back where another target can still answer.
        """
        job, sound = self._job, self._watcher.sound
        if not job.call.started:
            if not sound or not self._watcher.begun or len(job.route.targets) > 1:
                return
            sound = b"".join(self._held or ()) + sound
            self._start()
        if sound:
            self._send(sound)

    def _start(self) -> None:
        job, self._held = self._job, None
        job.report.first_at = clock.monotonic()
        if self._plainly is None:
            job.call.start(200, job.stream_headers(), kind=job.ingress.stream_kind)
        else:
            call: Any = job.call
            call.start_plainly(job.plain_lines(self._plainly))

    def _send(self, data: bytes, *, last: bool = False) -> Awaitable[None] | None:
        if self._kept is not None:
            self._kept.append(data)
        return self._job.call.write(data, last=last)

    async def _drain(self, response: StreamResponse) -> None:
        """Wait for the end of a body whose answer is whole; usually it is here too, and one write did."""
        if not response.complete:
            try:
                async with clock.deadline(DRAIN):
                    await response.read()
            except (TimeoutError, TransportError):
                pass  # the answer is whole without it
        self._job.call.finish()


def located(error: ProviderError, target: Target) -> ProviderError:
    """Return an error that says whose it is."""
    error.provider, error.model = error.provider or target.provider.name, error.model or target.model
    return error


def as_provider_error(error: TransportError, job: Job, target: Target) -> ProviderError:
    """Return what a failure of the connection means for a request."""
    kind: type[ProviderError] = ProviderConnectionError
    if isinstance(error, TransportTimeout):
        kind = ProviderTimeoutError
    elif isinstance(error, ProtocolError) and job.call.started:
        kind = StreamInterrupted
    return kind(
        f"{target.provider.name}: {error.message}", provider=target.provider.name, model=target.model, hint=error.hint
    )
