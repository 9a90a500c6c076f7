"""The SQLite store's file: who may read it, how big it is, what is in it, how it opens and closes."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core.errors import ConfigError, StoreError
from windlass.core.events import DURABLE
from windlass.core.json import dumps_stored
from windlass.core.ports import Row
from windlass.stores import lanes
from windlass.stores.rows import LOST
from windlass.stores.schema import APPLICATION_ID, CODES, KINDS
from windlass.stores.sqlite import BLOB_BYTES, SqliteStore
from windlass.testing.store_kit import make_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def tables(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as conn:
        return {
            name: conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("sessions", "rows", "blobs")
        }


def test_every_durable_kind_has_a_code_that_never_changes() -> None:
    assert {str(kind.__struct_config__.tag) for kind in DURABLE} | {LOST} == set(KINDS)
    # Files hold these numbers.
    assert hashlib.sha256(" ".join(KINDS).encode()).hexdigest()[:16] == "52b45002a6013dad"
    assert CODES["session.created"] == 0


@pytest.mark.parametrize("bad", ["", ":memory:"])
def test_a_path_that_is_no_file_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="MemoryStore"):
        SqliteStore(bad)


async def test_nothing_is_opened_before_the_first_call(path: Path) -> None:
    store = SqliteStore(path)
    assert not path.exists()
    await store.close()
    assert not path.exists()


async def test_s14_files_and_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "ledger.db"
    before = os.umask(0)
    try:
        store = SqliteStore(path)
        await store.append("s", make_rows(3), 0)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
        assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]
        await store.close()
    finally:
        os.umask(before)


QUOTES = st.sampled_from(["'", '"', "%", "_", ";--", "\\", "\x00", "*", "') OR 1=1 --", ""])
META = st.builds(str.__add__, st.text(max_size=8), QUOTES)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.tuples(META, META, META), max_size=3, unique_by=lambda ids: ids[:2]))
def test_s45_ids_and_titles_are_only_ever_data(
    ids: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("s45") / "ledger.db"

    async def check() -> None:
        store = SqliteStore(path, synchronous="NORMAL")
        for tenant, session, title in ids:
            row = Row(0, "session.created", -1, 1, dumps_stored({"title": title}))
            await store.append(session, [row], 0, tenant=tenant)
        for tenant, session, title in ids:
            mine = {info.id: info.title for info in await store.list(tenant=tenant)}
            assert mine == {other: text for owner, other, text in ids if owner == tenant}
            assert len(await store.read(session, tenant=tenant)) == 1
            assert mine[session] == title
        if ids:
            assert await store.delete(ids[0][1], tenant=ids[0][0])
        assert await store.check() == []
        await store.close()

    asyncio.run(check())
    assert tables(path)["rows"] == max(len(ids) - 1, 0)


def tool_turns(count: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (kind, row data, the message's canonical JSON) of tool turns with 200 characters of result each."""
    for turn in range(count):
        call_id = f"call_{turn:06d}"
        call = {"type": "tool_call", "id": call_id, "name": "read_file", "arguments": {"path": f"src/part_{turn}.py"}}
        message = {"role": "assistant", "parts": [call], "finish_reason": "tool_calls"}
        added = {"message": message, "usage": {"input_tokens": 900 + turn, "output_tokens": 31}, "started": True}
        result = f"{turn:05d} " + "lorem ipsum dolor " * 10 + "end of it."
        done = {
            "call_id": call_id,
            "name": "read_file",
            "response": result[:200],
            "output_bytes": 200,
            "duration_ns": 81_234,
        }
        part = {"type": "tool_call_response", "id": call_id, "response": result[:200]}
        yield "message.added", dumps_stored(added), dumps_stored(message)
        yield "tool.finished", dumps_stored(done), dumps_stored({"role": "tool", "parts": [part]})


async def test_400_tool_turns_stay_small(path: Path) -> None:
    store = SqliteStore(path, synchronous="NORMAL")
    canonical = 0
    for pos, (kind, data, message) in enumerate(tool_turns(400)):
        canonical += len(message) + 1
        await store.append("s", [Row(pos, kind, 0, 1_760_000_000_000_000_000 + pos * 1_234_567_891, data)], pos)
    await store.close()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    assert path.stat().st_size / canonical < 1.6


async def test_big_data_is_kept_once_and_freed_with_its_last_user(path: Path) -> None:
    store = SqliteStore(path)
    big, other = os.urandom(200_000), os.urandom(BLOB_BYTES + 1)
    for session in ("a", "b"):
        rows = [*make_rows(2, data=big), *make_rows(1, 2, data=other), *make_rows(1, 3, data=big[:BLOB_BYTES])]
        await store.append(session, rows, 0)
    await store.append("f", [Row(1, "session.forked", -1, 0, dumps_stored({"parent": "a", "pos": 1}))], 1)
    assert tables(path) == {"sessions": 3, "rows": 9, "blobs": 2}
    await store.delete("a")
    assert tables(path)["blobs"] == 2
    await store.delete("b")
    # Row 0 of the deleted "a" is still the fork's: so is its blob, and only that one.
    assert tables(path) == {"sessions": 2, "rows": 2, "blobs": 1}
    assert (await store.read("f"))[0].data == big
    await store.close()
    before = path.stat().st_size
    store = SqliteStore(path)
    await store.delete("f")
    assert tables(path) == {"sessions": 0, "rows": 0, "blobs": 0}
    await store.close()
    assert before - path.stat().st_size >= 190_000
    assert big[:64] not in path.read_bytes()


async def test_blobs_whose_keys_collide_stay_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __init__(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"\x40" * 32

    monkeypatch.setattr(hashlib, "sha256", Same)
    store = SqliteStore(path)
    datas = [bytes([n]) * 20_000 for n in (1, 2, 3, 2)]
    await store.append("s", [Row(pos, "k", 0, 0, data) for pos, data in enumerate(datas)], 0)
    assert [row.data for row in await store.read("s")] == datas
    assert tables(path)["blobs"] == 3
    await store.close()


async def test_one_writer_commits_what_is_queued_together(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("warm", make_rows(1), 0)
    log = Path(f"{path}-wal")
    file = lanes.acquire(store.path, "FULL", 5.0)
    commits: list[str] = []
    await file.writer.submit(lambda conn: conn.set_trace_callback(commits.append))
    # Two conflicts among them fail alone.
    bad = [store.append("warm", make_rows(1, 7), 7) for _ in range(2)]
    appends = [store.append(f"s{n}", make_rows(2), 0) for n in range(50)]
    results = await asyncio.gather(*appends, *bad, return_exceptions=True)
    await file.writer.submit(lambda conn: conn.set_trace_callback(None))
    assert [type(result).__name__ for result in results] == ["NoneType"] * 50 + ["StoreConflict"] * 2
    assert commits.count("COMMIT") <= 10
    assert len(await store.list()) == 51
    assert log.stat().st_size > 0
    await file.release()
    await store.close()
    assert not log.exists()


async def test_a_job_that_fails_midway_takes_no_other_along(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(1), 0)
    file = lanes.acquire(store.path, "FULL", 5.0)

    def hold(conn: sqlite3.Connection) -> None:
        started.set()
        release.wait(10)

    def breaks(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO sessions(tenant, id, created, title) VALUES ('', 'half', 0, '')")
        raise RuntimeError("a bug")

    started, release = threading.Event(), threading.Event()
    holding = asyncio.ensure_future(file.writer.submit(hold))
    await asyncio.to_thread(started.wait, 10)
    jobs = [store.append("a", make_rows(1), 0), file.writer.submit(breaks), store.append("b", make_rows(1), 0)]
    waiting = asyncio.gather(*jobs, return_exceptions=True)
    await asyncio.sleep(0)
    release.set()
    results = await waiting
    await holding
    assert results[0] is results[2] is None
    assert isinstance(results[1], StoreError)
    assert "a bug" in str(results[1])
    assert {info.id for info in await store.list()} == {"s", "a", "b"}
    assert tables(path)["sessions"] == 3
    await file.release()
    await store.close()


async def test_an_append_cancelled_before_it_began_never_runs(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(1), 0)
    file = lanes.acquire(store.path, "FULL", 5.0)
    started, release = threading.Event(), threading.Event()

    def hold(conn: sqlite3.Connection) -> None:
        started.set()
        release.wait(10)

    holding = asyncio.ensure_future(file.writer.submit(hold))
    await asyncio.to_thread(started.wait, 10)
    task = asyncio.ensure_future(store.append("s", make_rows(1, 1), 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await holding
    # The writer has come past where the append would have been.
    await file.writer.submit(lambda conn: None)
    assert len(await store.read("s")) == 1
    await file.release()
    await store.close()


def test_several_loops_and_threads_share_one_file(path: Path) -> None:
    before = set(threading.enumerate())  # of other tests' files, about to end
    shared = SqliteStore(path, synchronous="NORMAL")
    errors: list[BaseException] = []

    def work(name: str) -> None:
        async def run() -> None:
            own = SqliteStore(path, synchronous="NORMAL")
            for pos in range(0, 20, 2):
                await shared.append(name, make_rows(1, pos), pos)
                await own.append(name, make_rows(1, pos + 1), pos + 1)
                assert len(await own.read(name)) == len(await shared.read(name)) == pos + 2
            await own.close()

        try:
            asyncio.run(run())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    writers = {thread for thread in threading.enumerate() if thread.name == "windlass-ledger-writer"} - before
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert len(writers) <= 1
    asyncio.run(shared.close())
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    assert tables(path) == {"sessions": 4, "rows": 80, "blobs": 0}


async def test_a_store_dropped_without_close_is_closed_behind_it(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(1), 0)
    file = lanes.acquire(store.path, "FULL", 5.0)
    threads = [file.reader.thread, file.writer.thread]
    await file.release()
    del store, file
    gc.collect()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert not any(thread.is_alive() for thread in threads)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


def test_a_program_that_ends_without_close_leaves_one_file(path: Path) -> None:
    code = f"""
import asyncio
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows
store = SqliteStore({str(path)!r})
asyncio.run(store.append("s", make_rows(3), 0))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    assert tables(path)["rows"] == 3


def test_a_forked_child_gets_lanes_of_its_own(path: Path) -> None:
    code = f"""
import asyncio, os
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows
store = SqliteStore({str(path)!r})
asyncio.run(store.append("s", make_rows(1), 0))
child = os.fork()
if child == 0:
    asyncio.run(store.append("s", make_rows(1, 1), 1))
    asyncio.run(store.close())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(store.append("s", make_rows(1, 2), 2))
assert len(asyncio.run(store.read("s"))) == 3
asyncio.run(store.close())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


async def _write_three(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(3), 0)
    await store.close()


async def test_the_file_says_whose_it_is(path: Path) -> None:
    await _write_three(path)
    header = path.read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == 1
    # Auto-vacuum took hold: the file shrinks when sessions are deleted.
    assert int.from_bytes(header[52:56], "big") > 0
