"""What running calls have printed so far, in small files beside the ledger: read only after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

__all__ = ["RunningOutput"]

#: Bytes kept of one call, and bytes of its end that are given back.
LIMIT, TAIL = 1 << 20, 4096


class RunningOutput:
    """Keep the output of calls that have no response yet.

    `folder` is made at first use, 0700, and removed with its last file. Nothing here is waited for and nothing of it is
    promised: a disk that takes no more loses the tail, never the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, tenant: str, session: str, call: str, text: str) -> None:
        """Add to what a call has printed."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._path(tenant, session, call)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
            try:
                if os.fstat(handle).st_size < LIMIT:
                    os.write(handle, text.encode("utf-8", "replace"))
            finally:
                os.close(handle)

    def take(self, tenant: str, session: str, call: str) -> str:
        """Return the end of what a call had printed when its program died, and forget it; empty when there is none."""
        path = self._path(tenant, session, call)
        try:
            data = path.read_bytes()[-TAIL:]
        except OSError:
            return ""
        self.drop(tenant, session, call)
        return data.decode("utf-8", "ignore")

    def drop(self, tenant: str, session: str, call: str) -> None:
        """Forget a call: its response is on record."""
        with contextlib.suppress(OSError):
            self._path(tenant, session, call).unlink(missing_ok=True)
            self._folder.rmdir()

    def _path(self, tenant: str, session: str, call: str) -> Path:
        name = hashlib.sha256("\0".join((tenant, session, call)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self._folder / name
