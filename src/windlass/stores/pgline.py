"""One PostgreSQL connection, and units of work that survive what a server does to them.

A unit is tried again, bounded, when the server certainly rolled it back: a serialization failure, a deadlock, a
connection lost before its COMMIT was sent. Lost after that, nobody knows: only idempotent work is done once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

from windlass.core import clock
from windlass.core.errors import StoreConflict, StoreError, WindlassError
from windlass.stores.pgurl import Address, Refused, connect, with_grace
from windlass.stores.portable import Cursor, Dialect, Statement

__all__ = ["SETUP_SECONDS", "Isolation", "Line", "Outage", "Work"]

T = TypeVar("T")
Work = Callable[[Cursor], T]
#: None: one statement by itself. Each statement of READ COMMITTED sees what was committed before it began.
Isolation = Literal["SERIALIZABLE", "READ COMMITTED"] | None
#: Seconds that a migration may take, or wait for another process's.
SETUP_SECONDS = 600.0
#: Rolled back by the server, which asks for another try (https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html).
_AGAIN = {"40001", "40P01"}
#: The session is over or of no more use: shut down, crashed, timed out, or on a server that has become a standby.
_GONE = {"57P01", "57P02", "57P03", "57P05", "25P03", "25006"}
_SAYS = {
    "57014": ("took longer than {timeout:g} seconds; nothing was kept.", "Ask for less at once, or raise the timeout."),
    "55P03": ("is busy: a lock was held for too long; nothing was kept.", "Try again."),
    "53100": ("is full; nothing was kept.", "Free some space on the server and try again."),
    "42501": ("refused: the user has no right to this; nothing was kept.", "Grant it, or name another user."),
}


class _Retry(Exception):
    """A try that came to nothing. `lost`: its connection too. `unknown`: it may have been committed all the same.

    `error` is for when there is no other try; `final`: there is none.
    """

    def __init__(self, error: WindlassError, *, lost: bool = False, unknown: bool = False, final: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.lost, self.unknown, self.final = error, lost, unknown, final


class Outage:
    """What all connections of a pool know of a server that cannot be reached: since when, and what it said last."""

    def __init__(self) -> None:
        self.text = ""
        self.began = self.tried = 0.0

    def note(self, text: str) -> None:
        """Note that a connection did not come about ('': that one did)."""
        self.tried = clock.monotonic()
        if not self.text:
            self.began = self.tried
        self.text = text

    def is_longer_than(self, seconds: float) -> bool:
        """Say whether nobody has reached the server for that long."""
        return bool(self.text) and clock.monotonic() >= self.began + seconds


class _Cursor(Cursor):
    dialect: Dialect = "postgresql"

    def __init__(self, line: Line, conn: Any, repeated: bool) -> None:
        super().__init__()
        self._line, self._conn = line, conn
        self.repeated = repeated

    def explain(self, error: Exception) -> WindlassError:
        return self._line.explain(error)

    def _execute(self, statement: Statement, values: tuple[Any, ...]) -> int:
        done = self._conn.execute(statement.postgresql, values)
        return 0 if statement.reads else max(done.rowcount, 0)

    def _execute_many(self, statement: Statement, values: list[tuple[Any, ...]]) -> None:
        with self._conn.cursor() as cursor:
            cursor.executemany(statement.postgresql, values)

    def _fetch(self, statement: Statement, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self._conn.execute(statement.postgresql, values).fetchall()


class Line:
    """One connection, opened when it is needed and replaced when it is lost; used by one thread at a time."""

    def __init__(self, address: Address, timeout: float, patience: float, outage: Outage) -> None:
        self._address, self._timeout, self._patience, self._outage = address, timeout, patience, outage
        self._conn: Any = None

    def unit(self, work: Work[T], isolation: Isolation, idempotent: bool, limit: float | None = None) -> T:
        """Run a unit of work until it is committed, refused, or out of patience (seconds since the first failure)."""
        end: float | None = None
        unknown: WindlassError | None = None
        pause = 0.01
        while True:
            try:
                return self._try(work, isolation, unknown is not None, limit or self._timeout)
            except _Retry as failed:
                if failed.unknown:
                    unknown = failed.error
                now = clock.monotonic()
                end = end if end is not None else now + self._patience
                # Who comes after a long outage began does not wait as long as the first.
                over = now >= end or self._outage.is_longer_than(self._patience)
                if over or failed.final or (unknown is not None and not idempotent):
                    raise unknown or failed.error from None
            threading.Event().wait(pause * (0.5 + clock.random()))
            pause = min(pause * 2, 0.5)

    def close(self) -> None:
        """Let go of the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def explain(self, error: Exception) -> WindlassError:
        """Return the typed error for what psycopg raised: its own words, less the rows and passwords in them."""
        where, state = self._address.where, getattr(error, "sqlstate", None)
        if isinstance(error, WindlassError):
            return error
        if state == "23505":
            return StoreConflict(f"Database {where}: such a row is there already; nothing was kept.")
        said, hint = _SAYS.get(state or "", ("failed; nothing was kept.", ""))
        # The primary message alone: the detail that follows it quotes rows.
        told = self._address.scrub(getattr(getattr(error, "diag", None), "message_primary", None) or str(error))
        cause = f"{state}: {told}" if state else told
        return StoreError(f"Database {where} {said.format(timeout=self._timeout)} ({cause})", hint=hint)

    def _try(self, work: Work[T], isolation: Isolation, repeated: bool, limit: float) -> T:
        conn = self._connection(limit)
        cursor = _Cursor(self, conn, repeated)
        try:
            if isolation is not None:
                conn.execute(f"BEGIN ISOLATION LEVEL {isolation}")
                if limit != self._timeout:
                    conn.execute(f"SET LOCAL statement_timeout = {int(limit * 1000)}")
        except Exception as error:
            raise self._failed(conn, error) from None
        value: Any = None
        raised: BaseException | None = None
        try:
            value = work(cursor)
        except BaseException as error:  # raised again below, once the transaction is taken back
            raised = error
        if cursor.failure is not None:
            failure = self._failed(conn, cursor.failure)
            if isinstance(failure, _Retry):
                raise failure from None
            raised = raised or failure
        if raised is not None:
            self._roll_back(conn)
            raise raised
        if isolation is not None:
            self._commit(conn)
        return value

    def _commit(self, conn: Any) -> None:
        try:
            status = conn.execute("COMMIT").statusmessage
        except Exception as error:
            failure = self._failed(conn, error)
            if not (isinstance(failure, _Retry) and failure.lost):
                self._roll_back(conn)
                raise failure from None
            text = f"Database {self._address.where} was lost while it committed: whether it was kept is unknown."
            unknown = StoreError(text, hint="Read what is there before doing it again.")
            raise _Retry(unknown, lost=True, unknown=True) from None
        if status != "COMMIT":
            raise StoreError(f"Database {self._address.where} rolled back instead of committing; nothing was kept.")

    def _failed(self, conn: Any, error: Exception) -> Exception:
        """Return what to raise for an error of the driver; a lost connection is dropped, its transaction with it."""
        state: str = getattr(error, "sqlstate", None) or ""
        if conn.closed or state in _GONE or state.startswith("08") or (not state and self._hung(conn)):
            self._drop()
            return _Retry(self.explain(error), lost=True)
        if state in _AGAIN:
            self._roll_back(conn)
            return _Retry(self.explain(error))
        return self.explain(error)

    @staticmethod
    def _hung(conn: Any) -> bool:
        """Say whether a statement is still being waited for: the connection cannot be used again."""
        return conn.info.transaction_status.name in ("ACTIVE", "UNKNOWN")

    def _roll_back(self, conn: Any) -> None:
        if conn.closed or conn.info.transaction_status.name == "IDLE":
            return
        try:
            conn.execute("ROLLBACK")
        except Exception:
            # The server rolls back what belongs to a connection that is closed.
            self._drop()

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):
                conn.close()

    def _connection(self, limit: float) -> Any:
        if self._conn is None:
            self._conn = self._connect()
        self._conn.limit = with_grace(limit)
        return self._conn

    def _connect(self) -> Any:
        outage, where, said = self._outage, self._address.where, self._outage.text
        hint = "Check that the server runs, and the address."
        if outage.is_longer_than(self._patience) and clock.monotonic() < outage.tried + 1.0:
            raise _Retry(StoreError(said, hint=hint))
        try:
            conn = connect(self._address, self._timeout)
        except Refused as error:
            text = f"Database {where} cannot be connected to. ({self._address.scrub(str(error))})"
            raise _Retry(StoreError(text, hint="Check the address, the user and the password."), final=True) from None
        except Exception as error:
            text = f"Database {where} cannot be reached. ({self._address.scrub(str(error))})"
            outage.note(text)
            raise _Retry(StoreError(text, hint=hint)) from None
        outage.note("")
        return conn
