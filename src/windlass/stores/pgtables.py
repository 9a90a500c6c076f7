"""Small tables in a PostgreSQL database, shared by several processes and machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from windlass.stores.pgline import SETUP_SECONDS
from windlass.stores.pgpool import Pool
from windlass.stores.pgurl import read_url
from windlass.stores.portable import ROOMS, Cursor, Dialect, parse, run_steps

__all__ = ["PostgresTables", "migrate_room"]

T = TypeVar("T")
#: The advisory lock of all our migrations in a database.
_MIGRATING = 0x57494E44_00000001


class PostgresTables:
    """Keep small tables in the database that `url` names (`postgresql://…`), reached at the first call; see `Tables`.

    `size` bounds the connections, `timeout` (seconds) a statement, `patience` (seconds) the tries of one unit of work
    after its first failure. May be used from several event loops and threads. Raises ConfigError for a malformed URL,
    and when psycopg is not installed.
    """

    dialect: Dialect = "postgresql"

    def __init__(self, url: str, *, size: int = 4, timeout: float = 30.0, patience: float = 10.0) -> None:
        self._address = read_url(url)
        self._pool = Pool(self._address, size=size, timeout=timeout, patience=patience)

    def __repr__(self) -> str:
        return f"PostgresTables({self._address.where!r})"

    async def migrate(self, room: str, steps: Sequence[str]) -> None:
        """Run the steps of a room that were not run yet, all or none; see `Tables.migrate`."""
        given, where = tuple(steps), self._address.where
        await self._pool.submit(
            lambda cursor: migrate_room(cursor, room, given, where),
            isolation="READ COMMITTED",
            idempotent=True,
            limit=SETUP_SECONDS,
        )

    async def execute(self, sql: str, params: Sequence[Any] = (), *, idempotent: bool = False) -> int:
        """Run one statement and return how many rows it changed, once that is committed."""
        values = tuple(params)
        return await self._statement(lambda cursor: cursor.execute(sql, values), idempotent)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]], *, idempotent: bool = False) -> None:
        """Run one statement for each row of parameters, in one transaction."""
        values = [tuple(row) for row in rows]
        await self._statement(lambda cursor: cursor.execute_many(sql, values), idempotent)

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or of a change with RETURNING once that is committed."""
        values = tuple(params)
        if parse(sql).reads:
            return await self._pool.submit(lambda cursor: cursor.fetch(sql, values), isolation=None)
        return await self._statement(lambda cursor: cursor.fetch(sql, values), False)

    async def transact(self, work: Callable[[Cursor], T], *, idempotent: bool = False) -> T:
        """Run `work` as one serializable transaction and return what it returns; see `Tables`."""
        return await self._pool.submit(work, idempotent=idempotent)

    async def close(self) -> None:
        """Finish what was asked for, and close every connection."""
        await self._pool.close()

    async def _statement(self, work: Callable[[Cursor], T], idempotent: bool) -> T:
        # One statement needs no more: a row that another changes meanwhile is waited for, and its condition looked at
        # again, where a serializable transaction would have to be repeated.
        return await self._pool.submit(work, isolation="READ COMMITTED", idempotent=idempotent)


def migrate_room(cursor: Cursor, room: str, steps: Sequence[str], where: str) -> None:
    """Run the missing steps of a room in the transaction of `cursor`, one process of all at a time."""
    cursor.fetch("SELECT pg_advisory_xact_lock(?)", (_MIGRATING,))
    # Asked first, because a user who may not make tables can work with those that somebody else has made.
    if cursor.fetch("SELECT to_regclass('windlass_rooms') IS NULL") == [(1,)]:
        cursor.execute(ROOMS)
    run_steps(cursor, room, steps, where)
