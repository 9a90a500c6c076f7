"""Read the pages of a SQLite file and of its write-ahead log, without SQLite and without trusting them.

Source: https://sqlite.org/fileformat2.html, sections 1.3 to 1.6 (pages, cells), 2.1 (records), 4.1 to 4.2 (the log).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from windlass.stores.schema import PAGE_SIZE

__all__ = ["Pages", "leaf_records"]

_TABLE_LEAF = 0x0D
_FRAME_HEADER = 24
_INT_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Pages:
    """The pages of a database as its last commit left them. `count` pages of `page_size` bytes; `size` of all files."""

    def __init__(self, path: Path) -> None:
        self._files: list[BinaryIO] = [path.open("rb")]
        header = self._files[0].read(100)
        self.size = path.stat().st_size
        self.page_size = _page_size(int.from_bytes(header[16:18], "big"))
        self._frames: dict[int, int] = {}
        in_log = 0
        log = path.with_name(path.name + "-wal")
        if log.is_file() and log.stat().st_size > 32:
            self._files.append(log.open("rb"))
            self.size += log.stat().st_size
            in_log = self._read_log(self._files[1])
        self.count = in_log or -(-path.stat().st_size // self.page_size)

    def page(self, number: int) -> bytes:
        """Return page `number` (from 1), padded with zeros where the file ends early."""
        at = self._frames.get(number)
        file = self._files[0] if at is None else self._files[1]
        file.seek((number - 1) * self.page_size if at is None else at)
        return file.read(self.page_size).ljust(self.page_size, b"\0")

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _read_log(self, file: BinaryIO) -> int:
        """Note where the newest committed copy of each page lies; return the page count after the last commit."""
        header = file.read(32)
        magic, _, page_size, _, salt1, salt2, *check = struct.unpack(">8I", header)
        order = ">" if magic & 1 else "<"
        sums = _checksum(header[:24], (0, 0), order)
        if magic & ~1 != 0x377F0682 or _page_size(page_size) != page_size or sums != tuple(check):
            return 0
        self.page_size = page_size
        count, pending, at = 0, dict[int, int](), 32
        while True:
            head, page = file.read(_FRAME_HEADER), file.read(page_size)
            if len(page) < page_size:
                break
            number, commit, frame_salt1, frame_salt2, *check = struct.unpack(">6I", head)
            sums = _checksum(page, _checksum(head[:8], sums, order), order)
            if (frame_salt1, frame_salt2) != (salt1, salt2) or sums != tuple(check):
                break
            pending[number] = at + _FRAME_HEADER
            at += _FRAME_HEADER + page_size
            if commit:
                self._frames.update(pending)
                pending.clear()
                count = commit
        return count


def _page_size(found: int) -> int:
    size = 65536 if found == 1 else found
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else PAGE_SIZE


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    s0, s1 = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + even + s1) & 0xFFFFFFFF
        s1 = (s1 + odd + s0) & 0xFFFFFFFF
    return s0, s1


def leaf_records(pages: Pages, number: int) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Yield (row id, columns) of each cell when page `number` is a table leaf; columns None: it made no sense."""
    page = pages.page(number)
    start = 100 if number == 1 else 0
    if page[start] != _TABLE_LEAF:
        return
    cells = int.from_bytes(page[start + 3 : start + 5], "big")
    for index in range(min(cells, (len(page) - start - 8) // 2)):
        place = start + 8 + 2 * index
        try:
            yield _cell(pages, page, int.from_bytes(page[place : place + 2], "big"))
        except (IndexError, ValueError, OverflowError):
            yield 0, None


def _cell(pages: Pages, page: bytes, at: int) -> tuple[int, tuple[Any, ...]]:
    length, at = _varint(page, at)
    rowid, at = _varint(page, at)
    usable = pages.page_size
    local = length
    if length > usable - 35:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        if local > usable - 35:
            local = least
    if length > pages.size or at + local > usable:
        raise ValueError("payload past the end")
    parts = [page[at : at + local]]
    rest, following = length - local, int.from_bytes(page[at + local : at + local + 4], "big")
    while rest > 0:
        if not 1 <= following <= pages.count:
            raise ValueError("overflow chain leaves the file")
        more = pages.page(following)
        parts.append(more[4 : 4 + rest])
        rest -= usable - 4
        following = int.from_bytes(more[:4], "big")
    return rowid - (1 << 64) if rowid >= 1 << 63 else rowid, _record(b"".join(parts))


def _record(payload: bytes) -> tuple[Any, ...]:
    header, at = _varint(payload, 0)
    if header > len(payload):
        raise ValueError("header past the end")
    kinds: list[int] = []
    while at < header:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("record and payload differ in length")
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return (None if kind == 0 else kind - 8), at
    if kind in _INT_BYTES:
        end = at + _INT_BYTES[kind]
        if end > len(payload):
            raise ValueError("integer past the end")
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind < 12:
        raise ValueError("a kind of value that we never write")
    end = at + (kind - 12) // 2
    if end > len(payload):
        raise ValueError("text past the end")
    return (payload[at:end].decode() if kind & 1 else payload[at:end]), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9
