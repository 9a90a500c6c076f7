"""Keep ledgers in one SQLite file: durable when `append` returns, safe under kill -9, shared by several processes."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from windlass.core.errors import ConfigError, StoreError
from windlass.core.ports import Row, SessionInfo
from windlass.stores.contents import copy_files, drop_files, get_file, put_file
from windlass.stores.lanes import LEDGER, FileUse
from windlass.stores.rows import MAX_ROWS, Fork, check_fork, check_rows, conflict, fork_of, is_sha256, title_of
from windlass.stores.running import RunningOutput
from windlass.stores.schema import CODES, KINDS, SALVAGE_HINT

__all__ = ["BLOB_BYTES", "SqliteStore"]

#: Row data over this size is kept once per content, in its own table.
BLOB_BYTES = 16 * 1024
_MASK = MAX_ROWS - 1
Synchronous = Literal["NORMAL", "FULL", "EXTRA"]


class SqliteStore:
    """Keep sessions in the SQLite file at `path`, by the rules of the `Store` port.

    The file is opened (or made, mode 0600) at the first call. `synchronous` FULL: an acknowledged row survives a power
    cut, as far as the system's fsync goes; NORMAL: it survives kill -9, and a power cut may take the last ones.
    `busy_timeout`, in seconds, bounds the wait for another process's write lock. May be used from several event loops
    and threads: all stores of a process on one file share one writer. A cancelled `append` is kept wholly or not at
    all: read to learn which.

    Every call raises StoreError when the file cannot be read or written, SessionVersionError when a newer version
    wrote it. After `close`, which leaves a single file without a log, every call raises StoreError.
    """

    def __init__(self, path: str | Path, *, synchronous: Synchronous = "FULL", busy_timeout: float = 5.0) -> None:
        if str(path) in ("", ":memory:"):
            raise ConfigError("SqliteStore needs the path of a file.", hint="For memory use MemoryStore().")
        if synchronous not in ("NORMAL", "FULL", "EXTRA"):
            raise ConfigError(f"synchronous is {synchronous!r}.", hint="Use NORMAL, FULL or EXTRA.")
        #: The file, absolute, symbolic links resolved.
        self.path = Path(path).expanduser().resolve()
        #: What running calls have printed, beside the file, for whoever resumes after a crash.
        self.running = RunningOutput(self.path.with_name(f"{self.path.name}.running"))
        self._use = FileUse(self.path, synchronous, busy_timeout, LEDGER, "store")
        #: Contents of files, for undo.
        self.blobs = _Blobs(self._use)

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        """Keep all rows or none. Raises StoreConflict, ValueError, and SessionNotFound for a fork without parent."""
        rows = tuple(rows)
        check_rows(rows, expected_pos)
        await self._use.lanes().writer.submit(
            partial(_append, _text(tenant), session, rows, expected_pos, fork_of(rows))
        )

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        """Return the rows of positions [start, end), [] for an unknown session."""
        low, high = max(start, 0), MAX_ROWS if end is None else min(max(end, 0), MAX_ROWS)
        return await self._use.lanes().reader.submit(partial(_read, _text(tenant), _text(session), low, high))

    async def check(self) -> list[str]:
        """Read the whole file and return what is wrong with it (SQLite's integrity_check), [] when it is sound."""
        try:
            return await self._use.lanes().reader.submit(_integrity)
        except StoreError as error:
            # Some damage ends the check itself: that is the finding.
            if error.hint != SALVAGE_HINT:
                raise
            return [error.message]

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        """Return up to `limit` sessions of a tenant, the one with the newest last row first."""
        return await self._use.lanes().reader.submit(partial(_list, _text(tenant), min(max(limit, 0), MAX_ROWS)))

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        """Delete a session and its unshared rows; its forks keep the rows they share. False when there was none."""
        return await self._use.lanes().writer.submit(partial(_delete, _text(tenant), _text(session)))

    async def close(self) -> None:
        """Give the file up; the last store of the process that uses it leaves one checkpointed file."""
        await self._use.close()


class _Blobs:
    """The store's face for contents of files."""

    def __init__(self, use: FileUse) -> None:
        self._use = use

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        work = partial(put_file, _text(tenant), _text(session), bytes(data))
        return await self._use.lanes().writer.submit(work)

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        lanes = self._use.lanes()
        if not is_sha256(sha256):
            return None
        return await lanes.reader.submit(partial(get_file, _text(tenant), _text(session), sha256))


def _text(value: str) -> str | bytes:
    """Return `value` as SQLite can hold it: text that UTF-8 cannot carry (lone surrogates) as bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value


def _str(value: Any) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


# What follows runs in a lane's thread, inside its transaction.

_FIND = """SELECT no, title, coalesce(parent_pos, 0),
    (SELECT max(r.id) FROM rows r WHERE r.id BETWEEN s.no << 32 AND (s.no << 32) + 4294967295)
    FROM sessions s WHERE tenant = ? AND id = ?"""


def _find(conn: sqlite3.Connection, tenant: str | bytes, session: str) -> tuple[int, Any, int] | None:
    """Return number, title and length of a session."""
    found = conn.execute(_FIND, (tenant, _text(session))).fetchone()
    if found is None:
        return None
    no, title, base, last = found
    return no, title, base if last is None else (last & _MASK) + 1


def _append(
    tenant: str | bytes, session: str, rows: Sequence[Row], expected: int, fork: Fork | None, conn: sqlite3.Connection
) -> None:
    found = _find(conn, tenant, session)
    if found is not None:
        no, _, length = found
        if length != expected:
            raise conflict(session, length, expected)
    elif fork is not None:
        no = _create_fork(conn, tenant, session, rows[0], fork)
    elif expected != 0:
        raise conflict(session, 0, expected)
    elif rows:
        no = _create(conn, tenant, session, rows[0], _text(title_of(rows[0])), None, None)
    else:
        return
    first = no << 32
    conn.executemany(
        "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                first | row.pos,
                code if (code := CODES.get(row.kind)) is not None else _text(row.kind),
                row.run,
                row.time,
                row.version,
                row.data if len(row.data) <= BLOB_BYTES else _keep_blob(conn, row.data),
            )
            for row in rows
        ],
    )


def _create(
    conn: sqlite3.Connection,
    tenant: str | bytes,
    session: str,
    row: Row,
    title: str | bytes,
    parent: int | None,
    pos: int | None,
) -> int:
    values = (tenant, _text(session), row.time, title, parent, pos)
    sql = "INSERT INTO sessions(tenant, id, created, title, parent, parent_pos) VALUES (?, ?, ?, ?, ?, ?)"
    number = conn.execute(sql, values).lastrowid
    assert number is not None
    return number


def _create_fork(conn: sqlite3.Connection, tenant: str | bytes, session: str, row: Row, fork: Fork) -> int:
    parent = _find(conn, tenant, fork.parent)
    check_fork(session, fork, None if parent is None else parent[2])
    if parent is None:
        return _create(conn, tenant, session, row, "", None, None)
    number = _create(conn, tenant, session, row, parent[1] if fork.pos else "", parent[0], fork.pos)
    if fork.pos:
        copy_files(conn, parent[0], number)
    return number


def _keep_blob(conn: sqlite3.Connection, data: bytes) -> int:
    """Return the key under which `data` is kept: 62 bits of its SHA-256, or the next free one after a collision."""
    key = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 2
    while (found := conn.execute("SELECT data FROM blobs WHERE key = ?", (key,)).fetchone()) is not None:
        if found[0] == data:
            return key
        key += 1
    conn.execute("INSERT INTO blobs VALUES (?, ?)", (key, data))
    return key


_ROWS = """SELECT r.id & 4294967295, r.kind, r.run, r.time, r.version, r.data, b.data
    FROM rows r LEFT JOIN blobs b ON typeof(r.data) = 'integer' AND b.key = r.data
    WHERE r.id BETWEEN ? AND ? ORDER BY r.id"""


def _read(tenant: str | bytes, session: str | bytes, start: int, end: int, conn: sqlite3.Connection) -> list[Row]:
    """Climb from a fork to those whose rows it shares, then read from the oldest down."""
    spans: list[tuple[int, int]] = []
    columns = "SELECT no, parent, coalesce(parent_pos, 0) FROM sessions"
    found = conn.execute(f"{columns} WHERE tenant = ? AND id = ?", (tenant, session)).fetchone()
    while found is not None and start < end:
        no, parent, base = found
        if max(base, start) < end:
            spans.append((no << 32 | max(base, start), no << 32 | (end - 1)))
        end = min(end, base)
        if parent is not None and parent >= no:  # a parent is always older: a loop would never end
            raise StoreError(f"The ledger is damaged: session number {no} has parent {parent}.", hint=SALVAGE_HINT)
        found = conn.execute(f"{columns} WHERE no = ?", (parent,)).fetchone()
    return [_row(values) for span in reversed(spans) for values in conn.execute(_ROWS, span)]


def _row(values: tuple[Any, ...]) -> Row:
    pos, kind, run, time, version, data, blob = values
    try:
        name = KINDS[kind] if isinstance(kind, int) else _str(kind)
    except IndexError:
        raise StoreError(f"The ledger is damaged: row {pos} has no kind {kind}.", hint=SALVAGE_HINT) from None
    if isinstance(data, int):
        data = blob
    if not isinstance(data, bytes):
        raise StoreError(f"The ledger is damaged: the data of row {pos} is missing.", hint=SALVAGE_HINT)
    return Row(pos, name, run, time, data, version)


_LIST = """SELECT s.id, r.id & 4294967295, s.created, r.time, s.title, p.id, s.parent_pos
    FROM sessions s
    JOIN rows r ON r.id =
        (SELECT max(id) FROM rows WHERE id BETWEEN s.no << 32 AND (s.no << 32) + 4294967295)
    LEFT JOIN sessions p ON p.no = s.parent
    WHERE s.tenant = ? AND s.id IS NOT NULL
    ORDER BY r.time DESC, s.no DESC LIMIT ?"""


def _list(tenant: str | bytes, limit: int, conn: sqlite3.Connection) -> list[SessionInfo]:
    return [
        SessionInfo(
            _str(name),
            last + 1,
            created,
            updated,
            _str(title),
            None if parent is None else _str(parent),
            None if parent is None else pos,
        )
        for name, last, created, updated, title, parent, pos in conn.execute(_LIST, (tenant, limit))
    ]


def _delete(tenant: str | bytes, session: str | bytes, conn: sqlite3.Connection) -> bool:
    found = conn.execute("SELECT no FROM sessions WHERE tenant = ? AND id = ?", (tenant, session)).fetchone()
    if found is None:
        return False
    number: int | None = found[0]
    conn.execute("UPDATE sessions SET id = NULL, title = '' WHERE no = ?", (number,))
    drop_files(conn, found[0])
    # Then keep of it, and of what was deleted above it, only what forks still share.
    while number is not None:
        named, parent = conn.execute("SELECT id, parent FROM sessions WHERE no = ?", (number,)).fetchone()
        if named is not None:
            break
        shared = conn.execute("SELECT max(parent_pos) FROM sessions WHERE parent = ?", (number,)).fetchone()[0] or 0
        _delete_rows(conn, number << 32 | shared, number << 32 | _MASK)
        if shared:
            break
        conn.execute("UPDATE sessions SET parent = NULL, parent_pos = NULL WHERE parent = ?", (number,))
        conn.execute("DELETE FROM sessions WHERE no = ?", (number,))
        number = parent
    return True


_DROP_UNUSED = """DELETE FROM blobs WHERE key = ?
    AND NOT EXISTS (SELECT 1 FROM rows WHERE typeof(data) = 'integer' AND data = blobs.key)"""


def _delete_rows(conn: sqlite3.Connection, first: int, last: int) -> None:
    big = "SELECT DISTINCT data FROM rows WHERE typeof(data) = 'integer' AND id BETWEEN ? AND ?"
    keys = conn.execute(big, (first, last)).fetchall()
    conn.execute("DELETE FROM rows WHERE id BETWEEN ? AND ?", (first, last))
    conn.executemany(_DROP_UNUSED, keys)


def _integrity(conn: sqlite3.Connection) -> list[str]:
    found = [str(line) for (line,) in conn.execute("PRAGMA integrity_check")]
    return [] if found == ["ok"] else found
