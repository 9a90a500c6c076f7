"""The conformance kit for the `Store` port: what every store must do, whoever wrote it.

    async def test_my_store():
        await check_store(lambda: MyStore(url))

Each check uses sessions of its own in a tenant of its own, so a store that already holds rows may be checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from windlass.core import clock
from windlass.core.errors import SessionNotFound, StoreConflict, StoreError
from windlass.core.events import DURABLE
from windlass.core.json import dumps_stored
from windlass.core.ports import Row, Store

__all__ = ["STORE_CHECKS", "StoreCheck", "check_store", "make_rows"]

#: A check gets the store and a tenant that nobody else uses; it raises AssertionError.
StoreCheck = Callable[[Store, str], Awaitable[None]]

#: Ids and titles that break stores which build SQL, paths or C strings from them.
HOSTILE_TEXTS = (
    "'; DROP TABLE rows; --", 'a"b', "100%", "under_score", "a%' OR '1'='1", "\\", "a\x00b", "../../etc/passwd",
    "", " ", "ключ 🔑", "lone \ud800 surrogate", "\U0010ffff", "A", "a", "x" * 5000, "\ue0f5", "NULL", "0", "🔑\udfff",
)  # fmt: skip


def make_rows(
    count: int, start: int = 0, *, data: bytes | None = None, time: int = 1_700_000_000_000_000_000
) -> list[Row]:
    """Return `count` rows from position `start`, one microsecond apart; `data` None: JSON that names the position."""
    return [
        Row(pos, "message.added", 0, time + pos * 1000, b'{"n":%d}' % pos if data is None else data)
        for pos in range(start, start + count)
    ]


async def check_store(factory: Callable[[], Store], *, durable: bool = False) -> None:
    """Run every check on stores that `factory` makes; raise AssertionError naming the first rule that is broken.

    `durable`: a second store from `factory` must hold what the first one kept, after a close and while both are open.
    """
    for name, check in STORE_CHECKS.items():
        store = factory()
        with _naming(name):
            await check(store, clock.new_id())
        await store.close()
    with _naming("closing"):
        await _closing(factory)
    if durable:
        with _naming("reopening"):
            await _reopening(factory)


@contextmanager
def _naming(name: str) -> Generator[None]:
    """Turn whatever comes out of a check into an AssertionError that names it."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def _same(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r:.300}, not {wanted!r:.300}")


async def _refused(kind: type[Exception], doing: Awaitable[object], what: str) -> Exception:
    try:
        await doing
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} ({error}), not {kind.__name__}") from error
    raise AssertionError(f"{what}: accepted, not {kind.__name__}")


def _forked(parent: str, pos: int, time: int = 1_700_000_001_000_000_000) -> Row:
    return Row(pos, "session.forked", -1, time, dumps_stored({"parent": parent, "pos": pos}))


async def _round_trip(store: Store, tenant: str) -> None:
    _same(await store.read("s", tenant=tenant), [], "rows of an unknown session")
    kinds = sorted(str(kind.__struct_config__.tag) for kind in DURABLE)
    rows = [
        Row(pos, kind, pos - 1, pos, b'{"k":%d}' % pos, 1 + pos) for pos, kind in enumerate([*kinds, "new.kind", ""])
    ]
    await store.append("s", rows[:3], 0, tenant=tenant)
    await store.append("s", rows[3:], 3, tenant=tenant)
    _same(await store.read("s", tenant=tenant), rows, "rows read back")
    for start, end in ((0, 0), (1, 3), (2, None), (3, 1), (len(rows), None), (5, 10_000), (10_000, None)):
        got = await store.read("s", start, end, tenant=tenant)
        _same(got, rows[start:end], f"rows [{start}, {end})")


async def _positions(store: Store, tenant: str) -> None:
    await store.append("s", make_rows(3), 0, tenant=tenant)
    for expected in (0, 2, 4, 100):
        doing = store.append("s", make_rows(1, expected), expected, tenant=tenant)
        error = await _refused(StoreConflict, doing, f"append at {expected} of 3 rows")
        if "3" not in str(error):
            raise AssertionError(f"the conflict does not name the session's length: {error}")
    await _refused(StoreConflict, store.append("new", make_rows(1, 1), 1, tenant=tenant), "first append at 1")
    good = make_rows(3, 3)
    for bad in ([good[1]], [good[0], good[2]], [good[0], good[0]], [good[0], Row(4, "k", 0, 1 << 63, b"")]):
        await _refused(ValueError, store.append("s", bad, 3, tenant=tenant), f"positions {[row.pos for row in bad]}")
    await _refused(ValueError, store.append("s", [], -1, tenant=tenant), "expected_pos -1")
    _same(await store.read("s", tenant=tenant), make_rows(3), "rows after refused appends")
    _same([info.id for info in await store.list(tenant=tenant)], ["s"], "sessions after refused appends")
    await store.append("s", [], 3, tenant=tenant)
    await store.append("empty", [], 0, tenant=tenant)
    await _refused(StoreConflict, store.append("s", [], 2, tenant=tenant), "empty append at 2 of 3 rows")
    _same(len(await store.list(tenant=tenant)), 1, "sessions after an empty append")


async def _tenants(store: Store, tenant: str) -> None:
    other = tenant + "'"
    await store.append("s", make_rows(2), 0, tenant=tenant)
    await store.append("s", make_rows(1, data=b"{}"), 0, tenant=other)
    _same(len(await store.read("s", tenant=tenant)), 2, "rows of the first tenant")
    _same(await store.delete("s", tenant=other), True, "delete in the second tenant")
    _same(await store.list(tenant=other), [], "sessions of the second tenant")
    _same(len(await store.read("s", tenant=tenant)), 2, "rows of the first tenant after the delete")
    doing = store.append("f", [_forked("s", 2)], 2, tenant=other)
    await _refused(SessionNotFound, doing, "fork of another tenant's session")


async def _listing(store: Store, tenant: str) -> None:
    created = Row(0, "session.created", -1, 50, dumps_stored({"session_id": "b", "title": "Title \ud800\x00'"}))
    await store.append("a", [Row(0, "run.started", 0, 100, b"{}")], 0, tenant=tenant)
    await store.append("b", [created, Row(1, "run.started", 1, 300, b"{}")], 0, tenant=tenant)
    await store.append("c", [Row(0, "session.created", -1, 200, b"not json")], 0, tenant=tenant)
    got = await store.list(tenant=tenant)
    _same([info.id for info in got], ["b", "c", "a"], "order of the list, newest last row first")
    _same((got[0].rows, got[0].created, got[0].updated), (2, 50, 300), "rows, created, updated")
    _same((got[0].title, got[1].title, got[2].title), ("Title \ud800\x00'", "", ""), "titles")
    _same((got[0].parent, got[0].parent_pos), (None, None), "parent of a session that is no fork")
    await store.append("a", [Row(1, "run.finished", 0, 400, b"{}")], 1, tenant=tenant)
    _same([info.id for info in await store.list(tenant=tenant, limit=2)], ["a", "b"], "list with a limit")
    _same(await store.list(tenant=tenant, limit=0), [], "list with limit 0")


async def _deleting(store: Store, tenant: str) -> None:
    _same(await store.delete("s", tenant=tenant), False, "delete of nothing")
    await store.append("s", make_rows(4), 0, tenant=tenant)
    _same(await store.delete("s", tenant=tenant), True, "delete")
    _same(await store.read("s", tenant=tenant), [], "rows after delete")
    _same(await store.delete("s", tenant=tenant), False, "second delete")
    await _refused(StoreConflict, store.append("s", make_rows(1, 4), 4, tenant=tenant), "append to a deleted session")
    await store.append("s", make_rows(1), 0, tenant=tenant)
    _same(await store.read("s", tenant=tenant), make_rows(1), "rows of a session made anew")


async def _forks(store: Store, tenant: str) -> None:
    created = Row(0, "session.created", -1, 1, b'{"title":"T"}')
    base = [created, *make_rows(5, 1)]
    await store.append("p", base, 0, tenant=tenant)
    await store.append("f", [_forked("p", 4), *make_rows(2, 5)], 4, tenant=tenant)
    first = [*base[:4], _forked("p", 4), *make_rows(2, 5)]
    _same(await store.read("f", tenant=tenant), first, "rows of a fork")
    _same(await store.read("f", 3, 6, tenant=tenant), first[3:6], "rows of a fork, across its border")
    await store.append("p", make_rows(1, 6, data=b'"p"'), 6, tenant=tenant)
    await store.append("f", make_rows(1, 7, data=b'"f"'), 7, tenant=tenant)
    first = [*first, *make_rows(1, 7, data=b'"f"')]
    _same(await store.read("f", tenant=tenant), first, "rows of a fork after its parent grew")
    # A fork of a fork, at a row that the first fork shares, and one at a row of its own; one that shares nothing.
    await store.append("g", [_forked("f", 2)], 2, tenant=tenant)
    await store.append("h", [_forked("f", 6)], 6, tenant=tenant)
    await store.append("z", [_forked("p", 0)], 0, tenant=tenant)
    _same(await store.read("g", tenant=tenant), [*base[:2], _forked("f", 2)], "rows of a fork of a fork, early")
    _same(await store.read("h", tenant=tenant), [*first[:6], _forked("f", 6)], "rows of a fork of a fork, late")
    infos = {info.id: info for info in await store.list(tenant=tenant)}
    _same({i.id: (i.parent, i.parent_pos, i.rows, i.title) for i in infos.values()}, {
        "p": (None, None, 7, "T"), "f": ("p", 4, 8, "T"), "g": ("f", 2, 3, "T"), "h": ("f", 6, 7, "T"),
        "z": ("p", 0, 1, ""),
    }, "list of forks")  # fmt: skip
    # Ancestors go; what is shared stays, and a new session under an old name has nothing to do with it.
    await store.delete("p", tenant=tenant)
    await store.append("p", make_rows(1, data=b'"new"'), 0, tenant=tenant)
    await store.delete("f", tenant=tenant)
    _same(await store.read("g", tenant=tenant), [*base[:2], _forked("f", 2)], "a fork whose ancestors are deleted")
    _same(await store.read("h", tenant=tenant), [*first[:6], _forked("f", 6)], "another one")
    _same(await store.read("z", tenant=tenant), [_forked("p", 0)], "a fork that shared nothing")
    infos = {info.id: info for info in await store.list(tenant=tenant)}
    _same({info.parent for info in infos.values()}, {None}, "parents after they were deleted")
    await store.append("h", make_rows(1, 7), 7, tenant=tenant)
    for name in ("g", "h", "z", "p"):
        _same(await store.delete(name, tenant=tenant), True, f"delete of {name}")
    _same(await store.list(tenant=tenant), [], "list after everything was deleted")


async def _bad_forks(store: Store, tenant: str) -> None:
    await store.append("p", make_rows(3), 0, tenant=tenant)
    await _refused(SessionNotFound, store.append("f", [_forked("nobody", 1)], 1, tenant=tenant), "fork of nobody")
    await _refused(StoreError, store.append("f", [_forked("p", 4)], 4, tenant=tenant), "fork past the parent's end")
    for pos, data in (
        (0, b'{"parent":"p","pos":1}'),
        (1, b'{"parent":1,"pos":1}'),
        (1, b'{"parent":"p"}'),
        (1, b"\xff"),
    ):
        row = Row(pos, "session.forked", -1, 0, data)
        await _refused(ValueError, store.append("f", [row], pos, tenant=tenant), f"fork with {data!r} at {pos}")
    _same([info.id for info in await store.list(tenant=tenant)], ["p"], "sessions after refused forks")
    await store.append("p", [_forked("p", 3)], 3, tenant=tenant)
    _same(len(await store.read("p", tenant=tenant)), 4, "rows after a fork row inside a session")


async def _hostile_texts(store: Store, tenant: str) -> None:
    for text in HOSTILE_TEXTS:
        title = Row(0, "session.created", -1, 7, dumps_stored({"title": text}))
        await store.append(text, [title, Row(1, text, 0, 8, b"{}")], 0, tenant=tenant)
        await store.append("s", make_rows(1), 0, tenant=tenant + text + "!")
    found = {info.id: info.title for info in await store.list(tenant=tenant)}
    _same(found, {text: text for text in HOSTILE_TEXTS}, "ids and titles")
    for text in HOSTILE_TEXTS:
        _same([row.kind for row in await store.read(text, tenant=tenant)], ["session.created", text], "kinds")
        _same(len(await store.list(tenant=tenant + text + "!")), 1, f"sessions of tenant {text!r:.40}")
        _same(await store.delete(text, tenant=tenant), True, f"delete of {text!r:.40}")
        await store.delete("s", tenant=tenant + text + "!")
    _same(await store.list(tenant=tenant), [], "list after everything was deleted")


async def _any_data(store: Store, tenant: str) -> None:
    sizes = (0, 1, 4000, 16 * 1024, 16 * 1024 + 1, 300_000)
    pieces = [b"\x00\xff\xfe'\"\n"[:1] * size for size in sizes]
    datas = [*pieces, bytes(range(256)) * 100, dumps_stored({"x": "\ud800\x00", "n": 1 << 64}), *reversed(pieces)]
    rows = [Row(pos, "tool.finished", 0, pos, data) for pos, data in enumerate(datas)]
    await store.append("s", rows, 0, tenant=tenant)
    await store.append("t", rows, 0, tenant=tenant)
    _same(await store.read("s", tenant=tenant) == rows, True, "data of every size and content")
    await store.delete("s", tenant=tenant)
    _same(await store.read("t", tenant=tenant) == rows, True, "data after a session with equal data was deleted")


async def _any_times(store: Store, tenant: str) -> None:
    hour = 3600 * 10**9
    times = [10 * hour, 9 * hour, 8766 * hour, 0, -1, -hour, -(1 << 63), (1 << 63) - 1, 5]
    rows = [Row(pos, "log", -1, time, b"{}") for pos, time in enumerate(times)]
    await store.append("s", rows, 0, tenant=tenant)
    _same([row.time for row in await store.read("s", tenant=tenant)], times, "times, in the order of positions")
    [info] = await store.list(tenant=tenant)
    _same((info.created, info.updated), (times[0], times[-1]), "created and updated")


async def _one_session_many_writers(store: Store, tenant: str) -> None:
    async def write(name: int) -> int:
        conflicts = 0
        for _ in range(5):
            while True:
                pos = len(await store.read("s", tenant=tenant))
                try:
                    await store.append("s", make_rows(2, pos, data=b"%d" % name), pos, tenant=tenant)
                    break
                except StoreConflict:
                    conflicts += 1
        return conflicts

    await asyncio.gather(*[write(name) for name in range(4)])
    rows = await store.read("s", tenant=tenant)
    _same([row.pos for row in rows], list(range(40)), "positions after four writers")
    _same([rows[i].data == rows[i + 1].data for i in range(0, 40, 2)], [True] * 20, "batches are whole")
    _same(
        {name: sum(row.data == b"%d" % name for row in rows) for name in range(4)}, dict.fromkeys(range(4), 10), "rows"
    )
    at_once = [store.append("s", make_rows(1, 40), 40, tenant=tenant) for _ in range(8)]
    results = await asyncio.gather(*at_once, return_exceptions=True)
    _same(sum(result is None for result in results), 1, "winners among eight writers at one position")
    _same(sum(isinstance(result, StoreConflict) for result in results), 7, "conflicts among them")


async def _many_sessions(store: Store, tenant: str) -> None:
    async def write(name: str) -> None:
        for pos in range(5):
            await store.append(name, make_rows(1, pos), pos, tenant=tenant)

    names = [f"s{number}" for number in range(20)]
    # One that conflicts must not take the others, committed with it, along.
    bad = [store.append("s0", make_rows(1, 99), 99, tenant=tenant) for _ in range(5)]
    results = await asyncio.gather(*[write(name) for name in names], *bad, return_exceptions=True)
    _same([result for result in results[:20] if result is not None], [], "errors of writers to sessions of their own")
    _same([type(result) for result in results[20:]], [StoreConflict] * 5, "appends at a wrong position")
    for name in names:
        _same(await store.read(name, tenant=tenant), make_rows(5), f"rows of {name}")


async def _closing(factory: Callable[[], Store]) -> None:
    store, tenant = factory(), clock.new_id()
    await store.append("s", make_rows(1), 0, tenant=tenant)
    await store.close()
    await store.close()
    await _refused(StoreError, store.append("s", make_rows(1, 1), 1, tenant=tenant), "append after close")
    await _refused(StoreError, store.read("s", tenant=tenant), "read after close")
    await _refused(StoreError, store.list(tenant=tenant), "list after close")
    await _refused(StoreError, store.delete("s", tenant=tenant), "delete after close")


async def _reopening(factory: Callable[[], Store]) -> None:
    tenant = clock.new_id()
    first = factory()
    await first.append("s", make_rows(3), 0, tenant=tenant)
    second = factory()
    await second.append("s", make_rows(1, 3), 3, tenant=tenant)
    _same(await first.read("s", tenant=tenant), make_rows(4), "rows that another store appended")
    await first.close()
    await second.append("f", [_forked("s", 2)], 2, tenant=tenant)
    await second.close()
    third = factory()
    _same(await third.read("s", tenant=tenant), make_rows(4), "rows after reopening")
    _same(await third.read("f", tenant=tenant), [*make_rows(2), _forked("s", 2)], "rows of a fork after reopening")
    await third.close()


#: Every check by the name of what it is about.
STORE_CHECKS: dict[str, StoreCheck] = {
    "round trip": _round_trip,
    "positions": _positions,
    "tenants": _tenants,
    "listing": _listing,
    "deleting": _deleting,
    "forks": _forks,
    "bad forks": _bad_forks,
    "hostile texts": _hostile_texts,
    "any data": _any_data,
    "any times": _any_times,
    "one session, many writers": _one_session_many_writers,
    "many sessions": _many_sessions,
}
