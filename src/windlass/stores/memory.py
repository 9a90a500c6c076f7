"""Keep ledgers in this process's memory: for tests, for one-off runs, and where nothing may touch the disk."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from msgspec import Struct

from windlass.core.errors import SessionNotFound, StoreError
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
    #: Contents of files by their SHA-256; a fork has its parent's, as long as it lives.
    files: dict[str, bytes]
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
        #: Contents of files, for undo.
        self.blobs = _Blobs(self)
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
                files = dict(parent.files) if parent and fork.pos else {}
                self._add(tenant, _Session(session, shared + rows, fork.pos, title, parent, self._count, files))
                return
            length = len(found.rows) if found else 0
            if length != expected_pos:
                raise conflict(session, length, expected_pos)
            if found is not None:
                found.rows.extend(rows)
            elif rows:
                self._add(tenant, _Session(session, rows, 0, title_of(rows[0]), None, self._count, {}))

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

    def keep_file(self, tenant: str, session: str, data: bytes) -> str:
        """Keep a content for a session, for `blobs`. Raises SessionNotFound."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._check_open()
            found = self._sessions.get((tenant, session))
            if found is None:
                raise SessionNotFound(f"There is no session {session!r} to keep a file for.")
            found.files.setdefault(sha256, bytes(data))
        return sha256

    def kept_file(self, tenant: str, session: str, sha256: str) -> bytes | None:
        """Return a content that a session keeps, for `blobs`."""
        with self._lock:
            self._check_open()
            found = self._sessions.get((tenant, session))
            return None if found is None else found.files.get(sha256)

    async def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._closed = True
            self._sessions.clear()


class _Blobs:
    """The store's face for contents of files."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        return self._store.keep_file(tenant, session, data)

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        return self._store.kept_file(tenant, session, sha256)
