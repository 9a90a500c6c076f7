"""Small tables in one SQLite file: the lanes of the ledger (group commit), with one savepoint for each unit of work."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from windlass.core.errors import ConfigError, StoreConflict, WindlassError
from windlass.stores import schema
from windlass.stores.lanes import FileKind, FileUse, Lane
from windlass.stores.portable import ROOMS, Cursor, Dialect, Statement, parse, run_steps

__all__ = ["APPLICATION_ID", "SqliteTables"]

APPLICATION_ID = 0x57495442  # "WITB"
_SHAPE = schema.FileFormat(APPLICATION_ID, (parse(ROOMS).sqlite,))
T = TypeVar("T")
#: A row with this key is there already.
_TAKEN = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
#: After these the transaction stands as before the statement; anything else is the lane's to take back.
_STATEMENT_ONLY = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}


def _open(path: Path, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    conn = schema.open_file(path, _SHAPE, synchronous=synchronous, busy_timeout=busy_timeout)
    # As PostgreSQL has them.
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA case_sensitive_like = ON")
    return conn


def _explain(error: BaseException, path: Path) -> WindlassError:
    code: int = getattr(error, "sqlite_errorcode", None) or 0
    if code in _TAKEN:
        return StoreConflict(f"Database {path}: such a row is there already; nothing was kept. ({error})")
    return schema.store_error(error, path, "Database")


_TABLES = FileKind(_open, _explain)


class _Cursor(Cursor):
    dialect: Dialect = "sqlite"

    def __init__(self, conn: sqlite3.Connection, path: Path) -> None:
        super().__init__()
        self._conn, self._path = conn, path

    def explain(self, error: Exception) -> WindlassError:
        return _explain(error, self._path)

    def _execute(self, statement: Statement, values: tuple[Any, ...]) -> int:
        done = self._conn.execute(statement.sqlite, values)
        # A change with RETURNING counts its rows as they are read.
        done.fetchall()
        return 0 if statement.reads else max(done.rowcount, 0)

    def _execute_many(self, statement: Statement, values: list[tuple[Any, ...]]) -> None:
        self._conn.executemany(statement.sqlite, values)

    def _fetch(self, statement: Statement, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self._conn.execute(statement.sqlite, values).fetchall()


class _Ended(NamedTuple):
    """What a unit of work came to; an error stays with it, so that others in the same transaction are kept."""

    value: Any
    error: BaseException | None


def _unit(work: Callable[[Cursor], Any], path: Path, conn: sqlite3.Connection) -> _Ended:
    """Run one unit inside the lane's transaction, or take back all of it."""
    cursor = _Cursor(conn, path)
    conn.execute("SAVEPOINT unit")
    value: Any = None
    error: BaseException | None = None
    try:
        value = work(cursor)
    except BaseException as raised:  # it belongs to whoever waits; the lane goes on
        error = raised
    failure = cursor.failure
    if failure is None and error is None:
        conn.execute("RELEASE unit")
        return _Ended(value, None)
    if failure is not None and getattr(failure, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in _STATEMENT_ONLY:
        raise failure
    conn.execute("ROLLBACK TO unit")
    conn.execute("RELEASE unit")
    return _Ended(None, error if error is not None or failure is None else cursor.explain(failure))


class SqliteTables:
    """Keep small tables in the SQLite file at `path`, made at the first call with mode 0600; see `Tables`.

    `synchronous` NORMAL: what is acknowledged survives kill -9, and a power cut may take the last writes; FULL: it
    survives that too. `busy_timeout`, in seconds, bounds the wait for another process's write lock. May be used from
    several event loops and threads; units of work of one process run one after the other and share commits.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, path: str | Path, *, synchronous: str = "NORMAL", busy_timeout: float = 5.0) -> None:
        if str(path) in ("", ":memory:"):
            raise ConfigError("SqliteTables needs the path of a file.", hint="Write sqlite:PATH.")
        if synchronous not in ("NORMAL", "FULL", "EXTRA"):
            raise ConfigError(f"synchronous is {synchronous!r}.", hint="Use NORMAL, FULL or EXTRA.")
        #: The file, absolute, symbolic links resolved.
        self.path = Path(path).expanduser().resolve()
        self._use = FileUse(self.path, synchronous, busy_timeout, _TABLES, "database")

    async def migrate(self, room: str, steps: Sequence[str]) -> None:
        """Run the steps of a room that were not run yet, all or none; see `Tables.migrate`.

        Before the first of them a file that has tables of this room is copied to `NAME.ROOM-vN.bak`.
        """
        steps = tuple(steps)

        def back_up(version: int) -> None:
            schema.back_up(self.path, f"{room}-v{version}")

        await self.transact(lambda cursor: run_steps(cursor, room, steps, f"{self.path}", back_up))

    async def execute(self, sql: str, params: Sequence[Any] = (), *, idempotent: bool = False) -> int:
        """Run one statement and return how many rows it changed, once that is committed."""
        values = tuple(params)
        return await self.transact(lambda cursor: cursor.execute(sql, values), idempotent=idempotent)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]], *, idempotent: bool = False) -> None:
        """Run one statement for each row of parameters, in one transaction."""
        values = [tuple(row) for row in rows]
        await self.transact(lambda cursor: cursor.execute_many(sql, values), idempotent=idempotent)

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or of a change with RETURNING once that is committed."""
        values = tuple(params)
        lane = self._use.lanes().reader if parse(sql).reads else self._use.lanes().writer
        return await self._submit(lane, lambda cursor: cursor.fetch(sql, values))

    async def transact(self, work: Callable[[Cursor], T], *, idempotent: bool = False) -> T:
        """Run `work` in the writer's thread and return what it returns, once that is committed; see `Tables`."""
        del idempotent  # here it is always known what was committed
        return await self._submit(self._use.lanes().writer, work)

    async def close(self) -> None:
        """Give the file up; the last user of the process leaves one checkpointed file."""
        await self._use.close()

    async def _submit(self, lane: Lane, work: Callable[[Cursor], T]) -> T:
        ended = await lane.submit(partial(_unit, work, self.path))
        if ended.error is not None:
            raise ended.error
        return ended.value
