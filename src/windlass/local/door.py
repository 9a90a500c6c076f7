"""Reach the engine's own HTTP server, which cannot be switched off, from this process and from nobody else's.

Some of what the engine can do (tokenise, render a template) it offers over HTTP only. It listens on a Unix socket in a
private folder that is removed at once; on Linux the socket stays reachable through a descriptor of ours (`O_PATH`,
open(2)). Elsewhere the folder stays, for its owner alone, until the model is closed, and a random key guards it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

from windlass.core.errors import LocalModelError
from windlass.core.json import dumps

__all__ = ["Door"]

_SECONDS: Final = 60.0
_LONGEST_PATH: Final = 90  # sun_path holds 108 bytes, on macOS 104


class Door:
    """One engine's door: made before the engine starts with `params`, `shut` once it listens, asked, and closed."""

    def __init__(self, params: Any) -> None:
        self._key = secrets.token_hex(32)
        params.api_keys = [self._key]
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
        params.cors_origins = ""
        params.n_threads_http = 1
        self._folder: Path | None = None
        self._descriptor = -1
        self._address: Any = None
        self._lock = threading.Lock()
        if hasattr(socket, "AF_UNIX") and os.name != "nt":
            folder = Path(tempfile.mkdtemp(prefix="windlass-"))
            if len(os.fsencode(folder)) > _LONGEST_PATH:
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix="windlass-", dir="/tmp"))
            self._folder = folder
            params.hostnames = [str(folder / "e.sock")]

    def shut(self, listening: str) -> None:
        """Close the door to others now that the engine listens at `listening` (its URL, used where it is TCP)."""
        if self._folder is None:
            host, _, port = listening.rpartition("/")[2].rpartition(":")
            self._address = (host, int(port)) if port.isdigit() else None
        elif sys.platform == "linux":
            self._descriptor = os.open(self._folder / "e.sock", os.O_PATH | os.O_CLOEXEC)
            self._address = f"/proc/self/fd/{self._descriptor}"
            self._remove()
        else:
            self._address = str(self._folder / "e.sock")

    def ask(self, target: str, body: dict[str, Any] | None = None) -> bytes:
        """Return the JSON the engine answers at `target`; POST when there is a body. Blocking, one at a time.

        Raises LocalModelError with what the engine says when it refuses, or when it cannot be reached.
        """
        data = b"" if body is None else dumps(body)
        head = (
            f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: Bearer {self._key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        try:
            with self._lock, self._connect() as line:
                line.settimeout(_SECONDS)
                line.sendall(head.encode() + data)
                pieces: list[bytes] = []
                while piece := line.recv(1 << 16):
                    pieces.append(piece)
        except OSError as error:
            raise LocalModelError(f"The engine cannot be asked for {target}: {error}.") from error
        first, _, rest = b"".join(pieces).partition(b"\r\n\r\n")
        status = first.split(b" ", 2)[1] if first.startswith(b"HTTP/") else b""
        if status != b"200":
            raise LocalModelError(
                f"The engine refused {target} ({status.decode()}): {rest[:300].decode('utf-8', 'replace')}."
            )
        return rest

    def close(self) -> None:
        """Let go of the address. No request may be under way."""
        with self._lock:
            self._remove()
            self._address = None
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _connect(self) -> socket.socket:
        if self._address is None:
            raise OSError("it has been closed")
        line = socket.socket(socket.AF_INET if isinstance(self._address, tuple) else socket.AF_UNIX)
        with contextlib.ExitStack() as stack:
            stack.callback(line.close)
            line.connect(self._address)
            stack.pop_all()
        return line

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
