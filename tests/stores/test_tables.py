"""The tables helper: one class of tests for both databases, and how a URL names one."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.postgres import PASSWORD
from tests.stores.helpers import STEPS, numbers, put, start_program
from windlass.core.errors import (
    ConfigError,
    RequestRefused,
    SessionVersionError,
    StoreConflict,
    StoreError,
)
from windlass.stores.tables import Cursor, PostgresTables, Tables, open_tables


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'tables.db'}" if request.param == "sqlite" else request.getfixturevalue("database_url")


@pytest.fixture
async def tables(url: str) -> AsyncGenerator[Tables]:
    made = open_tables(url)
    await made.migrate("test", STEPS)
    yield made
    await made.close()


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 7


class TestTables:
    """What holds on SQLite and on PostgreSQL alike."""

    async def test_values_come_back_with_their_types(self, tables: Tables) -> None:
        given: list[tuple[Any, ...]] = [
            ("small", -(1 << 63), 0.1, b""),
            ("wide", (1 << 63) - 1, -1e300, bytes(range(256))),
            ("none", 0, None, None),
            ("ключ 🔑", 1, float("inf"), b"'"),
        ]
        await tables.execute_many("INSERT INTO things VALUES (?, ?, ?, ?)", given)
        found = await tables.fetch("SELECT * FROM things")
        assert sorted(found, key=str) == sorted(given, key=str)
        assert {type(value) for row in found for value in row} == {str, int, float, bytes, type(None)}

    async def test_kinds_of_values_are_taken_as_what_they_are(self, tables: Tables) -> None:
        await tables.execute("INSERT INTO things VALUES (?, ?, ?, ?)", (Colour.RED, Size.BIG, True, bytearray(b"x")))
        assert await tables.fetch("SELECT * FROM things") == [("red", 7, 1.0, b"x")]
        for bad, says in [
            ({}, "dict"), (1 << 63, "64 bits"), (-(1 << 63) - 1, "64 bits"), (float("nan"), "NaN"), (1j, "complex"),
        ]:  # fmt: skip
            with pytest.raises(ValueError, match=says):
                await tables.execute("UPDATE things SET n = ?", (bad,))
        for params in ((), (1, 2)):
            with pytest.raises(ValueError, match="parameters were given"):
                await tables.fetch("SELECT * FROM things WHERE n = ?", params)

    async def test_sums_and_comparisons_are_int_and_float(self, tables: Tables) -> None:
        await put(tables, a=(1 << 53) + 1, b=1 << 53, c=2)
        sql = "SELECT sum(n), count(*), avg(n), max(n) > 5, n / 2, n % 3 FROM things WHERE id = ? GROUP BY n"
        [row] = await tables.fetch(sql, ("c",))
        assert (row, [type(value) for value in row]) == ((2, 1, 2.0, 0, 1, 2), [int, int, float, int, int, int])
        assert await tables.fetch("SELECT sum(n) FROM things") == [((1 << 54) + 3,)]
        assert await tables.fetch("SELECT sum(n) FROM things WHERE n < 0") == [(None,)]

    async def test_counts_of_changed_rows(self, tables: Tables) -> None:
        await put(tables, a=1, b=2, c=3)
        assert await tables.execute("UPDATE things SET n = n + 1 WHERE n > ?", (1,)) == 2
        assert await tables.execute("DELETE FROM things WHERE n > ?", (100,)) == 0
        upsert = "INSERT INTO things(id, n) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET n = things.n + excluded.n"
        assert await tables.execute(upsert, ("a", 10)) == 1
        assert await tables.execute("INSERT INTO things(id, n) VALUES ('a', 0) ON CONFLICT (id) DO NOTHING") == 0
        assert await tables.execute("SELECT * FROM things") == 0
        assert await numbers(tables) == {"a": 11, "b": 3, "c": 4}

    async def test_returning_is_a_committed_change(self, tables: Tables, url: str) -> None:
        await put(tables, a=1)
        sql = "UPDATE things SET n = n + ? WHERE id = ? AND n < 3 RETURNING n"
        assert [await tables.fetch(sql, (1, "a")) for _ in range(4)] == [[(2,)], [(3,)], [], []]
        other = open_tables(url)
        assert await numbers(other) == {"a": 3}
        await other.close()

    async def test_text_is_ordered_and_compared_by_its_bytes(self, tables: Tables) -> None:
        names = ["b", "A", "a", "é", "z", "🔑", "\uffff", "a b", "_", ""]
        await put(tables, **dict.fromkeys(names, 0))
        assert list(await numbers(tables)) == sorted(names, key=str.encode)
        found = await tables.fetch("SELECT id FROM things WHERE id LIKE ? ESCAPE '!' ORDER BY id", ("A%",))
        assert found == [("A",)]
        assert await tables.fetch("SELECT id FROM things WHERE id LIKE ? ESCAPE '!'", ("!_",)) == [("_",)]

    async def test_a_row_that_is_there_already_is_a_conflict_and_nothing_is_kept(self, tables: Tables) -> None:
        await put(tables, a=1)
        with pytest.raises(StoreConflict, match="there already"):
            await tables.execute_many("INSERT INTO things(id, n) VALUES (?, ?)", [("b", 1), ("a", 2), ("c", 3)])
        for sql in (
            "INSERT INTO things(id, n) VALUES ('d', NULL)",
            "INSERT INTO things(id, n) VALUES ('d', 'text')",
            "INSERT INTO parts(id, thing) VALUES ('p', 'nobody')",
            "INSERT INTO nowhere VALUES (1)",
            "SELECT FROM WHERE",
        ):
            with pytest.raises(StoreError, match="nothing was kept") as caught:
                await tables.execute(sql)
            assert not isinstance(caught.value, StoreConflict)
        assert await numbers(tables) == {"a": 1}

    async def test_a_unit_of_work_is_kept_whole_or_not_at_all(self, tables: Tables) -> None:
        def adds(cursor: Cursor) -> int:
            assert cursor.dialect == tables.dialect
            assert cursor.repeated is False
            cursor.execute_many("INSERT INTO things(id, n) VALUES (?, ?)", [("a", 1), ("b", 2)])
            return sum(row[0] for row in cursor.fetch("SELECT n FROM things"))

        refused = RequestRefused(402, "no money")

        def refuses(cursor: Cursor) -> None:
            cursor.execute("DELETE FROM things")
            raise refused

        def goes_on(cursor: Cursor) -> str:
            cursor.execute("DELETE FROM things")
            with pytest.raises(StoreConflict):
                cursor.execute("INSERT INTO things(id, n) VALUES ('x', 1), ('x', 1)")
            with pytest.raises(StoreError, match="earlier statement"):
                cursor.fetch("SELECT 1")
            return "done"

        assert await tables.transact(adds) == 3
        with pytest.raises(RequestRefused) as caught:
            await tables.transact(refuses)
        assert caught.value is refused
        with pytest.raises(StoreConflict):
            await tables.transact(goes_on)
        assert await numbers(tables) == {"a": 1, "b": 2}

    async def test_what_a_unit_raises_never_stops_the_thread(self, tables: Tables) -> None:
        class Stop(BaseException):
            pass

        def raises(kind: type[BaseException]) -> Callable[[Cursor], None]:
            def work(cursor: Cursor) -> None:
                cursor.execute("INSERT INTO things(id, n) VALUES ('a', 1)")
                raise kind("out")

            return work

        for kind in (Stop, SystemExit, KeyError):
            with pytest.raises(kind):
                await tables.transact(raises(kind))
        with pytest.raises(RuntimeError):  # a coroutine cannot raise StopIteration
            await tables.transact(raises(StopIteration))
        assert await numbers(tables) == {}

    async def test_a_failing_unit_leaves_those_beside_it_alone(self, tables: Tables) -> None:
        def fails(cursor: Cursor) -> None:
            cursor.execute("INSERT INTO things(id, n) VALUES ('lost', 1)")
            raise KeyError("mine")

        good = [tables.execute("INSERT INTO things(id, n) VALUES (?, ?)", (f"k{n}", n)) for n in range(10)]
        bad = [tables.transact(fails), tables.execute("INSERT INTO nowhere VALUES (1)")]
        results = await asyncio.gather(*good[:5], *bad, *good[5:], return_exceptions=True)
        assert [type(result) for result in results] == [int] * 5 + [KeyError, StoreError] + [int] * 5
        assert await numbers(tables) == {f"k{n}": n for n in range(10)}

    async def test_read_then_write_loses_no_update(self, tables: Tables, url: str) -> None:
        await put(tables, a=0)
        other = open_tables(url)

        def add(cursor: Cursor) -> None:
            [(n,)] = cursor.fetch("SELECT n FROM things WHERE id = 'a'")
            cursor.execute("UPDATE things SET n = ? WHERE id = 'a'", (n + 1,))

        await asyncio.gather(*[one.transact(add) for _ in range(20) for one in (tables, other)])
        assert await numbers(tables) == {"a": 40}
        await other.close()

    async def test_a_conditional_update_never_passes_its_limit(self, tables: Tables, url: str) -> None:
        await put(tables, budget=0)
        other = open_tables(url)
        sql = "UPDATE things SET n = n + ? WHERE id = 'budget' AND n + ? <= 50"
        taken = await asyncio.gather(*[one.execute(sql, (3, 3)) for _ in range(25) for one in (tables, other)])
        assert sum(taken) == 16
        assert await numbers(tables) == {"budget": 48}
        await other.close()

    async def test_cancelled_before_it_began_it_never_runs(self, tables: Tables) -> None:
        began, go_on = threading.Event(), threading.Event()

        def holds(cursor: Cursor) -> None:
            cursor.execute("INSERT INTO things(id, n) VALUES ('held', 1)")
            began.set()
            go_on.wait(20)

        # As many as there are threads.
        holders: list[asyncio.Future[Any]] = [asyncio.ensure_future(tables.transact(holds))]
        await asyncio.get_running_loop().run_in_executor(None, began.wait, 20)
        if isinstance(tables, PostgresTables):
            blocked = [tables.execute("INSERT INTO things(id, n) VALUES ('held', ?)", (n,)) for n in range(3)]
            holders += [asyncio.ensure_future(one) for one in blocked]
        late = asyncio.ensure_future(put(tables, late=1))
        await asyncio.sleep(0)
        late.cancel()
        go_on.set()
        results = await asyncio.gather(*holders, late, return_exceptions=True)
        assert isinstance(results[-1], asyncio.CancelledError)
        assert [type(one) for one in results[1:-1]] == [StoreConflict] * (len(results) - 2)
        assert await numbers(tables) == {"held": 1}

    async def test_the_event_loop_goes_on_while_the_database_waits(self, tables: Tables) -> None:
        """The unit ends only because the loop, meanwhile, says so."""
        go_on = threading.Event()
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        assert await tables.transact(lambda cursor: go_on.wait(30) and cursor.fetch("SELECT 1")) == [(1,)]

    async def test_several_loops_and_threads_share_one(self, tables: Tables) -> None:
        def elsewhere(name: str) -> None:
            asyncio.run(put(tables, **{f"{name}{n}": n for n in range(5)}))

        threads = [threading.Thread(target=elsewhere, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        await put(tables, here=1)
        loop = asyncio.get_running_loop()
        for thread in threads:
            await loop.run_in_executor(None, thread.join)
        assert len(await numbers(tables)) == 16

    async def test_after_close_every_call_is_refused(self, tables: Tables) -> None:
        await tables.close()
        await tables.close()
        for doing in (
            tables.execute("DELETE FROM things"),
            tables.fetch("SELECT 1"),
            tables.transact(lambda cursor: None),
            tables.execute_many("DELETE FROM things WHERE n = ?", [(1,)]),
            tables.migrate("test", STEPS),
        ):
            with pytest.raises(StoreError, match="closed"):
                await doing

    async def test_close_finishes_what_was_asked_for(self, tables: Tables, url: str) -> None:
        asked = [asyncio.ensure_future(put(tables, **{f"k{n}": n})) for n in range(30)]
        await asyncio.sleep(0)
        await tables.close()
        await asyncio.gather(*asked)
        other = open_tables(url)
        assert len(await numbers(other)) == 30
        await other.close()

    # Migrations.

    async def test_steps_run_once_and_rooms_are_apart(self, tables: Tables, url: str) -> None:
        await put(tables, a=1)
        await tables.migrate("test", STEPS)
        await tables.migrate("test", [*STEPS, "ALTER TABLE things ADD COLUMN flag INTEGER NOT NULL DEFAULT 0"])
        await tables.migrate("other", ["CREATE TABLE lists(id TEXT PRIMARY KEY)"])
        await tables.migrate("empty", [])
        other = open_tables(url)
        await other.migrate("test", [*STEPS, "ALTER TABLE things ADD COLUMN flag INTEGER NOT NULL DEFAULT 0"])
        assert await other.fetch("SELECT id, flag FROM things") == [("a", 0)]
        found = await other.fetch("SELECT room, version FROM windlass_rooms ORDER BY room")
        assert found == [("other", 1), ("test", 3)]
        await tables.execute("INSERT INTO parts(id, thing) VALUES ('p', 'a')")
        assert await other.fetch("SELECT note FROM parts") == [("a;b ? 'c'",)]
        await other.close()

    async def test_r41_a_step_that_fails_changes_nothing_and_runs_again(self, tables: Tables) -> None:
        await put(tables, a=1)
        add = "ALTER TABLE things ADD COLUMN flag INTEGER NOT NULL DEFAULT 0"
        with pytest.raises(StoreError):
            await tables.migrate("test", [*STEPS, f"{add}; UPDATE things SET flag = 5", "DROP TABLE nowhere"])
        with pytest.raises(StoreError):
            await tables.fetch("SELECT flag FROM things")
        await tables.migrate("test", [*STEPS, f"{add}; UPDATE things SET flag = 7"])
        assert await tables.fetch("SELECT id, flag FROM things") == [("a", 7)]

    async def test_r46_tables_of_a_newer_program_are_refused_and_untouched(self, tables: Tables) -> None:
        await tables.migrate("test", [*STEPS, "CREATE TABLE of_the_future(id TEXT)"])
        for _ in range(2):
            with pytest.raises(SessionVersionError, match=r"test tables in .* version 3; .* up to 2\. Upgrade"):
                await tables.migrate("test", STEPS)
        assert await tables.fetch("SELECT version FROM windlass_rooms") == [(3,)]
        await tables.migrate("other", [])

    async def test_many_at_once_migrate_one_database(self, url: str) -> None:
        many = [open_tables(url) for _ in range(5)]
        await asyncio.gather(*[one.migrate(room, STEPS[:1]) for one in many for room in ("test",)])
        assert await many[0].fetch("SELECT * FROM windlass_rooms") == [("test", 1)]
        for one in many:
            await one.close()

    async def test_r47_two_processes_migrate_and_write_at_once(self, url: str) -> None:
        code = """
async def main():
    await tables.migrate("test", STEPS)
    for turn in range(15):
        await tables.execute("INSERT INTO things(id, n) VALUES (?, 0)", (f"{sys.argv[2]}{turn}",))
        await tables.execute("INSERT INTO things(id, n) VALUES ('shared', 1) "
            "ON CONFLICT (id) DO UPDATE SET n = things.n + 1")
    await tables.close()
asyncio.run(main())
"""
        processes = [await start_program(code, url, name) for name in "ab"]
        for process in processes:
            await process.communicate()
            assert process.returncode == 0
        tables = open_tables(url)
        found = await numbers(tables)
        await tables.close()
        assert found.pop("shared") == 30
        assert found == {f"{name}{turn}": 0 for name in "ab" for turn in range(15)}

    async def test_kill_9_loses_no_acknowledged_write(self, url: str) -> None:
        code = """
async def main():
    await tables.migrate("test", STEPS)
    while True:
        def work(cursor):
            [(n,)] = cursor.fetch("SELECT count(*) FROM things")
            cursor.execute_many("INSERT INTO things(id, n) VALUES (?, ?)", [(f"k{n}", n), (f"k{n + 1}", n)])
            return n + 2
        say(acked=await tables.transact(work))
asyncio.run(main())
"""
        acked = 0
        for lines in (1, 7, 4):
            process = await start_program(code, url)
            assert process.stdout is not None
            for _ in range(lines):
                await process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            told = (await process.stdout.read()).splitlines()
            await process.wait()
            if told and told[-1].endswith(b"}"):
                acked = json.loads(told[-1])["acked"]
        tables = open_tables(url)
        found = await numbers(tables)
        await tables.close()
        assert len(found) >= max(acked, 20)
        # Both rows of a unit, or none.
        assert found == {f"k{n}": n - n % 2 for n in range(len(found))}

    async def test_a_forked_child_uses_connections_of_its_own(self, tables: Tables, url: str) -> None:
        code = """
async def put(name):
    await tables.execute("INSERT INTO things(id, n) VALUES (?, 1)", (name,))
asyncio.run(put("before"))
child = os.fork()
asyncio.run(put("child" if child == 0 else "parent"))
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(put("after"))
asyncio.run(tables.close())
"""
        process = await start_program(code, url)
        await process.communicate()
        assert process.returncode == 0
        assert set(await numbers(tables)) == {"before", "child", "parent", "after"}

    # S45: nothing in a parameter is ever read as SQL.

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        key=st.text(st.characters(exclude_categories=[]), max_size=20)
        | st.sampled_from(
            ["'; DROP TABLE things; --", '"', "?", "$1", "%s", "\\", "\0", "\ud800", "\ufdd0", "\ufdd00"]
        ),
        blob=st.binary(max_size=20),
        n=st.integers(-(1 << 63), (1 << 63) - 1),
        x=st.floats(allow_nan=False),
    )
    async def test_s45_any_parameter_is_only_a_value(
        self, tables: Tables, key: str, blob: bytes, n: int, x: float
    ) -> None:
        await tables.execute("DELETE FROM things")
        await tables.execute("INSERT INTO things VALUES ('beside', 1, 1.5, NULL)")
        await tables.execute(
            "INSERT INTO things VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING", (key + "!", n, x, blob)
        )
        assert await tables.fetch("SELECT * FROM things WHERE id = ?", (key + "!",)) == [(key + "!", n, x, blob)]
        assert await tables.fetch("SELECT count(*) FROM things") == [(2,)]
        assert await tables.fetch("SELECT id FROM things WHERE n = ? AND b = ?", (n, blob)) == [(key + "!",)]
        pattern = key.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "!!"
        assert await tables.fetch("SELECT id FROM things WHERE id LIKE ? ESCAPE '!'", (pattern,)) == [(key + "!",)]
        assert await tables.execute("DELETE FROM things WHERE id = ?", (key,)) == (key == "beside")
        sql = "SELECT id FROM things WHERE n >= ? ORDER BY id LIMIT ? OFFSET ?"
        assert len(await tables.fetch(sql, (-(1 << 63), 1, 0))) == 1


# URLs.


@pytest.mark.parametrize("bad", ["", "x", "/tmp/x.db", "mysql://u:canary@h/d", "sqlite:", "sqlite::memory:"])
def test_urls_of_no_known_kind_are_refused_without_repeating_them(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:PATH") as caught:
        open_tables(bad)
    assert "canary" not in str(caught.value)


def test_without_psycopg_the_command_to_install_it_is_named() -> None:
    code = """
import sys
sys.modules["psycopg"] = None
from windlass.stores.tables import open_tables
from windlass.core.errors import ConfigError
try:
    open_tables("postgresql://u:canary@h/d")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "pip install 'windlass[postgres]'" in done.stdout
    assert "canary" not in done.stdout


def test_sqlite_alone_never_imports_psycopg() -> None:
    code = "import sys; from windlass.stores.tables import open_tables; open_tables('sqlite:x.db'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "sqlite3" in done.stdout.split()
    assert "psycopg" not in done.stdout.split()


async def test_a_database_is_named_without_its_password(database_url: str) -> None:
    tables = open_tables(database_url.replace("postgresql:", "postgres:"))
    assert isinstance(tables, PostgresTables)
    assert repr(tables) == f"PostgresTables('postgresql://{database_url.rpartition('@')[2]}')"
    with pytest.raises(StoreError) as caught:
        await tables.fetch("SELECT * FROM nowhere")
    assert PASSWORD not in str(caught.value)
    assert "42P01" in str(caught.value)
    await tables.close()
