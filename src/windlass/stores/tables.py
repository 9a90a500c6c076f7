"""Small tables beside the sessions (keys, budgets, request records, caches): one SQL text, SQLite or PostgreSQL.

`windlass.stores.portable` says which SQL both databases speak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from windlass.core.errors import ConfigError
from windlass.stores.pgtables import PostgresTables
from windlass.stores.portable import Cursor, Dialect
from windlass.stores.tablefile import SqliteTables

__all__ = ["Cursor", "PostgresTables", "SqliteTables", "Tables", "open_tables"]

T = TypeVar("T")


class Tables(Protocol):
    """A database of small tables. What is acknowledged is committed; nothing blocks the event loop.

    Every call raises StoreError when the database fails (StoreConflict: a row with that key is there already),
    ValueError for SQL or parameters outside the subset, and StoreError after `close`. On PostgreSQL a unit of work is
    tried again, bounded, when the server rolled it back (serialization failure, deadlock, restart); when the connection
    is lost while it is committed, nobody knows whether it was kept: that raises StoreError that says so, unless
    `idempotent` says that doing it twice is the same as once. A cancelled call is kept wholly or not at all.
    """

    @property
    def dialect(self) -> Dialect: ...

    async def migrate(self, room: str, steps: Sequence[str]) -> None:
        """Bring the tables of a room to version `len(steps)`, all missing steps or none; several processes may at once.

        A step is SQL text of one or more statements. Steps are only ever added at the end. Raises SessionVersionError
        when a newer program has run more steps than these.
        """
        ...

    async def execute(self, sql: str, params: Sequence[Any] = (), *, idempotent: bool = False) -> int:
        """Run one statement in a transaction and return how many rows it changed."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]], *, idempotent: bool = False) -> None:
        """Run one statement for each row of parameters, in one transaction."""
        ...

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of one query as one snapshot, or of a change with RETURNING."""
        ...

    async def transact(self, work: Callable[[Cursor], T], *, idempotent: bool = False) -> T:
        """Run `work` in a thread as one serializable transaction and return what it returns, once it is committed.

        `work` may be called several times, so it changes nothing but the database. What it raises is raised here
        unchanged, and nothing is kept. It holds up other writers: keep it short.
        """
        ...

    async def close(self) -> None:
        """Finish what was asked for and let go of the database."""
        ...


def open_tables(url: str) -> Tables:
    """Return the database that a URL names: `sqlite:PATH` or `postgresql://…`; it is opened at first use.

    Raises ConfigError for anything else, and where PostgreSQL's driver is not installed.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "sqlite":
        return SqliteTables(rest)
    if colon and scheme in ("postgresql", "postgres"):
        return PostgresTables(url)
    raise ConfigError(
        f"{scheme if colon else 'A text without a scheme'} names no kind of database.",
        hint="Write sqlite:PATH or postgresql://user@host/database.",
    )
