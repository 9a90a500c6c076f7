"""Server-sent events: every way of cutting and ending lines gives the same events (R13), and nothing injects (S71)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import WireError
from windlass.core.json import dumps, loads
from windlass.wire.sse import SseDecoder, SseEvent, encode_sse

CASES: list[tuple[str, bytes, list[SseEvent]]] = [
    ("plain", b"data: one\n\ndata: two\n\n", [(None, b"one"), (None, b"two")]),
    ("crlf", b"data: one\r\n\r\ndata: two\r\n\r\n", [(None, b"one"), (None, b"two")]),
    ("cr", b"data: one\r\rdata: two\r\r", [(None, b"one"), (None, b"two")]),
    ("mixed", b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\n\n", [(None, b"a\nb\nc"), (None, b"d")]),
    ("bom", b"\xef\xbb\xbfdata: one\n\n", [(None, b"one")]),
    ("comments", b": ping\n\n:\n\ndata: one\n: in between\n\n", [(None, b"one")]),
    ("multi-line", b"data: one\ndata: two\n\n", [(None, b"one\ntwo")]),
    ("no space", b"data:one\n\n", [(None, b"one")]),
    ("two spaces", b"data:  one\n\n", [(None, b" one")]),
    ("empty data", b"data:\n\ndata\n\n", [(None, b""), (None, b"")]),
    ("named", b"event: ping\ndata: {}\n\n", [("ping", b"{}")]),
    ("name without data", b"event: ping\n\ndata: x\n\n", [(None, b"x")]),
    ("name last", b"data: x\nevent:end\n\n", [("end", b"x")]),
    ("other fields", b"id: 7\nretry: 10\nfoo: bar\ndata: x\n\n", [(None, b"x")]),
    ("more blank lines", b"\n\n\ndata: x\n\n\n\n\ndata: y\n\n", [(None, b"x"), (None, b"y")]),
    ("utf-8", "data: żółć 🦜 \u2028\n\n".encode(), [(None, "żółć 🦜 \u2028".encode())]),
    ("colon in data", b"data: a:b: c\n\n", [(None, b"a:b: c")]),
]


def decode(pieces: list[bytes]) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(("name", "stream", "events"), CASES, ids=[case[0] for case in CASES])
def test_r13_every_byte_split(name: str, stream: bytes, events: list[SseEvent]) -> None:
    assert decode([stream]) == events
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == events
    for cut in range(len(stream) + 1):
        assert decode([stream[:cut], b"", stream[cut:]]) == events


LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data:  c",
        b"data",
        b"event: e",
        b"event",
        b": note",
        b"",
        b"",
        b"id: 1",
        "data: ż🦜".encode(),
    ]
)


def reference(lines: list[bytes]) -> list[SseEvent]:
    """The standard's own algorithm, line by line."""
    out: list[SseEvent] = []
    name, data = b"", list[bytes]()
    for line in lines:
        if not line:
            if data:
                out.append((name.decode() or None, b"\n".join(data)))
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return out


@given(
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20),
    st.lists(st.integers(0, 200), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_r13_any_lines_any_splits(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    # A CR followed by an empty line that ends in LF would be one CRLF: keep what we mean.
    ended = [(line, b"\r\n" if end == b"\n" and not line else end) for line, end in lines]
    stream = b"".join([line + end for line, end in ended])
    edges = sorted({0, len(stream), *[cut for cut in cuts if cut < len(stream)]})
    pieces = [stream[low:high] for low, high in itertools.pairwise(edges)]
    assert decode(pieces) == reference([line for line, _ in ended])


def test_close_returns_the_event_without_its_blank_line() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: one\n\ndata: [DONE]") == [(None, b"one")]
    assert decoder.close() == [(None, b"[DONE]")]
    assert decoder.close() == []
    assert SseDecoder().close() == []


@pytest.mark.parametrize("step", [1, 7, 100])
def test_an_event_past_its_bound_is_refused(step: int) -> None:
    decoder = SseDecoder(max_event=64)
    stream = b"data: " + b"x" * 58
    assert [decoder.feed(stream[at : at + step]) for at in range(0, len(stream), step)][-1] == []
    with pytest.raises(WireError, match="larger than 64 bytes"):
        decoder.feed(b"y")
    with pytest.raises(WireError, match="larger than 64 bytes"):
        SseDecoder(max_event=64).feed(b"data: " + b"x" * 59 + b"\n\n")


def test_small_events_of_a_large_stream_are_never_refused() -> None:
    decoder = SseDecoder(max_event=64)
    assert len(decoder.feed(b"data: 0123456789\n\n" * 1000)) == 1000


@given(st.text(max_size=40), st.sampled_from([None, "message_delta"]))
@settings(max_examples=200, deadline=None)
def test_s71_text_cannot_leave_its_event(text: str, name: str | None) -> None:
    for hostile in (text, f"{text}\n\ndata: [DONE]\n\n", f"{text}\r\rdata: x\r\r", f"{text}\u2028\u2029data: x\x85"):
        frame = encode_sse(dumps({"t": hostile}), name)
        assert frame.endswith(b"\n\n")
        ((event, data),) = decode([frame])
        assert (event, loads(data)) == (name, {"t": hostile})


def test_s71_line_ends_in_data_stay_inside_and_names_cannot_inject() -> None:
    assert decode([encode_sse(b"a\n\nb\r\nc\rd")]) == [(None, b"a\n\nb\nc\nd")]
    with pytest.raises(WireError, match="event name"):
        encode_sse(b"{}", "x\ndata: y")
