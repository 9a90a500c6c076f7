"""AWS event-stream frames: botocore reads what we write, we read what it would, and damage is always typed."""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import WireError
from windlass.wire.eventstream import MAX_FRAME, MAX_HEADERS, Frame, FrameDecoder, HeaderValue, encode_frame

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
clean = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
header_values: st.SearchStrategy[HeaderValue] = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.binary(max_size=60),
    clean,
    st.uuids(),
    st.integers(-(1 << 40), 1 << 40).map(lambda millis: EPOCH + timedelta(milliseconds=millis)),
)
frames = st.builds(
    Frame,
    st.dictionaries(clean.filter(bool), header_values, max_size=5),
    st.binary(max_size=200),
)


def encoded(frame: Frame) -> bytes:
    return encode_frame(frame.headers, frame.payload)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(data)) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def as_botocore(value: HeaderValue) -> Any:
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(milliseconds=1)
    return value.bytes if isinstance(value, UUID) else value


@given(sent=st.lists(frames, max_size=4), cuts=st.lists(st.integers(0, 2000), max_size=6))
@settings(max_examples=60, deadline=None)
def test_r13_every_split_gives_the_frames_that_were_sent(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join([encoded(frame) for frame in sent])
    decoder = FrameDecoder()
    got = [frame for piece in split(data, cuts) for frame in decoder.feed(piece)]
    assert got == sent and decoder.pending == 0


def test_r13_byte_by_byte() -> None:
    sent = [
        Frame({":event-type": "x", "n": -5}, b"{}"),
        Frame({}, b""),
        Frame({"f": False, "t": True}, b"\xc3\xa9" * 9),
    ]
    decoder = FrameDecoder()
    data = b"".join([encoded(frame) for frame in sent])
    assert [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])] == sent


@given(sent=st.lists(frames, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_botocore_reads_what_we_write(sent: list[Frame]) -> None:
    buffer: Any = EventStreamBuffer()
    buffer.add_data(b"".join([encoded(frame) for frame in sent]))
    got = list(buffer)
    assert [message.payload for message in got] == [frame.payload for frame in sent]
    for message, frame in zip(got, sent, strict=True):
        assert message.headers == {name: as_botocore(value) for name, value in frame.headers.items()}


def by_hand(headers: bytes, payload: bytes, *, total: int | None = None, length: int | None = None) -> bytes:
    """Return a frame as the format describes it, with other lengths where they are given."""
    size = 16 + len(headers) + len(payload) if total is None else total
    lengths = struct.pack(">II", size, len(headers) if length is None else length)
    data = lengths + struct.pack(">I", zlib.crc32(lengths)) + headers + payload
    return data + struct.pack(">I", zlib.crc32(data))


#: Every header type, each with the value both readers must see (botocore: timestamps as milliseconds, UUIDs as bytes).
TYPED: list[tuple[bytes, Any, Any]] = [
    (b"\x00", True, True),
    (b"\x01", False, False),
    (b"\x02\xff", -1, -1),
    (b"\x03\xff\xfe", -2, -2),
    (b"\x04\x00\x01\x00\x00", 65536, 65536),
    (b"\x05" + b"\x7f" + b"\xff" * 7, (1 << 63) - 1, (1 << 63) - 1),
    (b"\x06\x00\x03\x00\xff\x01", b"\x00\xff\x01", b"\x00\xff\x01"),
    (b"\x07\x00\x02\xc3\xa9", "é", "é"),
    (b"\x08" + struct.pack(">q", 1500), EPOCH + timedelta(milliseconds=1500), 1500),
    (b"\x09" + bytes(range(16)), UUID(bytes=bytes(range(16))), bytes(range(16))),
]


@pytest.mark.parametrize(("value", "ours", "theirs"), TYPED)
def test_every_header_type_is_read_as_botocore_reads_it(value: bytes, ours: Any, theirs: Any) -> None:
    data = by_hand(b"\x01k" + value, b"p")
    buffer: Any = EventStreamBuffer()
    buffer.add_data(data)
    (message,) = list(buffer)
    (frame,) = FrameDecoder().feed(data)
    assert (frame.headers, frame.payload) == ({"k": ours}, b"p")
    assert (message.headers, message.payload) == ({"k": theirs}, b"p")


GOOD = encode_frame({":message-type": "event", ":event-type": "messageStart"}, b'{"role":"assistant"}')


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_r14_every_flipped_byte_is_noticed(at: int) -> None:
    damaged = GOOD[:at] + bytes([GOOD[at] ^ 0x10]) + GOOD[at + 1 :]
    with pytest.raises(WireError):
        FrameDecoder().feed(damaged)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (by_hand(b"", b"", total=MAX_FRAME + 1), "at most"),
        (by_hand(b"", b"", total=0xFFFFFFFF), "at most"),
        (by_hand(b"", b"", total=15), "contradict"),
        (by_hand(b"", b"", total=16, length=1), "contradict"),
        (by_hand(b"", b"", total=1 << 20, length=MAX_HEADERS + 1), "contradict"),
        (by_hand(b"\x05name", b""), "middle of a header"),
        (by_hand(b"\x04na", b""), "middle of a header"),
        (by_hand(b"\x01a\x07\x00\x09x", b""), "middle of a header"),
        (by_hand(b"\x01a\x04\x00", b""), "middle of a header"),
        (by_hand(b"\x01a\x09\x00", b""), "middle of a header"),
        (by_hand(b"\x01a\x0a", b""), "unknown type 10"),
        (by_hand(b"\x00\x00", b""), "an empty one"),
        (by_hand(b"\x01a\x00\x01a\x01", b""), "twice"),
        (by_hand(b"\x01\xff\x00", b""), "UTF-8"),
        (by_hand(b"\x01a\x07\x00\x01\xff", b""), "UTF-8"),
        (by_hand(b"\x01a\x08" + b"\x7f" * 8, b""), "calendar"),
        (b"HTTP/1.1 200 OK\r\n", "event-stream frames"),
    ],
)
def test_bad_lengths_and_headers_are_typed(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        FrameDecoder().feed(data)


def test_r29_a_huge_frame_is_refused_by_its_first_twelve_bytes() -> None:
    decoder = FrameDecoder()
    with pytest.raises(WireError, match="at most"):
        decoder.feed(by_hand(b"", b"", total=MAX_FRAME + 1)[:12])
    assert decoder.pending == 0
    with pytest.raises(WireError, match="at most 64"):
        FrameDecoder(max_frame=64).feed(GOOD)


def test_good_frames_before_damage_are_not_lost() -> None:
    decoder = FrameDecoder()
    assert len(decoder.feed(GOOD + GOOD + b"garbage that is no frame")) == 2
    with pytest.raises(WireError):
        decoder.feed(b"")


@given(data=st.binary(max_size=120), cut=st.integers(0, 120))
@settings(max_examples=80, deadline=None)
def test_any_bytes_raise_only_our_error(data: bytes, cut: int) -> None:
    decoder = FrameDecoder()
    try:
        for piece in (GOOD, data[:cut], data[cut:]):
            decoder.feed(piece)
    except WireError:
        pass


@given(headers=st.binary(max_size=60), payload=st.binary(max_size=20))
@settings(max_examples=80, deadline=None)
def test_any_headers_under_good_checksums_raise_only_our_error(headers: bytes, payload: bytes) -> None:
    try:
        (frame,) = FrameDecoder().feed(by_hand(headers, payload))
    except WireError:
        return
    assert frame.payload == payload


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ({"": "x"}, b""),
        ({"n" * 256: "x"}, b""),
        ({"a": "x" * 0x8000}, b""),
        ({"a": 1 << 63}, b""),
        ({f"h{n}": b"x" * 0x7FFF for n in range(5)}, b""),
        ({}, bytes(MAX_FRAME)),
    ],
)
def test_what_does_not_fit_a_frame_is_not_written(headers: dict[str, HeaderValue], payload: bytes) -> None:
    with pytest.raises(WireError):
        encode_frame(headers, payload)
