"""A state machine: random appends, forks, deletes and reopenings against a plain model, on both stores at once."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from windlass.core.errors import SessionNotFound, StoreConflict, StoreError
from windlass.core.json import dumps_stored
from windlass.core.ports import Row, Store
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import BLOB_BYTES, SqliteStore

NAMES = st.sampled_from(["a", "b", "c", "d'", "é\ud800"])
TENANTS = st.sampled_from(["", "t"])
KINDS = st.sampled_from(["message.added", "run.started", "a.new.kind", "tool.finished"])
DATA = st.one_of(st.binary(max_size=40), st.sampled_from([5000, BLOB_BYTES + 1, 20_000]).map(bytes))
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)


class Ledger(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.stores: dict[str, Store] = {"memory": MemoryStore(), "sqlite": self.open()}
        self.model: dict[tuple[str, str], list[Row]] = {}

    def open(self) -> SqliteStore:
        return SqliteStore(self.path, synchronous="NORMAL")

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call both stores and return the one outcome (a result or an error's type) that they agree on."""

        async def call(store: Store) -> Any:
            try:
                return await getattr(store, method)(*args, **kwargs)
            except (StoreError, SessionNotFound, ValueError) as error:
                return type(error), str(error)

        memory, sqlite = (self.runner.run(call(store)) for store in self.stores.values())
        assert memory == sqlite
        return memory

    @rule(
        name=NAMES, tenant=TENANTS, offset=st.sampled_from([0, 0, 0, 0, 1, -1]),
        parts=st.lists(st.tuples(KINDS, TIMES, DATA), max_size=4),
    )  # fmt: skip
    def append(self, name: str, tenant: str, offset: int, parts: list[tuple[str, int, bytes]]) -> None:
        known = self.model.get((tenant, name), [])
        pos = max(len(known) + offset, 0)
        rows = [Row(pos + at, kind, at - 1, time, data) for at, (kind, time, data) in enumerate(parts)]
        outcome = self.both("append", name, rows, pos, tenant=tenant)
        if pos == len(known):
            assert outcome is None
            if rows:
                self.model[tenant, name] = known + rows
        else:
            assert outcome[0] is StoreConflict

    @rule(name=NAMES, parent=NAMES, tenant=TENANTS, share=st.floats(0, 1.2), time=TIMES)
    def fork(self, name: str, parent: str, tenant: str, share: float, time: int) -> None:
        source = self.model.get((tenant, parent))
        pos = int(share * len(source)) if source else int(share * 3)
        row = Row(pos, "session.forked", -1, time, dumps_stored({"parent": parent, "pos": pos}))
        known = self.model.get((tenant, name))
        outcome = self.both("append", name, [row], pos, tenant=tenant)
        if known is not None:
            assert (outcome is None) == (pos == len(known))
            if outcome is None:
                self.model[tenant, name] = [*known, row]
        elif pos and (source is None or pos > len(source)):
            assert outcome[0] is (SessionNotFound if source is None else StoreError)
        else:
            assert outcome is None
            self.model[tenant, name] = [*(source or [])[:pos], row]

    @rule(name=NAMES, tenant=TENANTS)
    def delete(self, name: str, tenant: str) -> None:
        assert self.both("delete", name, tenant=tenant) is (self.model.pop((tenant, name), None) is not None)

    @rule(name=NAMES, tenant=TENANTS, start=st.integers(-1, 12), end=st.none() | st.integers(-1, 12))
    def read(self, name: str, tenant: str, start: int, end: int | None) -> None:
        rows = self.model.get((tenant, name), [])
        wanted = rows[max(start, 0) : None if end is None else max(end, 0)]
        assert self.both("read", name, start, end, tenant=tenant) == wanted

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.stores["sqlite"].close())
        assert [file.name for file in self.path.parent.iterdir()] in ([], ["ledger.db"])
        self.stores["sqlite"] = self.open()

    @invariant()
    def lists_agree(self) -> None:
        for tenant in ("", "t"):
            infos = self.both("list", tenant=tenant)
            found = {info.id: (info.rows, info.updated) for info in infos}
            mine = {name: rows for (owner, name), rows in self.model.items() if owner == tenant}
            assert found == {name: (len(rows), rows[-1].time) for name, rows in mine.items()}

    def teardown(self) -> None:
        for tenant, name in list(self.model):
            assert self.both("read", name, tenant=tenant) == self.model[tenant, name]
            self.delete(name, tenant)
        sqlite = self.stores["sqlite"]
        assert isinstance(sqlite, SqliteStore)
        assert self.runner.run(sqlite.check()) == []
        self.runner.run(sqlite.close())
        # With every session gone nothing stays: no row, no blob, no tombstone of a forked session.
        assert _leftovers(self.path) == [0, 0, 0]
        self.runner.close()
        self.folder.cleanup()


def _leftovers(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as conn:
        return [conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("sessions", "rows", "blobs")]


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
