"""AWS event-stream frames, both ways (`application/vnd.amazon.eventstream`).

Source: smithy.io/2.0/aws/amazon-eventstream.html. A frame is its total and header lengths and their CRC-32 (12 bytes),
typed headers, a payload, and a CRC-32 of all before it; numbers are big-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

from msgspec import Struct

from windlass.core.errors import WireError

__all__ = ["MAX_FRAME", "MAX_HEADERS", "Frame", "FrameDecoder", "HeaderValue", "encode_frame"]

#: Bytes of one frame that we hold before giving up.
MAX_FRAME: Final = 16 * 1024 * 1024
#: Bytes of one frame's headers, as the format bounds them.
MAX_HEADERS: Final = 128 * 1024
_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_SHORT = struct.Struct(">H")
#: The smallest frame: prelude and message CRC.
_LEAST: Final = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Header types that are numbers: byte, short, integer, long, timestamp (milliseconds since 1970).
_NUMBERS = {
    2: struct.Struct(">b"),
    3: struct.Struct(">h"),
    4: struct.Struct(">i"),
    5: struct.Struct(">q"),
    8: struct.Struct(">q"),
}

#: A header's value. Whole numbers of any width are `int`; a timestamp is aware and in milliseconds.
HeaderValue: TypeAlias = bool | int | bytes | str | datetime | UUID


class Frame(Struct, frozen=True):
    """One message: its headers by name, and its payload."""

    headers: dict[str, HeaderValue]
    payload: bytes = b""

    def text(self, name: str) -> str:
        """Return a header that is text, "" when it is missing or something else."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


# ---------------------------------------------------------------------------------------------------------- encoding


def encode_frame(headers: Mapping[str, HeaderValue], payload: bytes = b"") -> bytes:
    """Return one frame. An `int` takes 32 bits where it fits, else 64.

    Raises WireError for a name that is not 1 to 255 bytes, a value or a frame that is too large for the format.
    """
    block = b"".join([_encode_header(name, value) for name, value in headers.items()])
    total = _LEAST + len(block) + len(payload)
    if len(block) > MAX_HEADERS or total > MAX_FRAME:
        raise WireError(f"A frame of {total} bytes with {len(block)} bytes of headers is too large to send.")
    lengths = struct.pack(">II", total, len(block))
    data = b"".join([lengths, _CRC.pack(zlib.crc32(lengths)), block, payload])
    return data + _CRC.pack(zlib.crc32(data))


def _encode_header(name: str, value: HeaderValue) -> bytes:
    key = name.encode("utf-8", "replace")
    if not 0 < len(key) < 256:
        raise WireError(f"A header's name must have 1 to 255 bytes, not {len(key)}.")
    return bytes([len(key)]) + key + _encode_value(name, value)


def _encode_value(name: str, value: HeaderValue) -> bytes:
    if isinstance(value, bool):
        return b"\x00" if value else b"\x01"
    if isinstance(value, int):
        kind = 4 if -(1 << 31) <= value < 1 << 31 else 5
        if not -(1 << 63) <= value < 1 << 63:
            raise WireError(f"The header {name!r} holds a number past 64 bits.")
        return bytes([kind]) + _NUMBERS[kind].pack(value)
    if isinstance(value, datetime):
        return b"\x08" + _NUMBERS[8].pack((value - _EPOCH) // timedelta(milliseconds=1))
    if isinstance(value, UUID):
        return b"\x09" + value.bytes
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if len(data) > 0x7FFF:
        raise WireError(f"The header {name!r} holds {len(data)} bytes; the format takes 32767.")
    return (b"\x07" if isinstance(value, str) else b"\x06") + _SHORT.pack(len(data)) + data


# ---------------------------------------------------------------------------------------------------------- decoding


class FrameDecoder:
    """Split a stream of bytes into frames. Nothing is trusted before its checksum fits and its bounds are checked.

    `max_frame` bounds the bytes that are held. After an error the decoder is of no further use.
    """

    __slots__ = ("_buffer", "_max", "_total")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._max = max_frame
        self._total = 0

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, split anywhere, and return the frames they complete.

        Raises WireError for a checksum or length that does not fit, a frame past the bound, and malformed headers.
        Of bytes that hold good frames and then a bad one, the good ones are returned first; the next call raises.
        """
        buffer = self._buffer
        buffer += data
        out: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                out.append(frame)
        except WireError:
            if not out:
                buffer.clear()
                raise
        return out

    def _next(self) -> Frame | None:
        buffer = self._buffer
        if not self._total:
            if len(buffer) < _PRELUDE.size:
                return None
            self._total = self._prelude()
        if len(buffer) < self._total:
            return None
        frame = _parse(bytes(memoryview(buffer)[: self._total]))
        del buffer[: self._total]
        self._total = 0
        return frame

    def _prelude(self) -> int:
        total, headers, crc = _PRELUDE.unpack_from(self._buffer)
        if zlib.crc32(memoryview(self._buffer)[:8]) != crc:
            start = bytes(self._buffer[:40])
            raise WireError(
                f"The stream does not hold event-stream frames: a prelude's checksum is wrong at {start!r}.",
                hint="A proxy may have changed the bytes, or something else answered.",
            )
        if total > self._max:
            raise WireError(f"A frame of {total} bytes is announced; at most {self._max} are taken.")
        if headers > MAX_HEADERS or total < _LEAST + headers:
            raise WireError(f"A frame's lengths contradict the format: {total} bytes, {headers} of them headers.")
        return total


def _parse(data: bytes) -> Frame:
    end = len(data) - 4
    (crc,) = _CRC.unpack_from(data, end)
    if zlib.crc32(memoryview(data)[:end]) != crc:
        raise WireError(f"The checksum of a frame of {len(data)} bytes is wrong.")
    after = _PRELUDE.size + _PRELUDE.unpack_from(data)[1]
    return Frame(_parse_headers(data[_PRELUDE.size : after]), data[after:end])


def _parse_headers(block: bytes) -> dict[str, HeaderValue]:
    out: dict[str, HeaderValue] = {}
    at = 0
    try:
        while at < len(block):
            length = block[at]
            name = _cut(block, at + 1, length).decode("utf-8")
            if not name or name in out:
                raise WireError(f"A frame's headers hold the name {name[:40]!r} twice or an empty one.")
            out[name], at = _parse_value(block, at + 1 + length)
    except UnicodeDecodeError:
        raise WireError("A frame's headers hold text that is not UTF-8.") from None
    except (IndexError, struct.error):
        raise WireError("A frame's headers end in the middle of a header.") from None
    return out


def _cut(block: bytes, at: int, length: int) -> bytes:
    if at + length > len(block):
        raise IndexError
    return block[at : at + length]


def _parse_value(block: bytes, at: int) -> tuple[HeaderValue, int]:
    kind = block[at]
    at += 1
    if kind < 2:
        return kind == 0, at
    if (number := _NUMBERS.get(kind)) is not None:
        (value,) = number.unpack_from(block, at)
        return (_moment(value) if kind == 8 else value), at + number.size
    if kind in (6, 7):
        (length,) = _SHORT.unpack_from(block, at)
        data = _cut(block, at + 2, length)
        return (data.decode("utf-8") if kind == 7 else data), at + 2 + length
    if kind == 9:
        return UUID(bytes=_cut(block, at, 16)), at + 16
    raise WireError(f"A frame's headers hold a value of the unknown type {kind}.")


def _moment(millis: int) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=millis)
    except OverflowError:
        raise WireError(f"A frame's headers hold a time outside the calendar: {millis} ms.") from None
