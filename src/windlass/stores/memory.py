"""Keep ledgers in this process's memory: for tests, for one-off runs, and where nothing may touch the disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from msgspec import Struct

from windlass.core.errors import StoreError
from windlass.core.ports import Row, SessionInfo
from windlass.stores.rows import check_fork, check_rows, conflict, fork_of, title_of

__all__ = ["MemoryStore"]


class _Session(Struct):
    """All visible rows (a fork's list begins with its parent's rows, by reference) and where its own begin."""

    id: str
    rows: list[Row]
    base: int
    title: str
    parent: _Session | None
    number: int
    alive: bool = True

    def info(self) -> SessionInfo:
        parent = self.parent if self.parent is not None and self.parent.alive else None
        return SessionInfo(
            self.id,
            len(self.rows),
            self.rows[self.base].time,
            self.rows[-1].time,
            self.title,
            parent.id if parent else None,
            self.base if parent else None,
        )


class MemoryStore:
    """Keep sessions until the process ends; the rules are those of the `Store` port.

    May be used from several event loops and threads. After `close` every call raises StoreError.
    """

    #: `append` never waits, so nobody needs to guard it against a cancellation half-way.
    immediate = True

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("This memory store is closed.", hint="Make a new one.")

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        """Keep all rows or none. Raises StoreConflict, ValueError, and SessionNotFound for a fork without parent."""
        rows = list(rows)
        check_rows(rows, expected_pos)
        fork = fork_of(rows)
        with self._lock:
            self._check_open()
            found = self._sessions.get((tenant, session))
            if found is None and fork is not None:
                parent = self._sessions.get((tenant, fork.parent))
                check_fork(session, fork, None if parent is None else len(parent.rows))
                shared, title = (parent.rows[: fork.pos], parent.title) if parent and fork.pos else ([], "")
                self._add(tenant, _Session(session, shared + rows, fork.pos, title, parent, self._count))
                return
            length = len(found.rows) if found else 0
            if length != expected_pos:
                raise conflict(session, length, expected_pos)
            if found is not None:
                found.rows.extend(rows)
            elif rows:
                self._add(tenant, _Session(session, rows, 0, title_of(rows[0]), None, self._count))

    def _add(self, tenant: str, session: _Session) -> None:
        self._sessions[tenant, session.id] = session
        self._count += 1

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        """Return the rows of positions [start, end), [] for an unknown session."""
        with self._lock:
            self._check_open()
            found = self._sessions.get((tenant, session))
            return found.rows[max(start, 0) : None if end is None else max(end, 0)] if found else []

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        """Return up to `limit` sessions of a tenant, the one with the newest last row first."""
        with self._lock:
            self._check_open()
            found = [one for (owner, _), one in self._sessions.items() if owner == tenant]
            found.sort(key=lambda one: (one.rows[-1].time, one.number), reverse=True)
            return [one.info() for one in found[: max(limit, 0)]]

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        """Forget a session; its forks keep the rows they share. False when there was none."""
        with self._lock:
            self._check_open()
            found = self._sessions.pop((tenant, session), None)
            if found is None:
                return False
            found.alive = False
            return True

    async def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
