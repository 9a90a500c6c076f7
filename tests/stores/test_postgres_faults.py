"""What a PostgreSQL server does to those who use it (R49), by real means: restarts, cut sessions, conflicts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Literal

import pytest

from tests.postgres import Postgres
from tests.stores.helpers import STEPS, Proxy, numbers, put
from windlass.core import clock
from windlass.core.errors import StoreConflict, StoreError
from windlass.stores.postgres import PostgresStore
from windlass.stores.tables import Cursor, PostgresTables
from windlass.testing.store_kit import make_rows

#: The message as it is sent; READ COMMITTED is another.
COMMIT = b"COMMIT\0"


@pytest.fixture
async def tables(database_url: str) -> AsyncGenerator[PostgresTables]:
    made = PostgresTables(database_url)
    await made.migrate("test", STEPS)
    await put(made, a=0)
    yield made
    await made.close()


Mode = Literal["fast", "immediate"]


@pytest.fixture(scope="module")
def own_server() -> Generator[Postgres]:
    """A server that may be stopped, and keeps what it committed."""
    with Postgres(durable=True) as server:
        yield server


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_r49_the_server_restarts_between_two_calls(own_server: Postgres, mode: Mode) -> None:
    tables = PostgresTables(own_server.new_database())
    await tables.migrate("test", STEPS)
    await asyncio.gather(*[put(tables, **{f"k{n}": n}) for n in range(8)])
    await asyncio.get_running_loop().run_in_executor(None, own_server.restart, mode)
    # Every idle connection is dead, and nobody notices.
    await asyncio.gather(*[put(tables, **{f"l{n}": n}) for n in range(8)])
    assert len(await numbers(tables)) == 16
    await tables.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_r49_the_server_restarts_in_the_middle_of_work(own_server: Postgres, mode: Mode) -> None:
    tables = PostgresTables(own_server.new_database(), patience=60)
    await tables.migrate("test", STEPS)
    acked, unknown, told = set[str](), set[str](), asyncio.Event()
    stop = False

    async def write(name: str) -> None:
        turn = 0
        while not stop:
            try:
                await tables.execute("INSERT INTO things(id, n) VALUES (?, 0)", (f"{name}{turn}",))
                acked.add(f"{name}{turn}")
            except StoreError as error:
                assert "whether it was kept is unknown" in str(error)
                unknown.add(f"{name}{turn}")
            turn += 1
            if len(acked) > 20:
                told.set()

    writers = [asyncio.ensure_future(write(name)) for name in "abcde"]
    for _ in range(2):
        await told.wait()
        await asyncio.get_running_loop().run_in_executor(None, own_server.restart, mode)
        before = len(acked)
        while len(acked) < before + 5:
            await asyncio.sleep(0.01)
    stop = True
    await asyncio.gather(*writers)
    found = set(await numbers(tables))
    # What was acknowledged is there; beyond it only what was called unknown.
    assert acked <= found <= acked | unknown
    await tables.close()


async def test_r49_a_serialization_failure_is_tried_again(
    tables: PostgresTables, postgres: Postgres, database_url: str
) -> None:
    seen: list[int] = []

    def work(cursor: Cursor) -> int:
        [(n,)] = cursor.fetch("SELECT n FROM things WHERE id = 'a'")
        seen.append(n)
        if len(seen) < 3:  # another writer comes in between
            postgres.sql("UPDATE things SET n = n + 10", database_url)
        cursor.execute("UPDATE things SET n = ? WHERE id = 'a'", (n + 1,))
        assert cursor.repeated is False
        return n + 1

    assert await tables.transact(work) == 21
    assert seen == [0, 10, 20]
    assert await numbers(tables) == {"a": 21}


async def test_r49_a_failure_that_the_work_swallows_is_tried_again_all_the_same(
    tables: PostgresTables, postgres: Postgres, database_url: str
) -> None:
    calls: list[str] = []

    def work(cursor: Cursor) -> None:
        [(n,)] = cursor.fetch("SELECT n FROM things WHERE id = 'a'")
        if not calls:
            postgres.sql("UPDATE things SET n = n + 10", database_url)
        try:
            cursor.execute("UPDATE things SET n = ? WHERE id = 'a'", (n + 1,))
            calls.append("kept")
        except StoreError:
            calls.append("swallowed")
            raise KeyError("mine") from None

    await tables.transact(work)
    assert calls == ["swallowed", "kept"]
    assert await numbers(tables) == {"a": 11}


async def test_r49_write_skew_that_only_the_commit_finds(tables: PostgresTables) -> None:
    """Each reads what the other writes: the server lets one of the two through at a time."""
    await put(tables, b=0)
    barrier = threading.Barrier(2, timeout=20)
    calls = {"a": 0, "b": 0}

    def sum_into(name: str, cursor: Cursor) -> None:
        [(total,)] = cursor.fetch("SELECT sum(n) FROM things")
        calls[name] += 1
        if calls[name] == 1:
            barrier.wait()
        cursor.execute("UPDATE things SET n = ? WHERE id = ?", (total + 1, name))

    await asyncio.gather(*[tables.transact(lambda cursor, name=name: sum_into(name, cursor)) for name in "ab"])
    assert sorted((await numbers(tables)).values()) == [1, 2]
    assert sorted(calls.values()) == [1, 2]


async def test_r49_a_deadlock_is_tried_again(database_url: str) -> None:
    tables = PostgresTables(f"{database_url}?options=-c%20deadlock_timeout%3D20ms")
    await tables.migrate("test", STEPS)
    await put(tables, a=0, b=0)
    barrier = threading.Barrier(2, timeout=20)
    calls: list[str] = []

    def both(first: str, second: str, cursor: Cursor) -> None:
        cursor.execute("UPDATE things SET n = n + 1 WHERE id = ?", (first,))
        calls.append(first)
        if len(calls) <= 2:
            barrier.wait()
        cursor.execute("UPDATE things SET n = n + 1 WHERE id = ?", (second,))

    await asyncio.gather(
        tables.transact(lambda cursor: both("a", "b", cursor)), tables.transact(lambda cursor: both("b", "a", cursor))
    )
    assert await numbers(tables) == {"a": 2, "b": 2}
    assert len(calls) >= 3
    await tables.close()


async def test_r49_conflicts_without_end_are_given_up(postgres: Postgres, database_url: str) -> None:
    tables = PostgresTables(database_url, patience=0.1)
    await tables.migrate("test", STEPS)
    await put(tables, a=0)
    calls = 0

    def work(cursor: Cursor) -> None:
        nonlocal calls
        calls += 1
        cursor.fetch("SELECT n FROM things")
        postgres.sql("UPDATE things SET n = n + 10", database_url)
        cursor.execute("UPDATE things SET n = 5")

    with pytest.raises(StoreError, match="40001"):
        await tables.transact(work)
    assert calls >= 2
    assert await numbers(tables) == {"a": 10 * calls}
    await tables.close()


@pytest.mark.parametrize("times", [1, 3])
async def test_r49_a_session_cut_before_its_commit_is_done_again(
    tables: PostgresTables, postgres: Postgres, database_url: str, times: int
) -> None:
    calls = 0

    def work(cursor: Cursor) -> int:
        nonlocal calls
        calls += 1
        cursor.execute("UPDATE things SET n = n + 1")
        if calls <= times:
            assert postgres.terminate(database_url) >= 1
        assert cursor.repeated is False
        return cursor.fetch("SELECT n FROM things")[0][0]

    assert await tables.transact(work) == 1
    assert calls == times + 1
    assert await numbers(tables) == {"a": 1}


async def test_r49_a_session_cut_between_work_and_commit_is_not_repeated_unasked(
    tables: PostgresTables, postgres: Postgres, database_url: str
) -> None:
    calls: list[bool] = []

    def work(cursor: Cursor) -> None:
        calls.append(cursor.repeated)
        cursor.execute("UPDATE things SET n = n + 1")
        if len(calls) % 2:
            postgres.terminate(database_url)

    with pytest.raises(StoreError, match="whether it was kept is unknown"):
        await tables.transact(work)
    assert (calls, await numbers(tables)) == ([False], {"a": 0})
    calls.clear()
    await tables.transact(work, idempotent=True)
    assert (calls, await numbers(tables)) == ([False, True], {"a": 1})


async def test_r49_a_commit_whose_answer_is_lost(database_url: str, postgres: Postgres) -> None:
    """The server commits, and the network takes the news away."""
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        there = database_url.replace(f":{postgres.port}/", f":{proxy.port}/")
        tables = PostgresTables(there)
        await tables.migrate("test", STEPS)
        await put(tables, a=0)
        proxy.cut_answers_to(COMMIT, times=1)
        with pytest.raises(StoreError, match="whether it was kept is unknown"):
            await tables.execute("UPDATE things SET n = n + 1")
        assert await numbers(tables) == {"a": 1}
        proxy.cut_answers_to(COMMIT, times=1)
        assert await tables.execute("UPDATE things SET n = 7", idempotent=True) == 1
        assert await numbers(tables) == {"a": 7}
        # The first answer is lost, and then the server is: what is said is still the truth about the first.
        proxy.cut_answers_to(COMMIT, times=1, then_refuse=True)
        tables_without_patience = PostgresTables(there, patience=0.1)
        with pytest.raises(StoreError, match="whether it was kept is unknown"):
            await tables_without_patience.execute("UPDATE things SET n = 9", idempotent=True)
        assert postgres.sql("SELECT n FROM things", database_url) == [(9,)]
        await tables_without_patience.close()
        await tables.close()


async def test_r49_an_append_whose_answer_is_lost_is_kept_once(database_url: str, postgres: Postgres) -> None:
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        store = PostgresStore(database_url.replace(f":{postgres.port}/", f":{proxy.port}/"))
        await store.append("s", make_rows(2), 0)
        for pos, times in ((2, 1), (4, 2)):
            proxy.cut_answers_to(COMMIT, times=times)
            await store.append("s", make_rows(2, pos), pos)
        proxy.cut_answers_to(COMMIT, times=1)
        await store.append("new", make_rows(1), 0)
        proxy.cut_answers_to(COMMIT, times=1)
        with pytest.raises(StoreConflict):
            await store.append("s", make_rows(2, 3, data=b"mine"), 3)
        assert proxy.cuts == 4
        assert await store.delete("new") is True
        assert proxy.cuts == 5
        assert await store.read("s") == make_rows(6)
        assert [info.id for info in await store.list()] == ["s"]
        await store.close()


async def test_r49_a_server_that_becomes_a_standby_is_left(database_url: str, postgres: Postgres) -> None:
    """After a failover the old primary answers, and takes no writes."""
    tables = PostgresTables(database_url, size=1)
    await tables.migrate("test", STEPS)
    await put(tables, a=0)
    name = database_url.rpartition("/")[2]
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgres.terminate(database_url)
    assert await numbers(tables) == {"a": 0}
    writing = asyncio.ensure_future(tables.execute("UPDATE things SET n = 1"))
    done, _ = await asyncio.wait({writing}, timeout=0.1)
    assert not done
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    assert await writing == 1
    await tables.close()


async def test_a_server_that_freezes_is_given_up(own_server: Postgres) -> None:
    tables = PostgresTables(own_server.new_database(), size=1, timeout=0.2, patience=0)
    await tables.migrate("test", STEPS)
    await put(tables, a=0)
    own_server.pause()
    try:
        with pytest.raises(StoreError, match="does not answer"):
            await tables.fetch("SELECT 1")
    finally:
        own_server.resume()
    assert await numbers(tables) == {"a": 0}
    await tables.close()


async def test_a_statement_that_takes_too_long_is_ended(database_url: str) -> None:
    tables = PostgresTables(database_url, timeout=0.1)
    with pytest.raises(StoreError, match=r"took longer than 0\.1 seconds"):
        await tables.fetch("SELECT pg_sleep(30)")
    # A migration has the time that it needs.
    await tables.migrate("slow", ["WITH a AS (SELECT pg_sleep(0.3)) SELECT * FROM a"])
    assert await tables.fetch("SELECT * FROM windlass_rooms") == [("slow", 1)]
    await tables.close()


async def test_the_loop_turns_while_a_lock_is_waited_for(tables: PostgresTables, database_url: str) -> None:
    other = PostgresTables(database_url)
    locked, go_on = threading.Event(), threading.Event()

    def holds(cursor: Cursor) -> None:
        cursor.execute("UPDATE things SET n = 5")
        locked.set()
        go_on.wait(20)

    holding = asyncio.ensure_future(tables.transact(holds))
    await asyncio.get_running_loop().run_in_executor(None, locked.wait, 20)
    waiting = asyncio.ensure_future(other.execute("UPDATE things SET n = n + 1"))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    go_on.set()
    await holding
    assert await waiting == 1
    assert await numbers(tables) == {"a": 6}
    await other.close()


class Deaf:
    """A server that accepts connections and closes them, and counts them."""

    def __init__(self) -> None:
        self.accepted = 0
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._sock.accept()
            except OSError:
                return
            self.accepted += 1
            conn.close()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


async def test_a_queue_before_a_dead_server_drains_at_once() -> None:
    """No call waits its own patience after the others', nor knocks by itself."""
    deaf = Deaf()
    tables = PostgresTables(f"postgresql://u@127.0.0.1:{deaf.port}/d", patience=0.5)
    # One after the other they would take a minute; what is waited for is half a second.
    async with clock.deadline(20):
        results = await asyncio.gather(*[tables.fetch("SELECT 1") for _ in range(480)], return_exceptions=True)
    assert {type(result) for result in results} == {StoreError}
    assert "cannot be reached" in str(results[0])
    # libpq knocks up to three times for one connection: with TLS, without.
    assert 4 <= deaf.accepted <= 120
    await tables.close()
    deaf.close()


async def test_a_server_that_starts_late_is_waited_for() -> None:
    with Postgres() as server:
        url = server.new_database()
        server.stop()
        tables = PostgresTables(url, patience=60)
        waiting = asyncio.ensure_future(tables.migrate("test", STEPS))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        await asyncio.get_running_loop().run_in_executor(None, server.start)
        await waiting
        await put(tables, a=1)
        assert await numbers(tables) == {"a": 1}
        await tables.close()
        assert server.connections(url) == 0
