"""The store of vectors: what is kept, who sees it, what is refused, and that deleting deletes."""

from __future__ import annotations

import array
import asyncio
import math
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from windlass.core import registry
from windlass.core.errors import ConfigError, StoreConflict, StoreError
from windlass.core.memory import Entry, Vectors
from windlass.core.threads import run_in_thread
from windlass.stores.sqlite import SqliteStore
from windlass.stores.vectors import VectorStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[VectorStore]:
    store = VectorStore(tmp_path / "v.db")
    yield store
    await store.close()


def entry(id_: str, *vector: float, text: str = "", **metadata: Any) -> Entry:
    return Entry(id=id_, text=text or f"text of {id_}", vector=vector or None, metadata=metadata)


async def ids(store: VectorStore, *args: Any, **options: Any) -> list[str]:
    return [hit.id for hit in await store.search(*args, **options)]


# ------------------------------------------------------------------------------------------------------- keeping


async def test_what_was_kept_comes_back_also_after_closing(store: VectorStore) -> None:
    metadata: dict[str, Any] = {"a": [1, "x", None], "ü b": {"c": True}, "big": 2**40}
    await store.upsert([entry("one", 1, 0.5, text="Hello\0 \ud800 wörld", **metadata), entry("two")])
    await store.close()
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["v.db"]
    assert store.path.stat().st_mode & 0o777 == 0o600
    again = VectorStore(store.path)
    one, two = await again.get(["one", "missing", "two"])
    assert (one.text, one.vector, one.metadata) == ("Hello\0 \ud800 wörld", (1.0, 0.5), metadata)
    assert (two.vector, two.metadata) == (None, {}) and 0 < one.created == one.updated
    assert await again.count() == 2 and await again.check() == []
    await again.close()


async def test_upsert_replaces_and_add_refuses(store: VectorStore) -> None:
    await store.upsert([entry("a", 1, 0, text="old words"), entry("b", 0, 1)])
    [before] = await store.get(["a"])
    await store.upsert([entry("a", 0, 1, text="new words", n=1)])
    [after] = await store.get(["a"])
    assert (after.vector, after.text, after.metadata) == ((0, 1), "new words", {"n": 1})
    assert after.created == before.created < after.updated
    assert await ids(store, text="old") == [] and await ids(store, text="new") == ["a"]
    with pytest.raises(StoreConflict, match="'b' is there already"):
        await store.add([entry("c", 1, 1), entry("b", 1, 1)])
    with pytest.raises(StoreConflict, match="'d' is there already"):
        await store.add([entry("d"), entry("d")])
    await store.add([entry("e", 1, 1)])
    assert await store.count() == 3


async def test_the_newest_are_listed_first(store: VectorStore) -> None:
    await store.upsert([entry(str(number), number=number) for number in range(10)])
    assert [each.id for each in await store.list(limit=3, offset=2)] == ["7", "6", "5"]
    assert [each.id for each in await store.list(where={"number": {"$lt": 2}})] == ["1", "0"]


async def test_the_port_and_the_registry(store: VectorStore) -> None:
    assert isinstance(store, Vectors)
    assert registry.make("vectors", f"sqlite:{store.path}").path == store.path


# ------------------------------------------------------------------------------------------------ tenants and names


async def test_no_tenant_sees_another_nor_its_scores(store: VectorStore) -> None:
    await store.upsert([entry("x", 1, 0, text="rare shared word")], tenant="a")
    alone = await store.search([1, 0], "rare", tenant="a")
    await store.upsert([entry(str(n), 1, 0, text="rare rare rare") for n in range(50)], tenant="b")
    await store.upsert([entry("y", 1, 0, 0, text="rare")], tenant="a", namespace="other")
    assert await store.search([1, 0], "rare", tenant="a") == alone
    assert await store.get(["0"], tenant="a") == [] and await store.count(tenant="") == 0
    assert await store.delete(["0", "x"], tenant="c") == 0 and await store.delete(tenant="", namespace="other") == 0
    assert await store.namespaces(tenant="a") == {"": 1, "other": 1}
    assert await store.delete(tenant="b") == 50 and await store.namespaces(tenant="b") == {}
    assert await store.search([1, 0], "rare", tenant="a") == alone


async def test_tenants_that_utf_8_cannot_carry_are_told_apart(store: VectorStore) -> None:
    for tenant in ("\ud800", "\udfff", "\0", "'; DROP TABLE spaces; --"):
        await store.upsert([entry(tenant, 1)], tenant=tenant, namespace=tenant)
    for tenant in ("\ud800", "\udfff", "\0", "'; DROP TABLE spaces; --"):
        assert await ids(store, [1], tenant=tenant, namespace=tenant) == [tenant]
        assert await store.namespaces(tenant=tenant) == {tenant: 1}


# --------------------------------------------------------------------------------------------------------- refused


BAD: list[tuple[str, list[Entry], str]] = [
    ("nan", [entry("a", math.nan, 1)], "NaN"),
    ("infinity", [entry("a", 1, math.inf)], "infinity"),
    ("too large", [entry("a", 1e30, 1)], "length"),
    ("too small", [entry("a", 1e-30)], "length"),
    ("other length", [entry("a", 1, 2), entry("b", 1)], "1 and 2 numbers"),
    ("text in it", [Entry(id="a", vector=["x"])], "cannot be used"),  # pyright: ignore[reportArgumentType]
    ("empty", [Entry(id="a", vector=())], "1 to 16384"),
    ("too long", [Entry(id="a", vector=[1.0] * 16_385)], "1 to 16384"),
    ("no id", [entry("", 1)], "1 to 512"),
    ("long id", [entry("x" * 513, 1)], "1 to 512"),
    ("long text", [entry("a", text="x" * (1 << 20) + "y")], "1048576 bytes"),
    ("long metadata", [entry("a", k="x" * 70_000)], "65536 bytes"),
    ("metadata no json", [entry("a", k=object())], "not JSON"),
    ("metadata key", [Entry(id="a", metadata={'q"x': 1})], "key"),
    ("metadata operator", [Entry(id="a", metadata={"$eq": 1})], "key"),
    ("batch", [entry("a")] * 10_001, "10002 entries"),
]


@pytest.mark.parametrize(("bad", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_entries_are_refused_and_nothing_is_kept(store: VectorStore, bad: list[Entry], says: str) -> None:
    with pytest.raises(StoreError, match=says):
        await store.upsert([entry("good"), *bad])
    assert await store.count() == 0


async def test_vectors_of_other_lengths_and_models_are_never_mixed(store: VectorStore) -> None:
    await store.upsert([entry("no vector yet")])
    await store.upsert([entry("a", 1, 0)], model="m1")
    for options, says in (({"model": "m2"}, "of m2; those of this namespace are of m1"), ({}, "3 numbers")):
        vector = (1, 0) if options else (1, 0, 0)
        with pytest.raises(StoreError, match=says):
            await store.upsert([entry("b", *vector), entry("c", *vector)], **options)
    with pytest.raises(StoreError, match="has 3 numbers; those of this namespace have 2"):
        await store.search([1, 0, 0])
    assert await store.count() == 2
    await store.upsert([entry("b", 0, 1)])
    # An emptied namespace begins anew.
    assert await store.delete() == 3
    await store.upsert([entry("b", 1, 0, 0)], model="m2")
    assert await ids(store, [1, 0, 0]) == ["b"]


@pytest.mark.parametrize("query", [[math.nan, 1], [math.inf, 0], [], [[1.0, 2.0]]], ids=["nan", "inf", "empty", "rows"])
async def test_bad_queries_are_refused(store: VectorStore, query: Any) -> None:
    await store.upsert([entry("a", 1, 0)])
    with pytest.raises(StoreError):
        await store.search(query)
    assert await ids(store, [1, 0]) == ["a"]


async def test_searches_without_anything_and_too_much_are_refused(store: VectorStore) -> None:
    bad: list[dict[str, Any]] = [{}, {"text": "a", "limit": 1001}, {"text": "a", "where": {"$where": "1"}}]
    for options in bad:
        with pytest.raises(StoreError):
            await store.search(**options)
    for function in (store.get, store.delete):
        with pytest.raises(StoreError, match="list"):
            await function("a")


@pytest.mark.parametrize(
    "options",
    [{"metric": "l3"}, {"backend": "faiss"}, {"synchronous": "OFF"}],
    ids=["metric", "backend", "synchronous"],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
        VectorStore(tmp_path / "v.db", **options)
    with pytest.raises(ConfigError, match="path of a file"):
        VectorStore(":memory:")


async def test_another_program_s_file_is_left_alone(tmp_path: Path) -> None:
    ledger = SqliteStore(tmp_path / "l.db")
    await ledger.list()
    await ledger.close()
    before = (tmp_path / "l.db").read_bytes()
    store = VectorStore(tmp_path / "l.db")
    with pytest.raises(StoreError, match="another program"):
        await store.count()
    await store.close()
    assert (tmp_path / "l.db").read_bytes() == before


async def test_a_closed_store_says_so(store: VectorStore) -> None:
    await store.close()
    with pytest.raises(StoreError, match=r"vector store of .* is closed"):
        await store.count()


# ------------------------------------------------------------------------------------------------------- deleting


def all_bytes(store: VectorStore) -> bytes:
    return b"".join([path.read_bytes() for path in sorted(store.path.parent.iterdir())])


async def test_deleting_leaves_nothing_in_the_files(store: VectorStore) -> None:
    vector = [0.123456789, -0.987654321]
    secret = entry("secretid", *vector, text="xylophonesecret and more", key="metadatasecret")
    await store.upsert([entry(str(n), 1.0, n / 7, text=f"plain text {n}") for n in range(500)])
    await store.upsert([secret])
    await store.upsert([entry(f"z{n}", 1.0, n / 7, text=f"other text {n}") for n in range(50)])
    await store.search(vector, "xylophonesecret")
    [kept] = await store.get(["secretid"])
    traces = [b"xylophonesecret", b"metadatasecret", b"secretid", sqlite_floats(kept)]
    assert [trace in all_bytes(store) for trace in traces] == [True] * 4
    # While a reader of the same process is open, and without closing.
    assert await store.delete(["secretid", "secretid", "none"]) == 1
    assert [trace in all_bytes(store) for trace in traces] == [False] * 4
    assert await store.search(vector, "xylophonesecret", limit=1000) != [] and "secretid" not in await ids(
        store, vector, limit=1000
    )
    assert await store.check() == []


def sqlite_floats(kept: Entry) -> bytes:
    return array.array("f", kept.vector or ()).tobytes()


async def test_deleting_a_namespace_leaves_nothing_in_the_files(store: VectorStore) -> None:
    await store.upsert([entry(f"i{n}", 0.5, n, text=f"xylophonesecret {n}") for n in range(300)], namespace="n")
    await store.upsert([entry("keep", 1, 1)])
    assert await store.delete(namespace="n") == 300
    assert b"xylophonesecret" not in all_bytes(store)
    assert await store.namespaces() == {"": 1}


async def test_deleting_by_condition_and_by_both(store: VectorStore) -> None:
    await store.upsert([entry(str(n), n + 1, 1, n=n) for n in range(10)])
    assert await store.delete(["1", "9"], where={"n": {"$lt": 5}}) == 1
    assert await store.delete(where={"n": {"$gte": 8}}) == 2
    assert sorted(await ids(store, [1, 1])) == ["0", "2", "3", "4", "5", "6", "7"]
    assert await store.delete([]) == 0 and await store.count() == 7


async def test_a_reader_elsewhere_delays_the_emptying_of_the_log_but_not_the_deletion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = VectorStore(tmp_path / "v.db", busy_timeout=0.05)
    await store.upsert([entry("a", 1, text="xylophonesecret")])
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM entries").fetchone()
    assert await store.delete(["a"]) == 1 and await store.count() == 0
    assert "still holds what was deleted" in caplog.text
    other.execute("COMMIT")
    other.close()
    await store.close()
    assert b"xylophonesecret" not in all_bytes(store)


# ------------------------------------------------------------------------------------------------ several at a time


async def test_two_stores_on_one_file_see_each_other_at_once(tmp_path: Path) -> None:
    one, two = VectorStore(tmp_path / "v.db"), VectorStore(tmp_path / "v.db", busy_timeout=4.0)
    await one.upsert([entry("a", 1, 0), entry("b", 0.9, 0.1), entry("c", 0, 1)])
    assert await ids(two, [1, 0]) == ["a", "b", "c"]
    await one.upsert([entry("a", 0, 1), entry("d", 1, 0)])
    assert await ids(two, [1, 0]) == ["d", "b", "a", "c"]
    await one.delete(["d"])
    await one.upsert([entry("b"), entry("e", 0.5, 0.5)])
    assert await ids(two, [1, 0]) == ["e", "a", "c"]
    await one.delete()
    assert await ids(two, [1, 0]) == []
    await one.upsert([entry("z", 1, 0, 0)])
    assert await ids(two, [1, 0, 0]) == ["z"]
    await one.close()
    await two.close()


OTHER = """
import asyncio, sys
from windlass.core.memory import Entry
from windlass.stores.vectors import VectorStore
async def main():
    store = VectorStore(sys.argv[1])
    await store.upsert([Entry(id="theirs", text="from elsewhere", vector=[1.0, 0.0])])
    await store.delete(["ours"])
    await store.close()
asyncio.run(main())
"""


async def test_writes_of_another_process_count_at_once(store: VectorStore) -> None:
    await store.upsert([entry("ours", 1, 0), entry("far", 0, 1)])
    assert await ids(store, [1, 0]) == ["ours", "far"]
    await run_in_thread(subprocess.run, [sys.executable, "-c", OTHER, str(store.path)], check=True)
    assert await ids(store, [1, 0]) == ["theirs", "far"] and await ids(store, text="elsewhere") == ["theirs"]


async def test_many_writers_and_readers_of_one_loop(store: VectorStore) -> None:
    async def write(number: int) -> None:
        await store.upsert([entry(f"{number}.{part}", number + 1, part + 1, n=number) for part in range(5)])
        assert await store.count(where={"n": number}) == 5
        found = await store.search([number + 1, 1], where={"n": number})
        assert len(found) == 5 and found[0].id == f"{number}.0"

    await asyncio.gather(*[write(number) for number in range(20)])
    assert await store.count() == 100 and len(await store.search([1, 1], limit=1000)) == 100


async def test_a_cancelled_write_is_kept_wholly_or_not_at_all(store: VectorStore) -> None:
    for number in range(10):
        batch = [entry(f"{number}.{part}", 1, part) for part in range(200)]
        task = asyncio.create_task(store.upsert(batch, namespace=str(number)))
        await asyncio.sleep(0.0005 * number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await store.count(namespace=str(number)) in (0, 200)
