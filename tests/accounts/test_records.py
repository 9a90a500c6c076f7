"""What became of every request: kept in batches, never lost while the database lasts, and summed up exactly."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.accounts.helpers import PROLOGUE, Opened, Program, make_flaky
from windlass.accounts import records
from windlass.accounts.book import Accounts
from windlass.accounts.records import GROUPS, Group, RequestRecord, UsageRow
from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.stores.tables import open_tables
from windlass.testing.clock import FakeClock

DAY = 86_400 * 10**9
#: The first of June 2027.
JUNE = 20_970 * DAY


def made(number: int = 0, **fields: Any) -> RequestRecord:
    given: dict[str, Any] = {"id": f"r{number:06}", "time": JUNE + number, **fields}
    return RequestRecord(**given)


async def kept(url: str) -> list[tuple[Any, ...]]:
    """Read what is in the database, in the order of the ids."""
    tables = open_tables(url)
    try:
        return await tables.fetch("SELECT * FROM account_requests ORDER BY id")
    finally:
        await tables.close()


async def test_a_record_is_kept_whole(opened: Opened) -> None:
    accounts = await opened()
    full = RequestRecord(
        "r1", JUNE, "acme", "k1", "127.0.0.1:5", "openai-chat", "fast", "openai:gpt-4.1-mini", 3, 200, "interrupted",
        "interrupted", True, "s1", 100, 50, 40, 30, 20, True, 12_345, 1_000_000, 250_000, 900_000,
    )  # fmt: skip
    accounts.record(full)
    accounts.record(made(2))
    await accounts.flush()
    rows = await kept(opened.url)
    assert [RequestRecord(*row) for row in rows] == [made(2), full]


# -- totals ------------------------------------------------------------------------------------------------------------

_COUNT = st.integers(0, 10**7)
_RECORD = st.fixed_dictionaries(
    {
        "time": st.integers(JUNE, JUNE + 3 * DAY),
        "tenant": st.sampled_from(["", "acme", "a' OR 1=1 --"]),
        "key_id": st.sampled_from(["", "k1", "k2"]),
        "route": st.sampled_from(["fast", "smart\0", "\ud800"]),
        "target": st.sampled_from(["", "openai:gpt", "local:x"]),
        "input_tokens": _COUNT, "output_tokens": _COUNT, "cache_read_tokens": _COUNT, "cache_creation_tokens": _COUNT,
        "reasoning_tokens": _COUNT,
        "cost": st.one_of(st.none(), st.integers(0, 10**12)),
    }
)  # fmt: skip


def summed(every: list[RequestRecord], by: Group) -> list[UsageRow]:
    """The totals, counted by hand."""

    def name(record: RequestRecord) -> str:
        day = clock.rfc3339(record.time)[:10]
        model = record.target or record.route
        return {"key": record.key_id, "tenant": record.tenant, "model": model, "day": day}[by]

    groups: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in every:
        groups[name(record)].append(record)
    return [
        UsageRow(
            each, len(found), sum(r.input_tokens for r in found), sum(r.output_tokens for r in found),
            sum(r.cache_read_tokens for r in found), sum(r.cache_creation_tokens for r in found),
            sum(r.reasoning_tokens for r in found), sum(r.cost for r in found if r.cost is not None),
            sum(r.cost is None for r in found),
        )
        for each, found in groups.items()
    ]  # fmt: skip


@given(st.lists(_RECORD, max_size=30), st.integers(0, 3 * DAY), st.integers(0, 3 * DAY))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_totals_are_the_sums_of_the_records(rows: list[dict[str, Any]], start: int, length: int) -> None:
    every = [RequestRecord(id=f"r{n}", **row) for n, row in enumerate(rows)]
    since, until = JUNE + start, JUNE + start + length

    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            accounts = await Accounts.open(f"sqlite:{folder}/a.db")
            for record in every:
                accounts.record(record)
            for by in GROUPS:
                within = [record for record in every if since <= record.time < until]
                assert same(await accounts.usage(by), summed(every, by))
                assert same(await accounts.usage(by, since, until), summed(within, by))
                for tenant in ("acme", "nobody", "a' OR 1=1 --"):
                    theirs = [record for record in every if record.tenant == tenant]
                    assert same(await accounts.usage(by, tenant=tenant), summed(theirs, by))
            mine = [record for record in every if record.key_id == "k1"]
            assert same(await accounts.usage("day", key="k1"), summed(mine, "day"))
            await accounts.close()

    asyncio.run(check())


def same(found: list[UsageRow], expected: list[UsageRow]) -> bool:
    def by_bytes(row: UsageRow) -> bytes:
        return row.name.encode("utf-8", "surrogatepass")

    return sorted(found, key=by_bytes) == sorted(expected, key=by_bytes)


async def test_totals_on_this_database(opened: Opened) -> None:
    accounts = await opened()
    for number in range(40):
        accounts.record(made(number, time=JUNE + number * DAY // 20, cost=None if number % 4 == 0 else 10**9 + number,
                             key_id=f"k{number % 3}", input_tokens=number))  # fmt: skip
    days = await accounts.usage("day")
    assert [(row.name, row.requests, row.unknown_cost) for row in days] == [
        ("2027-06-01", 20, 5), ("2027-06-02", 20, 5),
    ]  # fmt: skip
    keys = await accounts.usage()
    assert [row.name for row in keys] == ["k0", "k1", "k2"]
    assert sum(row.cost for row in keys) == sum(10**9 + n for n in range(40) if n % 4)
    assert sum(row.input_tokens for row in keys) == sum(range(40)) and sum(row.requests for row in keys) == 40
    assert all(type(value) is int for row in keys for value in msgspec.structs.astuple(row)[1:])
    assert await accounts.usage("key", -(1 << 70), 1 << 70) == keys
    assert await accounts.usage("key", 1 << 70) == []
    with pytest.raises(ConfigError, match="by 'name; DROP'"):
        await accounts.usage("name; DROP")  # pyright: ignore[reportArgumentType]


async def test_s46_anything_may_stand_in_a_record(opened: Opened) -> None:
    accounts = await opened()
    odd = ["\0", "\ud800", "\udfff\ud800", "é\u0301", "x" * (1 << 20), "'; DROP TABLE account_requests; --", "\ufdd0"]
    for number, text in enumerate(odd):
        accounts.record(made(number, tenant=text, address=text, route=text, session_id=text, error=text))
    accounts.record(made(90, input_tokens=1 << 80, cost=1 << 90, duration_us=-1, status=1 << 70))
    accounts.record(made(91, input_tokens=1 << 62, cost=1 << 62))
    await accounts.flush()
    rows = await kept(opened.url)
    assert [row[2] for row in rows[: len(odd)]] == [text[: records.MAX_TEXT] for text in odd]
    assert {row.name for row in await accounts.usage("tenant")} == {"", *[text[: records.MAX_TEXT] for text in odd]}
    (total,) = await accounts.usage("day")
    # What no provider can mean is cut, and does not break the sums.
    assert (total.cost, total.input_tokens) == (2 * records.MAX_COUNT, 2 * records.MAX_COUNT)


# -- when records are written ------------------------------------------------------------------------------------------


async def test_recording_writes_in_batches(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened(flush_interval=3600.0)
    before = flaky[0].units
    for number in range(records.BATCH - 1):
        accounts.record(made(number))
    await asyncio.sleep(0)
    assert (accounts.unwritten, flaky[0].units) == (records.BATCH - 1, before)
    accounts.record(made(records.BATCH))
    async with clock.deadline(10):
        while accounts.unwritten:
            await clock.sleep(0.01)
    assert flaky[0].units == before + 1
    assert len(await kept(opened.url)) == records.BATCH


async def test_records_are_written_after_the_interval(opened: Opened) -> None:
    accounts = await opened(flush_interval=0.05)
    for round_ in range(2):
        accounts.record(made(round_))
        async with clock.deadline(10):
            while accounts.unwritten:
                await clock.sleep(0.01)
        assert len(await kept(opened.url)) == round_ + 1


async def test_closing_writes_the_rest(opened: Opened) -> None:
    accounts = await opened(flush_interval=3600.0)
    for number in range(1234):
        accounts.record(made(number))
    await accounts.close()
    assert len(await kept(opened.url)) == 1234


async def test_records_outlast_a_failing_database(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = make_flaky(monkeypatch)
    monkeypatch.setattr(records, "RETRY", 0.02)
    accounts = await opened(flush_interval=0.01)
    flaky[0].fail_before = 5
    for number in range(10):
        accounts.record(made(number))
    async with clock.deadline(10):
        while accounts.unwritten:
            await clock.sleep(0.01)
    assert len(await kept(opened.url)) == 10 and accounts.lost_records == 0
    assert [record.levelno for record in caplog.records if "records:" in record.message] == [logging.WARNING]


async def test_r49_a_batch_of_which_nobody_knows_is_written_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened(flush_interval=3600.0)
    accounts.record(made(1, cost=5))
    flaky[0].fail_after = 1
    await accounts.close()  # tries again
    assert accounts.unwritten == 0
    assert [row[20] for row in await kept(opened.url)] == [5]


async def test_what_is_too_much_to_keep_is_counted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records, "KEEP", 100)
    accounts = await opened(flush_interval=3600.0)
    for number in range(150):
        accounts.record(made(number))
    assert (accounts.unwritten, accounts.lost_records) == (100, 50)
    assert [record.levelno for record in caplog.records if "records:" in record.message] == [logging.ERROR]
    await accounts.close()
    assert len(await kept(opened.url)) == 100


RECORDING = (
    PROLOGUE
    + """
async def main(accounts):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    count = int(sys.argv[2])
    for number in range(count):
        accounts.record(RequestRecord(f"r{number}", number))
    if sys.argv[3] == "flush":
        await accounts.flush()
        for number in range(count, 2 * count):
            accounts.record(RequestRecord(f"r{number}", number))
    say("recorded")
    await stop.wait()
run(main)
"""
)


@pytest.mark.parametrize(
    ("how", "flushed", "left"),
    [(signal.SIGTERM, "no", 300), (signal.SIGTERM, "flush", 600), (signal.SIGKILL, "flush", 300)],
)  # fmt: skip
async def test_r34_what_a_signal_loses(opened: Opened, how: signal.Signals, flushed: str, left: int) -> None:
    """SIGTERM nothing; kill -9 at most what the last interval holds."""
    program = await Program.start(RECORDING, opened.url, "300", flushed)
    assert await program.line() == "recorded"
    program.process.send_signal(how)
    assert await program.ended() == (0 if how is signal.SIGTERM else -how)
    found = len(await kept(opened.url))
    assert found == left if how is signal.SIGTERM else left <= found <= 2 * left


async def test_days_are_utc(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    for number, time in enumerate([JUNE - 1, JUNE, JUNE + DAY - 1, JUNE + DAY]):
        accounts.record(made(number, time=time))
    rows = await accounts.usage("day")
    assert [(row.name, row.requests) for row in rows] == [("2027-05-31", 1), ("2027-06-01", 2), ("2027-06-02", 1)]
