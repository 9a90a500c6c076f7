"""Open a ledger file: create it, check that it is ours and not newer, migrate it, and translate SQLite's errors.

Tables: `sessions` numbers each (tenant, id); `rows` has one row per event under `number << 32 | position`; `blobs`
holds row data over 16 kB once per content, and the row holds its integer key instead. A deleted session that forks
still share stays as a row of `sessions` without an id. A kind is a code of `KINDS`, or its name when it has none.
Contents of files have tables of their own, made when the first is kept (`windlass.stores.contents`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from windlass.core import clock
from windlass.core.errors import SessionVersionError, StoreError, WindlassError
from windlass.stores.filesystem import make_private, warn_if_network

__all__ = [
    "APPLICATION_ID",
    "CODES",
    "KINDS",
    "MIGRATIONS",
    "PAGE_SIZE",
    "SALVAGE_HINT",
    "FileFormat",
    "Migration",
    "back_up",
    "open_file",
    "open_ledger",
    "store_error",
]

APPLICATION_ID = 0x57494E44  # "WIND"
PAGE_SIZE = 4096

#: The kinds with a code. Frozen with schema version 1: a kind added to this list needs a migration, and none needs
#: to be added, because other kinds are kept by name.
KINDS = (
    "session.created", "session.forked", "session.rewound", "run.started", "run.finished", "message.added",
    "tool.started", "tool.finished", "permission.requested", "permission.resolved", "provider.switched",
    "context.compacted", "budget.exceeded", "skill.activated", "step.finished", "checkpoint.saved", "input.queued",
    "file.changed", "config.changed", "row.lost",
)  # fmt: skip
CODES = {name: code for code, name in enumerate(KINDS)}

_SCHEMA = (
    "CREATE TABLE sessions(no INTEGER PRIMARY KEY, tenant TEXT NOT NULL, id TEXT, created INTEGER NOT NULL, "
    "title TEXT NOT NULL, parent INTEGER, parent_pos INTEGER, UNIQUE(tenant, id))",
    "CREATE TABLE rows(id INTEGER PRIMARY KEY, kind NOT NULL, run INTEGER NOT NULL, time INTEGER NOT NULL, "
    "version INTEGER NOT NULL, data NOT NULL)",
    "CREATE TABLE blobs(key INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE INDEX blob_users ON rows(data) WHERE typeof(data) = 'integer'",
)

Migration = Callable[[sqlite3.Connection], None]
#: Step i turns schema version i + 1 into i + 2, inside one transaction.
MIGRATIONS: tuple[Migration, ...] = ()


class FileFormat(NamedTuple):
    """What a kind of file holds when it is new, the id by which it is told, and the steps since version 1."""

    application_id: int
    statements: Sequence[str]
    migrations: Sequence[Migration] = ()


def open_ledger(
    path: Path, *, synchronous: str, busy_timeout: float, migrations: Sequence[Migration] = MIGRATIONS
) -> sqlite3.Connection:
    """Return a connection to the ledger at `path`; see `open_file`."""
    shape = FileFormat(APPLICATION_ID, _SCHEMA, migrations)
    return open_file(path, shape, synchronous=synchronous, busy_timeout=busy_timeout)


def open_file(path: Path, shape: FileFormat, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    """Return a connection in autocommit mode to the file at `path`, made (0600, WAL) or migrated as needed.

    Raises SessionVersionError for a newer schema and StoreError for another program's file, both before anything is
    written; sqlite3.Error and OSError for the rest.
    """
    make_private(path)
    newest = 1 + len(shape.migrations)
    _refuse(path, shape.application_id, newest)
    warn_if_network(path)
    conn = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=busy_timeout, isolation_level=None)
    try:
        if _pragma(conn, "user_version") == 0:
            _create(conn, shape, busy_timeout)
        conn.execute(f"PRAGMA synchronous = {synchronous}")
        # A deleted conversation is overwritten, not only unlinked.
        conn.execute("PRAGMA secure_delete = ON")
        version = _pragma(conn, "user_version")
        # Again: a newer program may have come in between.
        _check_version(path, version, newest)
        if version < newest:
            _migrate(conn, path, shape.migrations)
    except BaseException:
        conn.close()
        raise
    return conn


def _pragma(conn: sqlite3.Connection, name: str) -> int:
    return int(conn.execute(f"PRAGMA {name}").fetchone()[0])


def _refuse(path: Path, ours: int, newest: int) -> None:
    """Look at an existing file without changing anything in its folder.

    Through SQLite, because closing a descriptor of our own would drop this process's locks on the file. Without a log
    the file is complete, and `immutable` makes none. With one, a read-only connection reads it and never checkpoints.
    """
    if path.stat().st_size == 0:
        return
    mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None)) as conn:
        version, application = _pragma(conn, "user_version"), _pragma(conn, "application_id")
        if application == ours:
            _check_version(path, version, newest)
        if application != ours and conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise StoreError(
                f"{path} is a database of another program (application id {application:#x}).",
                hint="Choose another path. The file was not changed.",
            )


def _check_version(path: Path, version: int, newest: int) -> None:
    if version > newest:
        raise SessionVersionError(
            f"{path} has schema version {version}; this version of windlass reads up to {newest}.",
            hint="Upgrade windlass. The file was not changed.",
        )


def _until_free(conn: sqlite3.Connection, sql: str, seconds: float) -> None:
    """Execute what SQLite's own busy wait does not cover: the switch to WAL while another process opens the file."""
    until = clock.monotonic() + seconds
    while True:
        try:
            conn.execute(sql)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock.monotonic() >= until:
                raise
        threading.Event().wait(0.01)


def _create(conn: sqlite3.Connection, shape: FileFormat, busy_timeout: float) -> None:
    # Page size and auto-vacuum take hold only before the first page is written.
    conn.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    conn.execute("PRAGMA auto_vacuum = FULL")
    _until_free(conn, "PRAGMA journal_mode = WAL", busy_timeout)
    conn.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have made it while we waited for the lock.
        if _pragma(conn, "user_version") == 0:
            for statement in shape.statements:
                conn.execute(statement)
            conn.execute(f"PRAGMA application_id = {shape.application_id}")
            conn.execute("PRAGMA user_version = 1")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _migrate(conn: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Run the missing steps in one transaction, after a copy was saved beside the file as `NAME.vN.bak`."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = _pragma(conn, "user_version")
        if version <= len(migrations):
            back_up(path, f"v{version}")
            for step in migrations[version - 1 :]:
                step(conn)
            conn.execute(f"PRAGMA user_version = {1 + len(migrations)}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def back_up(path: Path, tag: str) -> None:
    """Save what is committed in the file beside it as `NAME.TAG.bak`, for a caller that holds the write lock."""
    part = path.with_name(f"{path.name}.{tag}.part")
    part.unlink(missing_ok=True)
    make_private(part)
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source, closing(sqlite3.connect(part)) as to:
        source.backup(to)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path.with_name(f"{path.name}.{tag}.bak"))


SALVAGE_HINT = (
    "Close it and copy what is readable with windlass.stores.salvage.salvage(path, into); the file stays as it is."
)
#: Primary result code -> what happened, what to do next.
_SAYS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: (
        "is busy: another process kept its write lock for longer than the busy timeout; nothing was kept.",
        "Try again, or end the process that holds it.",
    ),
    sqlite3.SQLITE_FULL: ("could not grow: the disk is full; nothing was kept.", "Free some space and try again."),
    sqlite3.SQLITE_IOERR: (
        "had an I/O error; what was being written counts as not kept.",
        "Check the disk (space, quota, kernel log), then read the session again before going on.",
    ),
    sqlite3.SQLITE_CORRUPT: ("is damaged.", SALVAGE_HINT),
    sqlite3.SQLITE_TOOBIG: ("cannot hold a row of that size; nothing was kept.", "Keep rows under 1 GB."),
}
_SAYS[sqlite3.SQLITE_NOTADB] = _SAYS[sqlite3.SQLITE_CORRUPT]
_NOT_WRITABLE = (
    "cannot be written.",
    "Check the folder's permissions and that its file system is not read-only; to go on without keeping anything, "
    "ask for the memory store explicitly.",
)


def store_error(error: BaseException, path: Path, what: str = "Ledger") -> WindlassError:
    """Return the typed error for what went wrong with the file at `path`; our own errors pass unchanged."""
    if isinstance(error, WindlassError):
        return error
    code: Any = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, OSError) or code is None:
        fallback = _NOT_WRITABLE if isinstance(error, OSError) else ("failed; nothing was kept.", "")
        said, hint = fallback
    elif code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        said, hint = _NOT_WRITABLE
    else:
        said, hint = _SAYS.get(code & 0xFF, ("failed; nothing was kept.", ""))
        if hint == SALVAGE_HINT and what != "Ledger":
            hint = "Put a copy of it back from a backup; the file stays as it is."
    out = StoreError(f"{what} {path} {said} ({error})", hint=hint)
    out.__cause__ = error
    return out
