"""What the edge bounds: time, bytes, connections, and what a client leaves unread."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Serve, StartGateway
from tests.server.edge import Echo, ask, crowd, edge, exchange, request, settled, unquiet, until, wire
from windlass.server.http import Call
from windlass.server.protocol import Limits
from windlass.testing.faults import FaultServer, Part, Stream, sse

CODED = {"transfer-encoding": "chunked", "content-type": "application/json"}
ASK = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"hi"}]}'
SHORT = Limits(head_seconds=0.1, idle_seconds=0.1, stall_seconds=0.1)


def _chunk(text: str, finish: str = "null") -> str:
    return f'{{"id":"c","model":"m","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}'


# -------------------------------------------------------------------------------------------------------------- S63


async def _drip(port: int, data: bytes, seconds: float) -> tuple[int, bytes]:
    """Send byte by byte until the other side answers; returns how many bytes it took, and the answer."""
    async with wire(port) as sent:
        reading = asyncio.ensure_future(sent.rest())
        count = 0
        for at in range(len(data)):
            if reading.done():
                break
            try:
                await sent.send(data[at : at + 1])
            except ConnectionError:
                break
            count += 1
            await asyncio.sleep(seconds)
        return count, await reading


async def test_s63_slow_heads_slow_bodies_and_idle_clients_are_ended() -> None:
    head = request("GET", "/", {"x": "y" * 2000})
    body = request("POST", "/", {"content-length": "5000"}) + b"x" * 5000
    coded = request("POST", "/", CODED) + b"1388\r\n" + b"x" * 5000
    slow = [head, body, coded, request("POST", "/", CODED) + b"1;" + b"e" * 250]
    async with edge(limits=SHORT) as up:
        ended = await asyncio.gather(*[_drip(up.port, data, 0.02) for data in slow])
        for (count, got), data in zip(ended, slow, strict=True):
            assert got.startswith(b"HTTP/1.1 408 ") and got.endswith(b"request_timeout") and count < len(data)
        # Who sends nothing, or nothing more, is only closed.
        assert await _drip(up.port, b"", 0) == (0, b"")
        async with wire(up.port) as sent:
            await sent.send(request("GET", "/"))
            assert (await sent.answer()).status == 200
            assert await sent.rest() == b""
        assert up.app.calls.pop().head.path == "/" and not up.app.calls
        await settled(up.listener)


async def test_s63_time_cannot_be_saved_up_by_sending_fast_first() -> None:
    async with edge(limits=Limits(head_seconds=0.1, body_rate=1)) as up, wire(up.port) as sent:
        # At one byte a second this would last for days.
        await sent.send(request("POST", "/", {"content-length": "1000000"}) + bytes(900_000))
        assert (await sent.answer()).status == 408
        await settled(up.listener)


async def test_s63_a_body_that_keeps_its_rate_may_take_long() -> None:
    async with edge(limits=Limits(head_seconds=0.5, body_rate=100)) as up, wire(up.port) as sent:
        await sent.send(request("POST", "/", {"content-length": "1000"}))
        for _ in range(10):
            await sent.send(bytes(100))
            await asyncio.sleep(0.1)
        assert (await sent.answer()).body == b"1000"


async def test_s63_who_reads_nothing_of_an_answer_is_ended() -> None:
    limits = Limits(stall_seconds=0.1, idle_seconds=0.1)
    async with edge(Echo(size=64 << 20), limits) as up:
        for path in ("/large", "/stream"):
            async with wire(up.port) as sent:
                sent.pause(small=True)
                await sent.send(request("GET", path, {"connection": "close"}))
                await until(lambda: up.listener.connections)
                await settled(up.listener)
        assert up.app.cancelled == ["the client left"]  # the stream; the large answer was complete for us


async def test_s63_a_slow_reader_that_goes_on_reading_is_served() -> None:
    async with edge(Echo(size=64 << 20), Limits(stall_seconds=0.5, body_rate=1024)) as up, wire(up.port) as sent:
        await sent.send(request("GET", "/large"))
        (connection,) = up.listener.connections
        # Longer than `stall_seconds` in all, never a stall.
        for _ in range(12):
            sent.pause()
            await asyncio.sleep(0.1)
            sent.resume()
            await sent.reader.readexactly(1 << 20)
        assert connection in up.listener.connections and connection.due < float("inf")
        assert await sent.rest_of(64 << 20, 12 << 20) >= 64 << 20


# -------------------------------------------------------------------------------------------------------------- S64


async def test_s64_a_large_body_is_refused_before_it_is_read() -> None:
    async with edge(Echo(limit=1000)) as up:
        answer, after = await exchange(up.port, request("POST", "/", {"content-length": "1001"}))
        assert (answer.status, answer.body, after) == (413, b"request_too_large", b"")
        answer, _ = await exchange(up.port, request("POST", "/", CODED) + b"3e9\r\n")
        assert answer.status == 413
        answer, _ = await exchange(up.port, request("POST", "/", CODED) + (b"64\r\n" + bytes(100) + b"\r\n") * 11)
        assert answer.status == 413
        answer, _ = await exchange(up.port, request("POST", "/", CODED) + b"ffffffff\r\n" + bytes(100_000))
        assert answer.status == 413
        for length in (1000, 999):
            assert (await ask(up.port, request("POST", "/", body=bytes(length)))).body == b"%d" % length
        assert up.listener.buffered == 0
        await settled(up.listener)


async def test_s64_a_client_that_is_still_sending_can_read_why_it_was_refused() -> None:
    async with edge(Echo(limit=1000)) as up, wire(up.port) as sent:
        await sent.send(request("POST", "/", {"content-length": "50000000"}))
        for _ in range(200):
            await sent.send(bytes(65_536))
        assert (await sent.answer()).status == 413
        # It is told that this is the end, while we still take what it sends.
        assert await sent.rest() == b""
        assert len(up.listener.lingering) == 1 and not up.listener.connections


async def test_s64_a_compressed_body_is_refused(gateway: StartGateway) -> None:
    made = await gateway()
    for coding in ("gzip", "br", "zstd", "deflate", "gzip, gzip", "identity, gzip"):
        data = request("POST", "/v1/chat/completions", {"content-encoding": coding}, ASK)
        answer, after = await exchange(made.port, data)
        assert (answer.status, after) == (415, b"")
    assert (await ask(made.port, request("GET", "/v1/models", {"content-length": "2"}, b"{}"))).status == 413


async def test_s64_all_connections_together_hold_a_bounded_number_of_bytes() -> None:
    limits = Limits(buffered_bytes=1_000_000)
    async with edge(Echo(limit=600_000), limits) as up, wire(up.port) as one, wire(up.port) as two:
        whole = {"content-length": "600000"}
        # What was only announced holds nothing: else a few heads would lock out everybody.
        await one.send(request("POST", "/", whole))
        await two.send(request("POST", "/", whole))
        await until(lambda: len(up.listener.connections) == 2)
        assert (await ask(up.port, request("POST", "/", body=bytes(500_000)))).status == 200
        await one.send(bytes(599_999))
        await until(lambda: up.listener.buffered == 599_999)
        large = [
            [request("POST", "/", whole), *[bytes(10_000)] * 50],
            [request("POST", "/", CODED), *[b"2710\r\n" + bytes(10_000) + b"\r\n"] * 50],
        ]
        for pieces in large:
            async with wire(up.port) as sent:
                for piece in pieces:
                    await sent.send(piece)
                    await asyncio.sleep(0.001)
                answer = await sent.answer()
                assert (answer.status, answer.body) == (503, b"overloaded")
        assert (await ask(up.port, request("POST", "/", body=bytes(60_000)))).status == 200
        await one.send(b"x")
        assert (await one.answer()).body == b"600000"
        await two.send(bytes(600_000))
        assert (await two.answer()).body == b"600000"
        assert up.listener.buffered == 0


def _rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_s64_refused_bodies_leave_the_memory_as_it_is(serve: Serve) -> None:
    served = await asyncio.to_thread(serve, "[server]\nmax_body_bytes = 1000000")
    big = request("POST", "/v1/chat/completions", {"content-length": "300000000"})
    coded = request("POST", "/v1/chat/completions", CODED) + b"ffff0\r\n"
    coded_late = request("POST", "/v1/chat/completions", CODED) + b"f0000\r\n" + bytes(0xF0000) + b"\r\nffff\r\n"
    zipped = request("POST", "/v1/chat/completions", {"content-length": "900000", "content-encoding": "gzip"})
    await _flood(served.port, coded, 413)
    before = _rss(served.process.pid)
    for data, status in ((big, 413), (coded, 413), (coded_late, 413), (zipped, 415)):
        await asyncio.gather(*[_flood(served.port, data, status) for _ in range(5)])
    assert _rss(served.process.pid) - before < 12 << 20


async def _flood(port: int, data: bytes, status: int) -> None:
    async with wire(port) as sent:
        await sent.send(data)
        try:
            for _ in range(100):
                await sent.send(bytes(65_536))
        except ConnectionError:
            pass
        assert (await sent.answer()).status == status


# ------------------------------------------------------------------------------------------------- connections (S73)


async def test_s73_idle_connections_make_room_and_streams_live_on() -> None:
    async with edge(limits=Limits(connections=100)) as up, wire(up.port) as live:
        await live.send(request("GET", "/begin"))
        await up.app.begun.wait()
        async with crowd(up.port, 500):
            await until(lambda: len(up.listener.connections) == 100)
            assert (await ask(up.port, request("GET", "/"))).status == 200
            assert len(up.listener.connections) <= 100
            up.app.go.set()
            answer = await live.answer()
            assert answer.whole and answer.body == b"begun and ended"
        live.writer.close()
        await settled(up.listener)


async def test_s73_half_sent_heads_make_room_too_the_idle_ones_first() -> None:
    limits = Limits(connections=3)
    async with edge(limits=limits) as up, wire(up.port) as half, wire(up.port) as idle, wire(up.port) as busy:
        await half.send(b"GET / HT")
        await busy.send(request("GET", "/begin"))
        await up.app.begun.wait()
        await until(lambda: len(up.listener.connections) == 3)
        assert (await ask(up.port, request("GET", "/"))).status == 200
        assert await idle.rest() == b""
        await half.send(b"TP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await half.answer()).status == 200
        up.app.go.set()
        assert (await busy.answer()).body == b"begun and ended"


async def test_a_connection_too_many_is_told_so() -> None:
    async with edge(limits=Limits(connections=2)) as up:
        async with wire(up.port) as one, wire(up.port) as two:
            for sent in (one, two):
                await sent.send(request("GET", "/begin"))
            await until(lambda: len(up.app.calls) == 2)
            answer, after = await exchange(up.port, request("GET", "/"))
            assert (answer.status, answer.body, after) == (503, b"overloaded", b"")
            # Many at once, which send nothing and do not leave: they are bounded too.
            async with crowd(up.port, 300):
                await until(lambda: len(up.listener.lingering) == 256)
            up.app.go.set()
            assert (await one.answer()).whole and (await two.answer()).whole
        assert (await ask(up.port, request("GET", "/"))).status == 200
        await settled(up.listener)


async def test_s73_a_process_that_may_open_few_files_takes_fewer_connections(tmp_path: Path) -> None:
    env = {"WINDLASS_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-m", "windlass", "serve", "--port", "0"]
    limited = ["/bin/sh", "-c", 'ulimit -Sn 200; ulimit -Hn 500; exec "$@"', "sh", *command]
    process = await asyncio.create_subprocess_exec(*limited, env=env, cwd=tmp_path, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        lines: list[bytes] = []
        async with asyncio.timeout(20):
            while b" serves http://" not in (line := await process.stderr.readline()):
                lines.append(line)
                assert line, lines
        port = int(line.rpartition(b":")[2])
        assert b"only 122 connections" in b"".join(lines)
        async with crowd(port, 400):
            # A file is left for whatever an answer needs, here the connection to a provider that is not there.
            assert (await ask(port, request("GET", "/diagnostics/providers"))).status == 200
        assert (await ask(port, request("GET", "/health"))).status == 200
    finally:
        process.terminate()
        rest = await process.stderr.read()
        assert await process.wait() == 0 and b"Too many" not in rest and b"out of system resource" not in rest


# ------------------------------------------------------------------------------------------------- slow readers (R31)


async def test_r31_a_client_that_reads_nothing_stops_its_stream_and_no_other() -> None:
    async with edge(Echo(size=64 << 20)) as up, wire(up.port) as slow:
        slow.pause()
        await slow.send(request("GET", "/stream"))
        await until(lambda: up.app.written)
        last = -1
        while last != up.app.written:
            last = up.app.written
            await asyncio.sleep(0.1)
        (connection,) = up.listener.connections
        # The transport's high-water mark and one piece; the rest is in the system's buffers.
        assert connection._transport.get_write_buffer_size() <= 65_536 * 2 + 100  # pyright: ignore
        assert last < 32 << 20
        assert (await ask(up.port, request("GET", "/"))).status == 200
        slow.resume()
        assert len((await slow.answer()).body) == 64 << 20


async def test_r31_requests_whose_answers_are_not_read_do_not_pile_up() -> None:
    async with edge(Echo(size=1 << 20)) as up, wire(up.port) as sent:
        sent.pause()
        for _ in range(60):
            await sent.send(request("GET", "/large"))
            await asyncio.sleep(0.005)
        (connection,) = up.listener.connections
        served = len(up.app.calls)
        assert served < 30 and connection._transport.get_write_buffer_size() <= (1 << 20) + 66_000  # pyright: ignore
        sent.resume()
        answers = [await sent.answer() for _ in range(served)]
        assert {len(answer.body) for answer in answers} == {1 << 20}


async def test_r31_fifty_slow_readers_of_a_large_stream_cost_little_memory(serve: Serve) -> None:
    piece = _chunk("x" * 60_000)
    parts: list[Part] = [*sse(*[piece] * 300), *sse(_chunk("", '"stop"'), "[DONE]")]
    async with FaultServer([Stream(parts)]) as upstream:
        config = f'[providers.up]\nbase_url = "{upstream.url}/v1"\napi_key = "sk-up"\n[routes]\nfake = "up:fake"\n'
        served = await asyncio.to_thread(serve, config)
        data = request("POST", "/v1/chat/completions", body=ASK)
        async with wire(served.port) as first:
            await first.send(data)
            assert (await first.answer()).body.endswith(b"data: [DONE]\n\n")
        before = _rss(served.process.pid)
        readers: list[Any] = []
        for _ in range(50):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=4096)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            writer.write(data)
            readers.append((reader, writer))
        await upstream.wait(requests=51)
        async with wire(served.port) as other:
            await other.send(data)
            assert (await other.answer()).body.endswith(b"data: [DONE]\n\n")
        # 50 streams of 18 MB. Each may hold a piece of what comes (256 kB, and what one more read brings) as it is
        # read, as it is sent, and what waits behind it.
        assert _rss(served.process.pid) - before < 50 * 3_500_000
        for _, writer in readers:
            writer.transport.abort()


# ------------------------------------------------------------------------------------------------------ ends, drains


async def test_r30_a_client_that_leaves_ends_its_request() -> None:
    async with edge() as up:
        for path, leave in (("/begin", "close"), ("/begin", "abort"), ("/begin", "half"), ("/wait", "half")):
            up.app.begun.clear()
            async with wire(up.port) as sent:
                await sent.send(request("GET", path))
                await up.app.begun.wait()
                if leave == "half":
                    sent.writer.write_eof()
                elif leave == "close":
                    sent.writer.close()
                else:
                    sent.writer.transport.abort()
                await until(lambda: not up.listener.tasks)
        assert up.app.cancelled == ["the client left"] * 4
        # Amid a head or a body there is nothing to end.
        for data in (b"GET / HT", request("POST", "/", {"content-length": "9"}) + b"x"):
            async with wire(up.port) as sent:
                await sent.send(data)
                sent.writer.write_eof()
                assert await sent.rest() == b""
        await settled(up.listener)


async def test_r30_a_client_that_reads_nothing_and_leaves_ends_its_request_too() -> None:
    async with edge(Echo(size=64 << 20)) as up, wire(up.port) as sent:
        sent.pause()
        await sent.send(request("GET", "/stream"))
        (connection,) = up.listener.connections
        await until(lambda: up.app.written and connection.due < float("inf"))  # it is slow
        sent.writer.write_eof()
        await until(lambda: not up.listener.tasks)
        assert up.app.cancelled == ["the client left"]


async def test_r30_who_writes_on_after_the_end_of_a_connection_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(Echo):
        async def serve(self, call: Call) -> None:
            call.start(200, kind="text/plain")
            call.cut()
            for _ in range(100):
                call.write(bytes(1000))  # without a look at what it is told
            call.finish()

    async with edge(Deaf()) as up, wire(up.port) as sent:
        await sent.send(request("GET", "/"))
        assert await sent.rest() == b""
        await settled(up.listener)
    assert unquiet(caplog) == []


async def test_an_answer_that_was_not_ended_is_not_taken_for_a_whole_one() -> None:
    class Careless(Echo):
        async def serve(self, call: Call) -> None:
            if call.head.path == "/begun":
                call.start(200, kind="text/plain")
                call.write(b"half")

    async with edge(Careless()) as up:
        for path, got in (("/begun", b"half"), ("/nothing", b"")):
            async with wire(up.port) as sent:
                await sent.send(request("GET", path), request("GET", path))
                rest = await sent.rest()
                assert rest.count(b"HTTP/1.1") == bool(got) and got in rest and not rest.endswith(b"0\r\n\r\n")
        await settled(up.listener)


async def test_r33_a_drain_lets_answers_end_and_be_read_and_refuses_the_rest() -> None:
    async with edge(Echo(size=8 << 20)) as up, AsyncExitStack() as stack:
        stream, slow, half, body, idle = [await stack.enter_async_context(wire(up.port)) for _ in range(5)]
        slow.pause()
        await slow.send(request("GET", "/large"))
        await half.send(b"GET / HT")
        await body.send(request("POST", "/", {"content-length": "9"}) + b"x")
        await stream.send(request("GET", "/begin"))
        await up.app.begun.wait()
        await until(lambda: len(up.listener.connections) == 5 and up.listener.buffered == 1)
        draining = asyncio.ensure_future(up.listener.drain(15.0))
        for refused in (half, body):
            answer = await refused.answer()
            assert (answer.status, answer.body) == (503, b"stopping")
        assert await idle.rest() == b""
        answer, _ = await exchange(up.port, request("GET", "/"))
        assert answer.status == 503
        up.app.go.set()
        assert (await stream.answer()).body == b"begun and ended"
        slow.resume()
        assert len((await slow.answer()).body) == 8 << 20
        assert await draining == 0


async def test_r33_what_does_not_end_in_time_is_told_so() -> None:
    async with edge() as up, wire(up.port) as begun, wire(up.port) as waiting:
        await waiting.send(request("GET", "/wait"))
        await begun.send(request("GET", "/begin"))
        await until(lambda: len(up.app.calls) == 2)
        assert await up.listener.drain(0.05) == 2
        answer = await waiting.answer()
        assert (answer.status, answer.body) == (503, b"ending")
        assert not (await begun.answer()).whole
        assert up.app.cancelled == ["the server is stopping"] * 2
        assert not up.listener.connections and not up.listener.tasks


async def test_a_drain_can_be_hurried() -> None:
    async with edge() as up, wire(up.port) as sent:
        await sent.send(request("GET", "/begin"))
        await up.app.begun.wait()
        draining = asyncio.ensure_future(up.listener.drain(1000.0))
        await asyncio.sleep(0)
        up.listener.hurry()
        assert await draining == 1


@pytest.mark.parametrize("cut", [0, 1])
async def test_tasks_that_never_began_are_not_waited_for(cut: int) -> None:
    async with edge() as up, wire(up.port) as sent:
        await sent.send(request("GET", "/begin"))
        await until(lambda: up.listener.tasks)
        for task in list(up.listener.tasks):
            task.cancel("before its first step")
        for _ in range(cut):
            await asyncio.sleep(0)
        await up.listener.drain(0.0)
        assert not up.listener.tasks
