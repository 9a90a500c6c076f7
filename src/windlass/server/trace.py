"""Each model request as a span: what a record and its job say, in the words of `windlass.sinks.otel`."""

from __future__ import annotations

from typing import Any

from windlass.accounts.records import RequestRecord
from windlass.core.usage import NANO, Usage
from windlass.server.job import Job
from windlass.sinks.otel import ModelCall, OtelSink

__all__ = ["Tracing", "call_of"]

#: What an endpoint does with a model, where it is not a chat.
_OPERATIONS = {
    "openai-completions": "text_completion",
    "ollama-generate": "text_completion",
    "openai-embeddings": "embeddings",
    "ollama-embed": "embeddings",
    "gemini": "generate_content",
    "anthropic-count": "count_tokens",
}


class Tracing:
    """A watcher of the gateway that makes a span of every record."""

    def __init__(self, sink: OtelSink) -> None:
        self.sink = sink

    def __call__(self, record: RequestRecord, job: Job) -> None:
        """Hand a record over; returns at once."""
        self.sink(call_of(record, job))


def call_of(record: RequestRecord, job: Job) -> ModelCall:
    """Return a record as a model call."""
    headers, report = job.call.head.headers, job.report
    last = record.target.rpartition(", ")[2]
    extra: dict[str, Any] = {
        "windlass.request.id": job.call.id,
        "windlass.record.id": record.id,
        "windlass.outcome": record.outcome,
        "windlass.attempts": record.attempts,
        "windlass.tenant": record.tenant,
        "windlass.target": record.target,
        "http.response.status_code": record.status,
    }
    if record.cost is not None:
        extra["windlass.cost.usd"] = record.cost / NANO
    if record.first_token_us is not None:
        extra["windlass.time_to_first_token"] = record.first_token_us / 1e6
    failed = record.outcome not in ("ok", "cached")
    return ModelCall(
        operation=_OPERATIONS.get(record.endpoint, "chat"),
        provider=last.partition(":")[0],
        request_model=record.route,
        response_model=report.model,
        usage=Usage(
            record.input_tokens,
            record.output_tokens,
            record.cache_read_tokens,
            record.cache_creation_tokens,
            record.reasoning_tokens,
        ),
        finish_reason=report.finish_reason,
        conversation=record.session_id,
        url=_url(job, last),
        error=(record.error or record.outcome) if failed else "",
        start=record.time,
        end=record.time + record.duration_us * 1000,
        traceparent=headers.get("traceparent", ""),
        tracestate=headers.get("tracestate", ""),
        extra=extra,
    )


def _url(job: Job, target: str) -> str:
    """Return the address of the provider that was asked; "" for one in this process."""
    if job.chosen is None:
        return ""
    found = next((known for known in job.chosen.targets if known.name == target), None)
    return str(getattr(found.provider, "url", "")) if found is not None else ""
