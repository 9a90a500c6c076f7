"""Keep ledgers in a PostgreSQL database: durable when `append` returns, shared by any number of processes and machines.

Tables: `windlass_sessions` numbers each (tenant, id) and knows its length; `windlass_rows` has one row per event under
(session, pos); `windlass_blobs` holds row data over 16 kB once per content; `windlass_files` holds contents of files,
and `windlass_file_users` which session has which. A session is found by a digest, because an index entry of PostgreSQL
holds 2.7 kB and an id may be longer. A deleted session that forks still share has no key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from windlass.core.errors import SessionNotFound, StoreError
from windlass.core.ports import Row, SessionInfo
from windlass.stores.pgpool import Pool
from windlass.stores.pgtables import migrate_room
from windlass.stores.pgurl import read_url
from windlass.stores.portable import Cursor
from windlass.stores.rows import MAX_ROWS, Fork, check_fork, check_rows, conflict, fork_of, is_sha256, title_of

__all__ = ["BLOB_BYTES", "PostgresStore"]

#: Row data over this size is kept once per content, in its own table.
BLOB_BYTES = 16 * 1024
T = TypeVar("T")

_STEPS = (
    """
    CREATE TABLE windlass_sessions(
        no INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key BLOB UNIQUE, tenant_key BLOB NOT NULL,
        tenant TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, length INTEGER NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, parent INTEGER, parent_pos INTEGER);
    CREATE INDEX windlass_sessions_of ON windlass_sessions(tenant_key) WHERE key IS NOT NULL;
    CREATE INDEX windlass_sessions_forks ON windlass_sessions(parent) WHERE parent IS NOT NULL;
    CREATE TABLE windlass_rows(
        session INTEGER NOT NULL, pos INTEGER NOT NULL, kind TEXT NOT NULL, run INTEGER NOT NULL,
        time INTEGER NOT NULL, version INTEGER NOT NULL, data BLOB, blob_key BLOB, PRIMARY KEY (session, pos));
    CREATE INDEX windlass_rows_blobs ON windlass_rows(blob_key) WHERE blob_key IS NOT NULL;
    CREATE TABLE windlass_blobs(key BLOB PRIMARY KEY, data BLOB NOT NULL)
    """,
    """
    CREATE TABLE windlass_files(hash BLOB PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE windlass_file_users(session INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (session, hash));
    CREATE INDEX windlass_file_users_of ON windlass_file_users(hash)
    """,
)
#: The advisory lock between who refers to a blob and who deletes those that nobody refers to.
_BLOBS = 0x57494E44_00000002


class PostgresStore:
    """Keep sessions in the PostgreSQL database that `url` names, by the rules of the `Store` port.

    `url` is `postgresql://user:password@host:5432/database`, also without its scheme; what it leaves out comes from
    libpq's own sources (PGHOST, PGPASSWORD, …). The tables are made at the first call. `size` bounds the connections,
    `timeout` (seconds) a statement, `patience` (seconds) how long a call is tried again while the server restarts or
    fails over. May be used from several event loops and threads. A cancelled `append` is kept wholly or not at all.

    Raises ConfigError for a malformed URL and without psycopg (`pip install 'windlass[postgres]'`). Every call raises
    StoreError when the server fails, SessionVersionError when a newer version made the tables, and StoreError after
    `close`.
    """

    def __init__(
        self, url: str = "postgresql://", *, size: int = 4, timeout: float = 30.0, patience: float = 10.0
    ) -> None:
        address = read_url(url or "//")
        self._where = address.where
        self._pool = Pool(
            address,
            size=size,
            timeout=timeout,
            patience=patience,
            setup=lambda cursor: migrate_room(cursor, "sessions", _STEPS, address.where),
        )
        #: Contents of files, for undo.
        self.blobs = _Blobs(self._pool)

    def __repr__(self) -> str:
        return f"PostgresStore({self._where!r})"

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        """Keep all rows or none. Raises StoreConflict, ValueError, and SessionNotFound for a fork without parent."""
        rows = tuple(rows)
        check_rows(rows, expected_pos)
        fork = fork_of(rows)
        await self._change(session, tenant, lambda cursor: _append(cursor, tenant, session, rows, expected_pos, fork))

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        """Return the rows of positions [start, end), [] for an unknown session."""
        low, high = max(start, 0), MAX_ROWS if end is None else min(max(end, 0), MAX_ROWS)
        return await self._pool.submit(lambda cursor: _read(cursor, tenant, session, low, high), isolation=None)

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        """Return up to `limit` sessions of a tenant, the one with the newest last row first."""
        values = (_tenant_key(tenant), min(max(limit, 0), MAX_ROWS))
        found = await self._pool.submit(lambda cursor: cursor.fetch(_LIST, values), isolation=None)
        return [
            SessionInfo(name, rows, created, updated, title, parent, None if parent is None else pos)
            for name, rows, created, updated, title, parent, pos in found
        ]

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        """Delete a session and its unshared rows; its forks keep the rows they share. False when there was none."""
        found = False

        def work(cursor: Cursor) -> bool:
            # What an earlier try found may be gone by that very try.
            nonlocal found
            found = _delete(cursor, tenant, session) or (found and cursor.repeated)
            return found

        return await self._change(session, tenant, work)

    async def close(self) -> None:
        """Finish what was asked for, and close every connection."""
        await self._pool.close()

    async def _change(self, session: str, tenant: str, work: Callable[[Cursor], T]) -> T:
        # Rows are locked by hand, so that writers wait for each other where serializable ones would be repeated.
        key = _key(tenant, session)
        return await self._pool.submit(work, isolation="READ COMMITTED", idempotent=True, key=key)


class _Blobs:
    """The store's face for contents of files."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        key = _key(tenant, session)
        return await self._pool.submit(
            lambda cursor: _put_file(cursor, session, key, bytes(data)),
            isolation="READ COMMITTED", idempotent=True, key=key,
        )  # fmt: skip

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        values = (_key(tenant, session), bytes.fromhex(sha256) if is_sha256(sha256) else b"")
        found = await self._pool.submit(lambda cursor: cursor.fetch(_GET_FILE, values), isolation=None)
        return found[0][0] if found else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _tenant_key(tenant: str) -> bytes:
    return hashlib.sha256(_bytes(tenant)).digest()


def _key(tenant: str, session: str) -> bytes:
    return hashlib.sha256(_tenant_key(tenant) + _bytes(session)).digest()


# What follows runs in a thread of the pool, inside a transaction whose every statement sees what others committed.


def _append(cursor: Cursor, tenant: str, session: str, rows: Sequence[Row], expected: int, fork: Fork | None) -> None:
    find = "SELECT no, length FROM windlass_sessions WHERE key = ? FOR NO KEY UPDATE"
    number: int | None = None
    while number is None:
        found = cursor.fetch(find, (_key(tenant, session),))
        if found:
            number, length = found[0]
            if length != expected:
                if cursor.repeated and _holds(cursor, tenant, session, rows):
                    return  # an earlier try was committed after all
                raise conflict(session, length, expected)
        elif fork is not None:
            number = _create_fork(cursor, tenant, session, rows[0], fork)
        elif expected != 0:
            raise conflict(session, 0, expected)
        elif rows:
            number = _create(cursor, tenant, session, rows[0], title_of(rows[0]), None, None)
        else:
            return
    if rows:
        _insert(cursor, number, rows)


def _put_file(cursor: Cursor, session: str, key: bytes, data: bytes) -> str:
    # The session may grow meanwhile, and may not go.
    found = cursor.fetch("SELECT no FROM windlass_sessions WHERE key = ? FOR KEY SHARE", (key,))
    if not found:
        raise SessionNotFound(f"There is no session {session!r} to keep a file for.")
    digest = hashlib.sha256(data)
    cursor.fetch("SELECT pg_advisory_xact_lock_shared(?)", (_BLOBS,))
    insert = "INSERT INTO windlass_files(hash, data) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING"
    cursor.execute(insert, (digest.digest(), data))
    insert = "INSERT INTO windlass_file_users(session, hash) VALUES (?, ?) ON CONFLICT (session, hash) DO NOTHING"
    cursor.execute(insert, (found[0][0], digest.digest()))
    return digest.hexdigest()


_GET_FILE = """
SELECT f.data FROM windlass_sessions s JOIN windlass_file_users u ON u.session = s.no
JOIN windlass_files f ON f.hash = u.hash WHERE s.key = ? AND u.hash = ?"""


def _drop_files(cursor: Cursor, number: int) -> None:
    gone = cursor.fetch("DELETE FROM windlass_file_users WHERE session = ? RETURNING hash", (number,))
    if gone:
        cursor.fetch("SELECT pg_advisory_xact_lock(?)", (_BLOBS,))
        cursor.execute_many(
            "DELETE FROM windlass_files WHERE hash = ? "
            "AND NOT EXISTS (SELECT 1 FROM windlass_file_users WHERE hash = windlass_files.hash)",
            sorted(gone),
        )


def _holds(cursor: Cursor, tenant: str, session: str, rows: Sequence[Row]) -> bool:
    return bool(rows) and _read(cursor, tenant, session, rows[0].pos, rows[-1].pos + 1) == list(rows)


def _insert(cursor: Cursor, number: int, rows: Sequence[Row]) -> None:
    keys = {row.pos: hashlib.sha256(row.data).digest() for row in rows if len(row.data) > BLOB_BYTES}
    if keys:
        cursor.fetch("SELECT pg_advisory_xact_lock_shared(?)", (_BLOBS,))
        cursor.execute_many(
            "INSERT INTO windlass_blobs(key, data) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
            # In one order everywhere: two that insert the same ones wait for each other in turn.
            sorted({keys[row.pos]: row.data for row in rows if row.pos in keys}.items()),
        )
    cursor.execute_many(
        "INSERT INTO windlass_rows(session, pos, kind, run, time, version, data, blob_key) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (number, row.pos, row.kind, row.run, row.time, row.version, None if blob else row.data, blob)
            for row in rows
            for blob in [keys.get(row.pos)]
        ],
    )
    cursor.execute(
        "UPDATE windlass_sessions SET length = ?, updated = ? WHERE no = ?", (rows[-1].pos + 1, rows[-1].time, number)
    )


def _create(
    cursor: Cursor, tenant: str, session: str, row: Row, title: str, parent: int | None, pos: int | None
) -> int | None:
    """Return the number of a new session, None when another writer makes the same one and was first."""
    values = (_key(tenant, session), _tenant_key(tenant), tenant, session, title, row.time, row.time, parent, pos)
    made = cursor.fetch(
        "INSERT INTO windlass_sessions(key, tenant_key, tenant, id, title, length, created, updated, parent, "
        "parent_pos) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING RETURNING no",
        values,
    )
    return made[0][0] if made else None


def _create_fork(cursor: Cursor, tenant: str, session: str, row: Row, fork: Fork) -> int | None:
    # The parent may grow meanwhile, and may not go.
    find = "SELECT no, length, title FROM windlass_sessions WHERE key = ? FOR KEY SHARE"
    found = cursor.fetch(find, (_key(tenant, fork.parent),))
    check_fork(session, fork, found[0][1] if found else None)
    if not found:
        return _create(cursor, tenant, session, row, "", None, None)
    number, _, title = found[0]
    made = _create(cursor, tenant, session, row, title if fork.pos else "", number, fork.pos)
    if made is not None and fork.pos:
        copy = (
            "INSERT INTO windlass_file_users(session, hash) SELECT ?, hash FROM windlass_file_users WHERE session = ?"
        )
        cursor.execute(copy, (made, number))
    return made


#: Climb from a fork to those whose rows it shares; each gives its rows from its own first up to where it was forked.
_READ = """
WITH RECURSIVE line(no, parent, base, upto) AS (
    SELECT no, parent, coalesce(parent_pos, 0), CAST(? AS INTEGER) FROM windlass_sessions WHERE key = ?
    UNION ALL
    SELECT s.no, s.parent, coalesce(s.parent_pos, 0), least(line.upto, line.base)
    FROM line JOIN windlass_sessions s ON s.no = line.parent AND s.no < line.no)
SELECT r.pos, r.kind, r.run, r.time, coalesce(r.data, b.data), r.version
FROM line JOIN windlass_rows r ON r.session = line.no AND r.pos >= greatest(line.base, ?) AND r.pos < line.upto
LEFT JOIN windlass_blobs b ON b.key = r.blob_key
ORDER BY r.pos"""


def _read(cursor: Cursor, tenant: str, session: str, start: int, end: int) -> list[Row]:
    rows = [Row(*values) for values in cursor.fetch(_READ, (end, _key(tenant, session), start))]
    for place, row in enumerate(rows, start):
        data: Any = row.data
        if row.pos != place or data is None:
            raise StoreError(
                f"The ledger is damaged: row {place} of session {session!r} is missing.",
                hint="Put the database back from a backup, or delete the session.",
            )
    return rows


_LIST = """
SELECT s.id, s.length, s.created, s.updated, s.title, p.id, s.parent_pos
FROM windlass_sessions s LEFT JOIN windlass_sessions p ON p.no = s.parent AND p.key IS NOT NULL
WHERE s.tenant_key = ? AND s.key IS NOT NULL ORDER BY s.updated DESC, s.no DESC LIMIT ?"""


def _delete(cursor: Cursor, tenant: str, session: str) -> bool:
    find = "SELECT no FROM windlass_sessions WHERE key = ? FOR UPDATE"
    found = cursor.fetch(find, (_key(tenant, session),))
    if not found:
        return False
    number: int | None = found[0][0]
    cursor.execute("UPDATE windlass_sessions SET key = NULL, id = '', title = '' WHERE no = ?", (number,))
    _drop_files(cursor, found[0][0])
    # Then keep of it, and of what was deleted above it, only what forks still share.
    while number is not None:
        # Whoever deletes another fork of the same parent does so before us or after us.
        find = "SELECT key, parent FROM windlass_sessions WHERE no = ? FOR UPDATE"
        key, parent = cursor.fetch(find, (number,))[0]
        if key is not None:
            break
        find = "SELECT coalesce(max(parent_pos), 0) FROM windlass_sessions WHERE parent = ?"
        shared = cursor.fetch(find, (number,))[0][0]
        _delete_rows(cursor, number, shared)
        if shared:
            break
        cursor.execute("UPDATE windlass_sessions SET parent = NULL, parent_pos = NULL WHERE parent = ?", (number,))
        cursor.execute("DELETE FROM windlass_sessions WHERE no = ?", (number,))
        number = parent
    return True


def _delete_rows(cursor: Cursor, number: int, first: int) -> None:
    gone = cursor.fetch(
        "WITH gone AS (DELETE FROM windlass_rows WHERE session = ? AND pos >= ? RETURNING blob_key) "
        "SELECT DISTINCT blob_key FROM gone WHERE blob_key IS NOT NULL ORDER BY blob_key",
        (number, first),
    )
    if gone:
        cursor.fetch("SELECT pg_advisory_xact_lock(?)", (_BLOBS,))
        cursor.execute_many(
            "DELETE FROM windlass_blobs WHERE key = ? "
            "AND NOT EXISTS (SELECT 1 FROM windlass_rows WHERE blob_key = windlass_blobs.key)",
            gone,
        )
