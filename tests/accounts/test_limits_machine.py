"""A state machine: gateways that reserve, settle, flush, close and are killed, against a plain count."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windlass.accounts.book import Accounts
from windlass.accounts.keys import Identity
from windlass.accounts.leases import SKEW
from windlass.accounts.limits import LEASE, Reservation
from windlass.core import clock
from windlass.core.errors import RequestRefused
from windlass.stores.tables import open_tables
from windlass.testing.clock import FakeClock

LIMIT = 1000


@dataclass(eq=False)
class Gateway:
    """One opened `Accounts`, and what it did of which the database may not know yet."""

    accounts: Accounts
    #: Handed out from its lease since it last wrote.
    handed_out: int = 0
    #: Used beyond reservations: in all, and as far as it has written that.
    excess: int = 0
    written: int = 0
    #: How much of the others' excess was written when this one wrote last.
    heard: int = 0


@dataclass(eq=False)
class Call:
    gateway: Gateway
    reservation: Reservation
    #: Its reservation while it is in flight, then what it used.
    amount: int
    settled: bool = field(default=False)


class Budgets(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:{self.folder.name}/accounts.db"
        self.time = FakeClock()
        self.using = clock.use(self.time)
        self.using.__enter__()
        self.calls: list[Call] = []
        self.gateways: list[Gateway] = []
        self.killed: list[Gateway] = []
        self.closed: list[Gateway] = []
        #: What killed and sleeping gateways had done unknown to anybody.
        self.unknown = 0
        self.who = self.runner.run(self.begin())

    async def begin(self) -> Identity:
        for _ in range(2):
            self.gateways.append(Gateway(await Accounts.open(self.url, flush_interval=3600.0)))
        key, _ = await self.gateways[0].accounts.create("machine", budget=LIMIT)
        return key

    def total(self) -> int:
        return sum(call.amount for call in self.calls)

    def wrote(self, gateway: Gateway) -> None:
        """Note that a gateway has told the database what it did, and has heard what others told it."""
        gateway.handed_out, gateway.written = 0, gateway.excess
        gateway.heard = sum(each.written for each in self.everybody() if each is not gateway)

    def everybody(self) -> list[Gateway]:
        return [*self.gateways, *self.closed, *self.killed]

    @rule(at=st.integers(0, 1), need=st.sampled_from([1, 2, 7, 30, 150, 600]))
    def reserve(self, at: int, need: int) -> None:
        gateway = self.gateways[at]
        others = [each for each in self.everybody() if each is not gateway]
        try:
            from_memory = gateway.accounts.reserve(self.who, 1, need)
            made = from_memory or self.runner.run(gateway.accounts.areserve(self.who, 1, need))
        except RequestRefused as refusal:
            assert refusal.reason == "insufficient_quota"
            return
        # The rule itself: what is admitted fits, counting everything that could be known.
        known = gateway.heard if from_memory is not None else sum(each.written for each in others)
        hidden = self.unknown + sum(each.excess for each in others) - known
        assert self.total() - hidden + need <= LIMIT
        if from_memory is not None:
            gateway.handed_out += need
        else:
            self.wrote(gateway)
        self.calls.append(Call(gateway, made, need))

    @precondition(lambda self: any(not call.settled for call in self.calls))
    @rule(which=st.integers(0, 99), used=st.sampled_from([0, 1, 5, 30, 200, 700]), how=st.integers(0, 3))
    def settle(self, which: int, used: int, how: int) -> None:
        in_flight = [call for call in self.calls if not call.settled]
        call = in_flight[which % len(in_flight)]
        gateway = call.gateway
        call.settled = True
        if gateway in self.killed:
            return
        if how == 0:
            gateway.accounts.release(call.reservation)
            used = 0
        elif how == 1:
            gateway.accounts.settle(call.reservation, 1, None)
            return
        else:
            gateway.accounts.settle(call.reservation, 1, used)
        gateway.excess += max(used - call.amount, 0)
        call.amount = used

    @rule(at=st.integers(0, 1))
    def flush(self, at: int) -> None:
        gateway = self.gateways[at]
        busy = gateway.handed_out or gateway.excess > gateway.written
        self.runner.run(gateway.accounts.flush())
        if busy:
            self.wrote(gateway)

    @rule(at=st.integers(0, 1))
    def close_and_open(self, at: int) -> None:
        gateway = self.gateways[at]
        self.runner.run(gateway.accounts.close())
        gateway.written = gateway.excess
        self.closed.append(gateway)
        # Calls that it had in flight count as used from now on.
        for call in self.calls:
            call.settled |= call.gateway is gateway
        self.gateways[at] = Gateway(self.runner.run(Accounts.open(self.url, flush_interval=3600.0)))

    @rule(at=st.integers(0, 1))
    def kill_and_open(self, at: int) -> None:
        gateway = self.gateways[at]
        self.killed.append(gateway)
        # The dead do nothing: it is closed only after everything was compared.
        limiter = gateway.accounts._limiter  # pyright: ignore[reportPrivateUsage]
        for timer in (limiter._timer, limiter._beat):  # pyright: ignore[reportPrivateUsage]
            if timer is not None:
                timer.cancel()
        self.unknown += gateway.handed_out + gateway.excess - gateway.written
        gateway.excess = gateway.written
        self.gateways[at] = Gateway(self.runner.run(Accounts.open(self.url, flush_interval=3600.0)))

    @rule(seconds=st.sampled_from([1.0, 6.0, LEASE + SKEW / 1e9 + 1]))
    def wait(self, seconds: float) -> None:
        if seconds > LEASE:
            # They sleep through their leases: until each wakes, others know as little of it as of a dead one.
            self.unknown += sum(each.handed_out + each.excess - each.written for each in self.gateways)
        self.time.jump(seconds)

    @invariant()
    def what_is_held_is_what_the_database_lent(self) -> None:
        for gateway in self.gateways:
            meters = gateway.accounts._limiter._meters.values()  # pyright: ignore[reportPrivateUsage]
            assert all(meter.held <= LIMIT and meter.leased >= 0 for meter in meters)

    def teardown(self) -> None:
        try:
            self.runner.run(self.end())
        finally:
            self.using.__exit__(None, None, None)
            self.runner.close()
            self.folder.cleanup()

    async def end(self) -> None:
        for gateway in self.gateways:
            await gateway.accounts.close()
        self.time.jump(LEASE + SKEW / 1e9 + 1)
        last = await Accounts.open(self.url)
        tables = open_tables(self.url)
        found = await tables.fetch("SELECT used FROM account_meters")
        left = await tables.fetch("SELECT * FROM account_leases")
        await tables.close()
        await last.close()
        for gateway in self.killed:
            await gateway.accounts.close()
        if found:
            # No nano-dollar is lost or made up, but for what the killed took with them.
            assert found[0][0] >= self.total() - self.unknown
            assert self.killed or found[0][0] == self.total()
        assert left == []


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
