"""Copy what is readable of a damaged ledger into a new file; the old one is only read.

SQLite gives up at the first damaged page. This reads the file's pages itself (https://sqlite.org/fileformat2.html):
every table leaf that still makes sense is decoded, wherever it hangs in the tree, with the committed part of the
write-ahead log laid over it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct

from windlass.core.errors import StoreError
from windlass.core.json import loads_stored
from windlass.stores.contents import make_tables
from windlass.stores.filepages import Pages, leaf_records
from windlass.stores.lanes import is_open
from windlass.stores.rows import LOST, MAX_ROWS
from windlass.stores.schema import CODES, KINDS, open_ledger

__all__ = ["LostRows", "SalvageReport", "salvage"]

_MASK = MAX_ROWS - 1
_PROBES = 8


class LostRows(Struct, frozen=True):
    """Rows [start, end) of a session that could not be read; each is now a row of kind `row.lost`."""

    tenant: str
    session: str
    start: int
    end: int


class SalvageReport(Struct, frozen=True):
    """What was saved: `rows` counts copied rows, `renamed` the new names of sessions whose own names were lost.

    `damaged` counts pages and records that made no sense. Rows lost from a session's end leave no trace.
    """

    sessions: int
    rows: int
    lost: tuple[LostRows, ...] = ()
    renamed: tuple[str, ...] = ()
    damaged: int = 0


def salvage(path: str | Path, into: str | Path) -> SalvageReport:
    """Write a new ledger at `into` with every readable row of `path`, which stays as it is, byte for byte.

    No process may be writing to `path`. Positions are kept: where rows were lost, `row.lost` rows stand for them.
    Raises StoreError when `path` is missing or open in this process, or `into` exists; sqlite3.Error and OSError when
    the new file cannot be written.
    """
    source, target = Path(path).expanduser().resolve(), Path(into).expanduser().resolve()
    if is_open(source):
        raise StoreError(f"{source} is open in this process.", hint="Close its store first.")
    if not source.is_file():
        raise StoreError(f"There is no file {source}.")
    if target.exists():
        raise StoreError(f"{target} exists already.", hint="Name a new file.")
    with closing(Pages(source)) as pages:
        conn = open_ledger(target, synchronous="FULL", busy_timeout=5.0)
        try:
            conn.execute("BEGIN IMMEDIATE")
            damaged = _copy(conn, pages)
            renamed = _repair_links(conn)
            lost = _fill(conn)
            kept = "SELECT (SELECT count(*) FROM sessions WHERE id IS NOT NULL), count(*) FROM rows WHERE kind != ?"
            sessions, rows = conn.execute(kept, (CODES[LOST],)).fetchone()
            conn.execute("COMMIT")
        except BaseException:
            conn.close()
            target.unlink()
            raise
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        conn.close()
    return SalvageReport(sessions, rows, tuple(lost), tuple(renamed), damaged)


def _copy(conn: sqlite3.Connection, pages: Pages) -> int:
    """Copy every record that is one of ours; return how many pages and records were not readable."""
    damaged = 0
    for number in range(1, pages.count + 1):
        for rowid, record in leaf_records(pages, number):
            if record is None:
                damaged += 1
                continue
            sql = _insert_for(rowid, record, pages.size)
            if sql is not None:
                conn.execute(sql, (rowid, *record[1:]))
            elif (sql := _file_insert(record)) is not None:
                make_tables(conn)
                conn.execute(sql, record)
            elif not (len(record) == 5 and isinstance(record[0], str)):  # sqlite_schema has five columns
                damaged += 1
    return damaged


def _insert_for(rowid: int, record: tuple[Any, ...], size: int) -> str | None:
    """Return the INSERT for a record by its shape (each of our tables has another width), None when it is not ours."""
    if record[0] is not None:  # SQLite stores NULL for the column that is the row id
        return None
    if len(record) == 6:
        return "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)" if _is_row(rowid, record, size) else None
    if len(record) == 7:
        _, tenant, name, created, title, parent, pos = record
        texts = all(isinstance(value, (str, bytes)) for value in (tenant, title))
        numbers = all(value is None or isinstance(value, int) for value in (parent, pos)) and isinstance(created, int)
        if texts and numbers and (name is None or isinstance(name, (str, bytes))):
            return "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)"
    if len(record) == 2 and isinstance(record[1], bytes):
        key = int.from_bytes(hashlib.sha256(record[1]).digest()[:8], "big") >> 2
        if key <= rowid < key + _PROBES:
            return "INSERT OR IGNORE INTO blobs VALUES (?, ?)"
    return None


def _file_insert(record: tuple[Any, ...]) -> str | None:
    """Return the INSERT for a content of a file, or for its user; None for anything else."""
    if len(record) != 2 or not isinstance(record[0], bytes) or len(record[0]) != 32:
        return None
    if isinstance(record[1], int):
        return "INSERT OR IGNORE INTO file_users(hash, no) VALUES (?, ?)"
    whole = isinstance(record[1], bytes) and hashlib.sha256(record[1]).digest() == record[0]
    return "INSERT OR IGNORE INTO files(hash, data) VALUES (?, ?)" if whole else None


def _is_row(rowid: int, record: tuple[Any, ...], size: int) -> bool:
    _, kind, run, time, version, data = record
    if not (isinstance(kind, (str, bytes)) or (isinstance(kind, int) and 0 <= kind < len(KINDS))):
        return False
    if not all(isinstance(value, int) for value in (run, time, version)):
        return False
    # A position past what the whole file could hold is garbage, and would have to be filled up to.
    if rowid <= _MASK or (rowid & _MASK) > size // 8:
        return False
    if isinstance(data, int):
        return True
    try:
        loads_stored(data)
    except (ValueError, TypeError):
        return False
    return True


def _repair_links(conn: sqlite3.Connection) -> list[str]:
    """Name the sessions whose names were lost, drop links to parents that are gone, mark rows whose blob is gone."""
    renamed: list[str] = []
    nameless = "SELECT id >> 32 AS no, min(time) FROM rows WHERE id >> 32 NOT IN (SELECT no FROM sessions) GROUP BY no"
    for number, created in conn.execute(nameless).fetchall():
        name = f"salvaged-{number}"
        while conn.execute("SELECT 1 FROM sessions WHERE tenant = '' AND id = ?", (name,)).fetchone():
            name += "-"
        conn.execute("INSERT INTO sessions VALUES (?, '', ?, ?, '', NULL, NULL)", (number, name, created))
        renamed.append(name)
    conn.execute(
        "UPDATE sessions SET parent = NULL, parent_pos = NULL WHERE parent IS NULL OR parent_pos IS NULL "
        "OR parent >= no OR parent NOT IN (SELECT no FROM sessions) OR parent_pos < 0 OR parent_pos > 4294967295"
    )
    conn.execute(
        "UPDATE rows SET kind = ?, run = -1, data = x'7b7d' "
        "WHERE typeof(data) = 'integer' AND data NOT IN (SELECT key FROM blobs)",
        (CODES[LOST],),
    )
    return renamed


def _fill(conn: sqlite3.Connection) -> list[LostRows]:
    """Make every session dense again, from its base to its last row or the last row that a fork shares."""
    lost: list[LostRows] = []
    sessions = conn.execute("SELECT no, tenant, id, created, coalesce(parent_pos, 0) FROM sessions").fetchall()
    for number, tenant, name, created, base in sessions:
        first = number << 32
        for start, end in _gaps(conn, number, base, named=name is not None):
            filling = ((first | pos, CODES[LOST], created) for pos in range(start, end))
            conn.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, -1, ?, 1, x'7b7d')", filling)
        for start, end in _runs_of_lost(conn, first):
            lost.append(LostRows(_shown(tenant), _shown(name or ""), start, end))
    return lost


def _gaps(conn: sqlite3.Connection, number: int, base: int, *, named: bool) -> list[tuple[int, int]]:
    shared = conn.execute("SELECT max(parent_pos) FROM sessions WHERE parent = ?", (number,)).fetchone()[0] or 0
    gaps: list[tuple[int, int]] = []
    expected = base
    first, last = number << 32 | base, number << 32 | _MASK
    for (rowid,) in conn.execute("SELECT id FROM rows WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)):
        if (rowid & _MASK) > expected:
            gaps.append((expected, rowid & _MASK))
        expected = (rowid & _MASK) + 1
    # A session that has a name has at least one row.
    until = max(shared, base + 1 if named else base)
    if until > expected:
        gaps.append((expected, until))
    return gaps


def _runs_of_lost(conn: sqlite3.Connection, first: int) -> Iterator[tuple[int, int]]:
    sql = "SELECT id & 4294967295 FROM rows WHERE kind = ? AND id BETWEEN ? AND ? ORDER BY id"
    start = end = -1
    for (pos,) in conn.execute(sql, (CODES[LOST], first, first | _MASK)):
        if pos != end:
            if end > start:
                yield start, end
            start = pos
        end = pos + 1
    if end > start:
        yield start, end


def _shown(value: str | bytes) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
