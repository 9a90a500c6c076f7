"""Where one answer ends and the next begins: splits, surplus bytes, contradictory framing, answers without a body."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ProtocolError, TransportError
from windlass.core.http import Client
from windlass.testing.faults import FaultServer, Part, Raw, Reply, Step, Stream

OK = Reply(200, b"fine")
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"


def chunked(body: bytes, cuts: list[int]) -> bytes:
    out, at = b"", 0
    for cut in [*sorted({c for c in cuts if 0 < c < len(body)}), len(body)]:
        piece = body[at:cut]
        out += b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) if piece else b""
        at = cut
    return out + b"0\r\nx-trailer: ignored\r\n\r\n"


def split(data: bytes, cuts: list[int]) -> list[Part]:
    """Cut data where told; the pauses let the client read each piece before the next is written."""
    points = [0, *sorted({c % len(data) for c in cuts} - {0}), len(data)]
    parts: list[Part] = []
    for start, end in itertools.pairwise(points):
        parts += [data[start:end], 0.0, 0.0]
    return parts


@settings(max_examples=40, deadline=None)
@given(
    body=st.binary(max_size=300),
    framing=st.sampled_from(["length", "chunked", "close"]),
    coding=st.sampled_from(["", "gzip", "deflate", "raw"]),
    interim=st.integers(0, 2),
    chunk_cuts=st.lists(st.integers(0, 300), max_size=5),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    everywhere=st.booleans(),
)
async def test_any_split_of_the_bytes_gives_the_same_answer(
    body: bytes,
    framing: str,
    coding: str,
    interim: int,
    chunk_cuts: list[int],
    cuts: list[int],
    everywhere: bool,
) -> None:
    raw_deflate = zlib.compressobj(wbits=-15)
    packed = {
        "": body,
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "raw": raw_deflate.compress(body) + raw_deflate.flush(),
    }[coding]
    head = (
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * interim
        + b"HTTP/1.1 207 Multi\r\nX-Name:  spaced \r\nx-empty:\r\n"
    )
    if coding:
        head += b"content-encoding: %b\r\n" % (b"gzip" if coding == "gzip" else b"deflate")
    if framing == "length":
        message = head + b"content-length: %d\r\n\r\n%b" % (len(packed), packed)
    elif framing == "chunked":
        message = head + b"transfer-encoding: chunked\r\n\r\n" + chunked(packed, chunk_cuts)
    else:
        message = head + b"\r\n" + packed
    parts = split(message, list(range(len(message))) if everywhere else cuts)
    end: Any = "fin" if framing == "close" else "keep"
    async with FaultServer([Raw(parts, end=end), OK]) as server, Client(proxies={}) as client:
        answer = await client.request("GET", server.url)
        assert (answer.status, answer.body) == (207, body)
        assert (answer.headers["x-name"], answer.headers["x-empty"]) == ("spaced", "")
        assert "link" not in answer.headers and "x-trailer" not in answer.headers
        assert answer.close_delimited == (framing == "close")
        assert (await client.request("GET", server.url)).body == b"fine"
        assert server.connections == (2 if framing == "close" else 1)


STEPS = st.builds(
    Reply,
    body=st.binary(max_size=2000),
    framing=st.sampled_from(["length", "chunked", "close"]),
    surplus=st.sampled_from([b"", b"", b"", EVIL, b"\r\n", b"x", b"HTTP/1.1 200 OK\r\n"]),
    end=st.sampled_from(["keep", "keep", "keep", "fin"]),
    headers=st.sampled_from([{}, {}, {"connection": "close"}, {"keep-alive": "timeout=1"}]),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=12), width=st.integers(1, 4), leave=st.integers(1, 5))
async def test_kept_connections_never_mix_bodies(steps: list[Step], width: int, leave: int) -> None:
    async with FaultServer(steps) as server, Client(proxies={}, max_per_host=width) as client:
        got: dict[str, bytes] = {}

        async def ask(number: int) -> None:
            if number % leave == 0 and number:
                # Some readers leave early: their connection must not serve again.
                async with client.stream("POST", f"{server.url}/{number}", body=b"q" * number) as answer:
                    assert answer.status == 200
                return
            answer = await client.request("POST", f"{server.url}/{number}", body=b"q" * number)
            got[f"/{number}"] = answer.body

        await asyncio.gather(*[ask(number) for number in range(len(steps))])
        assert all(request.body == b"q" * int(request.target[1:]) for request in server.requests)
        # A dead kept connection is asked once more, so the last arrival of a target is the one that was answered.
        arrival = {request.target: place for place, request in enumerate(server.requests)}
        for target, body in got.items():
            step = steps[min(arrival[target], len(steps) - 1)]
            assert isinstance(step, Reply)
            expected = step.body + step.surplus if step.framing == "close" else step.body
            assert body == expected


@pytest.mark.parametrize("surplus", [EVIL, b"x", b"HTTP/1.1 2", b"\x00\xff"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_surplus_bytes_close_the_connection(surplus: bytes, framing: Any) -> None:
    async with (
        FaultServer([Reply(200, b"one", framing=framing, surplus=surplus), OK]) as server,
        Client(proxies={}) as client,
    ):
        assert (await client.request("GET", server.url)).body == b"one"
        assert (await client.request("GET", server.url)).body == b"fine"
        assert server.connections == 2


async def test_late_surplus_closes_an_idle_connection() -> None:
    late = Raw([b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none", 0.02, EVIL], end="hang")
    async with FaultServer([late, OK]) as server, Client(proxies={}) as client:
        assert (await client.request("GET", server.url)).body == b"one"
        await server.wait(open=0)
        assert (await client.request("GET", server.url)).body == b"fine"


REFUSED = {
    "cl and te": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "te and cl": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two cl": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "cl list": b"HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabcd",
    "negative cl": b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\nabc",
    "signed cl": b"HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
    "huge cl": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nabc",
    "te gzip": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "te other": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\nabc",
    "te twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "chunk overflow": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
    "chunk end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "interim with length": b"HTTP/1.1 100 Continue\r\ncontent-length: 3\r\n\r\nabc" + b"HTTP/1.1 200 OK\r\n\r\n",
    "folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "nul in header": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "not http": b"SSH-2.0-OpenSSH_9.0\r\n",
    "http 2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_framing(name: str) -> None:
    async with FaultServer([Raw([REFUSED[name]], end="keep"), OK]) as server, Client(proxies={}) as client:
        with pytest.raises(ProtocolError, match=r"HTTP/1\.1"):
            await client.request("GET", server.url)
        assert (await client.request("GET", server.url)).body == b"fine"
        assert server.connections == 2


async def test_endless_trailers_and_extensions_are_bounded() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    trailers = Raw([head + b"0\r\n" + b"x: y\r\n" * 300_000], end="hang")
    extension = Raw([head + b"1;" + b"e" * 2_000_000], end="hang")
    interims = Raw([b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n" * 60_000], end="hang")
    async with FaultServer([trailers, extension, interims]) as server, Client(proxies={}) as client:
        for _ in range(3):
            with pytest.raises(ProtocolError, match="65536 bytes"):
                await client.request("GET", server.url)


@pytest.mark.parametrize(
    ("method", "answer", "kept"),
    [
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", True),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", True),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n", False),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\ncontent-encoding: gzip\r\n\r\n", False),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", False),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", False),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", False),
        ("GET", b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        ("GET", b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", True),
        ("GET", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", True),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        ("GET", b"HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2\r\ncontent-length: 0\r\n\r\n", True),
    ],
)
async def test_answers_without_a_body(method: str, answer: bytes, kept: bool) -> None:
    async with FaultServer([Raw([answer], end="keep"), OK]) as server, Client(proxies={}) as client:
        async with asyncio.timeout(10):
            got = await client.request(method, server.url)
        assert got.body == b"" and got.status in (200, 204, 304)
        assert (await client.request("GET", server.url)).body == b"fine"
        assert server.connections == (1 if kept else 2)


async def test_http_1_0_body_ends_with_the_connection() -> None:
    async with FaultServer([Raw([b"HTTP/1.0 200 OK\r\n\r\nold"])]) as server, Client(proxies={}) as client:
        answer = await client.request("GET", server.url)
        assert answer.body == b"old" and answer.close_delimited


async def test_leaving_early_closes_the_socket() -> None:
    async with FaultServer([Stream([b"x" * 10, 3600.0]), OK]) as server, Client(proxies={}) as client:
        async with client.stream("GET", server.url) as answer:
            assert await anext(answer.chunks()) == b"x" * 10
            assert server.open == 1
        with pytest.raises(TransportError, match="closed by its reader"):
            await answer.read()
        await server.wait(open=0)
        assert (await client.request("GET", server.url)).body == b"fine"


async def test_large_body_is_sent_whole() -> None:
    body = [bytes([n]) * 300_000 for n in range(20)]
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        assert (await client.request("PUT", server.url, body=body)).status == 200
        assert server.requests[0].body == b"".join(body)
        assert (await client.request("PUT", server.url, body=b"")).status == 200
        assert server.connections == 1 and server.requests[1].headers["content-length"] == "0"


async def test_early_answer_stops_a_large_upload() -> None:
    refused = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refused)
        await writer.drain()
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Client(proxies={}) as client:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        answer = await client.request("POST", url, body=bytes(50_000_000))
        assert (answer.status, answer.body) == (413, b"big")
        gone.set()
