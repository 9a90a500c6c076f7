"""Faults by real means: killed processes, refused writes and fsyncs, full files, folders that cannot be written."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from windlass.core.errors import StoreError
from windlass.core.ports import Row
from windlass.stores import lanes
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows

HEAD = """
import asyncio, ctypes, json, os, resource, struct, sys
from windlass.core.errors import StoreConflict, StoreError
from windlass.core.ports import Row
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows
path, name = sys.argv[1:3]
def say(**words): print(json.dumps(words), flush=True)
"""

WRITER = (
    HEAD
    + """
async def main():
    store = SqliteStore(path, synchronous="NORMAL")
    pos = len(await store.read(name))
    while True:
        await store.append(name, make_rows(2, pos, data=b"%d" % pos * 200), pos)
        pos += 2
        say(acked=pos)
asyncio.run(main())
"""
)


async def start(code: str, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *args, stdout=asyncio.subprocess.PIPE)


def run(code: str, *args: str, **options: Any) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], check=True, timeout=60, stdout=subprocess.PIPE, **options
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_kill_9_loses_no_acknowledged_row(tmp_path: Path) -> None:
    """Thirty kills at random moments: ten rounds of three writers on one file, a session each.

    NORMAL, because a kill loses nothing that the kernel has: FULL only adds the fsync, for power cuts.
    """
    path = tmp_path / "ledger.db"
    acked = {f"s{n}": 0 for n in range(3)}
    chance = random.Random(7)

    async def one_life(name: str) -> None:
        process = await start(WRITER, str(path), name)
        assert process.stdout is not None
        for _ in range(chance.randrange(12)):
            await process.stdout.readline()
        await asyncio.sleep(chance.random() * 0.005)
        process.send_signal(signal.SIGKILL)
        told = (await process.stdout.read()).splitlines()
        await process.wait()
        if told and told[-1].endswith(b"}"):
            acked[name] = max(acked[name], json.loads(told[-1])["acked"])

    for _ in range(10):
        await asyncio.gather(*[one_life(name) for name in acked])
        store = SqliteStore(path)
        for name in acked:
            rows = await store.read(name)
            assert [row.pos for row in rows] == list(range(len(rows)))
            assert len(rows) >= acked[name]
            # All rows of a batch, or none.
            assert len(rows) % 2 == 0
            assert all(row.data == b"%d" % (row.pos - row.pos % 2) * 200 for row in rows)
        await store.close()
    assert sum(acked.values()) > 30
    store = SqliteStore(path)
    assert await store.check() == []
    await store.close()


RIVAL = (
    HEAD
    + """
async def main():
    store = SqliteStore(path, synchronous="NORMAL")
    conflicts, pos = 0, 0
    for turn in range(25):
        while True:
            try:
                await store.append("shared", [Row(pos, "k", 0, 0, b"%s %d" % (name.encode(), turn))], pos)
                pos += 1
                break
            except StoreConflict:
                conflicts += 1
                pos = len(await store.read("shared"))
    await store.close()
    say(conflicts=conflicts)
asyncio.run(main())
"""
)


async def test_r47_two_processes_append_to_one_session(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    rivals = [await start(RIVAL, str(path), name) for name in ("left", "right")]
    for rival in rivals:
        await rival.communicate()
        assert rival.returncode == 0
    store = SqliteStore(path)
    rows = await store.read("shared")
    await store.close()
    assert [row.pos for row in rows] == list(range(50))
    for name in (b"left", b"right"):
        assert [row.data for row in rows if row.data.startswith(name)] == [
            b"%s %d" % (name, turn) for turn in range(25)
        ]


# RLIMIT_FSIZE makes the kernel refuse to write past an offset of any file: every n-th byte of the log is tried.
FULL_DISK = (
    HEAD
    + """
async def main():
    store = SqliteStore(path, synchronous="NORMAL")
    log, kept, refused, reasons = path + "-wal", 0, 0, set()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    while True:  # until the log is longer than any other file here
        await store.append(name, make_rows(3, kept), kept)
        kept += 3
        if os.path.getsize(log) > 200_000:
            break
    for room in range(0, 21_000, 419):
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(log) + room, hard))
        try:
            await store.append(name, make_rows(3, kept, data=b"x" * 6000), kept)
            kept += 3
        except StoreError as error:
            refused += 1
            reasons.add(type(error.__cause__).__name__)
            assert len(await store.read(name)) == kept
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await store.append(name, make_rows(3, kept, data=b"after"), kept)
        kept += 3
    say(kept=kept, refused=refused, reasons=sorted(reasons))
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
)


async def test_r42_a_refused_write_at_any_byte_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    process = await start(FULL_DISK, str(path), "s")
    told = json.loads((await process.communicate())[0])
    assert told["refused"] >= 10
    assert told["reasons"] == ["OperationalError"]
    store = SqliteStore(path)
    rows = await store.read("s")
    assert [row.pos for row in rows] == list(range(told["kept"]))
    assert sum(row.data == b"after" for row in rows) == 51 * 3
    assert await store.check() == []
    await store.close()


async def test_r42_a_full_file_at_every_page(tmp_path: Path) -> None:
    """`max_page_count` gives SQLITE_FULL, as a full disk does, for every number of pages that are left."""
    store = SqliteStore(tmp_path / "ledger.db", synchronous="NORMAL")
    await store.append("s", make_rows(2), 0)
    file = lanes.acquire(store.path, "NORMAL", 5.0)

    async def allow(pages: int) -> None:
        await file.writer.submit(lambda conn: conn.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    async def pages() -> int:
        return await file.writer.submit(lambda conn: conn.execute("PRAGMA page_count").fetchone()[0])

    refused, length = 0, 2
    for spare in range(12):
        await allow(await pages() + spare)
        rows = make_rows(2, length, data=os.urandom(14_000))
        # A small append that shares its transaction with the one that does not fit is kept all the same.
        results = await asyncio.gather(
            store.append("s", rows, length), store.append(f"small{spare}", make_rows(1), 0), return_exceptions=True
        )
        if results[0] is None:
            length += 2
        else:
            assert isinstance(results[0], StoreError)
            assert "disk is full" in str(results[0])
            refused += 1
        assert len(await store.read("s")) == length
        assert len(await store.read(f"small{spare}")) == (results[1] is None)
    assert refused >= 4
    await allow(1_000_000)
    await store.append("s", make_rows(2, length), length)
    assert len(await store.list()) >= 9
    await file.release()
    await store.close()


# seccomp makes the kernel answer EIO to fsync and fdatasync of one descriptor: the one of the log as it is now open.
BROKEN_FSYNC = (
    HEAD
    + """
import platform
calls = {"x86_64": (74, 75, 317), "aarch64": (82, 83, 277)}[platform.machine()]
def refuse_fsync(fds):
    libc = ctypes.CDLL(None, use_errno=True)
    def op(code, yes, no, value): return struct.pack("HBBI", code, yes, no, value)
    rows = [op(0x20, 0, 0, 0), op(0x15, 1, 0, calls[0]), op(0x15, 0, len(fds) + 1, calls[1]), op(0x20, 0, 0, 16)]
    rows += [op(0x15, len(fds) - at, 0, fd) for at, fd in enumerate(fds)]
    rows += [op(6, 0, 0, 0x7FFF0000), op(6, 0, 0, 0x50000 | 5)]
    program = ctypes.create_string_buffer(b"".join(rows))
    class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("rows", ctypes.c_void_p)]
    given = Program(len(rows), ctypes.addressof(program))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.syscall(calls[2], 1, 1, ctypes.byref(given)) == 0, os.strerror(ctypes.get_errno())
def log_fds():
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [int(os.path.basename(at)) for at in names if os.path.islink(at) and os.readlink(at) == path + "-wal"]
async def main():
    store = SqliteStore(path)
    for pos in range(3):
        await store.append("s", make_rows(1, pos), pos)
    if name == "read-before":
        await store.read("s")
    fds = log_fds()
    refuse_fsync(fds)
    try:
        await store.append("s", make_rows(1, 3, data=b"lost"), 3)
        say(text="accepted")
    except StoreError as error:
        say(text=str(error))
    say(length=len(await store.read("s")), same=bool(set(fds) & set(log_fds())))
    for pos in (3, 4):
        await store.append("s", make_rows(1, pos, data=b"kept"), pos)
    say(data=[row.data.decode() for row in await store.read("s")])
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="refuses fsync through seccomp"
)
@pytest.mark.parametrize("order", ["read-before", "read-after"])
async def test_r43_eio_on_fsync_is_not_saved_and_not_tried_again(tmp_path: Path, order: str) -> None:
    path = tmp_path / "ledger.db"
    process = await start(BROKEN_FSYNC, str(path), order)
    refused, between, after = [json.loads(line) for line in (await process.communicate())[0].splitlines()]
    assert "I/O error; what was being written counts as not kept" in refused["text"]
    assert between["length"] == 3
    wanted = ['{"n":0}', '{"n":1}', '{"n":2}', "kept", "kept"]
    assert after["data"] == wanted
    store = SqliteStore(path)
    assert [row.data.decode() for row in await store.read("s")] == wanted
    await store.close()


OPENER = (
    HEAD
    + """
if os.geteuid() == 0:  # permissions do not bind root
    os.setgid(65534)
    os.setuid(65534)
async def main():
    store = SqliteStore(path)
    for doing in (store.append("s", make_rows(1, 3), 3), store.read("s")):
        try:
            say(rows=len(await doing or ()))
        except StoreError as error:
            say(text=str(error))
    await store.close()
asyncio.run(main())
"""
)


@pytest.mark.parametrize("what", ["file", "folder", "both"])
def test_r44_what_cannot_be_written_says_so_and_names_the_memory_store(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kept"
        path = folder / "ledger.db"
        asyncio.run(_three_rows(path))
        Path(name).chmod(0o755)
        path.chmod(0o444 if what != "folder" else 0o666)
        folder.chmod(0o555 if what != "file" else 0o777)
        appended, read = run(OPENER, str(path), "s")
        folder.chmod(0o700)
        assert "cannot be written" in appended["text"]
        assert "ask for the memory store explicitly" in appended["text"]
        assert read == {"rows": 3} or "cannot be written" in read["text"]


async def _three_rows(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(3), 0)
    await store.close()


async def test_r44_a_folder_that_cannot_be_made() -> None:
    store = SqliteStore("/proc/nowhere/ledger.db")
    with pytest.raises(StoreError, match="memory store explicitly"):
        await store.append("s", make_rows(1), 0)
    with pytest.raises(StoreError, match="/proc/nowhere"):
        await store.list()
    await store.close()


async def test_r35_a_batch_is_whole_or_absent(tmp_path: Path) -> None:
    """A process that dies inside the transaction, after its writes and before its commit, leaves nothing."""
    path = tmp_path / "ledger.db"
    await _three_rows(path)
    code = (
        HEAD
        + """
from windlass.stores import lanes
from pathlib import Path
async def main():
    store = SqliteStore(path)
    file = lanes.acquire(Path(path), "FULL", 5.0)
    def dies(conn):
        conn.execute("PRAGMA cache_spill = 1")
        conn.execute("PRAGMA cache_size = 5")
        rows = [(1 << 32 | n, b"x" * 3000) for n in range(3, 300)]
        conn.executemany("INSERT INTO rows VALUES (?, 5, 0, 0, 1, ?)", rows)
        say(size=os.path.getsize(path + "-wal"))
        os.kill(os.getpid(), 9)
    await file.writer.submit(dies)
asyncio.run(main())
"""
    )
    process = await start(code, str(path), "s")
    told = json.loads((await process.communicate())[0])
    # The log already held parts of it.
    assert told["size"] > 100_000
    store = SqliteStore(path)
    assert await store.read("s") == make_rows(3)
    assert await store.check() == []
    await store.close()


async def test_memory_store_has_no_file_to_lose() -> None:
    store = MemoryStore()
    await store.append("s", [Row(0, "k", 0, 0, b"")], 0)
    assert len(await store.read("s")) == 1
    await store.close()


async def test_a_reader_that_lags_does_not_hold_up_close(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(path)
    await store.append("s", make_rows(5), 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM rows").fetchone()
        await store.append("s", make_rows(5, 5), 5)
        await store.close()
        assert other.execute("SELECT count(*) FROM rows").fetchone() == (5,)
        other.execute("COMMIT")
        # One that is open but idle keeps the log from being deleted, not from being emptied.
        store = SqliteStore(path)
        await store.append("s", make_rows(5, 10), 10)
        await store.close()
        assert Path(f"{path}-wal").stat().st_size == 0
    store = SqliteStore(path)
    assert len(await store.read("s")) == 15
    await store.close()
