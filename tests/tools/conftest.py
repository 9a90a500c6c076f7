"""Each test of the file tools runs on both workspaces."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from tests.tools.helpers import Context
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace


@pytest.fixture
def place() -> Generator[Path]:
    """Give a folder in memory where the system has such a place: syncs cost nothing there."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="windlass-test-", dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["memory", "local"])
async def ctx(request: pytest.FixtureRequest, place: Path) -> AsyncGenerator[Context]:
    """Give a context on an empty workspace."""
    workspace = MemoryWorkspace() if request.param == "memory" else LocalWorkspace(place)
    yield Context(workspace)
    await workspace.close()


@pytest.fixture
async def local(place: Path) -> AsyncGenerator[Context]:
    """Give a context on an empty folder on disk."""
    workspace = LocalWorkspace(place)
    yield Context(workspace)
    await workspace.close()
