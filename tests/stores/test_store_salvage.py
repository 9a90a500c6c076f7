"""R45: damaged pages, truncated and deleted logs; what is readable moves to a new file, the old one stays."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Row
from windlass.stores.filepages import Pages, leaf_records
from windlass.stores.rows import is_lost
from windlass.stores.salvage import LostRows, SalvageReport, salvage
from windlass.stores.schema import PAGE_SIZE
from windlass.stores.sqlite import SqliteStore

Ledger = dict[tuple[str, str], list[Row]]


def row(pos: int, size: int, kind: str = "message.added") -> Row:
    return Row(pos, kind, 0, 1_700_000_000_000_000_000 + pos, dumps_stored({"n": pos, "text": "x" * size}))


async def build(path: Path) -> Ledger:
    """Write sessions with rows of every size (inline, on overflow pages, as blobs), forks, odd names; return them."""
    store = SqliteStore(path, synchronous="NORMAL")
    sizes = (10, 300, 3000, 9000, 40_000)
    for name, tenant, kind in (("a", "", "message.added"), ("b'", "t", "a.new.kind"), ("c\ud800", "", "tool.finished")):
        created = Row(0, "session.created", -1, 5, dumps_stored({"title": f"Title of {name}"}))
        await store.append(name, [created, *[row(pos, sizes[pos % 5], kind) for pos in range(1, 60)]], 0, tenant=tenant)
    forked = Row(30, "session.forked", -1, 7, dumps_stored({"parent": "a", "pos": 30}))
    await store.append("f", [forked, *[row(pos, 500) for pos in range(31, 40)]], 30)
    await store.append("gone", [row(pos, 400) for pos in range(40)], 0)
    await store.append("g", [Row(5, "session.forked", -1, 7, b'{"parent":"gone","pos":5}')], 5)
    await store.delete("gone")
    ledger = await everything(store)
    await store.close()
    return ledger


async def everything(store: SqliteStore) -> Ledger:
    out: Ledger = {}
    for tenant in ("", "t"):
        for info in await store.list(tenant=tenant):
            out[tenant, info.id] = await store.read(info.id, tenant=tenant)
    return out


async def rescued(path: Path, into: Path) -> tuple[SalvageReport, Ledger]:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.name.startswith(path.name)}
    report = await asyncio.to_thread(salvage, path, into)
    assert {name: (path.parent / name).read_bytes() for name in before} == before
    assert into.stat().st_mode & 0o777 == 0o600
    store = SqliteStore(into)
    assert await store.check() == []
    found = await everything(store)
    await store.close()
    return report, found


@pytest.fixture
def sound(tmp_path: Path) -> tuple[Path, Ledger]:
    path = tmp_path / "old" / "ledger.db"
    return path, asyncio.run(build(path))


async def test_a_sound_ledger_is_copied_whole(sound: tuple[Path, Ledger], tmp_path: Path) -> None:
    path, ledger = sound
    report, found = await rescued(path, tmp_path / "new.db")
    assert found == ledger
    kept = sum(len(rows) for rows in ledger.values()) - 30  # the fork of "a" shares its first thirty
    assert report == SalvageReport(sessions=5, rows=kept)
    # Forks still share what they shared, and what was deleted stays deleted.
    store = SqliteStore(tmp_path / "new.db")
    assert {info.id: (info.parent, info.title) for info in await store.list()} == {
        "a": (None, "Title of a"), "c\ud800": (None, "Title of c\ud800"), "f": ("a", "Title of a"), "g": (None, ""),
    }  # fmt: skip
    await store.close()


def agrees(found: Ledger, ledger: Ledger, report: SalvageReport) -> int:
    """Assert that rows are their own at their own places, or reported as lost; return how many are lost."""
    lost = {(one.session, pos) for one in report.lost for pos in range(one.start, one.end)}
    shared = {"f": "a", "g": ""}  # a deleted session has no name
    missing = 0
    for (tenant, name), rows in found.items():
        assert [one.pos for one in rows] == list(range(len(rows)))
        assert (tenant, name) in ledger or name in report.renamed
        for got, had in zip(rows, ledger.get((tenant, name), rows), strict=False):
            if is_lost(got):
                missing += 1
                assert (name, got.pos) in lost or (shared[name], got.pos) in lost
            else:
                assert got == had
    return missing


@pytest.mark.parametrize("seed", range(12))
async def test_r45_a_corrupted_page(sound: tuple[Path, Ledger], tmp_path: Path, seed: int) -> None:
    """One page after the other is overwritten with noise; nothing else is lost with it."""
    path, ledger = sound
    chance = random.Random(seed)
    pages = path.stat().st_size // PAGE_SIZE
    number = 1 + seed * (pages - 1) // 11
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE_SIZE)
        file.write(chance.randbytes(PAGE_SIZE))
    report, found = await rescued(path, tmp_path / "new.db")
    total = sum(len(rows) for rows in ledger.values())
    saved = sum(not is_lost(one) for rows in found.values() for one in rows)
    # A page holds at most thirty of these rows; a blob that several rows share may take all of them along.
    assert saved >= total - 60
    agrees(found, ledger, report)


async def test_r45_reading_a_damaged_page_says_how_to_go_on(sound: tuple[Path, Ledger], tmp_path: Path) -> None:
    path, ledger = sound
    with closing(Pages(path)) as pages:
        leaves = {number: list(leaf_records(pages, number)) for number in range(2, pages.count + 1)}
    leaf, records = next((n, found) for n, found in leaves.items() if len(found) > 5 and len(found[0][1] or ()) == 6)
    with path.open("r+b") as file:
        file.seek((leaf - 1) * PAGE_SIZE)
        file.write(b"\xff" * PAGE_SIZE)
    store = SqliteStore(path)
    failures = 0
    for tenant, name in ledger:
        try:
            await store.read(name, tenant=tenant)
        except StoreError as error:
            assert "is damaged" in str(error)
            assert "windlass.stores.salvage.salvage(path, into)" in str(error)
            failures += 1
    assert failures >= 1
    assert await store.check() != []
    with pytest.raises(StoreError, match="open in this process"):
        salvage(path, tmp_path / "new.db")
    await store.close()
    report, found = await rescued(path, tmp_path / "new.db")
    assert agrees(found, ledger, report) > 0
    # What is lost is what stood on that page, and no more.
    lost = {pos for one in report.lost for pos in range(one.start, one.end)}
    assert lost
    assert lost <= {rowid & 0xFFFFFFFF for rowid, _ in records}


async def test_r45_the_first_page_is_gone(sound: tuple[Path, Ledger], tmp_path: Path) -> None:
    """SQLite cannot even open such a file; no row was on that page."""
    path, ledger = sound
    with path.open("r+b") as file:
        file.write(b"\0" * PAGE_SIZE)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="salvage"):
        await store.list()
    await store.close()
    _, found = await rescued(path, tmp_path / "new.db")
    assert found == ledger


async def test_r45_the_names_are_gone(sound: tuple[Path, Ledger], tmp_path: Path) -> None:
    path, ledger = sound
    with closing(sqlite3.connect(path)) as conn:
        root = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * PAGE_SIZE)
        file.write(b"\0" * PAGE_SIZE)
    report, found = await rescued(path, tmp_path / "new.db")
    # The sixth is what forks still shared of a deleted one.
    assert report.renamed == tuple(f"salvaged-{number}" for number in range(1, 7))
    assert {name for _, name in found} == set(report.renamed)
    assert found["", "salvaged-1"] == ledger["", "a"]
    # A fork without its link keeps its own rows, at their places.
    assert found["", "salvaged-4"][30:] == ledger["", "f"][30:]
    assert LostRows("", "salvaged-4", 0, 30) in report.lost


async def crashed(tmp_path: Path) -> tuple[Path, list[Row]]:
    """Return a ledger whose last rows are in its log only, as after a crash."""
    live = tmp_path / "live" / "ledger.db"
    store = SqliteStore(live)
    rows = [row(pos, 400) for pos in range(60)]
    await store.append("s", rows[:10], 0)
    await store.close()
    store = SqliteStore(live)
    for pos in range(10, 60):
        await store.append("s", rows[pos : pos + 1], pos)
    path = tmp_path / "old" / "ledger.db"
    path.parent.mkdir()
    for file in (live, Path(f"{live}-wal")):
        shutil.copy(file, path.parent)
    await store.close()
    return path, rows


async def test_r45_rows_in_the_log_are_saved_too(tmp_path: Path) -> None:
    path, rows = await crashed(tmp_path)
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    report, found = await rescued(path, tmp_path / "new.db")
    assert found == {("", "s"): rows}
    assert report == SalvageReport(sessions=1, rows=60)


@pytest.mark.parametrize("cut", [0.0, 0.001, 0.3, 0.62, 0.999])
async def test_r45_a_truncated_log(tmp_path: Path, cut: float) -> None:
    path, rows = await crashed(tmp_path)
    log = Path(f"{path}-wal")
    with log.open("r+b") as file:
        file.truncate(int(log.stat().st_size * cut))
    _, found = await rescued(path, tmp_path / "new.db")
    saved = found["", "s"]
    assert saved == rows[: len(saved)]
    assert len(saved) >= 10
    # SQLite reads the same: what was committed before the cut.
    store = SqliteStore(path)
    assert await store.read("s") == saved
    assert await store.check() == []
    await store.append("s", [row(len(saved), 1)], len(saved))
    await store.close()


async def test_r45_a_deleted_log(tmp_path: Path) -> None:
    path, rows = await crashed(tmp_path)
    Path(f"{path}-wal").unlink()
    store = SqliteStore(path)
    assert await store.read("s") == rows[:10]
    assert await store.check() == []
    await store.close()
    _, found = await rescued(path, tmp_path / "new.db")
    assert found == {("", "s"): rows[:10]}


async def test_r45_a_log_with_a_flipped_bit_ends_there(tmp_path: Path) -> None:
    path, rows = await crashed(tmp_path)
    log = Path(f"{path}-wal")
    noise = bytearray(log.read_bytes())
    noise[len(noise) // 2] ^= 1
    log.write_bytes(noise)
    _, found = await rescued(path, tmp_path / "new.db")
    store = SqliteStore(path)
    assert await store.read("s") == found["", "s"] == rows[: len(found["", "s"])]
    await store.close()
    assert 10 < len(found["", "s"]) < 60


async def test_r45_links_and_positions_that_make_no_sense(sound: tuple[Path, Ledger], tmp_path: Path) -> None:
    path, ledger = sound
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE sessions SET parent = no WHERE id = 'f'")
        conn.execute("INSERT INTO rows VALUES (?, 5, 0, 0, 1, x'7b7d')", (1 << 32 | 4_000_000_000,))
        conn.execute("INSERT INTO rows VALUES (?, 'k', 0, 0, 1, 12345)", (2 << 32 | 60,))
        conn.execute("INSERT INTO rows VALUES (?, 99, 0, 0, 1, x'7b7d')", (3 << 32 | 60,))
    store = SqliteStore(path)
    for name, tenant in (("f", ""), ("b'", "t"), ("c\ud800", "")):
        with pytest.raises(StoreError, match=r"ledger is damaged.*salvage"):
            await store.read(name, tenant=tenant)
    await store.close()
    report, found = await rescued(path, tmp_path / "new.db")
    assert found["", "a"] == ledger["", "a"]
    assert found["t", "b'"][:60] == ledger["t", "b'"]
    assert found["", "c\ud800"] == ledger["", "c\ud800"]
    assert report.lost == (LostRows("t", "b'", 60, 61), LostRows("", "f", 0, 30))
    assert report.damaged == 2


_made: dict[str, tuple[bytes, Ledger]] = {}


@settings(max_examples=25, deadline=None)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), max_size=12), cut=st.floats(0.2, 1)
)
def test_r45_any_damage(
    damage: list[tuple[float, bytes]], cut: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was written over the file, salvage ends with a sound ledger in which rows keep their places."""
    folder = tmp_path_factory.mktemp("any")
    if not _made:
        ledger = asyncio.run(build(folder / "first.db"))
        _made["it"] = (folder / "first.db").read_bytes(), ledger
    whole, ledger = _made["it"]
    broken = bytearray(whole)
    for place, noise in damage:
        at = int(place * len(broken))
        broken[at : at + len(noise)] = noise[: len(broken) - at]
    path = folder / "ledger.db"
    path.write_bytes(broken[: int(len(broken) * cut)])
    report, found = asyncio.run(rescued(path, folder / "new.db"))
    assert report.sessions == len(found)
    for rows in found.values():
        assert [one.pos for one in rows] == list(range(len(rows)))
    if not damage and cut == 1:
        assert found == ledger


def test_salvage_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(StoreError, match="no file"):
        salvage(path, tmp_path / "new.db")
    asyncio.run(build(path))
    with pytest.raises(StoreError, match="exists already"):
        salvage(path, path)
    path.write_bytes(b"no database at all" * 1000)
    report = salvage(path, tmp_path / "new.db")
    assert (report.sessions, report.rows) == (0, 0)
