"""Both stores pass the kit, and the kit sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from windlass.core import clock
from windlass.core.ports import Row, SessionInfo, Store
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore
from windlass.testing.store_kit import STORE_CHECKS, check_store


async def test_memory_store_passes_the_kit() -> None:
    await check_store(MemoryStore)


async def test_sqlite_store_passes_the_kit(tmp_path: Path) -> None:
    await check_store(lambda: SqliteStore(tmp_path / "ledger.db"), durable=True)


def test_stores_are_stores() -> None:
    assert isinstance(MemoryStore(), Store)
    assert isinstance(SqliteStore("unopened.db"), Store)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_r51_r52_clock_jumps_and_times_before_the_epoch(kind: str, tmp_path: Path) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "ledger.db")
    await STORE_CHECKS["any times"](store, clock.new_id())
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_r55_any_bytes_come_back(kind: str, tmp_path: Path) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "ledger.db")
    await STORE_CHECKS["any data"](store, clock.new_id())
    await store.close()


class _Loses(MemoryStore):
    """Keeps all but the last row of a batch."""

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        await super().append(session, list(rows)[:-1] if len(rows) > 2 else rows, expected_pos, tenant=tenant)


class _Overwrites(MemoryStore):
    """Takes whatever position it is given."""

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        length = len(await self.read(session, tenant=tenant))
        moved = [Row(length + at, row.kind, row.run, row.time, row.data, row.version) for at, row in enumerate(rows)]
        await super().append(session, moved, length, tenant=tenant)


class _MixesTenants(MemoryStore):
    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        return await super().read(session, start, end, tenant=tenant.rstrip("'"))

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        await super().append(session, rows, expected_pos, tenant=tenant.rstrip("'"))


class _OldestFirst(MemoryStore):
    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        return (await super().list(tenant=tenant, limit=limit))[::-1]


class _OrphansForks(MemoryStore):
    """Takes a fork's shared rows away with its parent."""

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        forks = [info.id for info in await self.list(tenant=tenant) if info.parent == session]
        for fork in forks:
            await super().delete(fork, tenant=tenant)
        return await super().delete(session, tenant=tenant)


class _NeverCloses(MemoryStore):
    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (_Loses, "round trip"),
        (_Overwrites, "positions: append at 0 of 3 rows"),
        (_MixesTenants, "tenants"),
        (_OldestFirst, "order of the list"),
        (_OrphansForks, "forks"),
        (_NeverCloses, "after close"),
    ],
)
async def test_the_kit_names_what_a_broken_store_breaks(broken: Callable[[], Store], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        await check_store(broken)


async def test_the_kit_tells_a_store_that_forgets(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="reopening"):
        await check_store(MemoryStore, durable=True)
