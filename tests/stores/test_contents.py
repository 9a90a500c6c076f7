"""Contents of files in the stores that are databases or memory."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.stores.contents import blobs_of, check_contents
from windlass.stores.memory import MemoryStore
from windlass.stores.postgres import PostgresStore
from windlass.stores.salvage import salvage
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows


async def test_memory_keeps_contents() -> None:
    await check_contents(MemoryStore)


async def test_sqlite_keeps_contents(tmp_path: Path) -> None:
    await check_contents(lambda: SqliteStore(tmp_path / "ledger.db"))


async def test_postgres_keeps_contents(database_url: str) -> None:
    await check_contents(lambda: PostgresStore(database_url))


def count(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as conn:
        one = [conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("files", "file_users")]
        return one[0], one[1]


async def test_sqlite_keeps_each_content_once_and_deletes_what_no_session_has(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(path)
    for name in ("a", "b"):
        await store.append(name, make_rows(1), 0)
        for data in (b"same", b"same", name.encode()):
            await store.blobs.put(name, data)
    await store.close()
    assert count(path) == (3, 4)
    store = SqliteStore(path)
    await store.delete("a")
    await store.close()
    assert count(path) == (2, 2)
    assert b"same" in path.read_bytes()


async def test_a_ledger_without_contents_has_no_tables_for_them(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db")
    await store.append("s", make_rows(1), 0)
    assert await store.blobs.get("s", "0" * 64) is None
    await store.close()
    with closing(sqlite3.connect(store.path)) as conn:
        names = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert names == {"sessions", "rows", "blobs"}


async def test_contents_survive_a_reopening_and_a_salvage(tmp_path: Path) -> None:
    path, saved = tmp_path / "ledger.db", tmp_path / "saved.db"
    store = SqliteStore(path)
    await store.append("s", make_rows(2), 0)
    keys = {data: await store.blobs.put("s", data) for data in (b"small", b"big" * 20_000)}
    await store.close()
    report = salvage(path, saved)
    assert report.damaged == 0
    for place in (path, saved):
        again = SqliteStore(place)
        for data, key in keys.items():
            assert await blobs_of(again).get("s", key) == data
        await again.close()
