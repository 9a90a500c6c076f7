"""A request's body as it comes in, by its length or in chunks: bounded in bytes, in pieces and in framing."""

from __future__ import annotations

import re

from windlass.server.refusals import malformed, too_large

__all__ = ["Incoming"]

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}:[\t -~\x80-\xff]*")
_BAD = "The chunked body is malformed."
_MAX_CHUNK_LINE = 256
_MAX_TRAILERS = 8192
#: Bytes of chunk lines that a body may have beyond its own size: a body in chunks of a byte is an attack.
_MAX_FRAMING = 65_536
#: Pieces that are kept apart; above it they are joined, since each costs an object.
_MAX_PIECES = 256
#: What comes next: bytes of a body of known length; or a chunk's size line, its data, the CRLF behind it, the trailers.
_KNOWN, _SIZE, _DATA, _END, _TRAILERS = range(5)


class Incoming:
    """Collect a body of `length` bytes, or a chunked one (None) of at most `limit` bytes (RFC 9112, 6 and 7.1).

    `size` is how many bytes of it are here. What is sent behind it is dropped; `surplus` says that there was some.
    Extensions and trailers are checked and dropped.
    """

    __slots__ = ("_framing", "_left", "_limit", "_line", "_next", "_pieces", "size", "surplus")

    def __init__(self, length: int | None, limit: int) -> None:
        self._next = _SIZE if length is None else _KNOWN
        self._left, self._limit = length or 0, limit
        self._line = b""
        self._framing = 0
        self._pieces: list[bytes | bytearray] = []
        self.size = 0
        self.surplus = False

    def feed(self, data: bytes) -> bool:
        """Take what came; returns True once the body is whole. Raises RequestRefused 400 and 413."""
        if self._next != _KNOWN:
            return self._unchunk(data)
        if len(data) > self._left:
            self.surplus = True
            data = data[: self._left]
        self._left -= len(data)
        self._keep(data)
        return not self._left

    def take(self) -> bytes:
        """Return the body, once."""
        body, self._pieces = b"".join(self._pieces), []
        return body

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self.size += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) > _MAX_PIECES:
            first = self._pieces[0]
            joined = first if isinstance(first, bytearray) else bytearray(first)
            joined += b"".join(self._pieces[1:])
            self._pieces = [joined]

    def _unchunk(self, data: bytes) -> bool:
        if self._line:
            data, self._line = self._line + data, b""
        at = 0
        while True:
            if self._next == _DATA:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._keep(piece)
                if self._left:
                    return False
                self._next = _END
            end = data.find(b"\r\n", at)
            line = data[at : end if end >= 0 else len(data)]
            if len(line) > (_MAX_TRAILERS if self._next == _TRAILERS else _MAX_CHUNK_LINE) or b"\n" in line:
                raise malformed(_BAD)
            if end < 0:
                self._line = line
                return False
            at = end + 2
            if self._after(line):
                self.surplus = at < len(data)
                return True

    def _after(self, line: bytes) -> bool:
        """Take one whole line; returns True for the one that ends the body."""
        self._framing += len(line) + 2
        if self._next == _TRAILERS:
            if not line:
                return True
            if self._framing > _MAX_TRAILERS or not _TRAILER.fullmatch(line):
                raise malformed(_BAD)
            return False
        if self._framing > _MAX_FRAMING + self.size:
            raise malformed(_BAD)
        if self._next == _END:
            if line:
                raise malformed(_BAD)
            self._next = _SIZE
            return False
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise malformed(_BAD)
        self._left = int(found[1], 16)
        if self.size + self._left > self._limit:
            raise too_large(self._limit)
        if self._left:
            self._next = _DATA
        else:
            self._next, self._framing = _TRAILERS, 0
        return False
