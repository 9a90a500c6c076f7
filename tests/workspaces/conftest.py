"""What the workspace tests share: a local workspace for each way of confinement, and a record of files opened."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from process_probe import children, known

from windlass.workspaces.local import LocalWorkspace

Confine = Literal["openat2", "walk", "path"]
_watching: list[list[tuple[str, Any]]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watching and (event in ("open", "subprocess.Popen", "socket.connect") or event.startswith(("os.", "ctypes."))):
        _watching[-1].append((event, args))


sys.addaudithook(_hook)


@pytest.fixture(autouse=True)
def _children_of_others() -> None:  # pyright: ignore[reportUnusedFunction]
    known.clear()
    known.update(children())


@contextmanager
def _audited() -> Generator[list[tuple[str, Any]]]:
    seen: list[tuple[str, Any]] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


@pytest.fixture
def audited() -> Callable[[], Any]:
    """Give a context manager that records every file, process and C call of this interpreter."""
    return _audited


@pytest.fixture
def place() -> Generator[Path]:
    """Give a folder for files, in memory where the system has such a place: syncs cost nothing there."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="windlass-test-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["openat2", "walk", "path"])
def confine(request: pytest.FixtureRequest) -> Confine:
    """Run a test once for each way of holding file access beneath the root."""
    return request.param


@pytest.fixture(params=["openat2", "walk"])
def strong(request: pytest.FixtureRequest) -> Confine:
    """Run a test once for each way that holds against other processes."""
    return request.param


@pytest.fixture
def ws(place: Path, confine: Confine) -> LocalWorkspace:
    """Give a workspace at `root` beside a folder `outside` with a secret."""
    (place / "root").mkdir()
    (place / "outside").mkdir()
    (place / "outside" / "secret.txt").write_bytes(b"OUTSIDE")
    return LocalWorkspace(place / "root", confine=confine)
