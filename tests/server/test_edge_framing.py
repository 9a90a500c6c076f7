"""What is HTTP and what is not: what two parsers could read differently is refused, and its connection closed."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.conftest import StartGateway
from tests.server.edge import Echo, ask, edge, exchange, request, settled, until, wire
from windlass.core.errors import RequestRefused
from windlass.server.http import Call
from windlass.server.incoming import Incoming

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"


def post(*lines: str, body: bytes = b"", minor: int = 1) -> bytes:
    """Return a POST whose header lines are as given."""
    head = "".join([f"{line}\r\n" for line in ("host: localhost", "content-type: application/json", *lines)])
    return f"POST /v1/chat/completions HTTP/1.{minor}\r\n{head}\r\n".encode("latin-1") + body


CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"
S60 = {
    "length and coding": post("content-length: 5", "transfer-encoding: chunked", body=CHUNKED),
    "coding and length": post("transfer-encoding: chunked", "content-length: 5", body=CHUNKED),
    "coding twice": post("transfer-encoding: chunked", "transfer-encoding: chunked", body=CHUNKED),
    "coding twice, the second another": post("transfer-encoding: chunked", "transfer-encoding: identity", body=CHUNKED),
    "chunked, chunked": post("transfer-encoding: chunked, chunked", body=CHUNKED),
    "xchunked": post("transfer-encoding: xchunked", body=CHUNKED),
    "gzip, chunked": post("transfer-encoding: gzip, chunked", body=CHUNKED),
    "chunked;q=1": post("transfer-encoding: chunked;q=1", body=CHUNKED),
    "chunked with a vertical tab": post("transfer-encoding: \x0bchunked", body=CHUNKED),
    "identity": post("transfer-encoding: identity", body=b"{}"),
    "no coding": post("transfer-encoding:", body=b"{}"),
    "chunked in HTTP/1.0": post("transfer-encoding: chunked", body=CHUNKED, minor=0),
    "+15": post("content-length: +15", body=b"{}"),
    "-1": post("content-length: -1", body=b"{}"),
    "0x2": post("content-length: 0x2", body=b"{}"),
    "2.0": post("content-length: 2.0", body=b"{}"),
    "1_0": post("content-length: 1_0", body=b"{}"),
    "a digit that is not ASCII": post("content-length: \xb2", body=b"{}"),
    "nothing": post("content-length:", body=b"{}"),
    "two equal": post("content-length: 2", "content-length: 2", body=b"{}"),
    "two different": post("content-length: 2", "content-length: 3", body=b"{}"),
    "a list": post("content-length: 2, 2", body=b"{}"),
    "a huge number": post("content-length: 9999999999999999999999", body=b"{}"),
    "space before the colon": post("content-length : 2", body=b"{}"),
    "tab before the colon": post("transfer-encoding\t: chunked", body=CHUNKED),
    "space before the name": post(" transfer-encoding: chunked", body=CHUNKED),
    "no colon": post("transfer-encoding chunked", body=CHUNKED),
    "no name": post(": chunked", body=CHUNKED),
}
S61 = {
    "bare LF after the request line": b"GET /health HTTP/1.1\nhost: localhost\r\n\r\n",
    "bare LF after a header": b"GET /health HTTP/1.1\r\nhost: localhost\nx: y\r\n\r\n",
    "LF alone everywhere": b"GET /health HTTP/1.1\nhost: localhost\n\n",
    "bare CR in a value": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\rb\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n",
    "folded with a tab": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n\tb\r\n\r\n",
    "NUL in a value": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n",
    "DEL in a value": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\x7fb\r\n\r\n",
    "escape in a value": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: \x1b[2J\r\n\r\n",
    "NUL in the path": b"GET /hea\0lth HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "space in the path": b"GET /hea lth HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "two spaces": b"GET  /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a byte above ASCII in the path": b"GET /h\xc3\xa9 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a colon in a name": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx(y: z\r\n\r\n",
    "a byte above ASCII in a name": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx\xe9: z\r\n\r\n",
    "a small method": b"get /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a long method": b"G" * 17 + b" /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an unknown version": b"GET /health HTTP/1.2\r\nhost: localhost\r\n\r\n",
    "HTTP/2 in the clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "a small version": b"GET /health http/1.1\r\nhost: localhost\r\n\r\n",
    "a space at the end of the line": b"GET /health HTTP/1.1 \r\nhost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a fragment": b"GET /health#x HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a proxy's form": b"GET http://localhost/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an authority": b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "two slashes": b"GET //health HTTP/1.1\r\nhost: localhost\r\n\r\n",
}
S62 = {
    "none": b"GET /health HTTP/1.1\r\n\r\n",
    "two": b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
    **{
        host: f"GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
        for host in (
            "", "localhost/x", "localhost?x", "localhost#x", "me@localhost", "localhost, evil", "local host",
            "localhost:", "localhost:999999", "localhost:8a", "[::1", "::1", "[::1]x", "[zz]", "a" * 300,
            "localhost\\", "%6cocalhost",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("table", "case"), [("S60", case) for case in S60] + [("S61", case) for case in S61]
                         + [("S62", case) for case in S62])  # fmt: skip
async def test_s60_s61_s62_what_is_not_exactly_http_is_refused(table: str, case: str) -> None:
    data = {"S60": S60, "S61": S61, "S62": S62}[table][case]
    async with edge() as up:
        answer, after = await exchange(up.port, data + SMUGGLED)
        assert answer.status == 400 and answer.headers["connection"] == "close"
        assert after == b"" and up.app.calls == []
        await settled(up.listener)


async def test_s61_a_head_has_a_size_and_a_number_of_headers() -> None:
    async with edge() as up:
        flood = b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"".join([b"x-%d: y\r\n" % at for at in range(1000)])
        huge = b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 70_000
        for data in (flood + b"\r\n", huge + b"\r\n\r\n", huge):
            answer, after = await exchange(up.port, data)
            assert (answer.status, answer.body, after) == (431, b"headers_too_large", b"")
        assert (await ask(up.port, b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")).status == 400
        most = b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"".join([b"x-%d: y\r\n" % at for at in range(99)]) + b"\r\n"
        assert (await ask(up.port, most)).status == 200


async def test_s62_hosts_that_are_well_formed_pass() -> None:
    async with edge() as up:
        for host in ("localhost", "LOCALHOST:80", "[::1]", "[::1]:8081", "127.0.0.1:1", "a.b-c_d.", "x" * 255):
            assert (await ask(up.port, f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())).status == 200, host
        assert (await ask(up.port, b"GET / HTTP/1.0\r\n\r\n")).status == 200


async def test_s66_a_pipelined_request_is_not_read() -> None:
    first = request("POST", "/", body=b"{}")
    async with edge() as up:
        for data in (first + SMUGGLED, first + first, request("GET", "/") + b"\r\n\r\n", first + b"x" * 300_000):
            answer, after = await exchange(up.port, data)
            assert (answer.status, answer.headers["connection"], after) == (200, "close", b"")
        assert [call.head.path for call in up.app.calls] == ["/"] * 4
        await settled(up.listener)


async def test_s66_what_comes_amid_an_answer_closes_the_connection_after_it() -> None:
    async with edge() as up, wire(up.port) as sent:
        await sent.send(request("GET", "/begin"))
        await up.app.begun.wait()
        await sent.send(SMUGGLED)
        await until(lambda: next(iter(up.listener.connections)).persistent() is False)
        up.app.go.set()
        answer = await sent.answer()
        assert answer.whole and answer.body == b"begun and ended"
        assert await sent.rest() == b""
        assert len(up.app.calls) == 1


async def test_s66_a_flood_amid_an_answer_ends_it() -> None:
    async with edge() as up, wire(up.port) as sent:
        await sent.send(request("GET", "/begin"))
        await up.app.begun.wait()
        try:
            for _ in range(64):
                await sent.send(bytes(65_536))
        except ConnectionError:
            pass
        await settled(up.listener)
        assert up.app.cancelled == ["the client left"]


async def test_s66_a_request_after_an_error_is_not_read() -> None:
    async with edge() as up:
        for first in (request("GET", "/refused"), request("POST", "/refused", body=b"{}"), post("content-length: x")):
            answer, after = await exchange(up.port, first, SMUGGLED)
            assert answer.status in (400, 401) and answer.headers["connection"] == "close" and after == b""
        assert up.app.calls == []


async def test_a_connection_is_kept_after_answers_also_after_errors_of_the_app(gateway: StartGateway) -> None:
    made = await gateway()
    async with wire(made.port) as sent:
        for path, status in (("/health", 200), ("/v1/models/none", 404), ("/health", 200)):
            await sent.send(request("GET", path))
            answer = await sent.answer()
            assert answer.status == status and "connection" not in answer.headers
        await sent.send(request("POST", "/v1/chat/completions", body=b"{"))
        assert (await sent.answer()).status == 400
        await sent.send(request("GET", "/health", {"connection": "Keep-Alive, Close"}))
        assert (await sent.answer()).headers["connection"] == "close"
        assert await sent.rest() == b""
    await settled(made.listener)


async def test_the_next_request_may_come_before_we_are_done_with_this_one() -> None:
    class Slow(Echo):
        async def serve(self, call: Call) -> None:
            await super().serve(call)
            self.begun.set()
            await self.go.wait()

    async with edge(Slow()) as up, wire(up.port) as sent:
        await sent.send(request("GET", "/one"))
        assert (await sent.answer()).body == b"0"
        # The answer is whole, but something is still being written down.
        await sent.send(request("GET", "/two"))
        await up.app.begun.wait()
        up.app.go.set()
        assert (await sent.answer()).body == b"0"
        assert [call.head.path for call in up.app.calls] == ["/one", "/two"]
        await sent.send(request("GET", "/three"))
        assert "connection" not in (await sent.answer()).headers
        await sent.send(b"")
    await settled(up.listener)


# ------------------------------------------------------------------------------------------------ the shapes of answers


async def test_http_1_0_gets_an_answer_that_the_close_ends() -> None:
    async with edge() as up:
        answer, after = await exchange(up.port, b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + SMUGGLED)
        assert (answer.status, answer.headers["connection"], answer.body, after) == (200, "close", b"0", b"")
        up.app.go.set()
        answer, after = await exchange(up.port, b"GET /begin HTTP/1.0\r\n\r\n")
        assert "transfer-encoding" not in answer.headers and answer.body + after == b"begun and ended"


async def test_head_has_no_body_whatever_answers() -> None:
    async with edge(Echo(size=70_000)) as up:
        up.app.go.set()
        for path, length in (("/", "1"), ("/large", "70000"), ("/begin", None), ("/stream", None)):
            async with wire(up.port) as sent:
                await sent.send(request("HEAD", path))
                answer = await sent.answer(head=True)
                assert answer.status == 200 and answer.headers.get("content-length") == length
                if length is None:
                    assert answer.headers["connection"] == "close" and await sent.rest() == b""
                else:
                    await sent.send(request("GET", "/"))
                    assert (await sent.answer()).body == b"0"
        refused = await ask(up.port, request("HEAD", "/refused"))
        assert refused.status == 401 and refused.headers["content-length"] == "12"


async def test_every_answer_has_a_date() -> None:
    async with edge() as up:
        for path in ("/", "/refused"):
            date = (await ask(up.port, request("GET", path))).headers["date"]
            assert re.fullmatch(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT", date)


async def test_expect_is_answered_only_where_a_body_is_welcome() -> None:
    expect = {"expect": "100-Continue"}
    async with edge(Echo(limit=10)) as up:
        async with wire(up.port) as sent:
            await sent.send(request("POST", "/", {**expect, "content-length": "2", "content-type": "application/json"}))
            assert (await sent.answer()).status == 100
            await sent.send(b"{}")
            assert (await sent.answer()).body == b"2"
            # With the body at once there is nothing to wait for.
            await sent.send(request("POST", "/", expect, b"{}"))
            assert (await sent.answer()).status == 200
            await sent.send(request("GET", "/", expect))
            assert (await sent.answer()).status == 200
        for path, length, status in (("/", "11", 413), ("/refused", "2", 401)):
            answer, after = await exchange(up.port, request("POST", path, {**expect, "content-length": length}))
            assert (answer.status, after) == (status, b"")
        answer, after = await exchange(up.port, request("POST", "/", {"expect": "200-ok", "content-length": "2"}))
        assert (answer.status, after) == (417, b"")
        async with wire(up.port) as sent:
            await sent.send(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            await sent.send(b"{}")
            assert (await sent.answer()).status == 200


@pytest.mark.parametrize("wrong", ["respond twice", "start twice", "start and respond", "write first", "write last"])
async def test_a_second_answer_never_reaches_the_wire(wrong: str) -> None:
    errors: list[str] = []

    class Twice(Echo):
        async def serve(self, call: Any) -> None:
            try:
                if wrong == "write first":
                    call.write(b"x")
                elif wrong == "respond twice":
                    call.respond(200, b"one")
                else:
                    call.start(200, kind="text/plain")
                    if wrong == "write last":
                        call.write(b"one", last=True)
                        call.write(b"two")
                if wrong == "start twice":
                    call.start(200, kind="text/plain")
                call.respond(200, b"two")
            except RuntimeError as error:
                errors.append(str(error))

    async with edge(Twice()) as up, wire(up.port) as sent:
        await sent.send(request("GET", "/"))
        got = await sent.reader.read(65_536) if wrong in ("respond twice", "write last") else await sent.rest()
        assert b"two" not in got and got.count(b"HTTP/1.1") <= 1 and len(errors) == 1
        assert (b"one" in got) is (wrong in ("respond twice", "write last"))


# ------------------------------------------------------------------------------------------------------------ chunks


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a chunked body."""
    return b"".join([b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]) + end


CODED = {"transfer-encoding": "chunked", "content-type": "application/json"}
BAD_CHUNKS = {
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "a sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "a prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "not hex": b"g\r\n{}\r\n0\r\n\r\n",
    "a space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "a space behind": b"2 \r\n{}\r\n0\r\n\r\n",
    "nine digits": b"000000002\r\n{}\r\n0\r\n\r\n",
    "bare LF behind the size": b"2\n{}\r\n0\r\n\r\n",
    "bare LF behind the data": b"2\r\n{}\n0\r\n\r\n",
    "too little data": b"3\r\n{}\r\n0\r\n\r\n",
    "too much data": b"1\r\n{}\r\n0\r\n\r\n",
    "NUL in an extension": b"2;a=\0\r\n{}\r\n0\r\n\r\n",
    "CR in an extension": b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "LF in an extension": b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a long extension": b"2;" + b"a" * 300 + b"\r\n{}\r\n0\r\n\r\n",
    "a request as trailer": b"2\r\n{}\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
    "a folded trailer": b"2\r\n{}\r\n0\r\na: b\r\n c\r\n\r\n",
    "a long trailer": b"2\r\n{}\r\n0\r\na: " + b"b" * 9000 + b"\r\n\r\n",
    "many trailers": b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
async def test_s60_s65_a_malformed_chunked_body_is_refused(case: str) -> None:
    async with edge() as up:
        answer, after = await exchange(up.port, request("POST", "/", CODED) + BAD_CHUNKS[case] + SMUGGLED)
        assert (answer.status, answer.headers["connection"], after) == (400, "close", b"")
        assert up.app.calls == []
        await settled(up.listener)


async def test_s65_extensions_and_trailers_are_dropped() -> None:
    body = b'1;a=b\r\n{\r\n1 ; c="d"\r\n}\r\n0;e\r\nauthorization: Bearer x\r\nx: y\r\n\r\n'
    async with edge() as up, wire(up.port) as sent:
        await sent.send(request("POST", "/", CODED) + body)
        assert (await sent.answer()).body == b"2"
        (call,) = up.app.calls
        assert call.body == b"{}" and "authorization" not in call.head.headers and "x" not in call.head.headers
        await sent.send(request("GET", "/"))
        assert (await sent.answer()).status == 200


async def test_s65_floods_of_framing_are_refused_before_they_cost_much() -> None:
    async with edge(Echo(limit=1 << 24)) as up:
        tiny = request("POST", "/", CODED) + chunked(*[b"x"] * 40_000)
        flood = request("POST", "/", CODED) + (b"1;" + b"e" * 250 + b"\r\nx\r\n") * 1000
        for data in (tiny, flood):
            answer, after = await exchange(up.port, data)
            assert (answer.status, after) == (400, b"")
        assert (await ask(up.port, request("POST", "/", CODED) + chunked(*[b"x"] * 5000))).body == b"5000"
        assert (await ask(up.port, request("POST", "/", CODED) + chunked(*[b"x" * 64] * 20_000))).body == b"1280000"
        await settled(up.listener)


def outcome(data: bytes, cuts: list[int], length: int | None, limit: int) -> tuple[str, bytes, bool]:
    """Return what becomes of a body that comes in pieces: what it is, its bytes, whether more followed."""
    incoming, whole = Incoming(length, limit), False
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for start, end in pairwise(places):
        if whole:
            return "whole", incoming.take(), True
        try:
            whole = incoming.feed(data[start:end])
        except RequestRefused as error:
            return str(error.status), b"", False
    return ("whole", incoming.take(), incoming.surplus) if whole else ("more", incoming.take(), False)


def oracle(data: bytes, limit: int) -> tuple[str, bytes, bool]:
    """Read a chunked body in the plainest way, all at once."""
    out, at = b"", 0
    while True:
        end = data.find(b"\r\n", at)
        line = data[at:end] if end >= 0 else data[at:]
        if len(line) > 256 or b"\n" in line:
            return "400", b"", False
        if end < 0:
            return "more", out, False
        found = re.fullmatch(rb"([0-9a-fA-F]{1,8})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?", line)
        if found is None:
            return "400", b"", False
        size, at = int(found[1], 16), end + 2
        if len(out) + size > limit:
            return "413", b"", False
        if size == 0:
            break
        out += data[at : at + size]
        at += size
        if at > len(data) or (at == len(data)) or data[at:] == b"\r":
            return "more", out, False
        if data[at : at + 2] != b"\r\n":
            line = data[at : data.find(b"\r\n", at)] if b"\r\n" in data[at:] else data[at:]
            bad = b"\r\n" in data[at:] or b"\n" in line or len(line) > 256
            return ("400", b"", False) if bad else ("more", out, False)
        at += 2
    while True:
        end = data.find(b"\r\n", at)
        line = data[at:end] if end >= 0 else data[at:]
        if b"\n" in line:
            return "400", b"", False
        if end < 0:
            return "more", out, False
        at = end + 2
        if not line:
            return "whole", out, at < len(data)
        if not re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}:[\t\x20-\x7e\x80-\xff]*", line):
            return "400", b"", False


piece = st.binary(max_size=20)
extension = st.sampled_from([b"", b";a", b";a=b", b' ;x="y"', b"\t; z"])
trailer = st.sampled_from([b"", b"a: b\r\n", b"authorization: x\r\nb:\r\n"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Chunked bodies, most of them broken at one place."""
    chunks = draw(st.lists(st.tuples(piece.filter(len), extension), max_size=4))
    data = b"".join([b"%x%b\r\n%b\r\n" % (len(chunk), more, chunk) for chunk, more in chunks])
    data += b"0" + draw(extension) + b"\r\n" + draw(trailer) + b"\r\n" + draw(st.binary(max_size=3))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"0", b"f", b" ", b";", b"\0", b"-"]))
        data = data[:at] + change + data[at + draw(st.integers(0, 2)) :]
    return data


@given(bodies(), st.lists(st.integers(0, 150), max_size=12), st.sampled_from([10, 40, 1000]))
@settings(max_examples=400, deadline=None)
@example(b"2\r\n{}\r\n0\r\n\r\n", list(range(20)), 1000)
def test_s65_a_chunked_body_is_the_same_wherever_it_is_cut(data: bytes, cuts: list[int], limit: int) -> None:
    expected = oracle(data, limit)
    assert outcome(data, [], None, limit) == expected
    assert outcome(data, cuts, None, limit) == expected
    assert outcome(data, list(range(len(data))), None, limit) == expected


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_body_of_known_length_is_the_same_wherever_it_is_cut(data: bytes, length: int, cuts: list[int]) -> None:
    whole = len(data) >= length and (bool(data) or length == 0)
    expected = ("whole", data[:length], len(data) > length) if whole else ("more", data, False)
    if data:
        assert outcome(data, cuts, length, 1000) == expected


def test_many_tiny_pieces_of_a_body_are_joined() -> None:
    incoming = Incoming(200_000, 200_000)
    for at in range(100_000):
        assert incoming.feed(b"%02d" % (at % 100)) is (at == 99_999)
    assert incoming.take() == b"".join([b"%02d" % at for at in range(100)]) * 1000
