"""How a ledger file is opened: made, refused, migrated, waited for; and where it should not lie."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import SessionVersionError, StoreError
from windlass.stores.filesystem import network_filesystem, warn_if_network
from windlass.stores.schema import Migration, open_ledger
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def tables(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as conn:
        return {
            name: conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("sessions", "rows", "blobs")
        }


async def test_two_stores_that_make_the_file_at_once(path: Path) -> None:
    def make(n: int) -> None:
        with closing(open_ledger(path, synchronous="NORMAL", busy_timeout=10)) as conn:
            conn.execute("INSERT INTO sessions(tenant, id, created, title) VALUES ('', ?, 0, '')", (str(n),))

    await asyncio.gather(*[asyncio.to_thread(make, n) for n in range(6)])
    assert tables(path)["sessions"] == 6


async def test_a_file_that_another_process_is_just_making_is_waited_for(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA user_version = 0")
        assert path.stat().st_size > 0
        other.execute("BEGIN IMMEDIATE")
        opening = asyncio.ensure_future(
            asyncio.to_thread(lambda: open_ledger(path, synchronous="NORMAL", busy_timeout=30).close())
        )
        done, _ = await asyncio.wait({opening}, timeout=0.1)
        assert not done
        other.execute("ROLLBACK")
        await opening
    assert tables(path)["sessions"] == 0


async def test_an_empty_file_and_one_that_was_half_made_are_taken(path: Path) -> None:
    path.touch()
    store = SqliteStore(path)
    await store.append("s", make_rows(1), 0)
    await store.close()
    half = path.with_name("half.db")
    with closing(sqlite3.connect(half)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    assert half.stat().st_size > 0
    store = SqliteStore(half)
    await store.append("s", make_rows(1), 0)
    await store.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@pytest.mark.parametrize("log", [False, True])
async def test_r46_a_newer_schema_is_refused_and_untouched(tmp_path: Path, log: bool) -> None:
    made = tmp_path / "made" / "ledger.db"
    store = SqliteStore(made)
    await store.append("s", make_rows(2), 0)
    await store.close()
    folder = tmp_path / "copy"
    folder.mkdir()
    with closing(sqlite3.connect(made)) as conn:
        conn.execute("PRAGMA user_version = 99")
        conn.execute("CREATE TABLE of_the_future(x)")
        if log:  # the newer program died before its version reached the file itself
            for file in made.parent.iterdir():
                shutil.copy(file, folder)
    if not log:
        shutil.copy(made, folder)
    before = contents(folder)
    assert ("ledger.db-wal" in before) is log
    store = SqliteStore(folder / "ledger.db")
    for _ in range(2):
        with pytest.raises(SessionVersionError, match=r"schema version 99; .* up to 1\. Upgrade"):
            await store.append("s", make_rows(1, 2), 2)
    with pytest.raises(SessionVersionError):
        await store.read("s")
    await store.close()
    assert contents(folder) == before


async def test_another_programs_database_is_refused_and_untouched(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE sessions(mine)")
    before = path.read_bytes()
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="another program"):
        await store.list()
    await store.close()
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused_and_untouched(path: Path) -> None:
    path.write_bytes(b"these are my notes\n" * 100)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match=r"damaged.*salvage"):
        await store.append("s", make_rows(1), 0)
    await store.close()
    assert path.read_bytes() == b"these are my notes\n" * 100


def _add_column(conn: sqlite3.Connection) -> None:
    conn.execute("ALTER TABLE sessions ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")


def _mark(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE sessions SET pinned = 7")


def _fails(conn: sqlite3.Connection) -> None:
    raise RuntimeError("half way")


def version_and_columns(path: Path) -> tuple[int, list[str]]:
    with closing(sqlite3.connect(path)) as conn:
        names = [name for _, name, *_ in conn.execute("PRAGMA table_info(sessions)")]
        return conn.execute("PRAGMA user_version").fetchone()[0], names


async def test_r41_a_migration_that_fails_changes_nothing_and_runs_again(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(3), 0)
    await store.close()
    broken: tuple[Migration, ...] = (_add_column, _fails)
    with pytest.raises(RuntimeError, match="half way"):
        open_ledger(path, synchronous="FULL", busy_timeout=1, migrations=broken)
    assert version_and_columns(path)[0] == 1
    assert "pinned" not in version_and_columns(path)[1]
    open_ledger(path, synchronous="FULL", busy_timeout=1, migrations=(_add_column, _mark)).close()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT pinned FROM sessions").fetchall() == [(7,)]
    assert version_and_columns(path)[0] == 3
    # Once migrated, nothing runs again, and the copy is what there was before.
    open_ledger(path, synchronous="FULL", busy_timeout=1, migrations=(_fails, _fails)).close()
    backup = path.with_name("ledger.db.v1.bak")
    assert version_and_columns(backup)[0] == 1
    assert backup.stat().st_mode & 0o777 == 0o600
    store = SqliteStore(backup)
    assert await store.read("s") == make_rows(3)
    await store.close()


def test_r41_kill_9_during_migration(path: Path) -> None:
    asyncio.run(_write_three(path))
    code = f"""
import os, signal
from pathlib import Path
from windlass.stores.schema import open_ledger
def dies(conn):
    conn.execute("ALTER TABLE sessions ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
    conn.execute("DELETE FROM rows")
    os.kill(os.getpid(), signal.SIGKILL)
open_ledger(Path({str(path)!r}), synchronous="FULL", busy_timeout=1, migrations=(dies,))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.with_name("ledger.db.v1.bak").exists()
    assert version_and_columns(path)[0] == 1
    open_ledger(path, synchronous="FULL", busy_timeout=1, migrations=(_add_column,)).close()
    assert version_and_columns(path) == (2, [*version_and_columns(path)[1][:-1], "pinned"])
    assert tables(path)["rows"] == 3


async def _write_three(path: Path) -> None:
    store = SqliteStore(path)
    await store.append("s", make_rows(3), 0)
    await store.close()


async def test_r48_a_held_write_lock_is_waited_for_then_reported(path: Path) -> None:
    store = SqliteStore(path, busy_timeout=0.2)
    await store.append("s", make_rows(1), 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="busy"):
            await store.append("s", make_rows(1, 1), 1)
        # Readers do not wait for writers.
        assert len(await store.read("s")) == 1
        holder.execute("ROLLBACK")
    await store.append("s", make_rows(1, 1), 1)
    assert len(await store.read("s")) == 2
    await store.close()


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local xfs rw 0 0
host /mnt/my\\040share 9p rw,trans=virtio 0 0
tmpfs /home/tmp tmpfs rw 0 0
//nas/x /home/tmp cifs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/var/ledger.db", None),
        ("/home/me/ledger.db", "nfs4"),
        ("/homes/me/ledger.db", None),
        ("/home/local/ledger.db", None),
        ("/mnt/my share/ledger.db", "9p"),
        ("/mnt/my", None),
        ("/home/tmp/ledger.db", "cifs"),
    ],
)
def test_r50_network_file_systems_are_told_by_the_mounts(where: str, kind: str | None) -> None:
    assert network_filesystem(MOUNTS, where) == kind


@given(st.text(), st.text())
def test_r50_no_mounts_text_breaks_it(mounts: str, where: str) -> None:
    assert network_filesystem(mounts, "/" + where) in (
        None,
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
    )


def test_r50_the_warning_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost {tmp_path} nfs rw 0 0\n")
    monkeypatch.setattr("windlass.stores.filesystem._MOUNTS", mounts)
    with caplog.at_level(logging.WARNING, "windlass.stores"):
        for _ in range(2):
            warn_if_network(tmp_path / "ledger.db")
        warn_if_network(Path("/elsewhere/ledger.db"))
    assert [record.name for record in caplog.records] == ["windlass.stores"]
    assert "nfs" in caplog.text
