"""The straight way tells what the ordinary one tells: of every answer, whole or broken, to everybody who can see it."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import StartGateway
from tests.server.straight import (
    BODIES,
    CONTENT,
    DONE,
    FRAMES,
    HEAD,
    JSON,
    SSE,
    USAGE,
    Case,
    Counted,
    Way,
    chunk,
    compact,
    differences,
    event,
    good,
    way,
)
from windlass.testing.faults import BlackHole, End, Fin, Framing, Part, Raw, Reply, Rst, Step, Stream, drip

#: What a vendor does, for a dialect and for an answer that is asked for as a stream or whole.
Does = Callable[[str, bool], Step | list[Step]]


def stream_of(*parts: Part, **more: Any) -> Stream:
    return Stream(parts, headers=SSE, **more)


def framed(framing: Framing) -> Does:
    def does(dialect: str, stream: bool) -> Step:
        parts = FRAMES[dialect] if stream else [BODIES[dialect]()]
        return Stream(parts, headers=SSE if stream else JSON, framing=framing)

    return does


def edited(edit: Callable[[bytes], bytes]) -> Does:
    """All of an answer in one write, changed."""

    def does(dialect: str, stream: bool) -> Step:
        data = b"".join(FRAMES[dialect]) if stream else BODIES[dialect]()
        return Stream([edit(data)], headers=SSE if stream else JSON)

    return does


def begun(*then: Part, upto: int = 0, **more: Any) -> Does:
    """An answer that goes on otherwise after its beginning: its first content, or what is before it."""
    given: dict[str, Any] = {"finish": False, **more}

    def does(dialect: str, stream: bool) -> Step:
        if not stream:
            return Stream([BODIES[dialect]()[:20], 0.02, *then], headers=JSON, **given)
        frames = FRAMES[dialect][: CONTENT[dialect][0] + upto]
        return Stream([*frames, 0.02, *then], headers=SSE, **given)

    return does


def ended(end: End, before: int) -> Does:
    """An answer whose connection ends so many events before the last."""

    def does(dialect: str, stream: bool) -> Step:
        parts = FRAMES[dialect][:-before] if stream else [BODIES[dialect]()[:-before]]
        return Stream([b"".join(parts), 0.02], headers=SSE if stream else JSON, finish=False, end=end)

    return does


def refused(status: int, body: bytes | None = None) -> Does:
    def does(dialect: str, stream: bool) -> Step:
        told = {"error": {"message": "no", "type": "some_error", "code": "why"}}
        shaped = compact(told if dialect == "chat" else {"type": "error", **told})
        return Reply(status, shaped if body is None else body, JSON)

    return does


def typed(kind: str) -> Does:
    def does(dialect: str, stream: bool) -> Step:
        parts = FRAMES[dialect] if stream else [BODIES[dialect]()]
        return Stream(parts, headers={"content-type": kind} if kind else {})

    return does


def raw(*parts: Part, end: End = "fin") -> Does:
    return lambda dialect, stream: Raw(parts, end)


def zipped(dialect: str, stream: bool) -> Step:
    data = gzip.compress(b"".join(FRAMES[dialect]) if stream else BODIES[dialect](), mtime=0)
    headers = {**(SSE if stream else JSON), "content-encoding": "gzip"}
    return Stream([data[:30], 0.01, data[30:]], headers=headers)


def reverse(dialect: str, stream: bool) -> Step:
    return good(dialect, not stream)


def interim(dialect: str, stream: bool) -> Step:
    answer = Stream(FRAMES[dialect], headers=SSE) if stream else Stream([BODIES[dialect]()], headers=JSON)
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    return Raw([b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, hints, *answer.script()[0]], "keep")


def mixed(dialect: str, stream: bool) -> Step:
    """Events cut in their middle, several with one write."""
    data = b"".join(FRAMES[dialect]) if stream else BODIES[dialect]()
    cuts = [0, 7, 50, len(data) // 3, len(data) // 2, len(data) - 30, len(data) - 1, len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(cuts)]
    return Stream([part for piece in pieces for part in (piece, 0.005)], headers=SSE if stream else JSON)


def large(dialect: str, stream: bool) -> Step:
    text = "x" * 700_000
    if not stream:
        return Reply(200, BODIES[dialect](padding=text), JSON)
    at = CONTENT[dialect][0]
    more = chunk({"content": text}) if dialect == "chat" else event(
        "content_block_delta", index=0, delta={"type": "text_delta", "text": text}
    )  # fmt: skip
    return stream_of(*FRAMES[dialect][:at], *[more] * 3, *FRAMES[dialect][at:])


def blanks(dialect: str, stream: bool) -> Step:
    """Blanks keep a whole answer alive for longer than the head may take; a stream is kept alive by comments."""
    if not stream:
        return Stream([b"\n", 0.2, b" ", 0.2, b"\n", 0.15, BODIES[dialect]()], headers=JSON)
    start, _ = CONTENT[dialect]
    pings: list[Part] = [part for _ in range(3) for part in (b": ping\n\n", 0.04)]
    return stream_of(*FRAMES[dialect][:start], *pings, *FRAMES[dialect][start:])


def in_error(when: int, kind: str = "overloaded_error") -> Does:
    """An error as an event: the first, one amid the content, or the one behind it."""

    def does(dialect: str, stream: bool) -> Step:
        told = {"type": kind, "message": "busy"}
        if not stream:
            return Reply(200, compact({"type": "error", "error": told}), JSON)
        frames = list(FRAMES[dialect])
        error = b"data: " + compact({"error": told}) + b"\n\n" if dialect == "chat" else event("error", error=told)
        start, end = CONTENT[dialect]
        at = (0, start + 1, end)[when]
        return stream_of(*frames[:at], error)

    return does


def slow(dialect: str, stream: bool) -> Step:
    """A trickle that brings an event before it is too late."""
    if not stream:
        return Stream(drip(BODIES[dialect](), 0.001), headers=JSON)
    return stream_of(*[part for frame in FRAMES[dialect] for part in (frame, 0.06)])


def then_good(does: Does) -> Does:
    """The same, and at the second try the answer."""

    def both(dialect: str, stream: bool) -> list[Step]:
        first = does(dialect, stream)
        return [*(first if isinstance(first, list) else [first]), good(dialect, stream)]

    return both


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def bad_chunk(dialect: str, stream: bool) -> Step:
    """A sound piece and a chunk that is none, with one write."""
    data = b"".join(FRAMES[dialect][: CONTENT[dialect][1]]) if stream else BODIES[dialect]()
    head = CHUNKED if stream else CHUNKED.replace(b"text/event-stream", b"application/json")
    return Raw([head, 0.02, b"%x\r\n%b\r\nzz\r\n" % (len(data), data)], "hang")


DOES: dict[str, Does] = {
    "ok": good,
    "length": framed("length"),
    "close": framed("close"),
    "one write": edited(lambda data: data),
    "crlf": edited(lambda data: data.replace(b"\n", b"\r\n")),
    "cr": edited(lambda data: data.replace(b"\n", b"\r")),
    "spaced": edited(lambda data: data.replace(b'":', b'" : ').replace(b',"', b' , "')),
    "comments": edited(lambda data: data.replace(b"\n\n", b"\n\n: ping\n\n")),
    "no blank line at the end": edited(lambda data: data.rstrip(b"\n")),
    "half an event at the end": edited(lambda data: data + b'data: {"choi'),
    "bytes after the end": edited(lambda data: data + b"data: {}\n\n"),
    "not utf-8": edited(lambda data: data.replace("é".encode(), b"\xff")),
    "cut anywhere": mixed,
    "large": large,
    "kept alive": blanks,
    "slow": slow,
    "gzip": zipped,
    "the other kind": reverse,
    "interim answers": interim,
    "switching protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "surplus": lambda dialect, stream: Reply(200, BODIES[dialect](), JSON, surplus=b"HTTP/1.1 200 OK\r\n\r\n"),
    "says that it closes": lambda dialect, stream: Reply(200, BODIES[dialect](), {**JSON, "connection": "close"}),
    "upper case type": typed("Application/JSON"),
    "charset": lambda dialect, stream: typed(("text/event-stream" if stream else "application/json") + "; charset=x")(
        dialect, stream
    ),
    "no type": typed(""),
    "plain text": typed("text/plain"),
    "html": lambda dialect, stream: Reply(200, b"<html>Log in</html>", {"content-type": "text/html"}),
    "redirect": lambda dialect, stream: Reply(302, b"", {"location": "http://127.0.0.1:1/"}),
    "nothing": lambda dialect, stream: Reply(200, b"", SSE if stream else JSON),
    "no json": lambda dialect, stream: Reply(200, b'{"id":"x","choi', JSON),
    "another json": lambda dialect, stream: Reply(200, b'{"id":"x"}', JSON),
    "204": lambda dialect, stream: Reply(204, b"", {}),
    "304": lambda dialect, stream: Reply(304, b"", {}),
    **{str(status): refused(status) for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529)},
    "429 for an hour": lambda dialect, stream: Reply(429, b"{}", {**JSON, "retry-after": "3600"}),
    "400 with html": lambda dialect, stream: Reply(400, b"<html>", {"content-type": "text/html"}),
    "500 without a body": refused(500, b""),
    "500, then good": then_good(refused(500)),
    "404 cut short": lambda dialect, stream: Stream([b'{"error":'], status=404, headers=JSON, framing="length",
                                                    finish=False),
    "400 that is no http behind its head": raw(
        b"HTTP/1.1 400 Bad Request\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n"
    ),
    "closed before the head": lambda dialect, stream: Fin(),
    "reset before the head": lambda dialect, stream: Rst(),
    "closed before the head, then good": then_good(lambda dialect, stream: Fin()),
    "closed twice before the head, then good": lambda dialect, stream: [Fin(), Fin(), good(dialect, stream)],
    "closed inside the head": raw(b"HTTP/1.1 200 OK\r\ncontent-ty"),
    "reset inside the head": raw(b"HTTP/1.1 200 OK\r\ncontent-ty", 0.02, end="rst"),
    "closed inside the head, then good": then_good(raw(b"HTTP/1.1 200 OK\r\ncontent-ty")),
    "no http": raw(b"garbage\r\n\r\n"),
    "closed behind the head": lambda dialect, stream: stream_of(finish=False),
    "closed before content": begun(),
    "reset before content": begun(end="rst"),
    "reset before content, then good": then_good(begun(end="rst")),
    "closed in the content": begun(upto=1),
    "reset in the content": begun(upto=1, end="rst"),
    "cut by its length": begun(framing="length", upto=1),
    "cut inside a chunk": begun(b"data: more", upto=1, cut=3),
    "bad chunk": bad_chunk,
    "bad json": begun(b'data: {"choi\n\n', upto=1, finish=True),
    "reset before the last event": ended("rst", 1),
    "closed before the last event": ended("fin", 1),
    "closed before the last events": ended("fin", 3),
    "silence": lambda dialect, stream: BlackHole(),
    "silence, then good": then_good(lambda dialect, stream: BlackHole()),
    "silence behind the head": lambda dialect, stream: stream_of(finish=False, end="hang"),
    "silence before content": begun(end="hang"),
    "silence in the content": begun(upto=1, end="hang"),
    "pings without end": begun(*[part for _ in range(40) for part in (b": ping\n\n", 0.03)], upto=1, end="hang"),
    "error first": in_error(0),
    "error in the content": in_error(1),
    "refused key first": in_error(0, "authentication_error"),
    "refused request first": in_error(0, "invalid_request_error"),
    "unknown model in the content": in_error(1, "not_found_error"),
    "error behind the content": in_error(2),
    "no end of the body": lambda dialect, stream: stream_of(*FRAMES[dialect], finish=False, end="hang"),
}  # fmt: skip


#: What ends by a limit of time, which must be long enough for all else.
SILENT = [name for name in DOES if "silence" in name or "without end" in name]
LOUD = [name for name in DOES if name not in SILENT]
SHORT: dict[str, Any] = {"first_token_timeout": 0.25, "idle_timeout": 0.2, "request_timeout": 0.4}


async def compared(straight: Way, ordinary: Way, counted: Counted, case: Case, name: str) -> dict[str, Any]:
    """Return what differs between both ways, after checking that one of them was the straight one."""
    before = counted.begun
    model = f"{'gpt-4.1' if case.dialect == 'chat' else 'claude-sonnet-4-5'}-{name.replace(' ', '-')}"
    one, other = await asyncio.gather(straight.see(case, model), ordinary.see(case, model))
    assert counted.begun == before + 1, name
    return differences(one, other)


@pytest.mark.parametrize("names", [LOUD, SILENT], ids=["loud", "silent"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", FRAMES)
async def test_both_ways_tell_the_same(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, dialect: str, stream: bool, names: list[str]
) -> None:
    counted, found = Counted(monkeypatch), dict[str, Any]()
    # Of a whole answer there is one time for all tries.
    limits: dict[str, Any] = {} if names is LOUD else {**SHORT, "attempts": 2 if stream else 1}
    async with way(gateway, **limits) as straight, way(gateway, straight=False, **limits) as ordinary:
        for name in names:
            steps = DOES[name](dialect, stream)
            case = Case(dialect, stream, steps if isinstance(steps, list) else [steps])
            if differs := await compared(straight, ordinary, counted, case, name):
                found[name] = differs
        await straight.quiet()
        await ordinary.quiet()
    assert not found, "\n".join([f"{name}: {differs}" for name, differs in found.items()])


STOP = chunk({}, "stop")
TEXT = [chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), chunk({"content": "b"})]
CALL: dict[str, Any] = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
COUNTED = chunk(None, usage=USAGE)


def counts(wrote: int) -> dict[str, Any]:
    return {**USAGE, "completion_tokens": wrote, "total_tokens": 70 + wrote}


#: Chat streams that hold something unusual, and what is asked for besides a stream.
STREAMS: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "usage was asked for": ([*TEXT, STOP, COUNTED, DONE], {"stream_options": {"include_usage": True}}),
    "usage was refused": ([*TEXT, STOP, COUNTED, DONE], {"stream_options": {"include_usage": False}}),
    "usage is null until the end": (
        [*[chunk({"content": text}, usage=None) for text in "ab"], chunk({}, "stop", usage=None), COUNTED, DONE], {},
    ),
    "usage in each chunk": (
        [*[chunk({"content": "a"}, usage=counts(n)) for n in (1, 2)], chunk({}, "stop", usage=counts(3)), DONE], {},
    ),
    "usage with the end and behind it": ([*TEXT, chunk({}, "stop", usage=counts(3)), COUNTED, DONE], {}),
    "usage first": ([COUNTED, *TEXT, STOP, DONE], {}),
    "no usage": ([*TEXT, STOP, DONE], {}),
    "usage and a price": ([*TEXT, STOP, chunk(None, usage={**USAGE, "cost": 0.25}), DONE], {}),
    "usage in a choice": (
        [*TEXT, b"data: " + compact({**HEAD, "choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]})
         + b"\n\n", DONE], {},
    ),
    "x_groq": ([*TEXT, chunk({}, "stop", x_groq={"id": "r", "usage": USAGE}), DONE], {}),
    "two answers": (
        [*TEXT, chunk({"content": "c"}, index=1), STOP, chunk({}, "length", index=1), COUNTED, DONE], {"n": 2},
    ),
    "one of two answers is cut": ([*TEXT, chunk({"content": "c"}, index=1), STOP, DONE], {"n": 2}),
    "a call": (
        [chunk({"tool_calls": [CALL]}), chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
         chunk({}, "tool_calls"), COUNTED, DONE], TOOLS,
    ),
    "thoughts": ([chunk({"reasoning_content": "hm"}), *TEXT, STOP, COUNTED, DONE], {}),
    "a filter": ([*TEXT, chunk({}, "content_filter"), DONE], {}),
    "the vendor's word for a break": ([*TEXT, chunk({}, "network_error"), DONE], {}),
    "no [DONE]": ([*TEXT, STOP, COUNTED], {}),
    "[DONE] alone": ([*TEXT, DONE], {}),
    "nothing but an end": ([chunk({"role": "assistant", "content": ""}), STOP, DONE], {}),
    "an error in a choice": ([*TEXT, b'data: {"choices":[{"delta":{},"error":{"message":"no","code":502}}]}\n\n'], {}),
}  # fmt: skip


async def test_streams_that_hold_something_unusual(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, found = Counted(monkeypatch), dict[str, Any]()
    async with way(gateway) as straight, way(gateway, straight=False) as ordinary:
        for name, (frames, ask) in STREAMS.items():
            for parts in (frames, [b"".join(frames)]):
                case = Case("chat", True, [stream_of(*parts)], ask)
                if differs := await compared(straight, ordinary, counted, case, f"{name} {len(parts)}"):
                    found[f"{name}, {len(parts)}"] = differs
        await straight.quiet()
    assert not found, "\n".join([f"{name}: {differs}" for name, differs in found.items()])


@pytest.mark.parametrize("dialect", FRAMES)
async def test_a_stream_that_is_cut_at_any_byte_is_the_same(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    counted = Counted(monkeypatch)
    data = b"".join(FRAMES[dialect])
    async with way(gateway) as up:
        whole = await up.see(Case(dialect, True, [stream_of(data)]), "m")
        for at in range(1, len(data)):
            cut = Case(dialect, True, [stream_of(data[:at], 0.0, 0.0, 0.0, data[at:])])
            seen = await up.see(cut, "m")
            assert (seen.body, seen.record, seen.whole) == (whole.body, whole.record, True), at
        assert counted.begun == len(data)
        await up.quiet()
