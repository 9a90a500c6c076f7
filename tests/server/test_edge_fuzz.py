"""Bytes that nobody meant: always an answer or a close, nothing left behind, nothing in the log."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.server.edge import request, settled, unquiet, wire
from tests.server.upstreams import answering, up
from windlass.core.config import Config
from windlass.core.errors import RequestRefused
from windlass.core.routes import read_routes
from windlass.server.http import Head, parse_head
from windlass.server.protocol import Limits, Listener
from windlass.server.serve import listen
from windlass.server.settings import read_settings
from windlass.server.start import open_gateway
from windlass.testing.faults import FaultServer

CHAT = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"hi"}]}'
CODED = {"transfer-encoding": "chunked", "content-type": "application/json"}
CHUNKS = b"5\r\n" + CHAT[:5] + b"\r\n45;a=b\r\n" + CHAT[5:] + b"\r\n0\r\nx: y\r\n\r\n"
SEEDS = [
    request("GET", "/health"),
    request("GET", "/v1/models/x%20y?limit=1&a=%00", {"anthropic-version": "1"}),
    request("HEAD", "/health", {"connection": "close"}),
    request("OPTIONS", "/v1/models", {"origin": "http://x"}),
    request("DELETE", "/v1/responses/resp_1"),
    request("POST", "/v1/chat/completions", {"authorization": "Bearer x"}, CHAT),
    request("POST", "/v1/chat/completions", {"expect": "100-continue"}, CHAT.replace(b"true", b"false")),
    request("POST", "/v1/chat/completions", CODED) + CHUNKS,
    request("POST", "/v1/messages", {}, CHAT.replace(b'"stream":true', b'"max_tokens":5')),
    request("POST", "/api/chat", {}, CHAT),
    request("POST", "/v1/keys", {"x-api-key": "x"}, b'{"name":"x"}'),
    request("POST", "/v1beta/models/fake:generateContent", {}, b'{"contents":[{"parts":[{"text":"x"}]}]}'),
    b"GET /health HTTP/1.0\r\n\r\n",
]
SPICE = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"0", b"-1", b"99999999999", b"\xff", b"\xc3\xa9", b"%00",
    b"%2e%2e/", b"transfer-encoding: chunked\r\n", b"content-length: 3\r\n", b"content-length: 0\r\n",
    b"host: a\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n", b"HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n",
    b'{"', b"\\u0000", b"0\r\n\r\n", b"ffffffff\r\n", b"\xef\xbb\xbf", b"[" * 50,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request that was valid once, or two of them, changed in a few places."""
    data = draw(st.sampled_from(SEEDS))
    if draw(st.booleans()):
        data += draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("insert", "replace", "delete", "repeat", "cut", "flip")))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(SPICE) | st.binary(max_size=4)) + data[at:]
        elif kind == "replace":
            spice = draw(st.sampled_from(SPICE))
            data = data[:at] + spice + data[at + len(spice) :]
        elif kind == "delete":
            data = data[:at] + data[at + draw(st.integers(1, 8)) :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 40] * draw(st.integers(1, 30)) + data[at:]
        elif kind == "cut":
            data = data[:at]
        elif at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    return data


class _Read:
    """What llhttp makes of a request."""

    def __init__(self) -> None:
        self.url, self.headers, self.complete = b"", list[tuple[bytes, bytes]](), False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _llhttp(data: bytes) -> tuple[bytes, dict[str, str]]:
    read = _Read()
    parser = httptools.HttpRequestParser(read)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        read.complete = True
    assert read.complete
    headers: dict[str, str] = {}
    for name, value in read.headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return read.url, headers


def _parse(data: bytes) -> Head | None:
    try:
        return parse_head(data)
    except RequestRefused as error:
        assert error.status in (400, 417, 431) and error.reason
        return None


@given(mutated() | st.binary(max_size=200))
@example(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n")
@settings(max_examples=600, deadline=None)
def test_a_head_that_is_taken_is_read_as_another_strict_parser_reads_it(data: bytes) -> None:
    raw = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    head = _parse(raw)
    if head is None:
        return
    # It knows a few methods only.
    url, headers = _llhttp(b"GET" + raw[len(head.method) :])
    assert url.decode() == head.path + ("?" + head.query if b"?" in url else "")
    assert headers == head.headers
    assert head.path.startswith("/") and not head.path.startswith("//") and head.path.isascii()
    assert head.http10 or re.fullmatch(r"[\w.\-\[\]:]+", head.headers["host"])
    assert (head.length is None) == ("transfer-encoding" in headers)
    assert not (head.length is None and "content-length" in headers)
    assert not any(char in value for value in headers.values() for char in "\r\n\0")


class Running:
    """A gateway on a loop of its own, for properties that are no coroutines."""

    def __init__(self, runner: asyncio.Runner, home: Path) -> None:
        self.run, self._stack = runner.run, AsyncExitStack()
        self.port, self.listener = self.run(self._start(home))

    async def _start(self, home: Path) -> tuple[int, Listener]:
        upstream = await self._stack.enter_async_context(FaultServer(answering("hel", "lo"), keep=10))
        config = Config(
            environ={"WINDLASS_HOME": str(home), "HOME": str(home)}, providers=up(upstream),
            routes=read_routes({"fake": "up:fake"}),
        )  # fmt: skip
        gateway = await open_gateway(config, read_settings({}), self._stack)
        listener = Listener(gateway, Limits(head_seconds=0.15, idle_seconds=0.1, stall_seconds=0.2), sweep=0.02)
        sock = listen("127.0.0.1", 0)
        server = await listener.loop.create_server(listener, sock=sock)
        self._stack.push_async_callback(listener.drain, 0.0)
        self._stack.callback(server.close)
        return sock.getsockname()[1], listener

    async def send(self, pieces: list[bytes], end: str) -> bytes:
        """Send pieces, then wait, close our side or reset; returns what came back."""
        async with wire(self.port) as sent:
            try:
                await sent.send(*pieces)
                if end == "half":
                    sent.writer.write_eof()
            except (ConnectionError, OSError):
                pass  # it was refused already
            return b"" if end == "reset" else await sent.rest()

    async def check(self) -> None:
        """Wait until nothing is left of any connection."""
        await settled(self.listener)

    def stop(self) -> None:
        self.run(self._stack.aclose())


def _answers(got: bytes) -> list[int]:
    """Return the statuses of the answers, which must be whole but for the last."""
    out: list[int] = []
    while got:
        found = re.match(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[a-z0-9-]+: [^\r\n]*\r\n)*)\r\n", got)
        assert found is not None, got[:200]
        status, got = int(found[1]), got[found.end() :]
        out.append(status)
        if b"transfer-encoding: chunked" in found[2]:
            while chunk := re.match(rb"([0-9a-f]+)\r\n", got):
                size = int(chunk[1], 16)
                got = got[chunk.end() + size + 2 :]
                if not size:
                    break
        elif length := re.search(rb"content-length: (\d+)", found[2]):
            got = got if got.startswith(b"HTTP/1.1 ") else got[int(length[1]) :]  # the answer to HEAD has no body
    return out


@pytest.fixture(scope="module")
def runner() -> Any:
    """One loop for all examples."""
    with asyncio.Runner() as made:
        yield made


def test_connections_survive_whatever_comes(
    runner: asyncio.Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(runner, tmp_path)
    seen: set[int] = set()
    ends = st.sampled_from(["half", "half", "half", "wait", "reset"])

    @given(mutated() | st.binary(max_size=300), st.lists(st.integers(0, 700), max_size=4), ends)
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def probe(data: bytes, cuts: list[int], end: str) -> None:
        places = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
        pieces = [data[start:stop] for start, stop in pairwise(places) if start < stop]
        got = runner.run(running.send(pieces, end))
        statuses = _answers(got)
        seen.update(statuses)
        assert not {status for status in statuses if status >= 500}, (data, got)

    try:
        probe()
        for seed in SEEDS:
            assert _answers(runner.run(running.send([seed], "wait")))[-1] in (200, 204, 400, 401, 403, 404, 405)
        runner.run(running.check())
        assert {200, 400} <= seen
        assert unquiet(caplog) == []
    finally:
        running.stop()


def test_many_broken_connections_at_once_leave_nothing(
    runner: asyncio.Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(runner, tmp_path)

    async def storm() -> None:
        work = [running.send([seed[:cut], seed[cut:]] if cut else [seed], end)
                for seed in SEEDS for cut in (0, 20, len(seed) - 3) for end in ("half", "wait", "reset")]  # fmt: skip
        await asyncio.gather(*work)

    try:
        runner.run(storm())
        runner.run(running.check())
        assert unquiet(caplog) == []
    finally:
        running.stop()
