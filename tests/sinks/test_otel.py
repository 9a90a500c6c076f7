"""OpenTelemetry spans: what a collector gets, whose trace they belong to, and that no collector holds anybody up."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server.conftest import StartGateway, gateway
from windlass.core.errors import ConfigError
from windlass.core.usage import Usage
from windlass.server.trace import Tracing
from windlass.sinks.otel import ModelCall, OtelSink, attributes_of
from windlass.testing.faults import BlackHole, FaultServer, Reply, Stream, sse

__all__ = ["gateway"]

TAKEN = Reply(200, b"", {"content-type": "application/x-protobuf"})
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def _call(**fields: Any) -> ModelCall:
    known: dict[str, Any] = {"request_model": "m", "start": 1_000_000_000, "end": 3_000_000_000}
    return ModelCall(**{**known, **fields})


def _spans(server: FaultServer) -> list[Any]:
    out: list[Any] = []
    for request in server.requests:
        assert request.headers["content-type"] == "application/x-protobuf"
        decoded = ExportTraceServiceRequest.FromString(request.body)
        out += [span for one in decoded.resource_spans for scope in one.scope_spans for span in scope.spans]
    return out


def _resource(server: FaultServer) -> dict[str, Any]:
    decoded = ExportTraceServiceRequest.FromString(server.requests[0].body)
    return _read(decoded.resource_spans[0].resource.attributes)


def _read(attributes: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        out[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return out


def test_a_call_has_the_attributes_of_the_conventions_and_none_that_are_not_known() -> None:
    assert attributes_of(_call()) == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    call = _call(
        provider="bedrock",
        response_model="m-1",
        usage=Usage(10, 5, cache_read_tokens=4, cache_creation_tokens=2),
        finish_reason="tool_calls",
        conversation="s1",
        url="https://bedrock.example/model",
        error="rate_limited",
        extra={"windlass.attempts": 2},
    )
    assert attributes_of(call) == {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.provider.name": "aws.bedrock",
        "gen_ai.response.model": "m-1", "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.usage.cache_creation.input_tokens": 2,
        "gen_ai.response.finish_reasons": ["tool_calls"], "gen_ai.conversation.id": "s1",
        "server.address": "bedrock.example", "server.port": 443, "error.type": "rate_limited", "windlass.attempts": 2,
    }  # fmt: skip


async def test_a_collector_gets_spans_with_their_own_times_and_parents() -> None:
    async with FaultServer([TAKEN]) as collector:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-team=red,x-key=a=b",
            "OTEL_SERVICE_NAME": "front",
        }  # fmt: skip
        sink = OtelSink(environ, instance="i-1")
        sink(_call(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=abc,other=1"))
        sink(_call(request_model="n", error="timeout", response_model="half \ud800 pair"))
        sink(_call(request_model="unsampled", traceparent=f"00-{TRACE}-{PARENT}-00"))
        sink(_call(request_model="odd", traceparent="00-zz-zz-01", tracestate="\x01"))
        await sink.close()
        assert sink.sent == 3 and sink.dropped == 0
        assert collector.requests[0].target == "/v1/traces"
        assert collector.requests[0].headers["x-team"] == "red" and collector.requests[0].headers["x-key"] == "a=b"
        spans = {span.name: span for span in _spans(collector)}
        resource = _resource(collector)
    assert set(spans) == {"chat m", "chat n", "chat odd"}
    first, second, third = spans["chat m"], spans["chat n"], spans["chat odd"]
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (1_000_000_000, 3_000_000_000)
    assert (first.trace_id.hex(), first.parent_span_id.hex(), first.trace_state) == (
        TRACE, PARENT, "vendor=abc,other=1",
    )  # fmt: skip
    assert first.kind == 3 and first.status.code == 0 and second.status.code == 2
    assert second.parent_span_id == third.parent_span_id == b""
    assert _read(second.attributes)["gen_ai.response.model"] == "half ? pair"
    assert resource["service.name"] == "front" and resource["service.instance.id"] == "i-1"


async def test_malformed_headers_of_clients_write_nothing_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with FaultServer([TAKEN]) as collector:
        sink = OtelSink({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        with caplog.at_level(logging.DEBUG, "opentelemetry"):
            for state in ("Member", "a=b,a=b,", "=", "a" * 600, "a=\x1b[31m", ",".join(["k=v"] * 40)):
                sink(_call(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate=state))
            for parent in ("00-" + "0" * 32 + f"-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x", f"{TRACE}"):
                sink(_call(traceparent=parent))
        await sink.close()
        assert caplog.messages == []
        assert sink.sent == 10


async def test_r79_a_collector_that_is_down_costs_spans_and_is_counted() -> None:
    # Nothing listens there: the port was ours a moment ago.
    async with FaultServer([TAKEN]) as gone:
        url = gone.url
    sink = OtelSink({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces"}, timeout=0.2)
    for _ in range(5):
        sink(_call())
    await sink.close()
    assert sink.sent == 0 and sink.dropped == 5


async def test_r79_a_collector_that_hangs_holds_up_nobody_and_is_counted() -> None:
    async with FaultServer([BlackHole()]) as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        sink = OtelSink(environ, queue=4, interval=0.001, timeout=30.0)
        sink(_call())
        while not collector.requests:
            await asyncio.sleep(0.001)
        for _ in range(20):
            sink(_call())
        # One is on its way, four wait.
        assert sink.dropped == 16
        await sink.close(0.05)
        assert sink.sent == 0 and sink.dropped == 21


async def test_a_collector_that_refuses_is_counted() -> None:
    async with FaultServer([Reply(400, b"no")]) as collector:
        sink = OtelSink({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        for _ in range(3):
            sink(_call())
        await sink.close()
        assert sink.sent == 0 and sink.dropped == 3


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from windlass.sinks.otel import OtelSink\n"
        "from windlass.core.errors import ConfigError\n"
        "try: OtelSink({})\n"
        "except ConfigError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "windlass[otel]" in out and "not installed" in out
    assert issubclass(ConfigError, Exception)


def test_who_does_not_use_it_does_not_load_it() -> None:
    code = "import sys, windlass.server.start; print([name for name in sys.modules if 'opentelemetry' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- the gateway


def _chunk(text: str, finish: str = "null") -> str:
    return (
        f'{{"id":"c","model":"m-1","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}'
    )


USAGE = '{"id":"c","model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}'
ASK = {"model": "here", "messages": [{"role": "user", "content": "a secret text"}]}


async def test_a_gateway_s_requests_are_spans(gateway: StartGateway) -> None:
    stream = Stream(sse(_chunk("hi"), _chunk("", '"stop"'), USAGE, "[DONE]"))
    whole = Reply(500, b'{"error":{"message":"broken"}}', {"content-type": "application/json"})
    async with FaultServer([TAKEN]) as collector, FaultServer([stream, whole]) as upstream:
        up = await gateway(
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "sk-canary"}},
            routes={"here": "up:big", "none": "echo:x"},
            server={"otel": True, "attempts": 1},
            environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        )
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "authorization": "Bearer canary-2"}
        async with httpx.AsyncClient(base_url=up.url) as client:
            told = await client.post("/v1/chat/completions", json={**ASK, "stream": True}, headers=headers)
            assert told.status_code == 200
            failed = await client.post("/v1/chat/completions", json=ASK)
            assert failed.status_code == 503
            await client.post("/v1/messages", json={**ASK, "model": "none", "max_tokens": 9})
            await client.post("/v1/completions", json={"model": "none", "prompt": "a b"})
        (watcher,) = up.gateway.watchers
        assert isinstance(watcher, Tracing)
        await watcher.sink.close()
        assert up.gateway.counters["spans_dropped_total"][1]() == 0
        spans = _spans(collector)
        assert b"canary" not in b"".join([request.body for request in collector.requests])
        assert b"secret" not in b"".join([request.body for request in collector.requests])
        port = upstream.port
    assert [span.name for span in spans] == ["chat here", "chat here", "chat none", "text_completion none"]
    ok, bad, echo, _ = [_read(span.attributes) for span in spans]
    assert spans[0].trace_id.hex() == TRACE and spans[0].parent_span_id.hex() == PARENT
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano > 1_700_000_000 * 10**9
    assert {name: ok[name] for name in ok if name.startswith(("gen_ai", "server", "error"))} == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "up", "gen_ai.request.model": "here",
        "gen_ai.response.model": "m-1", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"], "server.address": "127.0.0.1", "server.port": port,
    }  # fmt: skip
    assert ok["windlass.request.id"] == told.headers["x-request-id"] and ok["windlass.outcome"] == "ok"
    assert bad["error.type"] == "overloaded" and spans[1].status.code == 2
    assert echo["gen_ai.provider.name"] == "echo" and echo["windlass.cost.usd"] == 0.0


async def test_r79_a_hanging_collector_does_not_slow_the_gateway_or_its_end(gateway: StartGateway) -> None:
    async with FaultServer([BlackHole()]) as collector:
        up = await gateway(
            routes={"here": "echo:x"},
            server={"otel": True},
            environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        )
        async with httpx.AsyncClient(base_url=up.url) as client:
            for _ in range(20):
                assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
        (watcher,) = up.gateway.watchers
        assert isinstance(watcher, Tracing)
        await watcher.sink.close(0.05)
        assert watcher.sink.dropped == 20
        families = [line for line in (await _metrics(up.url)).splitlines() if "spans_dropped_total 20" in line]
        assert len(families) == 1


async def _metrics(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        return (await client.get("/metrics")).text
