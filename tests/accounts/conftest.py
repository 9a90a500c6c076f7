"""Accounts on a database of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from tests.accounts.helpers import Opened
from tests.postgres import Postgres
from windlass.core import clock
from windlass.testing.clock import FakeClock


@pytest.fixture(scope="session")
def shared_url(postgres: Postgres) -> str:
    """One PostgreSQL database for all tests of accounts: making and deleting one for each takes longer than they do."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: every test that wants it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'accounts.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    found: str = request.getfixturevalue("shared_url")
    for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
        server.sql(statement, found)
    return found


@pytest.fixture
async def opened(url: str) -> AsyncGenerator[Opened]:
    """Open accounts on the test's database; all are closed at its end."""
    made = Opened(url)
    yield made
    await made.close()


@pytest.fixture
def fake() -> Generator[FakeClock]:
    """Time of day and monotonic time that stand still until the test moves them; waiting takes real time."""
    made = FakeClock()
    with clock.use(made):
        yield made
