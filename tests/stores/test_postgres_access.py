"""Who may use a PostgreSQL database, which ones are refused, and that no password is ever repeated."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.postgres import PASSWORD, Postgres
from tests.stores.helpers import STEPS, put
from windlass.core import clock
from windlass.core.errors import ConfigError, SessionVersionError, StoreError
from windlass.stores.pgurl import read_url
from windlass.stores.postgres import PostgresStore
from windlass.stores.tables import Cursor, PostgresTables
from windlass.testing.store_kit import make_rows


@pytest.fixture
async def tables(database_url: str) -> AsyncGenerator[PostgresTables]:
    made = PostgresTables(database_url)
    await made.migrate("test", STEPS)
    await put(made, a=0)
    yield made
    await made.close()


def add(cursor: Cursor) -> int:
    [(n,)] = cursor.fetch("SELECT n FROM things WHERE id = 'a'")
    cursor.execute("UPDATE things SET n = ? WHERE id = 'a'", (n + 1,))
    return n + 1


async def test_a_wrong_password_is_said_at_once_and_tried_once(postgres: Postgres) -> None:
    before = postgres.log().count("password authentication failed")
    tables = PostgresTables(postgres.url(password="canary-wrong"), patience=60)
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        await tables.fetch("SELECT 1")
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert postgres.log().count("password authentication failed") == before + 1
    await tables.close()


async def test_a_database_that_cannot_hold_unicode_is_refused(postgres: Postgres) -> None:
    postgres.sql("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    tables = PostgresTables(postgres.url("ascii"))
    with pytest.raises(StoreError, match="SQL_ASCII; it must be made with ENCODING 'UTF8'"):
        await tables.fetch("SELECT 1")
    await tables.close()


async def test_a_user_who_may_not_make_tables_works_with_those_that_are_there(
    tables: PostgresTables, postgres: Postgres, database_url: str
) -> None:
    postgres.sql("DROP ROLE IF EXISTS clerk")
    postgres.sql("CREATE ROLE clerk LOGIN PASSWORD 'clerk'")
    postgres.sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO clerk", database_url)
    name = database_url.rpartition("/")[2]
    clerk = PostgresTables(postgres.url(name, user="clerk", password="clerk"))
    await clerk.migrate("test", STEPS)
    assert await clerk.transact(add) == 1
    for doing in (clerk.execute("DELETE FROM things"), clerk.migrate("mine", ["CREATE TABLE mine(id TEXT)"])):
        with pytest.raises(StoreError, match="has no right"):
            await doing
    await clerk.close()


async def test_r46_a_ledger_of_a_newer_program_is_refused(database_url: str, postgres: Postgres) -> None:
    store = PostgresStore(database_url)
    await store.append("s", make_rows(1), 0)
    await store.close()
    postgres.sql("UPDATE windlass_rooms SET version = 99", database_url)
    store = PostgresStore(database_url)
    for doing in (store.append("s", make_rows(1, 1), 1), store.read("s"), store.list(), store.delete("s")):
        with pytest.raises(SessionVersionError, match=r"version 99; .* up to 2\. Upgrade"):
            await doing
    await store.close()
    postgres.sql("UPDATE windlass_rooms SET version = 2", database_url)
    store = PostgresStore(database_url)
    assert await store.read("s") == make_rows(1)
    await store.close()


MALFORMED = [
    "postgresql://u:canary@h:notaport/d", "postgresql://u:canary/x@h/d", "postgresql://u:canary@x@h/d",
    "postgresql://u:canary?x@h/d", "postgresql://u:canary%zz@h/d", "postgresql://u:12/canary@h/d", "postgresql:canary",
    "postgresql://u@h/d?password=canary&nonsense=1", "postgresql://u:canary@[::1/d",
]  # fmt: skip


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("kind", [PostgresTables, PostgresStore])
def test_a_malformed_url_is_refused_without_repeating_it(
    url: str, kind: type[PostgresTables] | type[PostgresStore]
) -> None:
    with pytest.raises(ConfigError, match=r"%40 for @") as caught:
        kind(url)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_what_libpq_says_is_cleared_of_every_secret() -> None:
    address = read_url("postgresql://u:can%2Fary%20x@h/d?sslpassword=seal")
    said = address.scrub("no: can/ary x,\n can%2Fary%20x, can/ary%20x and\tseal")
    assert said == "no: ***, ***, *** and ***"
    assert repr(address) == "Address(postgresql://h/d)"


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from("@:/?#[]%& =1a'\\é"), max_size=12))
@example("@")
async def test_no_password_is_ever_repeated_however_it_is_written(raw: str) -> None:
    """A careless user pastes it as it is; nobody listens at the port."""
    secret = f"kanarie{raw}kanarie"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url in (
        f"postgresql://u:{secret}@127.0.0.1:{port}/d",
        f"postgresql://u@127.0.0.1:{port}/d?password={secret}",
        f"postgresql://127.0.0.1:{port}/d?user=u&password={secret}&sslmode=nonsense",
    ):
        try:
            tables = PostgresTables(url, patience=0)
        except ConfigError as error:
            assert "kanarie" not in "".join(traceback.format_exception(error))
            continue
        assert "kanarie" not in repr(tables)
        with pytest.raises(StoreError) as caught:
            await tables.fetch("SELECT 1")
        await tables.close()
        said = "".join([*traceback.format_exception(caught.value), str(caught.value.to_dict()), repr(caught.value)])
        assert "kanarie" not in said


async def test_no_error_holds_the_password_whatever_goes_wrong(
    tables: PostgresTables, postgres: Postgres, database_url: str
) -> None:
    def cut(cursor: Cursor) -> None:
        cursor.execute("UPDATE things SET n = 1")
        postgres.terminate(database_url)

    said: list[str] = [repr(tables), repr(PostgresStore(database_url))]
    for doing in (
        tables.fetch("SELECT * FROM nowhere"),
        put(tables, a=1),
        tables.transact(cut),
        PostgresTables(postgres.url("nowhere")).fetch("SELECT 1"),
        PostgresStore(postgres.url("nowhere")).list(),
    ):
        with pytest.raises(StoreError) as caught:
            await doing
        error = caught.value
        said += [str(error), repr(error), str(error.to_dict()), *traceback.format_exception(error)]
    assert PASSWORD not in "\n".join(said)
    assert "canary" not in "\n".join(said)


def test_the_server_of_the_tests_ends_with_whoever_started_it() -> None:
    code = """
import sys
from tests.postgres import Postgres
server = Postgres().__enter__()
print(server.folder, flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, cwd=root) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        assert Path(f"/proc/{pid}").exists()
        process.kill()
    until = clock.monotonic() + 30
    while folder.exists() and clock.monotonic() < until:
        threading.Event().wait(0.02)
    assert not folder.exists()
