"""The request log and the server's own messages: one line each, whatever clients send, and nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.conftest import InProcess, Serve, StartGateway
from windlass.accounts.keys import Identity
from windlass.accounts.records import RequestRecord
from windlass.core.request import Budget
from windlass.server import log as server_log
from windlass.server.http import Call, Head
from windlass.server.ingress import CHAT
from windlass.server.job import Job
from windlass.server.log import RequestLog, logging_to

ASK = {"model": "here", "messages": [{"role": "user", "content": "one two three"}]}
EVIL = 'x\r\nfake line\x1b[31m"}{"a":\u2028\u2029\x85\x9b\x7f\u202e\x00,'


class Sink:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.data += data

    def lines(self) -> list[str]:
        """Return the lines as the strictest reader splits them."""
        return self.data.decode().splitlines()


def _job(agent: str = "", identity: Identity | None = None, request: str = "r") -> Job:
    call = Call(Head("POST", "/", "", {"user-agent": agent}, 0, True, False), "127.0.0.1", 0.0)
    call.identity, call.id = identity or Identity("k1", "ann"), request
    return Job(None, call, CHAT, "m", False, Budget(1.0, 1))


async def _ask(up: InProcess, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=up.url) as client:
        return await client.post("/v1/chat/completions", json=ASK, headers=headers)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_s59_what_clients_send_stays_inside_one_escaped_line(form: Any) -> None:
    sink = Sink()
    lines = RequestLog(form, write=sink)
    for _ in range(3):
        record = RequestRecord(EVIL, 1, tenant=EVIL, route=EVIL, session_id=EVIL, error=EVIL, address=EVIL, target=EVIL)
        lines(record, _job(EVIL, Identity("k", EVIL), EVIL))
    await lines.close()
    assert len(sink.lines()) == 3 and lines.dropped == 0
    assert all(32 <= byte < 127 or byte == 10 for byte in sink.data)
    if form == "json":
        rows = [json.loads(line) for line in sink.lines()]
        assert rows[0]["request_id"] == EVIL and rows[0]["user_agent"] == EVIL and rows[0]["key"] == EVIL


@given(st.lists(st.text(max_size=400), max_size=8))
def test_any_text_is_one_line_of_json(texts: list[str]) -> None:
    async def run() -> Sink:
        sink = Sink()
        lines = RequestLog("json", write=sink)
        for text in texts:
            lines(RequestRecord(text, 1, route=text), _job(text))
        await lines.close()
        return sink

    rows = [json.loads(line) for line in asyncio.run(run()).lines()]
    assert [row["model"] for row in rows] == [text[:256] for text in texts]


async def test_each_model_request_is_one_line_with_its_facts(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink()
    monkeypatch.setattr(server_log, "write_stderr", sink)
    up = await gateway(routes={"here": "echo:x"}, server={"log": "json"})
    up.gateway.watchers[:] = [lines := RequestLog("json", write=sink)]
    _, secret = await up.gateway.accounts.create("ann", tenant="t1")
    key = {"authorization": f"Bearer {secret}"}
    answer = await _ask(up, **key, **{"user-agent": "agent/1", "x-request-id": "req-1"})
    await lines.close()
    (line,) = sink.lines()
    row = json.loads(line)
    assert answer.headers["x-request-id"] == row["request_id"] == "req-1"
    assert (row["event"], row["level"], row["key"], row["tenant"]) == ("request", "info", "ann", "t1")
    assert (row["model"], row["target"], row["endpoint"]) == ("here", "echo:x", "openai-chat")
    assert (row["status"], row["outcome"], row["attempts"], row["cost"]) == (200, "ok", 1, "0.0000")
    assert (row["input_tokens"], row["output_tokens"], row["user_agent"]) == (3, 4, "agent/1")
    assert row["duration_ms"] >= row["first_token_ms"] > 0 and row["time"].endswith("Z")
    assert secret not in line and "one two three" not in line


async def test_lines_come_in_batches_from_another_thread() -> None:
    batches: list[tuple[str, int]] = []

    def write(data: bytes) -> None:
        batches.append((threading.current_thread().name, data.count(b"\n")))

    lines = RequestLog("text", write=write, interval=0.01)
    for _ in range(100):
        lines(RequestRecord("r", 1), _job())
    assert batches == []
    await lines.close()
    assert {name for name, _ in batches} == {"windlass-log"}
    assert sum(count for _, count in batches) == 100 and len(batches) < 20


async def test_r79_a_reader_that_hangs_costs_lines_and_holds_up_nobody(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "KEEP", 5)
    hang = threading.Event()

    def write(data: bytes) -> None:
        hang.wait(20)

    up = await gateway(routes={"here": "echo:x"})
    lines = RequestLog("json", write=write, interval=0.0)
    up.gateway.watchers.append(lines)
    for _ in range(12):
        assert (await _ask(up)).status_code == 200
    assert lines.dropped == 7
    await lines.close(0.01)
    assert lines.dropped == 12
    hang.set()


async def test_r79_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    def write(data: bytes) -> None:
        raise BrokenPipeError

    lines = RequestLog("json", write=write)
    for _ in range(4):
        lines(RequestRecord("r", 1), _job())
    await lines.close()
    assert lines.dropped == 4


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_server_s_own_messages_have_the_same_form_and_their_traceback(form: Any) -> None:
    sink = Sink()
    log = logging.getLogger("windlass.server")
    before = log.handlers[:], logging.getLogger("windlass").handlers[:]
    with logging_to(form, sink):
        log.warning("request %s is odd", EVIL)
        try:
            raise ValueError("boom\nnext")
        except ValueError:
            log.exception("request r1 failed")
    assert (log.handlers, logging.getLogger("windlass").handlers) == before
    if form == "json":
        first, second = [json.loads(line) for line in sink.lines()]
        assert first["level"] == "warning" and first["message"] == f"request {EVIL} is odd"
        assert first["logger"] == "windlass.server" and first["time"].endswith("Z")
        assert second["message"] == "request r1 failed" and "ValueError: boom\nnext" in second["exception"]
    else:
        first, second, *trace = sink.lines()
        assert first.startswith("windlass: request x\\r\\nfake line\\x1b") and second == "windlass: request r1 failed"
        assert trace[0].startswith("Traceback") and "ValueError: boom" in trace
    assert b"\x1b" not in sink.data


def test_the_program_writes_json_from_start_to_end(serve: Serve) -> None:
    served = serve('[server]\nlog = "json"\n[routes]\nhere = "echo:x"\n')
    with httpx.Client(base_url=served.url) as client:
        assert client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "req-9"}).status_code == 200
    assert served.stop() == 0
    rows = [json.loads(line) for line in served.log.read_text().splitlines()]
    messages = [row["message"] for row in rows if row["event"] == "message"]
    assert messages == [f"windlass serves {served.url}", "draining"]
    # Written at exit at the latest.
    assert [row["request_id"] for row in rows if row["event"] == "request"] == ["req-9"]


def test_the_program_writes_text_when_asked_and_no_requests_by_default(serve: Serve) -> None:
    for setting, count in (('log = "text"', 1), ("", 0)):
        served = serve(f'[server]\n{setting}\n[routes]\nhere = "echo:x"\n')
        with httpx.Client(base_url=served.url) as client:
            client.post("/v1/chat/completions", json=ASK)
        assert served.stop() == 0
        found = [line for line in served.log.read_text().splitlines() if " request request_id=" in line]
        assert len(found) == count
        assert all("outcome=ok" in line and "model=here" in line for line in found)
