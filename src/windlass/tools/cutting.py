"""One rule for answers that are too long: what is left out is counted, and the answer says where the whole is.

A list (lines of a file, names, matches) is cut at its end, between two lines; the last line, in square brackets, counts
what there is and says how to go on. A stream (the output of a command) keeps its start and its end. No character is
ever split, and a bound counts the bytes of UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from windlass.core.text import truncate, whole_characters

__all__ = ["Fit", "ends", "fit", "left_out", "listed", "size_of"]


class Fit(Struct, frozen=True):
    """What fits of some lines: the first ones, how many there were, the bytes left out (each line with its newline).

    `clipped` is set when the first line alone was too long, and only its beginning is there.
    """

    lines: list[str]
    total: int
    left: int = 0
    clipped: bool = False


def size_of(text: str) -> int:
    """Return the bytes that a text has in UTF-8; bytes that were none count as they were."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def fit(lines: Iterable[str], size: int, *, most: int = 0) -> Fit:
    """Return the first lines that have room in `size` bytes, at most `most` of them (0: any number)."""
    kept: list[str] = []
    room, total, left, clipped = size, 0, 0, False
    for line in lines:
        total += 1
        length = size_of(line) + 1
        if left or (most and len(kept) >= most):
            left += length
        elif length <= room:
            room -= length
            kept.append(line)
        elif kept:
            left += length
        else:
            head = whole_characters(line.encode("utf-8", "surrogateescape")[:size])
            kept.append(head.decode("utf-8", "surrogateescape"))
            left, clipped = length - len(head), True
    return Fit(kept, total, left, clipped)


def left_out(what: str, left: int, go_on: str) -> str:
    """Return the last line of a shortened answer; `left` 0 is an unknown number of bytes."""
    return f"[{what}{f'; {left} bytes left out' if left else ''}. {go_on}]"


def listed(lines: Iterable[str], size: int, what: str, go_on: str, *, most: int = 0) -> str:
    """Return lines as one answer, with its last line where something is left out."""
    found = fit(lines, size, most=most)
    if not found.left:
        return "\n".join(found.lines)
    return "\n".join([*found.lines, left_out(f"{len(found.lines)} of {found.total} {what}", found.left, go_on)])


def ends(text: str, size: int, *, total: int = 0, where: str = "") -> str:
    """Return the start and the end of a stream's text in `size` bytes (0: any number).

    `total` are the bytes that the stream had in all, where it was cut before; `where` says what holds all of it.
    """
    shown = truncate(text, size)
    total = total or (size_of(text) if shown != text else 0)
    if not total:
        return shown
    return f"{shown}\n[{total} bytes in all{f'; all of it is in {where}' if where else ''}]"
