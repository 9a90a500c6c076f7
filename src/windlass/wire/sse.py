"""Server-sent events, both ways (WHATWG HTML, 9.2 "Server-sent events").

The decoder works on bytes and leaves UTF-8 to whoever reads the payload: no byte of a character looks like a line end.
Whole events are found by searching the buffer, not line by line.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from windlass.core.errors import WireError

__all__ = ["MAX_EVENT", "SseDecoder", "SseEvent", "encode_sse"]

#: (event name or None, data). Several data lines are joined by a line feed.
SseEvent: TypeAlias = tuple[str | None, bytes]
#: Bytes of one event that we hold before giving up; generated images come as one event.
MAX_EVENT = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseDecoder:
    """Split a stream of bytes into events. `max_event` bounds the bytes held; past it `feed` raises WireError."""

    __slots__ = ("_after_cr", "_buffer", "_max", "_started")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._buffer = bytearray()
        self._after_cr = False
        self._started = False
        self._max = max_event

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take bytes, split anywhere, and return the events they complete."""
        if self._after_cr and data:
            # The CR ended a line; an LF right after it belongs to the same line end.
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1:] == b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        buffer = self._buffer
        if not buffer and self._started and data[-2:] == b"\n\n":
            return self._events(data)
        seen = len(buffer)
        buffer += data
        if not self._started:
            if len(buffer) < 3 and _BOM.startswith(buffer):
                return []
            self._started = True
            if buffer.startswith(_BOM):
                del buffer[:3]
        end = buffer.rfind(b"\n\n", max(0, seen - 1))
        if end < 0:
            self._check(len(buffer))
            return []
        whole = bytes(buffer[: end + 2])
        del buffer[: end + 2]
        self._check(len(buffer))
        return self._events(whole)

    def close(self) -> list[SseEvent]:
        """End the stream and return the event whose blank line never came, if it holds data.

        The standard drops it; some servers leave out the last line end, so the caller decides whether it is whole.
        """
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self._events(rest)

    def _check(self, size: int) -> None:
        if size > self._max:
            self._buffer.clear()
            raise WireError(f"One event of the stream is larger than {self._max} bytes.")

    def _events(self, whole: bytes) -> list[SseEvent]:
        out: list[SseEvent] = []
        for block in whole.split(b"\n\n"):
            # Compact servers send one `data: ...` line per event; everything else takes the general way.
            if block[:6] == b"data: " and b"\n" not in block:
                self._check(len(block))
                out.append((None, block[6:]))
            elif block:
                self._check(len(block))
                event = _parse(block)
                if event is not None:
                    out.append(event)
        return out


def _parse(block: bytes) -> SseEvent | None:
    name: bytes | None = None
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            name = value[1:] if value[:1] == b" " else value
    if not data:
        return None
    return (name.decode("utf-8", "replace") if name else None), (data[0] if len(data) == 1 else b"\n".join(data))


def encode_sse(data: bytes, event: str | None = None) -> bytes:
    """Return one event. `data` is one line of JSON; line ends in it become further data lines, never further events.

    Raises WireError for an event name with a control character.
    """
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    if event is None:
        return b"data: " + data + b"\n\n"
    if not event.isprintable():
        raise WireError(f"The event name {event!r} holds a character that would break the stream.")
    return b"event: " + event.encode("utf-8", "replace") + b"\ndata: " + data + b"\n\n"
