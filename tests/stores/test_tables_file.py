"""Tables in a file: who may read it, what happens to it, and the text that each database is told."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stores.helpers import STEPS, numbers, put, start_program
from windlass.core.errors import ConfigError, SessionVersionError, StoreError
from windlass.stores.portable import parse
from windlass.stores.sqlite import SqliteStore
from windlass.stores.tables import SqliteTables, open_tables


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tables.db"


async def test_s53_only_its_owner_reads_the_file(path: Path) -> None:
    tables = SqliteTables(path)
    assert not path.exists()
    await tables.migrate("test", STEPS)
    await put(tables, a=1)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"tables.db": 0o600, "tables.db-wal": 0o600, "tables.db-shm": 0o600}
    await tables.close()
    assert [file.name for file in path.parent.iterdir()] == ["tables.db"]


async def test_a_migration_leaves_a_copy_of_what_was_there(path: Path) -> None:
    tables = SqliteTables(path)
    await tables.migrate("test", STEPS[:1])
    await put(tables, a=1)
    await tables.migrate("test", STEPS)
    await tables.close()
    backup = path.with_name("tables.db.test-v1.bak")
    assert backup.stat().st_mode & 0o777 == 0o600
    old = SqliteTables(backup)
    assert await numbers(old) == {"a": 1}
    await old.migrate("test", STEPS[:1])
    await old.close()


async def test_r41_kill_9_during_a_migration(path: Path) -> None:
    tables = SqliteTables(path)
    await tables.migrate("test", STEPS[:1])
    await put(tables, a=1)
    await tables.close()
    code = """
from windlass.stores import portable
def dies(cursor, sql, params=(), run=portable.Cursor.execute):
    run(cursor, sql, params)
    if "parts" in sql:
        os.kill(os.getpid(), 9)
portable.Cursor.execute = dies
asyncio.run(tables.migrate("test", STEPS))
"""
    process = await start_program(code, f"sqlite:{path}")
    await process.wait()
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("tables.db.test-v1.bak").exists()
    tables = SqliteTables(path)
    assert await numbers(tables) == {"a": 1}
    await tables.migrate("test", STEPS)
    await tables.execute("INSERT INTO parts(id, thing) VALUES ('p', 'a')")
    await tables.close()


async def test_a_ledger_is_not_taken_for_tables_nor_the_other_way_round(tmp_path: Path) -> None:
    ledger, file = tmp_path / "ledger.db", tmp_path / "tables.db"
    store, tables = SqliteStore(ledger), SqliteTables(file)
    assert await store.list() == []
    await tables.migrate("test", STEPS)
    await store.close()
    await tables.close()
    wrong, mixed_up = SqliteTables(ledger), SqliteStore(file)
    with pytest.raises(StoreError, match="another program"):
        await wrong.fetch("SELECT 1")
    with pytest.raises(StoreError, match="another program"):
        await mixed_up.list()
    await wrong.close()
    await mixed_up.close()


async def test_r46_a_file_of_a_newer_program_is_refused(path: Path) -> None:
    tables = SqliteTables(path)
    await tables.migrate("test", STEPS)
    await tables.close()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    tables = SqliteTables(path)
    for doing in (tables.fetch("SELECT 1"), tables.migrate("test", STEPS)):
        with pytest.raises(SessionVersionError, match="Upgrade"):
            await doing
    await tables.close()
    assert path.read_bytes() == before


async def test_r48_a_held_write_lock_is_waited_for_then_reported(path: Path) -> None:
    tables = SqliteTables(path, busy_timeout=0.1)
    await tables.migrate("test", STEPS)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"^Database .* is busy"):
            await put(tables, a=1)
        # Readers do not wait for writers.
        assert await numbers(tables) == {}
        holder.execute("ROLLBACK")
    await put(tables, a=1)
    assert await numbers(tables) == {"a": 1}
    await tables.close()


async def test_r42_a_full_disk_refuses_one_unit_and_keeps_the_others(path: Path) -> None:
    """`max_page_count` gives SQLITE_FULL, as a full disk does."""
    tables = SqliteTables(path)
    await tables.migrate("test", STEPS)
    opened: list[sqlite3.Connection] = []
    await tables.close()

    class Small(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append(self)
            self.execute("PRAGMA max_page_count = 40")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", Small)
        tables = SqliteTables(path)
        big = tables.execute("INSERT INTO things(id, n, b) VALUES ('big', 1, ?)", (bytes(400_000),))
        results = await asyncio.gather(put(tables, a=1), big, put(tables, b=2), return_exceptions=True)
    assert opened
    assert (results[0], results[2]) == (None, None)
    assert isinstance(results[1], StoreError)
    assert "disk is full" in str(results[1])
    assert await numbers(tables) == {"a": 1, "b": 2}
    await tables.close()


@pytest.mark.parametrize("level", ["NORMAL", "FULL"])
async def test_how_durable_is_the_users_choice(path: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    real = sqlite3.connect

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        conn = real(*args, **kwargs)
        conn.set_trace_callback(told.append)
        return conn

    monkeypatch.setattr(sqlite3, "connect", connect)
    tables = SqliteTables(path) if level == "NORMAL" else SqliteTables(path, synchronous=level)
    await tables.execute("DELETE FROM windlass_rooms")
    await tables.close()
    assert f"PRAGMA synchronous = {level}" in told
    assert "BEGIN IMMEDIATE" in told
    with pytest.raises(ConfigError):
        SqliteTables(path, synchronous="OFF")


async def test_units_that_wait_together_share_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = SqliteTables(path)
    await tables.migrate("test", STEPS)
    told: list[str] = []
    go_on = threading.Event()
    real = sqlite3.connect

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        conn = real(*args, **kwargs)
        conn.set_trace_callback(told.append)
        return conn

    await tables.close()
    monkeypatch.setattr(sqlite3, "connect", connect)
    tables = SqliteTables(path)
    first = asyncio.ensure_future(tables.transact(lambda cursor: go_on.wait(20)))
    await asyncio.sleep(0)
    rest = [asyncio.ensure_future(put(tables, **{f"k{n}": n})) for n in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, *rest)
    commits = told.count("COMMIT")
    await tables.close()
    # One or two for opening, one for the first unit, and then one for all others unless the first took some along.
    assert commits <= 4
    assert sum("INSERT INTO things" in text for text in told) == 50


# The text that each database is told.


@pytest.mark.parametrize(
    ("sql", "postgresql"),
    [
        ("SELECT '?', \"?\" -- ?\nFROM t /* ? */ WHERE a = ?", "SELECT '?', \"?\" -- ?\nFROM t /* ? */ WHERE a = $1"),
        ("SELECT 'it''s ?' || ? || '%' ;", "SELECT 'it''s ?' || $1 || '%'"),
        ("SELECT CAST(? AS INTEGER), 'INTEGER', \"blob\"", "SELECT CAST($1 AS BIGINT), 'INTEGER', \"blob\""),
        ("select cast(? as text)", "select cast($1 as text)"),
        ("ALTER TABLE t ADD COLUMN x TEXT", 'ALTER TABLE t ADD COLUMN x TEXT COLLATE "C"'),
        ("CREATE TABLE t(a INTEGER, b blob, c real)", "CREATE TABLE t(a BIGINT, b BYTEA, c DOUBLE PRECISION)"),
        ("INSERT INTO t VALUES " + "(?)," * 11 + "(?)", "INSERT INTO t VALUES "
         + "".join(f"(${n})," for n in range(1, 12)) + "($12)"),
    ],
)  # fmt: skip
def test_one_text_two_dialects(sql: str, postgresql: str) -> None:
    assert parse(sql).postgresql == postgresql


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("SELECT 'DELETE'", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("WITH a AS (DELETE FROM t RETURNING x) SELECT * FROM a", False),
        ("-- SELECT\nDELETE FROM t", False),
        ("VALUES (1)", True),
        ("UPDATE t SET a = 1 RETURNING a", False),
    ],
)
def test_what_only_reads_is_told_from_what_changes(sql: str, reads: bool) -> None:
    assert parse(sql).reads is reads


@pytest.mark.parametrize(
    "sql", ["", " ; ", "-- only", "BEGIN", "commit", "PRAGMA x", "SELECT 1; DELETE FROM t", "VACUUM", "SET a = 1", "(("]
)
async def test_what_is_not_in_the_subset_is_refused(sql: str, tmp_path: Path) -> None:
    tables = open_tables(f"sqlite:{tmp_path / 'tables.db'}")
    with pytest.raises(ValueError, match=r"SQL"):
        await tables.fetch(sql)
    await tables.close()
    assert list(tmp_path.iterdir()) == []


@given(st.text() | st.text("?;'\"-/*\n aS", max_size=30).map("SELECT ".__add__))
def test_no_text_breaks_the_translation(sql: str) -> None:
    try:
        statement = parse(sql)
    except ValueError:
        return
    assert statement.postgresql.count("$") >= statement.parameters
    # What sqlite would call a parameter is one for us, and the other way round.
    with closing(sqlite3.connect(":memory:")) as conn:
        try:
            conn.execute(statement.sqlite, (1,) * statement.parameters)
        except sqlite3.ProgrammingError as error:
            assert "binding" not in str(error)
        except (sqlite3.Error, UnicodeEncodeError):
            pass
