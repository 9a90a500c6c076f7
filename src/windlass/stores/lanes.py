"""One writer thread and one reader thread per ledger file: the event loops never wait for the disk.

Whatever is queued when the writer gets to it is committed in one transaction (group commit): fifty sessions that
append at once share one fsync.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from windlass.core.errors import SessionError, StoreError, WindlassError
from windlass.stores import schema
from windlass.stores.schema import store_error

__all__ = ["LEDGER", "FileKind", "FileUse", "Lane", "LedgerFile", "Work", "acquire", "is_open"]

_log = logging.getLogger("windlass.stores")
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]


class FileKind(NamedTuple):
    """How a kind of file is opened, and the typed error for what SQLite says of it."""

    opener: Callable[..., sqlite3.Connection]
    explain: Callable[[BaseException, Path], WindlassError]


LEDGER = FileKind(schema.open_ledger, store_error)
_MAX_BATCH = 256
#: After these, each job of a failed group may still succeed alone: one of them asked for too much.
_ONE_IS_TO_BLAME = frozenset({None, sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT})


class _Job(NamedTuple):
    """Work for a lane and who waits for it; `work` None: close the connection and end the thread."""

    work: Work | None
    waiter: asyncio.Future[Any] | None

    def dropped(self) -> bool:
        return self.waiter is not None and self.waiter.cancelled()


class _Outcome(NamedTuple):
    job: _Job
    value: Any
    error: BaseException | None


class Lane:
    """A thread with a connection of its own that runs the work it is handed, grouped into transactions.

    Work raises SessionError kinds only before its first write; after anything else the transaction is rolled back.
    """

    def __init__(
        self,
        path: Path,
        opener: Callable[[], sqlite3.Connection],
        begin: str,
        explain: Callable[[BaseException, Path], WindlassError] = store_error,
    ) -> None:
        self._path, self._opener, self._begin, self._explain = path, opener, begin, explain
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._conn: sqlite3.Connection | None = None
        name = "windlass-ledger-writer" if "IMMEDIATE" in begin else "windlass-ledger-reader"
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    async def submit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the next transaction and return what it returns, once that is committed.

        Raises what it raised, or StoreError. Cancelled before it began, it never runs.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Job(work, waiter))
        try:
            return await waiter
        finally:
            if waiter.done() and not waiter.cancelled():
                # Retrieved, also when a cancellation came in the same moment: else asyncio logs it as forgotten.
                waiter.exception()

    async def stop(self) -> None:
        """Finish what is queued, checkpoint and close the connection, and end the thread."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Job(None, waiter))
        await waiter

    def stop_soon(self) -> None:
        """Ask for the same without waiting; safe in a finaliser."""
        self._queue.put(_Job(None, None))

    def _serve(self) -> None:
        while True:
            batch, last = self._take()
            if batch:
                _deliver(self._run(batch))
            if last is not None:
                self._close()
                _deliver([_Outcome(last, None, None)])
                return

    def _take(self) -> tuple[list[_Job], _Job | None]:
        """Wait for a job, and take what else is queued up to a stop."""
        batch: list[_Job] = []
        job = self._queue.get()
        while job.work is not None:
            if not job.dropped():
                batch.append(job)
            if len(batch) >= _MAX_BATCH:
                return batch, None
            try:
                job = self._queue.get_nowait()
            except Empty:
                return batch, None
        return batch, job

    def _run(self, batch: Sequence[_Job]) -> list[_Outcome]:
        try:
            return self._transaction(batch)
        except Exception as error:
            self._abandon(error)
            code = getattr(error, "sqlite_errorcode", None)
            if len(batch) > 1 and (code if code is None else code & 0xFF) in _ONE_IS_TO_BLAME:
                return [outcome for job in batch for outcome in self._run([job])]
            # An exception of its own for each: one object raised in several tasks would mix their tracebacks.
            return [_Outcome(job, None, self._explain(error, self._path)) for job in batch]

    def _transaction(self, batch: Sequence[_Job]) -> list[_Outcome]:
        conn = self._conn
        if conn is None:
            conn = self._conn = self._opener()
        conn.execute(self._begin)
        out: list[_Outcome] = []
        for job in batch:
            assert job.work is not None
            try:
                out.append(_Outcome(job, job.work(conn), None))
            except SessionError as error:
                out.append(_Outcome(job, None, error))
        conn.execute("COMMIT")
        return out

    def _abandon(self, error: Exception) -> None:
        """Take back a failed transaction; after an I/O error go on with a new connection only.

        A failed fsync is never repeated: the kernel may have dropped the pages and would call the second one a
        success. The new connection is opened before the old one is closed, so that the shared index still says where
        the last good commit ended, and the next commit overwrites what was not kept.
        """
        conn = self._conn
        if conn is None:
            return
        broken = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
        try:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        except sqlite3.Error as failure:
            _log.warning("ledger %s: rollback failed (%s); opening it again", self._path, failure)
            broken = True
        if broken:
            self._conn = None
            try:
                self._conn = self._opener()
            except Exception as failure:
                # The next job opens it, and reports if that fails as well.
                _log.warning("ledger %s could not be opened again at once: %s", self._path, failure)
            conn.close()

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is None:
            return
        try:
            # Bounded: another process may be in the middle of a read, and the log is as safe as the file.
            conn.execute("PRAGMA busy_timeout = 250")
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            _log.warning("ledger %s: checkpoint at close failed (%s); the rows are safe in its log", self._path, error)
        conn.close()


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """Wake each waiting event loop once, with all that is ready for it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        if outcome.job.waiter is not None:
            by_loop.setdefault(outcome.job.waiter.get_loop(), []).append(outcome)
    for loop, ready in by_loop.items():
        # A loop that was closed meanwhile has nobody waiting.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, ready)


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    for job, value, error in outcomes:
        if job.waiter is None or job.waiter.done():
            continue
        if error is None:
            job.waiter.set_result(value)
        else:
            job.waiter.set_exception(error)


class LedgerFile:
    """The two lanes of one file, shared by every store of this process that names it with the same settings."""

    def __init__(self, path: Path, synchronous: str, busy_timeout: float, kind: FileKind = LEDGER) -> None:
        self.pid = os.getpid()
        self.key = (str(path), synchronous, busy_timeout, kind)
        self.users = 1

        def opener() -> sqlite3.Connection:
            return kind.opener(path, synchronous=synchronous, busy_timeout=busy_timeout)

        self.writer = Lane(path, opener, "BEGIN IMMEDIATE", kind.explain)
        self.reader = Lane(path, opener, "BEGIN", kind.explain)

    async def release(self) -> None:
        """Give up one use; the last one waits until the file is checkpointed and closed."""
        if self._drop():
            await self.reader.stop()
            await self.writer.stop()

    def release_soon(self) -> None:
        """Give up one use without waiting: for a store that was dropped without `close`."""
        if self._drop():
            self.reader.stop_soon()
            self.writer.stop_soon()

    def _drop(self) -> bool:
        with _lock:
            self.users -= 1
            if self.users == 0 and _files.get(self.key) is self:
                del _files[self.key]
            return self.users == 0


_files: dict[tuple[str, str, float, FileKind], LedgerFile] = {}
# Re-entrant, because a finaliser may run in the thread that holds it.
_lock = threading.RLock()


def acquire(path: Path, synchronous: str, busy_timeout: float, kind: FileKind = LEDGER) -> LedgerFile:
    """Return the lanes of a file (`path` resolved), started when this is the first use; pair it with `release`."""
    with _lock:
        found = _files.get((str(path), synchronous, busy_timeout, kind))
        if found is not None:
            found.users += 1
            return found
        made = LedgerFile(path, synchronous, busy_timeout, kind)
        _files[made.key] = made
        return made


class FileUse:
    """One store's use of a file: nothing is opened before `lanes()`, and what is dropped without `close` is given up.

    `owner` names it in the error that calls after `close` raise.
    """

    def __init__(self, path: Path, synchronous: str, busy_timeout: float, kind: FileKind, owner: str) -> None:
        self.path = path
        self._settings = (synchronous, busy_timeout, kind)
        self._owner = owner
        self._file: LedgerFile | None = None
        self._finalizer: weakref.finalize[..., FileUse] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def lanes(self) -> LedgerFile:
        """Return the file's lanes, started at the first call. Raises StoreError after `close`."""
        with self._lock:
            if self._closed:
                raise StoreError(f"The {self._owner} of {self.path} is closed.", hint="Make a new one.")
            if self._file is None or self._file.pid != os.getpid():
                self._file = acquire(self.path, *self._settings)
                self._finalizer = weakref.finalize(self, self._file.release_soon)
                # At exit the registry of files closes what is left, and waits for it.
                self._finalizer.atexit = False
            return self._file

    async def close(self) -> None:
        """Give the file up; the last user of the process leaves one checkpointed file."""
        with self._lock:
            self._closed = True
            file, self._file = self._file, None
        if file is not None and self._finalizer is not None and self._finalizer.detach() is not None:
            await file.release()


def is_open(path: Path) -> bool:
    """Say whether a store of this process uses the file (`path` resolved)."""
    with _lock:
        return any(key[0] == str(path) for key in _files)


def _close_all() -> None:
    """Leave clean files behind when a program ends without closing its stores."""
    with _lock:
        left = list(_files.values())
        _files.clear()
    for lane in [lane for file in left for lane in (file.reader, file.writer)]:
        lane.stop_soon()
        lane.thread.join(2.0)


def _forked() -> None:
    """Start anew in a forked child: it has no lane threads, and must not close connections that its parent uses."""
    global _lock
    _lock = threading.RLock()
    _inherited.extend(_files.values())
    _files.clear()


_inherited: list[LedgerFile] = []
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
