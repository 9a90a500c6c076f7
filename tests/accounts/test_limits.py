"""What may be used: rates, budgets, leases, and how far a budget can be passed."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.accounts.helpers import (
    PROLOGUE,
    Opened,
    Program,
    admitted,
    attempt,
    identity_of,
    make_flaky,
    refused,
    used,
)
from windlass.accounts.book import Accounts
from windlass.accounts.keys import ANONYMOUS, Identity, Limits
from windlass.accounts.leases import SKEW, interval_of
from windlass.accounts.limits import IDLE, LEASE, Reservation
from windlass.accounts.meter import SHARE, period_of
from windlass.core import clock
from windlass.core.errors import RequestRefused, StoreError
from windlass.testing.awaits import sweep
from windlass.testing.clock import FakeClock

DAY = 86_400 * 10**9


async def storm(accounts: Accounts, who: Identity, calls: int, tokens: int = 1, cost: int = 1) -> list[Reservation]:
    """Reserve for many calls at once; returns what was granted."""
    found = await asyncio.gather(*[attempt(accounts, who, tokens, cost) for _ in range(calls)])
    return [each for each in found if isinstance(each, Reservation)]


# -- S56: the race for the end of a budget -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["budget", "token_budget", "rpm", "tpm"])
async def test_s56_two_hundred_calls_at_the_limit(opened: Opened, fake: FakeClock, kind: str) -> None:
    accounts = await opened()
    who = await identity_of(accounts, **{kind: 100})
    granted = await storm(accounts, who, 200)
    assert len(granted) == 100
    for each in granted:
        accounts.settle(each, 1, 1)
    assert await storm(accounts, who, 5) == []


async def test_s56_estimates_larger_than_what_is_used(opened: Opened) -> None:
    """While calls are in flight their estimates count; what they did not use is there for others at once."""
    accounts = await opened()
    who = await identity_of(accounts, budget=1000)
    granted = await storm(accounts, who, 200, cost=100)
    assert len(granted) == 10
    for each in granted:
        accounts.settle(each, None, 40)
    assert len(await storm(accounts, who, 200, cost=100)) == 6
    assert await used(opened.url) == 1000


async def test_s56_calls_that_use_more_than_they_reserved(opened: Opened) -> None:
    """The stated bound: the limit is passed by the excess of calls in flight, and by nothing after it is known."""
    accounts = await opened()
    who = await identity_of(accounts, budget=1000)
    granted = await storm(accounts, who, 200, cost=100)
    for number, each in enumerate(granted):
        accounts.settle(each, None, 100 + number)
    assert await storm(accounts, who, 20, cost=1) == []
    await accounts.flush()
    assert await used(opened.url) == 1000 + sum(range(10))


async def test_what_comes_back_pays_first_for_an_excess(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=1000)
    calls = [await admitted(accounts, who, cost=cost) for cost in (600, 1, 1, 1)]
    accounts.settle(calls[1], 1, 700)
    await refused(accounts, who, cost=1)
    await accounts.flush()
    # One is given back, and 302 are owed: it is not handed out again.
    accounts.release(calls[2])
    await refused(accounts, who, cost=1)
    await accounts.flush()
    await refused(accounts, who, cost=1)
    assert await used(opened.url) == 600 + 700 + 1


async def test_an_excess_elsewhere_ends_what_was_leased(opened: Opened) -> None:
    """The stated bound with two gateways: what the other had leased, until it has written once."""
    one, two = await opened(flush_interval=3600.0), await opened(flush_interval=3600.0)
    _, secret = await one.create("shared", budget=1000)
    await two.refresh()
    who = two.identify(secret)
    assert who is not None
    await admitted(two, who)  # leases 32 more
    one.settle(await admitted(one, who, cost=100), 1, 5000)
    await one.flush()
    assert isinstance(await attempt(two, who), Reservation)
    await two.flush()
    assert await used(opened.url) == 5000 + 2
    assert (await refused(two, who)).reason == "insufficient_quota"


RACE = (
    PROLOGUE
    + """
async def main(accounts):
    who = accounts.identify(sys.argv[2])
    say("ready")
    await said()
    found = await asyncio.gather(*[attempt(accounts, who, 1, 7) for _ in range(200)])
    granted = [each for each in found if each]
    for each in granted:
        accounts.settle(each, 1, 7)
    await accounts.flush()
    say(len(granted))
    await said()
run(main)
"""
)


async def test_s56_two_processes_on_one_database(opened: Opened) -> None:
    accounts = await opened()
    key, secret = await accounts.create("race", budget=7 * 150 + 3)
    programs = [await Program.start(RACE, opened.url, secret) for _ in range(2)]
    for each in programs:
        assert await each.line() == "ready"
    for each in programs:
        each.say("go")
    granted = [int(await each.line()) for each in programs]
    # Each may be left with a lease that the other misses, and never with more than there is.
    assert 150 - 2 * (150 // SHARE + 1) <= sum(granted) <= 150
    assert 7 * sum(granted) <= await used(opened.url) <= 7 * 150 + 3
    for each in programs:
        each.say("end")
        assert await each.ended() == 0
    assert await used(opened.url) == 7 * sum(granted)
    # What they gave back at their end is all there.
    rest = await storm(accounts, key, 200, cost=7)
    assert len(rest) + sum(granted) == 150


async def test_s56_two_gateways_and_a_rate(opened: Opened, fake: FakeClock) -> None:
    gateways = [await opened(), await opened()]
    _, secret = await gateways[0].create("race", rpm=100)
    await gateways[1].refresh()
    who = gateways[1].identify(secret)
    assert who is not None
    granted = await asyncio.gather(*[storm(each, who, 60) for each in gateways])
    assert 100 - 2 * 100 // SHARE <= sum(map(len, granted)) <= 100
    assert all(granted)


# -- the rules of each limit -------------------------------------------------------------------------------------------


async def test_a_rate_refuses_until_the_time_it_names(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    who = await identity_of(accounts, rpm=2)
    for _ in range(2):
        await admitted(accounts, who)
    error = await refused(accounts, who)
    assert (error.status, error.kind, error.reason, error.param) == (
        429, "rate_limit_error", "rate_limit_exceeded", None,
    )  # fmt: skip
    assert error.retry and error.retry_after == 30.0
    assert "'test' may use 2 requests per minute" in str(error) and "30.000 s" in str(error)
    fake.jump(29.999)
    assert (await refused(accounts, who)).retry_after == pytest.approx(0.001)
    fake.jump(0.001)
    await admitted(accounts, who)
    assert (await refused(accounts, who)).retry_after == 30.0
    # A rest fills the bucket to one minute's worth, however long it was.
    fake.jump(3600)
    assert len(await storm(accounts, who, 10)) == 2


@given(st.lists(st.tuples(st.integers(0, 45_000), st.integers(0, 90)), max_size=12), st.sampled_from([7, 60, 600]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_span_of_time_has_more_than_the_rule_allows(steps: list[tuple[int, int]], rate: int) -> None:
    async def check() -> None:
        accounts = await Accounts.open(f"sqlite:{folder}/a.db", flush_interval=3600.0)
        who = await identity_of(accounts, rpm=rate)
        admitted_at: list[int] = []
        for wait, calls in steps:
            time.jump(wait / 1000)
            admitted_at += [clock.now_ns()] * len(await storm(accounts, who, calls))
        await accounts.close()
        for first, begin in enumerate(admitted_at):
            for count, end in enumerate(admitted_at[first:], 1):
                assert count <= rate + rate * (end - begin) / 60e9 + rate // SHARE

    time = FakeClock()
    with tempfile.TemporaryDirectory() as folder, clock.use(time):
        asyncio.run(check())


async def test_tokens_per_minute_count_what_was_used(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    who = await identity_of(accounts, tpm=6000)
    first = await admitted(accounts, who, tokens=6000)
    assert (await refused(accounts, who, tokens=600)).retry_after == pytest.approx(6.0)
    accounts.settle(first, 1000, None)
    # What the estimate had too much is there again.
    second = await admitted(accounts, who, tokens=5000)
    accounts.settle(second, 6000, None)
    # It used 1000 more than that: these have to fill up first.
    assert (await refused(accounts, who, tokens=100)).retry_after == pytest.approx(11.0)
    fake.jump(11)
    await admitted(accounts, who, tokens=100)


async def test_a_request_over_a_minute_s_worth_can_never_pass(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, tpm=100)
    error = await refused(accounts, who, tokens=101)
    assert (error.status, error.reason, error.retry, error.retry_after) == (429, "rate_limit_exceeded", False, None)
    assert "needs 101 tokens" in str(error)


async def test_a_spent_budget_says_so_and_not_to_try_again(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=5_000_000_000, rpm=1, period="month")
    accounts.settle(await admitted(accounts, who, cost=4_990_000_000), 1, None)
    # Where the rate refuses as well, the budget is named: trying again would not help.
    error = await refused(accounts, who, cost=20_000_000)
    assert (error.status, error.kind, error.reason, error.param) == (
        429, "insufficient_quota", "insufficient_quota", None,
    )  # fmt: skip
    assert not error.retry and error.retry_after is None
    assert str(error) == (
        "The key 'test' has a budget of $5.0000 per month (UTC); $0.0100 are left, and this request may use $0.0200."
    )


async def test_a_spent_budget_refuses_free_calls_too(opened: Opened) -> None:
    """Else calls of unknown price, which reserve nothing, would go on for ever."""
    accounts = await opened()
    who = await identity_of(accounts, budget=100)
    accounts.settle(await admitted(accounts, who, cost=0), 1, 250)
    assert (await refused(accounts, who, cost=0)).reason == "insufficient_quota"
    assert (await refused(accounts, who, cost=0)).reason == "insufficient_quota"


async def test_settling_counts_once_and_what_is_unknown_stays(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=100, token_budget=100)
    unknown = await admitted(accounts, who, tokens=10, cost=10)
    accounts.settle(unknown, 4, None)
    accounts.settle(unknown, 0, 0)
    accounts.release(unknown)
    given_back = await admitted(accounts, who, tokens=50, cost=50)
    accounts.release(given_back)
    accounts.release(given_back)
    accounts.settle(given_back, 50, 50)
    absurd = await admitted(accounts, who, tokens=1, cost=1)
    accounts.settle(absurd, -5, -(1 << 80))
    await accounts.close()
    assert (await used(opened.url), await used(opened.url, "token_budget")) == (10, 4)


async def test_a_provider_that_reports_nonsense_stops_one_key_and_nothing_else(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=100, token_budget=100)
    accounts.settle(await admitted(accounts, who), 1 << 80, 1 << 80)
    assert (await refused(accounts, who)).reason == "insufficient_quota"
    other = await identity_of(accounts, budget=100)
    assert isinstance(await attempt(accounts, other, 1 << 80, 100), Reservation)


async def test_release_gives_the_request_of_a_rate_back(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    who = await identity_of(accounts, rpm=1)
    for _ in range(3):
        accounts.release(await admitted(accounts, who))
    accounts.settle(await admitted(accounts, who), 5, 5)
    assert (await refused(accounts, who)).retry_after == 60.0


async def test_a_refused_call_uses_nothing_of_its_other_limits(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=100, token_budget=10**6, rpm=10**6, tpm=10)
    await admitted(accounts, who, tokens=10, cost=1)
    for _ in range(3):
        assert (await refused(accounts, who, tokens=10, cost=50)).reason == "rate_limit_exceeded"
    fake.jump(60)
    await admitted(accounts, who, tokens=10, cost=99)


async def test_a_tenant_s_limits_are_shared_by_its_keys(opened: Opened) -> None:
    accounts = await opened()
    await accounts.set_tenant_limits("acme", Limits(budget=100, rpm=1000))
    one, two = [await identity_of(accounts, tenant="acme", budget=80) for _ in range(2)]
    other = await identity_of(accounts, tenant="other")
    granted = [len(await storm(accounts, who, 100)) for who in (one, two, other)]
    assert granted == [80, 20, 100]
    error = await refused(accounts, two)
    assert "The tenant 'acme' has a budget of" in str(error)
    # More is given while it runs, also by another process, and less is taken away.
    await (await opened()).set_tenant_limits("acme", Limits(budget=110))
    await accounts.refresh()
    assert len(await storm(accounts, two, 100)) == 10
    await accounts.set_tenant_limits("acme", Limits())
    assert len(await storm(accounts, two, 100)) == 50
    assert len(await storm(accounts, ANONYMOUS, 100)) == 100


def ns(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 10**9  # pyright: ignore[reportArgumentType]


def test_periods_begin_and_end_in_utc() -> None:
    now = ns(2028, 2, 29, 23, 59, 59)
    assert period_of("total", now) == (0, None)
    assert period_of("day", now) == (ns(2028, 2, 29), ns(2028, 3, 1))
    assert period_of("month", now) == (ns(2028, 2, 1), ns(2028, 3, 1))
    assert period_of("month", ns(2027, 12, 31)) == (ns(2027, 12, 1), ns(2028, 1, 1))
    assert period_of("month", ns(2028, 1, 1) - 1) == (ns(2027, 12, 1), ns(2028, 1, 1))


@pytest.mark.parametrize(("period", "days"), [("day", 1), ("month", 30)])
async def test_a_new_period_has_a_new_budget(opened: Opened, fake: FakeClock, period: str, days: int) -> None:
    fake.jump((ns(2027, 6, 1) - clock.now_ns()) / 1e9)
    accounts = await opened()
    who = await identity_of(accounts, budget=100, period=period)
    late = (await storm(accounts, who, 200))[0]
    fake.jump(days * 86_400 - 0.001)
    assert await storm(accounts, who, 1) == []
    fake.jump(0.001)
    assert len(await storm(accounts, who, 200)) == 100
    # A call counts in the period in which it began.
    accounts.settle(late, 1, 50)
    assert await storm(accounts, who, 1) == []
    await accounts.close()
    tables = (await opened())._tables  # pyright: ignore[reportPrivateUsage]
    assert await tables.fetch("SELECT used FROM account_meters ORDER BY start") == [(149,), (100,)]


async def test_the_limit_is_exact_where_the_rate_does_not_divide_a_minute(opened: Opened, fake: FakeClock) -> None:
    accounts = await opened()
    who = await identity_of(accounts, rpm=7)
    assert len(await storm(accounts, who, 50)) == 7
    fake.jump(60)
    assert len(await storm(accounts, who, 50)) in (6, 7)  # an interval is rounded up to whole nanoseconds
    assert interval_of(7) * 7 >= 60 * 10**9 > (interval_of(7) - 1) * 7


# -- without the database ----------------------------------------------------------------------------------------------


async def test_the_hot_path_needs_no_database(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened(flush_interval=3600.0)
    who = await identity_of(accounts, budget=10**9, token_budget=10**9, rpm=10**6, tpm=10**9)
    before = flaky[0].units
    asked = 0
    for _ in range(2000):
        reservation = accounts.reserve(who, 100, 1000)
        if reservation is None:
            asked += 1
            reservation = await accounts.areserve(who, 100, 1000)
        accounts.settle(reservation, 90, 900)
    # 32 calls' worth is leased at once, of all limits together.
    assert asked <= 2000 / 30 and flaky[0].units - before <= asked
    await accounts.flush()
    assert accounts.reserve(ANONYMOUS, 1, 1) is not None


async def test_a_storm_of_refused_calls_asks_the_database_once(
    opened: Opened, fake: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened()
    for limits in ({"budget": 5}, {"rpm": 5}):
        who = await identity_of(accounts, **limits)
        assert len(await storm(accounts, who, 10)) == 5
        before = flaky[0].units
        for _ in range(100):
            with pytest.raises(RequestRefused):
                accounts.reserve(who, 1, 1)
        assert flaky[0].units == before


async def test_what_is_on_its_way_back_is_not_spent(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened(flush_interval=3600.0)
    who = await identity_of(accounts, budget=100)
    for each in (await storm(accounts, who, 200))[:60]:
        accounts.release(each)
    flaky[0].gate.clear()
    flushing = asyncio.get_running_loop().create_task(accounts.flush())
    calls = asyncio.get_running_loop().create_task(storm(accounts, who, 200))
    await clock.sleep(0.05)
    waited = not flushing.done() and not calls.done()
    flaky[0].gate.set()
    assert waited and len(await calls) == 60
    await flushing


async def test_without_the_database_limits_refuse_and_others_go_on(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened()
    free, who = await identity_of(accounts), await identity_of(accounts, budget=100)
    flaky[0].fail_before = 10**9
    for _ in range(3):
        with pytest.raises(StoreError, match="away"):
            await accounts.areserve(who, 1, 1)
    assert await admitted(accounts, free)
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1
    flaky[0].fail_before = 0
    assert len(await storm(accounts, who, 200)) == 100


async def test_r49_a_commit_of_which_nobody_knows_counts_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = make_flaky(monkeypatch)
    accounts = await opened(flush_interval=3600.0)
    who = await identity_of(accounts, budget=1000)
    for failures in (1, 2, 3):
        flaky[0].fail_after = failures
        for _ in range(failures):
            with pytest.raises(StoreError, match="while it was committed"):
                await accounts.areserve(who, 1, 100)
        for each in await storm(accounts, who, 2, cost=10):
            accounts.settle(each, 1, 10)
    await accounts.flush()
    # Six calls used ten each; those that failed used nothing.
    assert len(await storm(accounts, who, 2000)) == 1000 - 60
    await accounts.close()
    assert await used(opened.url) == 1000


async def test_a_call_that_is_cancelled_anywhere_keeps_nothing(opened: Opened) -> None:
    accounts = await opened(flush_interval=3600.0)
    who = await identity_of(accounts, budget=100, token_budget=100, rpm=10**6)

    async def scenario(arm: object) -> None:
        task = asyncio.get_running_loop().create_task(accounts.areserve(who, 1, 60))
        arm(task.cancel)  # pyright: ignore[reportCallIssue]
        try:
            accounts.release(await task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise

    async def check(at: int) -> None:
        whole = await admitted(accounts, who, tokens=100, cost=100)
        accounts.release(whole)

    passes = await sweep(scenario, check, limit=200)
    assert passes >= 2


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_what_lies_unused_goes_back_for_others(opened: Opened, fake: FakeClock) -> None:
    one, two = await opened(flush_interval=0.01), await opened()
    _, secret = await one.create("shared", budget=1000)
    await two.refresh()
    who = two.identify(secret)
    assert who is not None
    await admitted(one, who)
    assert await used(opened.url) == 1 + 32
    assert len(await storm(two, who, 2000)) == 1000 - 33
    fake.jump(IDLE)
    one._limiter._due_beat()  # pyright: ignore[reportPrivateUsage]
    await one.flush()
    assert await used(opened.url) == 1000 - 32
    fake.jump(1)
    assert len(await storm(two, who, 2000)) == 32


KILLED = (
    PROLOGUE
    + """
async def main(accounts):
    who = accounts.identify(sys.argv[2])
    settled = [await attempt(accounts, who, 1, 10) for _ in range(3)]
    accounts.settle(settled[0], 1, 4)
    accounts.settle(settled[1], 1, None)
    await accounts.flush()
    say("leased")
    await said()
run(main)
"""
)


async def test_kill_9_gives_the_lease_back_and_keeps_what_was_handed_out(opened: Opened) -> None:
    accounts = await opened()
    key, secret = await accounts.create("killed", budget=2000)
    program = await Program.start(KILLED, opened.url, secret)
    assert await program.line() == "leased"
    program.process.send_signal(signal.SIGKILL)
    assert await program.ended() == -signal.SIGKILL
    handed_out = 4 + 10 + 10  # the third is in flight: nobody will ever know whether it was answered
    leased = await used(opened.url) - handed_out
    assert 0 < leased <= 2000 // SHARE
    time = FakeClock(clock.now_ns())
    with clock.use(time):
        assert len(await storm(accounts, key, 3000)) == 2000 - handed_out - leased
        time.jump(LEASE + SKEW / 1e9 - 5)
        assert await storm(accounts, key, 3000) == []
        time.jump(7)
        assert len(await storm(accounts, key, 3000)) == leased
        await accounts.flush()
        assert await used(opened.url) == 2000


async def test_a_gateway_that_slept_through_its_lease_does_not_hand_it_out_twice(
    opened: Opened, fake: FakeClock
) -> None:
    sleeper, other = await opened(flush_interval=3600.0), await opened()
    _, secret = await sleeper.create("shared", budget=1000)
    await other.refresh()
    who = other.identify(secret)
    assert who is not None
    in_flight = await storm(sleeper, who, 5)  # leases 37, and hands out 5
    known = await used(opened.url)
    unreported = [await admitted(sleeper, who) for _ in range(3)]
    assert await used(opened.url) == known == 5 + 32
    fake.jump(LEASE + SKEW / 1e9 + 1)
    # The other takes the dead one's share, not knowing of the three.
    granted = await storm(other, who, 2000)
    assert len(granted) == 1000 - 5
    # The sleeper wakes: it does not trust its memory, and owes what it had handed out since it last told.
    assert sleeper.reserve(who, 1, 1) is None
    assert (await refused(sleeper, who)).reason == "insufficient_quota"
    await sleeper.flush()
    assert await used(opened.url) == 1000 + len(unreported)
    for each in [*in_flight, *unreported]:
        sleeper.settle(each, 1, 0)
    for each in granted:
        other.release(each)
    await sleeper.close()
    await other.close()
    assert await used(opened.url) == 0


async def test_closing_gives_everything_back_and_what_is_in_flight_counts(opened: Opened) -> None:
    accounts = await opened()
    who = await identity_of(accounts, budget=10**6, rpm=10**6)
    kept, settled = await admitted(accounts, who, cost=50), await admitted(accounts, who, cost=70)
    accounts.settle(settled, 1, 7)
    await accounts.close()
    assert await used(opened.url) == 57
    accounts.settle(kept, 1, 1)  # too late, and harmless
    with pytest.raises(StoreError, match="closed"):
        await accounts.areserve(who, 1, 10**5)
    again = await opened()
    assert await again._tables.fetch("SELECT * FROM account_gateways") == []  # pyright: ignore[reportPrivateUsage]
    assert await again._tables.fetch("SELECT * FROM account_leases") == []  # pyright: ignore[reportPrivateUsage]
