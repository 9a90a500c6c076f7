"""Rules for every test: no network but loopback, and nothing left running."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Generator
from typing import Any

import pytest

from tests.postgres import Postgres

# Two workers on two cores: more threads for numbers would wait for each other, and spin while they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class OutsideNetwork(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # AF_UNIX paths
    host = str(address[0])
    return host in ("localhost", "::1", "", "0.0.0.0") or host.startswith("127.")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Generator[None]:  # pyright: ignore[reportUnusedFunction]
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: Any) -> None:
        if not _is_local(address):
            raise OutsideNetwork(f"tests stay on loopback, not {address!r}")
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        if not _is_local(address):
            raise OutsideNetwork(f"tests stay on loopback, not {address!r}")
        return connect_ex(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    patch.setattr(socket.socket, "connect_ex", guarded_ex)
    yield
    patch.undo()


def pytest_collection_finish() -> None:
    # What exists now lives to the end: the collector need not look at it again, which makes it fast below.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _leaks_are_its_own() -> Generator[None]:  # pyright: ignore[reportUnusedFunction]
    """Charge a file's tests with the sockets and files that they left to the collector, and not whoever comes next."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def postgres() -> Generator[Postgres]:
    """One private PostgreSQL server for all tests of this process; not for tests that stop or break it."""
    with Postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> Generator[str]:
    """The URL of an empty PostgreSQL database."""
    url = postgres.new_database()
    yield url
    postgres.give_back(url)
