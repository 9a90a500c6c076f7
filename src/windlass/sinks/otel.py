"""OpenTelemetry: a span per model call, after the GenAI semantic conventions, sent by OTLP over HTTP (extra `otel`).

A call is handed over when it is over, and becomes a span with the times it had; the SDK's own thread sends spans in
batches. A collector that is down or slow costs spans, which are counted, and never time.
Source: opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans, w3.org/TR/trace-context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.threads import run_in_thread
from windlass.core.usage import Usage
from windlass.core.version import __version__

__all__ = ["ModelCall", "OtelSink", "attributes_of"]

#: How the conventions call providers that we call otherwise.
_PROVIDERS = {
    "bedrock": "aws.bedrock", "gemini": "gcp.gemini", "mistral": "mistral_ai", "openai-responses": "openai",
    "codex": "openai",
}  # fmt: skip
_PORTS = {"https": 443, "http": 80}
_MEMBER = r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
#: W3C trace context 3.3.1; the SDK would write a line to the log for each header of another form.
_TRACESTATE = re.compile(rf"{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class ModelCall(Struct, frozen=True, kw_only=True):
    """One model call that is over. Times are UTC nanoseconds, `url` is the provider's address.

    `error` is a short word of ours, "" for success. `traceparent` and `tracestate` are the headers of whoever asked;
    malformed ones count as none. `extra` holds further attributes by their names.
    """

    operation: str = "chat"
    provider: str = ""
    request_model: str
    start: int
    end: int
    response_model: str | None = None
    response_id: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    conversation: str = ""
    url: str = ""
    error: str = ""
    traceparent: str = ""
    tracestate: str = ""
    extra: Mapping[str, str | bool | int | float] = {}


def attributes_of(call: ModelCall) -> dict[str, Any]:
    """Return the attributes of a call's span; what is not known is left out."""
    out: dict[str, Any] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.request.model": call.request_model,
    }
    if call.provider:
        out["gen_ai.provider.name"] = _PROVIDERS.get(call.provider, call.provider)
    if call.url:
        url = urlsplit(call.url)
        if url.hostname:
            out["server.address"] = url.hostname
            out["server.port"] = url.port or _PORTS[url.scheme]
    if call.usage is not None:
        out["gen_ai.usage.input_tokens"] = call.usage.input_tokens
        out["gen_ai.usage.output_tokens"] = call.usage.output_tokens
        if call.usage.cache_read_tokens:
            out["gen_ai.usage.cache_read.input_tokens"] = call.usage.cache_read_tokens
        if call.usage.cache_creation_tokens:
            out["gen_ai.usage.cache_creation.input_tokens"] = call.usage.cache_creation_tokens
    named = {
        "gen_ai.response.model": call.response_model, "gen_ai.response.id": call.response_id,
        "gen_ai.conversation.id": call.conversation, "error.type": call.error,
    }  # fmt: skip
    out |= {name: value for name, value in named.items() if value}
    if call.finish_reason:
        out["gen_ai.response.finish_reasons"] = [_text(call.finish_reason)]
    out |= call.extra
    return {name: _text(value) if isinstance(value, str) else value for name, value in out.items()}


def _text(value: str) -> str:
    """Return what protobuf can carry: half a surrogate pair would lose the whole batch."""
    return value.encode("utf-8", "replace").decode()


class _Counted:
    """An exporter that counts what comes to it and what it could send; used by the SDK's thread alone."""

    def __init__(self, inner: Any, success: Any) -> None:
        self._inner, self._success = inner, success
        self.taken = self.sent = self.failed = 0

    def export(self, spans: Sequence[Any]) -> Any:
        """Send a batch."""
        self.taken += len(spans)
        result = self._inner.export(spans)
        if result is self._success:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        """End."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is held back: nothing is."""
        return self._inner.force_flush(timeout_millis)


class OtelSink:
    """Send spans to a collector; call it with each `ModelCall`, which returns at once and never raises.

    `environ` gives the SDK's variables for where and how: OTEL_EXPORTER_OTLP_ENDPOINT (default http://localhost:4318),
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, both also in their form for traces. A batch is sent every `interval`
    seconds and has `timeout` seconds; at most `queue` spans wait. Raises ConfigError where the extra is not installed.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        instance: str = "",
        queue: int = 2048,
        interval: float = 1.0,
        timeout: float = 5.0,
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"OpenTelemetry is not installed ({error.name} is missing).", hint="pip install 'windlass[otel]'"
            ) from error
        exporter = OTLPSpanExporter(endpoint=_endpoint(environ), headers=_headers(environ), timeout=timeout)
        self._counted = _Counted(exporter, SpanExportResult.SUCCESS)
        about = {"service.name": environ.get("OTEL_SERVICE_NAME") or "windlass", "service.version": __version__}
        if instance:
            about["service.instance.id"] = instance
        # Not at exit: a collector that hangs would hold up the end of the program.
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        batch = min(512, queue)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._counted,  # pyright: ignore[reportArgumentType]
                max_queue_size=queue,
                schedule_delay_millis=interval * 1000,
                max_export_batch_size=batch,
            )
        )
        self._tracer = self._provider.get_tracer("windlass", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._failure = SpanKind.CLIENT, Status(StatusCode.ERROR)
        self._queue = queue
        self._made = self._refused = self._left = 0

    @property
    def sent(self) -> int:
        """Spans that the collector took."""
        return self._counted.sent

    @property
    def dropped(self) -> int:
        """Spans that were not sent: too many were waiting, the collector failed, or there was no time at the end."""
        return self._refused + self._counted.failed + self._left

    def __call__(self, call: ModelCall) -> None:
        """Make the span of a call that is over. One whose caller said that its trace is not kept is left out."""
        # The SDK's own queue would drop the oldest and count nothing.
        if self._made - self._counted.taken >= self._queue:
            self._refused += 1
            return
        context = None
        if _TRACEPARENT.fullmatch(call.traceparent):
            state = call.tracestate if _TRACESTATE.fullmatch(call.tracestate) else ""
            context = self._extract({"traceparent": call.traceparent, "tracestate": state})
        span = self._tracer.start_span(
            _text(f"{call.operation} {call.request_model}"),
            context,
            self._kind,
            attributes_of(call),
            start_time=call.start,
        )
        if call.error:
            span.set_status(self._failure)
        if span.is_recording():
            self._made += 1
        span.end(call.end)

    async def close(self, seconds: float = 2.0) -> None:
        """Send the rest, for at most so long; what is not sent then is counted as dropped."""
        try:
            async with clock.deadline(seconds):
                await run_in_thread(self._provider.shutdown)
        except TimeoutError:
            pass  # the thread is left behind; it ends with the program
        self._left = self._made - self._counted.sent - self._counted.failed


def _endpoint(environ: Mapping[str, str]) -> str | None:
    """Return where spans go; None leaves it to the SDK. The general address is a base, that of traces is whole."""
    if whole := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return whole
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None


def _headers(environ: Mapping[str, str]) -> dict[str, str] | None:
    text = environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environ.get("OTEL_EXPORTER_OTLP_HEADERS")
    pairs = [pair.partition("=") for pair in (text or "").split(",") if "=" in pair]
    return {name.strip().lower(): value.strip() for name, _, value in pairs} or None
