"""Keep what a command prints: a bounded piece of it, all of it in a private file when it is long, and show it live."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from windlass.core.errors import WorkspaceError
from windlass.core.text import HeadTail, whole_characters
from windlass.workspaces.private import create_private, private_dir

__all__ = ["Capture", "Live"]

_log = logging.getLogger(__name__)

#: Seconds between two calls of `on_output`, and the most bytes of one call.
LIVE_SECONDS = 0.05
LIVE_BYTES = 16 * 1024
#: Spool files kept in the default folder; the oldest gives way. A folder named by the caller is the caller's to tidy.
MOST_SPOOLS = 32


class Capture:
    """Take the output of one command in pieces; memory stays in proportion to `max_output`, whatever comes.

    `max_output` 0 keeps everything up to `spool_limit` bytes. Longer output goes, from its first byte and up to
    `spool_limit` bytes, to `<name>.log` in `spool_dir`, or in a folder that lives as long as this process.
    """

    def __init__(self, name: str, max_output: int, *, spool_dir: str | None, spool_limit: int) -> None:
        self._name, self._spool_dir, self._spool_limit = name, spool_dir, spool_limit
        self._most = max_output or spool_limit
        self._window = HeadTail(self._most)
        self._spool: int | None = None
        self._spooled = 0
        #: The path of the spool file; None while there is none, and when it could not be kept.
        self.path: str | None = None
        self._wants_spool = max_output > 0 and spool_limit > 0

    @property
    def total(self) -> int:
        """All bytes that came."""
        return self._window.total

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._wants_spool and self.total + len(data) > self._most:
            if self._spool is None:
                self._open()
                # Up to here the window still holds everything.
                self._write(self._window.result())
            self._write(data)
        self._window.feed(data)

    def result(self) -> bytes:
        """Return the output, cut by the rule of `core.text.truncate`."""
        return self._window.result()

    def close(self) -> None:
        """Close the spool file; it stays where it is."""
        self._wants_spool = False
        if self._spool is not None:
            os.close(self._spool)
            self._spool = None

    def _open(self) -> None:
        try:
            folder = private_dir(self._spool_dir) if self._spool_dir else _Spools.folder()
            path = str(folder / f"{self._name}.log")
            self._spool = create_private(path)
            self.path = path
            if not self._spool_dir:
                _Spools.keep(path)
        except (OSError, WorkspaceError) as error:
            self._give_up(error)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)[: self._spool_limit - self._spooled]
        try:
            while self._spool is not None and rest:
                written = os.write(self._spool, rest)
                self._spooled += written
                rest = rest[written:]
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on without the file (a full disk): a part that looks like the whole would mislead."""
        _log.warning("the full output of command %s is not kept: %s", self._name, error)
        self.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
            self.path = None


class _Spools:
    """The default folder: made at first use, 0700, removed when this process ends."""

    _folder: Path | None = None
    _owner = 0
    _kept: deque[str] = deque()

    @classmethod
    def folder(cls) -> Path:
        if cls._folder is None or cls._owner != os.getpid() or not cls._folder.is_dir():
            cls._folder, cls._owner, cls._kept = Path(tempfile.mkdtemp(prefix="windlass-")), os.getpid(), deque()
            atexit.register(cls._remove, cls._folder, cls._owner)
        return cls._folder

    @classmethod
    def keep(cls, path: str) -> None:
        cls._kept.append(path)
        if len(cls._kept) > MOST_SPOOLS:
            Path(cls._kept.popleft()).unlink(missing_ok=True)

    @staticmethod
    def _remove(folder: Path, owner: int) -> None:
        if owner == os.getpid():  # not in a forked child of ours
            shutil.rmtree(folder, ignore_errors=True)


class Live:
    """Hand output on as it comes, at most 20 times a second and 16 KiB at a time.

    What a flood brings beyond that is cut as `truncate` cuts. Characters are not split between two calls. The first
    exception of `callback` is logged and ends the showing, never the command.
    """

    def __init__(self, callback: Callable[[bytes], None]) -> None:
        self._callback: Callable[[bytes], None] | None = callback
        self._loop = asyncio.get_running_loop()
        self._pending = HeadTail(LIVE_BYTES)
        self._held = 0  # bytes of a character that is not complete yet
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece; the first is shown at once."""
        self._pending.feed(data)
        if self._timer is None:
            self._show()
            self._timer = self._loop.call_later(LIVE_SECONDS, self._again)

    def close(self) -> None:
        """Show the rest."""
        if self._timer is not None:
            self._timer.cancel()
        self._show(last=True)

    def _again(self) -> None:
        self._timer = None
        if self._pending.total > self._held:
            self.feed(b"")

    def _show(self, *, last: bool = False) -> None:
        data = self._pending.result()
        ready = data if last else whole_characters(data)
        self._held = len(data) - len(ready)
        self._pending = HeadTail(LIVE_BYTES)
        self._pending.feed(data[len(ready) :])
        if self._callback is None or not ready:
            return
        try:
            self._callback(ready)
        except Exception:
            _log.exception("on_output %r failed; the command goes on unseen", self._callback)
            self._callback = None
