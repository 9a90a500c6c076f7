"""Rules for every test: no network but loopback, and nothing left running."""

from __future__ import annotations

import socket
from collections.abc import Generator
from typing import Any

import pytest

from tests.postgres import Postgres


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
