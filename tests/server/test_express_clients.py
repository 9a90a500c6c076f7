"""The straight way and its clients: who leaves, does not read, or is sent away; what is reserved, and what is left."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import InProcess, Serve, StartGateway
from tests.server.edge import PATIENCE, until, wire
from tests.server.straight import (
    BIG,
    BODIES,
    CHAT,
    DONE,
    SSE,
    Case,
    Counted,
    Held,
    Way,
    asking,
    chunk,
    good,
    held_back,
    posted,
    way,
    works,
)
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.routes import read_routes
from windlass.providers.route import Router
from windlass.testing.faults import BlackHole, FaultServer, Fin, Part, Raw, Received, Rst, Step, Stream

# ------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("begun", [True, False], ids=["in its stream", "before the head"])
async def test_a_client_that_leaves_takes_its_upstream_along(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway) as up:
        held = Held(up.up, monkeypatch)
        _, secret = await up.up.gateway.accounts.create("k", token_budget=10**9)
        auth = {"authorization": f"Bearer {secret}"}
        up.auth = auth
        await up.warm("chat")
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        parts: list[Part] = [CHAT[0], chunk({"content": "a"}, usage=usage), asyncio.Event()]
        async with asking(up, Stream(parts, headers=SSE) if begun else BlackHole()) as client:
            if begun:
                await client.reader.readuntil(b'"a"')
            before = up.vendor.open
        left = clock.monotonic()
        async with asyncio.timeout(PATIENCE):
            await up.vendor.wait(open=before - 1)
        assert clock.monotonic() - left < 1.0 and counted.begun == 1
        await up.quiet()
        record = up.records[-1]
        assert (record.outcome, record.attempts) == ("client_gone", 1)
        # What the vendor had said by then counts; else it is estimated.
        if begun:
            assert (record.input_tokens, record.output_tokens, record.estimated) == (7, 3, False)
        else:
            assert record.input_tokens > 0 and record.estimated
        assert held.all and held.open == 0


async def test_who_reads_nothing_is_ended_and_holds_little_until_then(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sent = works(monkeypatch), 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        for _ in range(4000):
            sent += len(BIG)
            yield BIG

    async with way(gateway, limits={"stall_seconds": 0.5}) as up:
        parts: Any = endless()
        async with asking(up, Raw(parts), small=True):
            exchange = made[0].exchange
            assert exchange is not None
            await until(lambda: exchange.paused)
            # Held for it: what the systems' buffers take, and a little of ours.
            assert exchange.size < 600_000 and sent < 32 << 20
            await until(lambda: up.records and up.records[-1].outcome == "client_gone")
        await up.quiet()
        assert sent < 32 << 20


async def test_a_client_that_pauses_for_long_is_not_taken_for_a_silent_vendor(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway, idle_timeout=0.2, limits={"stall_seconds": 20}) as up:
        frames = [*CHAT[:2], *[BIG] * 400, *CHAT[2:]]
        async with asking(up, Stream(frames, headers=SSE), pause=True) as client:
            await asyncio.sleep(0.8)
            client.resume()
            answer = await client.answer()
        assert answer.whole and answer.body.endswith(DONE) and answer.body.count(BIG) == 400
        assert (up.records[-1].outcome, counted.begun) == ("ok", 1)
        await up.quiet()


async def test_what_came_before_a_break_is_passed_on_to_a_slow_client(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, more, rest = works(monkeypatch), asyncio.Event(), asyncio.Event()
    # All of the answer but the end of its body comes while the client is behind.
    parts: list[Part] = [*CHAT[:2], more, CHAT[2], rest, *CHAT[3:]]
    async with way(gateway) as up, asking(up, Stream(parts, headers=SSE, finish=False, end="fin")) as client:
        await client.reader.readuntil(b"H\xc3\xa9")
        exchange, (connection,) = made[0].exchange, up.up.listener.connections
        assert exchange is not None
        connection.pause_writing()
        more.set()
        await client.reader.readuntil(b"you")
        rest.set()
        await until(lambda: exchange.error is not None)
        assert exchange.pieces and len(up.records) == 1  # that of the warming
        connection.resume_writing()
        assert DONE in await client.reader.readuntil(b"0\r\n\r\n")
        await up.quiet()
        assert up.records[-1].outcome == "ok"


# -------------------------------------------------------------------------------------------- heads out of the ordinary


async def test_heads_out_of_the_ordinary_are_answered_alike(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)

    async def raw(up: Way, data: bytes, stream: bool) -> bytes:
        up.script.steps["m"] = [good("chat", stream)]
        await up.warm("chat")
        async with wire(up.up.port) as client:
            await client.send(data)
            got = await client.rest()
        return re.sub(rb"(x-request-id|date|server-timing): [^\r]*\r\n", b"", got)

    def sorted_heads(data: bytes) -> list[bytes]:
        head, _, body = data.partition(b"\r\n\r\n")
        return [*sorted(head.split(b"\r\n")), body]

    async with way(gateway) as straight, way(gateway, straight=False) as ordinary:
        for stream in (True, False):
            ask = posted(Case("chat", stream, []), "m")
            for data, takes in (
                (ask.replace(b"host:", b"connection: close\r\nhost:"), 1),
                (ask.replace(b"HTTP/1.1", b"HTTP/1.0"), 1),
                (ask + ask, 1),  # what follows at once is not read
                (ask.replace(b"POST", b"HEAD"), 0),
                (ask.replace(b"POST", b"GET"), 0),
            ):
                if b"HTTP/1.1" in data and b"close" not in data and not takes:
                    data = data.replace(b"host:", b"connection: close\r\nhost:")
                before = counted.begun
                one = await raw(straight, data, stream)
                assert counted.begun == before + takes
                assert sorted_heads(one) == sorted_heads(await raw(ordinary, data, stream))
                assert one.startswith(b"HTTP/1.1 200" if takes else b"HTTP/1.1 405")


async def test_one_request_after_another_on_one_connection(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway) as up, wire(up.up.port) as client:
        await up.warm("chat")
        for number in range(20):
            stream = bool(number % 2)
            up.script.steps["m"] = [good("chat", stream)]
            await client.send(posted(Case("chat", stream, []), "m"))
            answer = await client.answer()
            assert answer.body == (b"".join([*CHAT[:4], DONE]) if stream else BODIES["chat"]())
        assert counted.begun == 20 and up.vendor.connections == 1


# ----------------------------------------------------------------------------------------- connections that were dead


async def test_a_connection_that_dies_at_the_moment_of_sending_is_replaced(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, body = Counted(monkeypatch), BODIES["chat"]()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        table = {"base_url": f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "api_key": "k"}
        up = await gateway(providers={"chat": table})
        data = posted(Case("chat", False, []), "m")
        async with wire(up.port) as client:

            async def serve() -> socket.socket:
                sock, _ = await loop.sock_accept(listening)
                assert await loop.sock_recv(sock, 65_536)
                await loop.sock_sendall(sock, answer)
                return sock

            for kind in ("reset", "closed"):
                serving = asyncio.ensure_future(serve())
                await client.send(data)
                assert (await client.answer()).status == 200
                sock = await serving
                await until(lambda: not up.gateway.running)
                # In one turn of the loop: nobody has heard of the end when the request is sent.
                if kind == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
                before = counted.begun
                (connection,) = up.listener.connections
                serving = asyncio.ensure_future(serve())
                connection.data_received(data)
                assert counted.begun == before + 1
                got = await client.answer()
                assert (got.status, got.body) == (200, body) and "x-windlass-attempts" not in got.headers
                (await serving).close()
                await until(lambda: not any(host.idle for host in up_hosts(up)))


def up_hosts(up: InProcess) -> list[Any]:
    client: Any = up.gateway.router.provider("chat").client
    return list(client._hosts.values())


async def test_a_request_that_was_read_and_not_answered_is_sent_again_only_while_nothing_came(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with way(gateway, attempts=1) as up:
        for step, status, asked in ((Fin(), 200, 2), (Rst(), 200, 2), (Raw([b"HTTP/1.1 2"]), 502, 1)):
            before = len(up.vendor.requests)
            seen = await up.see(Case("chat", False, [step, good("chat", False)]), f"m{before}")
            # `see` may have warmed up first.
            assert (seen.status, len(seen.asked), seen.record["attempts"]) == (status, asked, 1)
        assert counted.begun == 3


# ------------------------------------------------------------------------------ keys, drains and other configurations


@pytest.mark.parametrize("begun", [True, False], ids=["in its stream", "before the head"])
async def test_a_key_that_is_revoked_ends_what_it_has_running(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    counted, (_, step) = Counted(monkeypatch), held_back()
    async with way(gateway) as up:
        accounts, held = up.up.gateway.accounts, Held(up.up, monkeypatch)
        key, secret = await accounts.create("k", rpm=1000)
        up.auth = {"authorization": f"Bearer {secret}"}
        async with asking(up, step if begun else BlackHole()) as client:
            if begun:
                await client.reader.readuntil(b"H\xc3\xa9")
            assert counted.begun == 1
            at = clock.monotonic()
            assert await accounts.revoke(key.key_id)
            got = await client.reader.readuntil(b"0\r\n\r\n") if begun else (await client.answer()).body
            assert clock.monotonic() - at < 1.0
            assert b"key_revoked" in got and b"[DONE]" not in got
        await up.quiet()
        assert (up.records[-1].outcome, up.records[-1].error, held.open) == ("interrupted", "key_revoked", 0)


async def test_a_drain_lets_an_answer_end_or_tells_it(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    for seconds in (20.0, 0.05):
        go, step = held_back()
        async with way(gateway) as up, asking(up, step) as client:
            await client.reader.readuntil(b"H\xc3\xa9")
            draining = asyncio.ensure_future(up.up.listener.drain(seconds))
            if seconds > 1:
                await asyncio.sleep(0.02)
                go.set()
                assert DONE in await client.rest() and await draining == 0
                assert up.records[-1].outcome == "ok"
            else:
                got = await client.rest()
                assert b"shutting" in got or b"stopping" in got or b"restart" in got, got
                assert b"[DONE]" not in got and await draining == 1
                assert up.records[-1].outcome == "interrupted"
            await up.quiet()
    assert counted.begun == 2


async def test_an_answer_goes_on_with_the_configuration_that_it_began_with(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    for whole in (True, False):
        go, step = held_back()
        if not whole:
            step = Stream([*CHAT[:2], go], headers=SSE, finish=False)
        async with way(gateway) as up, asking(up, step) as client:
            await client.reader.readuntil(b"H\xc3\xa9")
            config = Config(environ=up.up.gateway.config.environ, providers={}, routes=read_routes({}))
            before = up.up.gateway.replace(up.up.gateway.settings, config, Router(config))
            go.set()
            answer = await client.reader.readuntil(b"0\r\n\r\n")
            assert (DONE in answer) is whole
            await until(lambda: up.records)
            record = up.records[-1]
            told = ("ok", "") if whole else ("interrupted", "interrupted")
            assert (record.outcome, record.error, record.target) == (*told, "chat:m")
            await before.close()
    assert counted.begun == 2


async def test_a_reload_in_the_middle_of_a_stream_leaves_no_trace(serve: Serve) -> None:
    go, step = held_back()
    models = {"w": good("chat", False), "s": step}

    def answering(got: Received) -> Step:
        return models[json.loads(got.body)["model"]]

    async with FaultServer(answering) as vendor:
        config = f'[providers.up]\nbase_url = "{vendor.url}/v1"\napi_key = "k"\n'
        served = await asyncio.to_thread(serve, config)
        url, ask = f"{served.url}/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            assert (await client.post(url, json={"model": "up:w", **ask})).status_code == 200
            async with client.stream("POST", url, json={"model": "up:s", "stream": True, **ask}) as answer:
                pieces = answer.aiter_bytes()
                got = await anext(pieces)
                served.process.send_signal(signal.SIGHUP)
                await until(lambda: "was read again" in served.log.read_text())
                await asyncio.sleep(0.3)  # in which nothing may happen to it
                go.set()
                async for piece in pieces:
                    got += piece
            assert got.endswith(DONE)
        # The connections of before are closed once nobody needs them any more.
        async with asyncio.timeout(PATIENCE):
            await vendor.wait(open=0)
        assert await asyncio.to_thread(served.stop) == 0
        assert "Traceback" not in served.log.read_text() and "never retrieved" not in served.log.read_text()
