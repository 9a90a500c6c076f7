"""Decide what an append may be: the rules that every store shares, free of any storage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from windlass.core.errors import SessionNotFound, StoreConflict, StoreError
from windlass.core.json import loads_stored
from windlass.core.ports import Row

__all__ = [
    "LOST",
    "MAX_ROWS",
    "Fork",
    "check_fork",
    "check_rows",
    "conflict",
    "fork_of",
    "is_lost",
    "is_sha256",
    "lost_row",
    "title_of",
]

#: The kind of a row that stands where one could not be read, so that the positions behind it keep their meaning.
LOST = "row.lost"
_HASH = re.compile(r"[0-9a-f]{64}")
#: Positions are kept in 32 bits.
MAX_ROWS = 1 << 32


class Fork(NamedTuple):
    """What a first row of kind `session.forked` says: rows [0, pos) are those of `parent`."""

    parent: str
    pos: int


def check_rows(rows: Sequence[Row], expected_pos: int) -> None:
    """Raise ValueError unless the rows can be stored as they are: dense from `expected_pos`, 64-bit numbers, bytes."""
    if not 0 <= expected_pos <= MAX_ROWS - len(rows):
        raise ValueError(f"expected_pos {expected_pos} is not a position (0 to {MAX_ROWS - 1})")
    for place, row in enumerate(rows, expected_pos):
        if row.pos != place:
            raise ValueError(f"row {place - expected_pos} of the batch has position {row.pos}, not {place}")
        if not isinstance(row.kind, str) or not isinstance(row.data, bytes):
            raise ValueError(f"row {place}: kind must be str and data bytes")
        for name, value in (("run", row.run), ("time", row.time), ("version", row.version)):
            # Not a range: it would look a float or an IntEnum up one by one.
            if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
                raise ValueError(f"row {place}: {name} {value} does not fit 64 bits")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = loads_stored(data)
    except ValueError:  # rows may hold any bytes; only two kinds are looked into
        return {}
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def title_of(row: Row) -> str:
    """Return the title in a `session.created` row, '' for any other."""
    title = _object(row.data).get("title") if row.kind == "session.created" else None
    return title if isinstance(title, str) else ""


def fork_of(rows: Sequence[Row]) -> Fork | None:
    """Return what the first row says about its parent, None when it is no fork. Raises ValueError when malformed."""
    if not rows or rows[0].kind != "session.forked":
        return None
    data = _object(rows[0].data)
    parent, pos = data.get("parent"), data.get("pos")
    if not isinstance(parent, str) or not isinstance(pos, int) or isinstance(pos, bool):
        raise ValueError(f"row {rows[0].pos}: session.forked needs a parent (session id) and a pos (integer)")
    if pos != rows[0].pos:
        raise ValueError(f"session.forked at row {rows[0].pos} says pos {pos}: the two must be the same")
    return Fork(parent, pos)


def check_fork(session: str, fork: Fork, parent_length: int | None) -> None:
    """Raise unless `parent` (None: there is none) has the rows that the fork shares; a fork at 0 shares none."""
    if parent_length is None and fork.pos > 0:
        raise SessionNotFound(f"Session {session!r} cannot fork {fork.parent!r}: there is no such session.")
    if parent_length is not None and parent_length < fork.pos:
        raise StoreError(f"Session {session!r} cannot fork {fork.parent!r} at {fork.pos}: it has {parent_length} rows.")


def conflict(session: str, length: int, expected_pos: int) -> StoreConflict:
    """Return the error for a session that is not as long as its writer thought."""
    return StoreConflict(
        f"Session {session!r} has {length} rows, not {expected_pos}: another writer was first; nothing was kept.",
        hint=f"Read it from row {min(length, expected_pos)} and append at {length}.",
    )


def is_sha256(text: str) -> bool:
    """Tell whether a text is a SHA-256 in lower-case hex, as contents of files are named."""
    return _HASH.fullmatch(text) is not None


def lost_row(pos: int, time: int) -> Row:
    """Return the row that stands at `pos` for one that could not be read."""
    return Row(pos, LOST, -1, time, b"{}")


def is_lost(row: Row) -> bool:
    """Say whether a row stands for one that could not be read."""
    return row.kind == LOST
