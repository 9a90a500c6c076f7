"""The session ledger on PostgreSQL: the rules of the `Store` port, on a real server, from several processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator

import psycopg
import pytest

from tests.postgres import USER, Postgres
from windlass.core import clock, registry
from windlass.core.errors import ConfigError, SessionNotFound, StoreConflict, StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Row, Store
from windlass.stores.postgres import BLOB_BYTES, PostgresStore
from windlass.testing.store_kit import STORE_CHECKS, check_store, make_rows


@pytest.fixture
async def store(database_url: str) -> AsyncGenerator[PostgresStore]:
    made = PostgresStore(database_url)
    yield made
    await made.close()


def forked(parent: str, pos: int) -> Row:
    return Row(pos, "session.forked", -1, 10, dumps_stored({"parent": parent, "pos": pos}))


class Counts:
    """How many rows each table holds."""

    def __init__(self, server: Postgres, url: str) -> None:
        self._server, self._url = server, url

    def __call__(self) -> dict[str, int]:
        names = ("sessions", "rows", "blobs")
        return {one: self._server.sql(f"SELECT count(*) FROM windlass_{one}", self._url)[0][0] for one in names}


@pytest.fixture
def counts(postgres: Postgres, database_url: str) -> Counts:
    return Counts(postgres, database_url)


async def test_postgresql_store_passes_the_kit(database_url: str) -> None:
    await check_store(lambda: PostgresStore(database_url), durable=True)


async def test_one_connection_is_enough_for_the_kit(database_url: str) -> None:
    for name in ("one session, many writers", "many sessions", "forks"):
        one = PostgresStore(database_url, size=1)
        await STORE_CHECKS[name](one, clock.new_id())
        await one.close()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_a_url_is_a_store_wherever_a_name_is(database_url: str, scheme: str) -> None:
    store = registry.make("stores", database_url.replace("postgresql:", f"{scheme}:"))
    assert isinstance(store, PostgresStore)
    assert isinstance(store, Store)
    await store.append("s", make_rows(2), 0)
    assert await store.read("s") == make_rows(2)
    assert repr(store) == f"PostgresStore('postgresql://{database_url.rpartition('@')[2]}')"
    await store.close()


async def test_what_the_url_leaves_out_comes_from_the_environment(
    postgres: Postgres, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", str(postgres.folder))
    monkeypatch.setenv("PGPORT", str(postgres.port))
    monkeypatch.setenv("PGUSER", USER)
    monkeypatch.setenv("PGDATABASE", database_url.rpartition("/")[2])
    for spec in ("postgresql", "postgresql:", "postgresql://"):
        store = registry.make("stores", spec)
        assert await store.list() == []
        await store.close()
    with pytest.raises(ConfigError, match="does not begin with postgresql://"):
        registry.make("stores", "postgresql:database")


async def test_nothing_is_reached_before_the_first_call() -> None:
    store = PostgresStore("postgresql://nobody@127.0.0.1:1/nothing", patience=0)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.list()


async def test_appends_of_one_session_keep_the_order_of_their_calls(store: PostgresStore) -> None:
    """None is awaited before the next is made, and the threads are several."""
    appends = [store.append(name, make_rows(1, pos), pos) for pos in range(30) for name in ("a", "b")]
    assert await asyncio.gather(*appends) == [None] * 60
    assert await store.read("a") == await store.read("b") == make_rows(30)


async def test_a_session_that_is_held_up_does_not_hold_up_others(
    store: PostgresStore, postgres: Postgres, database_url: str
) -> None:
    await store.append("a", make_rows(1), 0)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT * FROM windlass_sessions FOR UPDATE")
        waiting = [asyncio.ensure_future(store.append("a", make_rows(1, pos), pos)) for pos in range(1, 9)]
        await store.append("b", make_rows(1), 0)
        assert await store.read("a") == make_rows(1)
        assert not any(one.done() for one in waiting)
        other.rollback()
    await asyncio.gather(*waiting)
    assert await store.read("a") == make_rows(9)


async def test_a_cancelled_append_is_kept_wholly_or_not_at_all(store: PostgresStore) -> None:
    length = 0
    for turn in range(20):
        task = asyncio.ensure_future(store.append("s", make_rows(3, length), length))
        for _ in range(turn % 4):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # The next append waits for the one that may still be under way.
        await store.append("other", make_rows(1, turn), turn)
        with pytest.raises(StoreConflict):
            await store.append("s", make_rows(1, length + 1), length + 1)
        rows = await store.read("s")
        assert rows == make_rows(len(rows))
        assert len(rows) in (length, length + 3)
        length = len(rows)


async def test_big_data_is_kept_once_per_content(store: PostgresStore, counts: Counts) -> None:
    big = [os.urandom(BLOB_BYTES + 1) for _ in range(3)]
    rows = [Row(pos, "tool.finished", 0, pos, data) for pos, data in enumerate([*big, *big, b"x" * BLOB_BYTES])]
    await asyncio.gather(*[store.append(name, rows, 0) for name in "abcd"])
    assert counts() == {"sessions": 4, "rows": 28, "blobs": 3}
    assert await store.read("c") == rows
    for name in "abc":
        assert await store.delete(name)
    assert await store.read("d") == rows
    assert counts()["blobs"] == 3
    assert await store.delete("d")
    assert counts() == {"sessions": 0, "rows": 0, "blobs": 0}


async def test_blobs_that_are_deleted_and_written_at_once_are_never_missing(database_url: str, counts: Counts) -> None:
    """Each deletion drops what nobody refers to, while another session begins to refer to the same."""
    big = [os.urandom(BLOB_BYTES + 1) for _ in range(2)]
    rows = [Row(pos, "tool.finished", 0, pos, data) for pos, data in enumerate(big)]
    stores = [PostgresStore(database_url) for _ in range(2)]

    async def turn(store: PostgresStore, name: str) -> None:
        for _ in range(12):
            await store.append(name, rows, 0)
            assert await store.read(name) == rows
            assert await store.delete(name)

    await asyncio.gather(*[turn(store, f"{n}{at}") for at, store in enumerate(stores) for n in range(3)])
    assert counts() == {"sessions": 0, "rows": 0, "blobs": 0}
    for store in stores:
        await store.close()


async def test_forks_and_deletes_at_once_leave_whole_sessions_or_none(database_url: str, counts: Counts) -> None:
    stores = [PostgresStore(database_url) for _ in range(2)]
    for turn in range(8):
        await stores[0].append("p", make_rows(4), 0)
        doing = [
            stores[0].append(f"f{turn}", [forked("p", 3)], 3),
            stores[1].delete("p"),
            stores[1].append(f"g{turn}", [forked("p", 2)], 2),
            stores[0].delete(f"g{turn}"),
        ]
        results = await asyncio.gather(*doing, return_exceptions=True)
        assert results[1] is True
        for name, result, pos in ((f"f{turn}", results[0], 3), (f"g{turn}", results[2], 2)):
            rows = await stores[0].read(name)
            assert isinstance(result, SessionNotFound | None)
            if result is None and (name[0] == "f" or results[3] is False):
                assert rows == [*make_rows(pos), forked("p", pos)]
            else:
                assert rows == []
    for info in await stores[0].list():
        assert await stores[0].delete(info.id)
    assert counts() == {"sessions": 0, "rows": 0, "blobs": 0}
    for store in stores:
        await store.close()


async def test_a_chain_of_forks_reads_through_what_was_deleted(store: PostgresStore, counts: Counts) -> None:
    await store.append("0", make_rows(5), 0)
    for depth in range(1, 6):
        await store.append(str(depth), [forked(str(depth - 1), depth + 2), *make_rows(2, depth + 3)], depth + 2)
    whole = await store.read("5")
    assert [row.pos for row in whole] == list(range(10))
    for depth in (2, 0, 4, 3, 1):
        assert await store.delete(str(depth))
    assert await store.read("5") == whole
    assert await store.read("5", 2, 6) == whole[2:6]
    [info] = await store.list()
    assert (info.id, info.rows, info.parent, info.parent_pos) == ("5", 10, None, None)
    assert await store.delete("5")
    assert counts() == {"sessions": 0, "rows": 0, "blobs": 0}


async def test_ids_longer_than_an_index_entry(store: PostgresStore) -> None:
    """Random ones: a long run of one letter is compressed and fits."""
    name, tenant = os.urandom(20_000).hex(), os.urandom(20_000).hex()
    await store.append(name, [Row(0, "x" * 9000, 0, 0, b"")], 0, tenant=tenant)
    assert [info.id for info in await store.list(tenant=tenant)] == [name]
    assert (await store.read(name, tenant=tenant))[0].kind == "x" * 9000
    assert await store.read(name[:-1], tenant=tenant) == []
    assert await store.delete(name, tenant=tenant)


async def test_a_row_that_is_missing_is_reported_not_passed_over(
    store: PostgresStore, postgres: Postgres, database_url: str
) -> None:
    await store.append("s", make_rows(5), 0)
    postgres.sql("DELETE FROM windlass_rows WHERE pos = 2", database_url)
    with pytest.raises(StoreError, match="row 2 of session 's' is missing"):
        await store.read("s")
    assert await store.read("s", 3) == make_rows(2, 3)


HEAD = """
import asyncio, json, sys
from windlass.core.errors import StoreConflict
from windlass.core.ports import Row
from windlass.stores.postgres import PostgresStore
from windlass.testing.store_kit import make_rows
url, name = sys.argv[1:3]
def say(**words): print(json.dumps(words), flush=True)
"""
WRITER = """
async def main():
    store = PostgresStore(url)
    pos = len(await store.read(name))
    while True:
        await store.append(name, make_rows(2, pos, data=b"%d" % pos * 200), pos)
        pos += 2
        say(acked=pos)
asyncio.run(main())
"""
RIVAL = """
async def main():
    store = PostgresStore(url)
    pos = 0
    for turn in range(15):
        while True:
            try:
                await store.append("shared", [Row(pos, "k", 0, 0, b"%s %d" % (name.encode(), turn))], pos)
                pos += 1
                break
            except StoreConflict:
                pos = len(await store.read("shared"))
    await store.close()
asyncio.run(main())
"""


async def start_program(code: str, *args: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", HEAD + code, *args, stdout=pipe)


async def test_kill_9_loses_no_acknowledged_row(store: PostgresStore, database_url: str) -> None:
    acked = {"a": 0, "b": 0}

    async def one_life(name: str, lines: int) -> None:
        process = await start_program(WRITER, database_url, name)
        assert process.stdout is not None
        for _ in range(lines):
            await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = (await process.stdout.read()).splitlines()
        await process.wait()
        if told and told[-1].endswith(b"}"):
            acked[name] = max(acked[name], json.loads(told[-1])["acked"])

    for lines in (2, 5):
        await asyncio.gather(*[one_life(name, lines) for name in acked])
    for name in acked:
        rows = await store.read(name)
        assert [row.pos for row in rows] == list(range(len(rows)))
        assert len(rows) >= max(acked[name], 14)
        assert len(rows) % 2 == 0
        assert all(row.data == b"%d" % (row.pos - row.pos % 2) * 200 for row in rows)


async def test_r47_two_processes_make_the_tables_and_append_to_one_session(
    store: PostgresStore, database_url: str
) -> None:
    rivals = [await start_program(RIVAL, database_url, name) for name in ("left", "right")]
    for rival in rivals:
        await rival.communicate()
        assert rival.returncode == 0
    rows = await store.read("shared")
    assert [row.pos for row in rows] == list(range(30))
    for name in (b"left", b"right"):
        wanted = [b"%s %d" % (name, turn) for turn in range(15)]
        assert [row.data for row in rows if row.data.startswith(name)] == wanted
