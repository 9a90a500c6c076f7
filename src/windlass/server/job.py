"""One model request through the gateway: which targets, in what order, and what is written down of it.

A job asks its route for a target, lets `relay` or `translate` try it, and goes on to the next while nothing has been
sent to the client. Once something has, a broken answer is continued by a target that can, or ended by an error; it is
never ended as if it were whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from windlass.accounts.records import RequestRecord
from windlass.core import clock
from windlass.core.errors import WindlassError
from windlass.core.items import Finish, NoticeItem
from windlass.core.models import cost_of, facts_of
from windlass.core.request import Budget
from windlass.core.usage import Usage
from windlass.providers.route import Attempts, Needs, Route, Target, needs_of
from windlass.server.body import Fields, field_value
from windlass.server.http import Call, HeaderPairs
from windlass.server.ingress import Ingress
from windlass.server.needs import needs_of_body
from windlass.server.settings import ServerSettings
from windlass.wire.base import DecodedRequest, StreamEncoder

__all__ = ["Job", "Outcome", "Report", "job_for"]

Outcome = Literal["ok", "error", "refused", "interrupted", "client_gone", "cached"]


class Report(Struct):
    """What becomes known of a request while it is served; the record is made from it."""

    outcome: Outcome = "ok"
    error: str = ""
    attempts: int = 0
    target: str = ""
    model: str | None = None
    usage: Usage | None = None
    cost: int | None = None
    events: int = 0
    upstream: float = 0.0
    first_at: float | None = None
    finish_reason: str | None = None
    session_id: str = ""
    notices: list[NoticeItem] = []


class Job(Struct, eq=False):
    """One request in one dialect. `fields` are its top-level fields; `translated` holds it once it was decoded."""

    gateway: Any
    call: Call
    ingress: Ingress
    model: str
    stream: bool
    budget: Budget
    fields: Fields = {}
    translated: DecodedRequest | None = None
    report: Report = field(default_factory=Report)
    chosen: Route | None = None
    attempts: Attempts | None = None
    dropped: list[str] = []
    #: The raw pieces that were sent, so that a broken answer can be continued.
    kept: list[bytes] | None = None
    #: The text that was sent through our own encoder, for the same purpose.
    text: list[str] = []
    calls_begun: bool = False
    upstream_since: float = 0.0
    frames: StreamEncoder | None = None
    #: The answer's own id, where the request's will not do.
    answer_id: str = ""
    #: Called with a whole answer (None: the stream's encoder has it) before the client learns that it is whole.
    keep: Callable[[bytes | None], Awaitable[None]] | None = None
    #: Where whole answers are kept for who wants them; with it a stream that passes through is kept in `kept`.
    captured: list[bytes] | None = None
    #: Bytes of conversation that were put in front of what the client sent.
    history: int = 0
    #: Asked once a model's answer is there and before its end is told; what it returns is the answer.
    review: Callable[[Finish], Awaitable[Finish]] | None = None
    #: Seconds that the client waits for the next byte, None where it does not say.
    patience: float | None = None
    #: Whether the work reserves and settles each request to a model by itself.
    by_turns: bool = False

    # -- the request -----------------------------------------------------------------------------------------------

    @property
    def decoded(self) -> DecodedRequest:
        """The request in our words."""
        if self.translated is None:
            self.translated = self.ingress.dialect.decode_request(self.call.body)
        return self.translated

    @property
    def passable(self) -> bool:
        """Whether the body may go to a target of the same dialect as it is."""
        return self.translated is None and self.ingress.passable and self.ingress.own.isdisjoint(self.fields)

    @property
    def route(self) -> Route:
        """The route that was chosen."""
        assert self.chosen is not None
        return self.chosen

    @property
    def settings(self) -> ServerSettings:
        """The gateway's settings."""
        return self.gateway.settings

    @property
    def left(self) -> float:
        """Seconds until the answer has to be whole."""
        timeout = self.settings.request_timeout
        if self.chosen is not None and (own := self.chosen.settings.timeout) is not None and own < timeout:
            timeout = own
        if not self.stream and self.patience is not None and self.patience < timeout:
            timeout = self.patience
        return max(0.0, self.call.received + timeout - clock.monotonic())

    @property
    def first_limit(self) -> float:
        """Seconds until the first content of the target that is asked now.

        An answer that comes whole has no first content before all of it is there: where the route sets no limit, a
        target may take half of the time left while another one has not been asked yet.
        """
        left = self.budget.remaining()
        left = self.left if left is None else min(left, self.left)
        if self.stream:
            return min(self.first_token_timeout, left)
        if (own := self.route.first_token_timeout) is not None:
            return min(own, left)
        others = self.attempts is not None and self.attempts.count < len(self.attempts.order)
        return left / 2 if others else left

    @property
    def first_token_timeout(self) -> float:
        """Seconds until the first content of a stream."""
        return self.route.first_token_timeout or self.settings.first_token_timeout

    @property
    def idle_timeout(self) -> float:
        """Seconds between two events of a stream: the route's, the server's, or what its client waits at most."""
        seconds = self.route.idle_timeout or self.settings.idle_timeout
        return seconds if self.patience is None else min(seconds, self.patience)

    def needs(self) -> Needs | None:
        """Return what a target must be able to do; None where there is no choice: then the target itself says so."""
        targets = self.route.targets
        if len(targets) == 1 or not self.ingress.writes:
            return None
        if self.translated is not None:
            return needs_of(self.translated.request)
        if not self.ingress.legible:
            return needs_of(self.ingress.dialect.decode_request(self.call.body).request)
        return needs_of_body(self.call.body, self.fields, targets)

    @property
    def continuable(self) -> bool:
        """Whether a broken stream may be continued by another target; of several answers at once none is."""
        return self.stream and self.route.continues and self.choices == 1

    @property
    def choices(self) -> int:
        """How many answers are asked for at once."""
        return (field_value(self.fields, "n") or 1) if "n" in self.fields else 1

    def upstream_done(self) -> None:
        """Stop counting the time spent waiting for a target."""
        if self.upstream_since:
            self.report.upstream += clock.monotonic() - self.upstream_since
            self.upstream_since = 0.0

    # -- answering -------------------------------------------------------------------------------------------------

    def headers(self) -> HeaderPairs:
        """Return the headers that every answer of a model has: who answered, after how many attempts, in what time."""
        report, now = self.report, clock.monotonic()
        waited = report.upstream + (now - self.upstream_since if self.upstream_since else 0.0)
        own = now - self.call.received - waited
        out = [
            ("x-request-id", self.call.id),
            ("x-windlass-model", report.target),
            ("server-timing", f"gateway;dur={own * 1e3:.2f}, upstream;dur={waited * 1e3:.2f}"),
        ]
        if report.attempts > 1:
            out.append(("x-windlass-attempts", str(report.attempts)))
        if self.dropped:
            out.append(("x-windlass-dropped", ", ".join(self.dropped)))
        return out

    def answered(self, body: bytes) -> None:
        """Send a whole answer."""
        self.upstream_done()
        if self.captured is not None:
            self.captured.append(body)
        self.call.respond(200, body, self.headers())

    def plain_lines(self, target: str) -> str:
        """Return `headers` as lines, for the first target's answer where nothing was dropped.

        `target` is its name as it may stand in a header.
        """
        call, now = self.call, clock.monotonic()
        waited = self.report.upstream + (now - self.upstream_since if self.upstream_since else 0.0)
        own = now - call.received - waited
        return (
            f"x-request-id: {call.id}\r\nx-windlass-model: {target}\r\n"
            f"server-timing: gateway;dur={own * 1e3:.2f}, upstream;dur={waited * 1e3:.2f}\r\n"
        )

    def encoder(self) -> StreamEncoder:
        """Return the encoder of this answer's stream, made at first use: one stream, one encoder."""
        if self.frames is None:
            ingress = self.ingress
            name, made = self.report.model or self.model, clock.now_ns() // 1_000_000_000
            options = self.encoder_options()
            if ingress.name in ("openai-chat", "openai-completions"):
                options["include_usage"] = bool(self.stream_options().get("include_usage"))
            encoder: Callable[..., StreamEncoder] = ingress.stream_encoder or ingress.dialect.stream_encoder
            self.frames = encoder(model=name, response_id=self.response_id, created=made, **options)
        return self.frames

    @property
    def response_id(self) -> str:
        """The id of the answer in the client's dialect."""
        return self.ingress.prefix + (self.answer_id or self.call.id)

    def encoder_options(self) -> dict[str, Any]:
        """Return what the client's dialect wants to know of the request when it writes the answer."""
        return {} if self.ingress.encoder_options is None else self.ingress.encoder_options(self)

    def begin(self) -> None:
        """Send the head of a streamed answer."""
        if not self.call.started:
            self.report.first_at = clock.monotonic()
            self.call.start(200, self.stream_headers(), kind=self.ingress.stream_kind)

    def stream_headers(self) -> HeaderPairs:
        """Return the headers of a streamed answer."""
        return (*self.headers(), ("cache-control", "no-cache"), ("x-accel-buffering", "no"))

    def fail(self, error: BaseException) -> None:
        """Tell the client of a failure, in its own shape; a begun stream is ended by an error."""
        report = self.report
        report.error = getattr(error, "reason", None) or getattr(error, "code", "internal")
        if report.outcome == "ok":
            report.outcome = "error"
        if self.call.started:
            if getattr(self.call, "open", True):
                self.end_with(error if isinstance(error, WindlassError) else WindlassError("An internal error."))
            return
        self.gateway.answer_error(self.call, error, self.ingress, job=self)

    async def broken(self, error: WindlassError) -> None:
        """End a begun answer as `end_with`, once what is kept of it says so too."""
        frames = self.encoder().error(error)
        if self.keep is not None:
            await self.keep(None)
        self.call.write(frames)
        self.call.finish()

    def end_with(self, error: WindlassError) -> None:
        """End a begun answer with the dialect's error frames."""
        self.call.write(self.encoder().error(error))
        self.call.finish()

    # -- afterwards ------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Return what the request used: as reported, else estimated from bytes."""
        report = self.report
        if report.usage is not None and not report.usage.estimated:
            return report.usage
        if report.usage is not None and report.usage.total_tokens:
            return report.usage
        told = self.call.started and self.call.status < 400
        if not report.attempts or (report.outcome in ("error", "refused") and not told):
            return Usage(estimated=True)
        return Usage(len(self.call.body) // 4, max(report.events, self.call.sent // 64), estimated=True)

    def write_down(self, reservation: Any) -> None:
        self.upstream_done()
        report, call = self.report, self.call
        usage = self.usage()
        cost = report.cost
        if cost is None and report.target and ", " not in report.target:
            provider, _, model = report.target.partition(":")
            cost = cost_of(usage, facts_of(provider, report.model or model).prices)
            if cost is None and report.model:
                cost = cost_of(usage, facts_of(provider, model).prices)
        first = report.first_at
        now = clock.monotonic()
        identity = call.identity
        record = RequestRecord(
            # A client may repeat an id of its own; a record is of one request.
            call.id if "x-request-id" not in call.head.headers else clock.new_id(),
            clock.now_ns() - int((now - call.received) * 1e9),
            identity.tenant,
            identity.key_id,
            call.peer,
            self.ingress.name,
            self.model[:200],
            report.target,
            report.attempts,
            call.status,
            report.outcome,
            report.error,
            self.stream,
            report.session_id,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_creation_tokens,
            usage.reasoning_tokens,
            usage.estimated,
            cost,
            int((now - call.received) * 1e6),
            None if first is None else int((first - call.received) * 1e6),
            int(report.upstream * 1e6) if report.attempts else None,
        )
        self.gateway.finished(record, self, reservation, usage.total_tokens, cost)

    def for_target(self, target: Target) -> Any:
        """Return the request in our words, as this target is to be asked: one attempt, the job's own deadline."""
        request = self.decoded.request
        settings = request.settings
        if self.ingress.dialect.name == getattr(getattr(target.provider, "dialect", None), "name", "") and (
            extra := {key: value for key, value in self.decoded.extra.items() if key not in _OURS}
        ):
            settings = replace(settings, extra=extra)
        return replace(request, model=target.model, settings=settings, budget=Budget(self.left, 1))

    def asked_tokens(self) -> int | None:
        """Return the most output tokens that the client allows, None where it does not say."""
        if self.translated is not None:
            return self.translated.request.settings.max_tokens
        for name in _MOST_TOKENS:
            if name not in self.fields:
                continue
            value = field_value(self.fields, name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def stream_options(self) -> dict[str, Any]:
        """Return the client's `stream_options`."""
        if self.translated is not None:
            found = self.translated.extra.get("stream_options")
        else:
            found = field_value(self.fields, "stream_options")
        return found if isinstance(found, dict) else {}


_MOST_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: Fields of a client's request that mean something to this server and nothing to a vendor.
_OURS = frozenset(("stream_options", "store", "previous_response_id", "conversation", "keep_alive"))


def job_for(
    gateway: Any,
    call: Call,
    ingress: Ingress,
    *,
    model: str,
    stream: bool,
    fields: Fields | None = None,
    translated: DecodedRequest | None = None,
) -> Job:
    """Return the job of a request, with the one bound of time and attempts: our own, or the client's where shorter."""
    settings, headers = gateway.settings, call.head.headers
    seconds, attempts, patience = settings.request_timeout, settings.attempts, None
    if "x-stainless-retry-count" in headers or "x-stainless-read-timeout" in headers:
        asked = _number(headers.get("x-stainless-read-timeout"))
        if asked and asked < seconds:
            # Until the first byte; a stream may take longer, as long as it goes on.
            seconds = patience = asked
        # An SDK that has already asked again has used up some of the attempts.
        attempts = max(1, attempts - int(_number(headers.get("x-stainless-retry-count")) or 0))
    budget = Budget(seconds, attempts)
    return Job(gateway, call, ingress, model, stream, budget, fields or {}, translated, patience=patience)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None
