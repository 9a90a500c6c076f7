"""Sessions as JSON lines: out and in again, edited by hand, written by a newer version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import SessionNotFound, SessionVersionError, StoreConflict, StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Row
from windlass.stores.jsonl import ImportReport, SkippedLine, export_jsonl, import_jsonl
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import make_rows

I64 = st.integers(-(1 << 63), (1 << 63) - 1)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)
DATA = st.one_of(
    st.binary(max_size=30),
    JSON.map(dumps_stored),
    st.sampled_from(
        [b'{"a": 1, "a": 2}', b' {"a":1}', b'{"a":\n1}', b"1e400", b'"\\ud800"', b"NaN", b"{}", b"", b"\x00"]
    ),
)


async def lines_of(store: MemoryStore | SqliteStore, session: str, tenant: str = "") -> list[bytes]:
    return [line async for line in export_jsonl(store, session, tenant)]


@settings(max_examples=80, deadline=None)
@given(parts=st.lists(st.tuples(st.text(max_size=9), I64, I64, DATA, st.integers(0, 1)), min_size=1, max_size=8))
def test_every_row_comes_back_byte_for_byte(parts: list[tuple[str, int, int, bytes, int]]) -> None:
    async def check() -> None:
        store = MemoryStore()
        rows = [Row(pos, kind, run, time, data, v) for pos, (kind, run, time, data, v) in enumerate(parts)]
        rows = [one for one in rows if one.kind != "session.forked"] or make_rows(1)
        rows = [Row(pos, one.kind, one.run, one.time, one.data, one.version) for pos, one in enumerate(rows)]
        await store.append("s", rows, 0)
        lines = await lines_of(store, "s")
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
        report = await import_jsonl(store, lines, "copy")
        assert report == ImportReport(len(rows))
        assert await store.read("copy") == rows

    asyncio.run(check())


async def test_the_form_of_a_line() -> None:
    store = MemoryStore()
    data = b'{"message":{"role":"user"},"n":1.0}'
    await store.append("s", [Row(0, "message.added", -1, 1_767_323_045_000_000_006, data)], 0)
    assert await lines_of(store, "s") == [
        b'{"v":1,"pos":0,"kind":"message.added","run":-1,"time":"2026-01-02T03:04:05.000000006Z","data":'
        + data
        + b"}\n"
    ]
    await store.append("raw", [Row(0, "k", 0, -1, b"\xff")], 0)
    assert await lines_of(store, "raw") == [
        b'{"v":1,"pos":0,"kind":"k","run":0,"time":"1969-12-31T23:59:59.999999999Z","data_base64":"/w=="}\n'
    ]


async def test_from_sqlite_to_memory_with_a_fork_and_many_rows(tmp_path: Path) -> None:
    sqlite, memory = SqliteStore(tmp_path / "ledger.db"), MemoryStore()
    await sqlite.append("p", make_rows(1200), 0, tenant="t")
    await sqlite.append("f", [Row(700, "session.forked", -1, 0, b'{"parent":"p","pos":700}')], 700, tenant="t")
    lines = await lines_of(sqlite, "f", "t")
    assert len(lines) == 701
    # An open file is lines too; so is any asynchronous stream of them.
    (tmp_path / "f.jsonl").write_bytes(b"".join(lines))
    with (tmp_path / "f.jsonl").open("rb") as file:
        assert await import_jsonl(memory, file, "f") == ImportReport(701)

    async def stream() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    await import_jsonl(memory, stream(), "again", "t2")
    assert await memory.read("f") == await sqlite.read("f", tenant="t") == await memory.read("again", tenant="t2")
    await sqlite.close()


async def test_an_unknown_session_and_an_existing_one() -> None:
    store = MemoryStore()
    with pytest.raises(SessionNotFound, match="'s'"):
        await lines_of(store, "s")
    await store.append("s", make_rows(2), 0)
    with pytest.raises(StoreConflict):
        await import_jsonl(store, await lines_of(store, "s"), "s")
    with pytest.raises(StoreError, match="no row"):
        await import_jsonl(store, [b"\n", b"  \r\n"], "t")
    assert [info.id for info in await store.list()] == ["s"]


async def exported(count: int) -> list[bytes]:
    store = MemoryStore()
    await store.append("s", make_rows(count), 0)
    return await lines_of(store, "s")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (b'{"v":1,"pos":2,', "Line 3: not valid JSON"),
        (b"[1]", "Line 3: not a JSON object"),
        (b'{"v":1,"pos":2,"kind":"k","time":"2026-01-02T03:04:05Z"}', "Line 3: neither data nor data_base64"),
        (b'{"v":1,"pos":2,"kind":"k","time":"yesterday","data":1}', "Line 3: time 'yesterday' is not RFC 3339"),
        (b'{"v":1,"pos":2,"kind":"k","time":"2026-02-30T00:00:00Z","data":1}', "Line 3: day is out of range"),
        (b'{"v":1,"pos":7,"kind":"k","time":"2026-01-02T03:04:05Z","data":1}', "Line 3: position 7 where 2 was"),
        (b'{"v":1,"pos":"2","kind":"k","time":"2026-01-02T03:04:05Z","data":1}', r"Line 3: .*\$.pos"),
        (b'{"v":1,"pos":2,"time":"2026-01-02T03:04:05Z","data":1}', "Line 3: .*kind"),
        (b'{"v":1,"pos":2,"kind":"k","time":"2026-01-02T03:04:05Z","data_base64":"?"}', "Line 3: data_base64"),
        (b'{"v":1,"pos":2,"kind":"k","time":"2026-01-02T03:04:05Z","data":1,"x":1}', "Line 3: unknown fields x"),
        (b"\xff\xfe", "Line 3: not valid JSON"),
        (b"[" * 5000, "Line 3: not valid JSON"),
    ],
)  # fmt: skip
async def test_r54_a_hand_edited_line_is_named_and_the_rest_can_be_loaded(edit: bytes, says: str) -> None:
    lines = await exported(5)
    lines[2] = edit + b"\n"
    store = MemoryStore()
    with pytest.raises(StoreError, match=says):
        await import_jsonl(store, lines, "s")
    assert await store.list() == []
    report = await import_jsonl(store, lines, "s", skip_bad=True)
    if edit.startswith(b'{"v":1,"pos":7'):
        # That line says that five are missing before it; the ones after it come too late.
        assert (report.rows, report.lost, [bad.line for bad in report.skipped]) == (8, 5, [4, 5])
        return
    assert (report.rows, report.lost, [bad.line for bad in report.skipped]) == (5, 1, [3])
    rows, wanted = await store.read("s"), make_rows(5)
    assert rows[2].kind == "row.lost"
    assert [*rows[:2], *rows[3:]] == [*wanted[:2], *wanted[3:]]


async def test_r54_removed_doubled_and_swapped_lines() -> None:
    a, b, c, d = await exported(4)
    store = MemoryStore()
    for name, lines, bad in (("removed", [a, c, d], 2), ("doubled", [a, b, b, c, d], 3), ("swapped", [a, c, b, d], 2)):
        with pytest.raises(StoreError, match=f"Line {bad}: position"):
            await import_jsonl(store, lines, name)
    assert await import_jsonl(store, [a, c, d], "removed", skip_bad=True) == ImportReport(4, 1)
    doubled = await import_jsonl(store, [a, b, b, c, d], "doubled", skip_bad=True)
    assert doubled == ImportReport(4, 0, (SkippedLine(3, "position 1 where 2 was expected"),))
    assert await store.read("doubled") == make_rows(4)
    far = a.replace(b'"pos":0', b'"pos":1000000000')
    report = await import_jsonl(store, [a, far, b], "far", skip_bad=True)
    assert (report.rows, report.lost, len(report.skipped)) == (2, 0, 1)


async def test_r46_lines_of_a_newer_schema_are_refused_whatever_they_hold() -> None:
    lines = await exported(3)
    lines[1] = b'{"v":2,"new":"form"}\n'
    store = MemoryStore()
    for skip_bad in (False, True):
        with pytest.raises(SessionVersionError, match="Line 2: rows of schema 2; this version reads up to 1"):
            await import_jsonl(store, lines, "s", skip_bad=skip_bad)
    assert await store.list() == []


async def test_unknown_kinds_and_fields_are_kept() -> None:
    line = (
        b'{"v":1,"pos":0,"kind":"of.the.future","time":"2026-01-02T04:04:05+01:00","data":{"a":{"b":1}},"note":"mine"}'
    )
    store = MemoryStore()
    await import_jsonl(store, [b"\xef\xbb\xbf" + line + b"\r\n"], "s")
    [row] = await store.read("s")
    assert (row.kind, row.run, row.time) == ("of.the.future", -1, 1_767_323_045_000_000_000)
    assert json.loads(row.data) == {"note": "mine", "a": {"b": 1}}
