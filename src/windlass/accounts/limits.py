"""Hand out what keys and tenants may use: reserve before a call, settle after it; mostly without the database.

**The rules.** A call reserves its estimate of every limit it is under, all or nothing.

- Requests and tokens per minute: a bucket that holds one minute's worth (N) and fills evenly. In any T seconds at most
  N + N·T/60 are admitted over all gateways, net of what calls give back, plus what each gateway had leased before (N/20
  at most). Clocks that differ by d seconds add N·d/60.
- Budgets in money and tokens, per UTC day, UTC month, or in total. A call counts in the period in which it reserved.
  Each reserves one nano-dollar or one token at least, so a spent budget admits nothing more, free calls included.

**How far a budget can be passed.** A call is admitted only when its reservation fits into what is left of the limit,
counting all that was settled, reserved and leased, by every gateway on the same tables. So the sum of reservations
never passes the limit, and where no call uses more than it reserved, neither does what is spent: the bound is zero.
Otherwise the limit can be passed by

- the sum of what calls that are in flight when it is reached use *beyond their own reservations*. The excess of a call
  that was settled counts at once on its own gateway, and elsewhere after a `flush_interval` of each of the two; until
  then another gateway hands out what it had leased before, 1/20 of the limit at most, and no more than that excess;
- after a gateway was killed (`kill -9`), or stood still for longer than its lease: what it handed out or saw exceeded
  within its last `flush_interval`. What it had handed out before counts as spent, finished or not. (A power cut may
  take more: what SQLite had not yet brought to the disk.)

**Leases.** A gateway takes more of a budget than a call needs, at most 1/20 of the limit and a quarter of what is left,
with one conditional UPDATE, and hands that out in memory. A call may be refused while other gateways hold the rest so;
what was not used for `IDLE` seconds goes back, everything at close, and after `LEASE` + 10 seconds what a gateway held
that is not heard of any more. The clocks of gateways must agree to within these 10 seconds.

While the database cannot be reached, calls under limits are admitted from the lease until it ends, then refused with
StoreError; calls without limits go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from windlass.accounts.keys import Identity, KeyRing, Limits
from windlass.accounts.leases import Grant, Op, apply, leave
from windlass.accounts.meter import KINDS, Meter, Waiter, period_of
from windlass.core import clock
from windlass.core.errors import StoreError
from windlass.stores.tables import Tables

__all__ = ["IDLE", "LEASE", "Limiter", "Reservation"]

log = logging.getLogger("windlass.accounts")
#: Seconds for which a lease holds; it is prolonged three times as often.
LEASE = 30.0
#: Seconds after which an unused lease is given back.
IDLE = 5.0
#: Seconds between attempts while the database cannot be reached.
RETRY = 0.5
#: What one call is counted for at most, whatever a provider reports: a million dollars in nano-dollars.
MOST = 10**15
_SECOND = 1_000_000_000
_FAR = 1 << 62


class Reservation:
    """What one call holds of each limit until it is settled or released, once."""

    __slots__ = ("done", "parts")

    def __init__(self, parts: Sequence[tuple[Meter, int]]) -> None:
        self.parts, self.done = parts, False


class _Group(NamedTuple):
    """The meters that a call of one key is under, until the first of their periods ends."""

    meters: tuple[Meter, ...]
    until: int


class _Batch(NamedTuple):
    """Operations under way. A failed one is repeated under its number, so that it counts once."""

    seq: int
    ops: list[Op]
    meters: list[Meter]
    waiters: list[list[Waiter]]


class Limiter:
    """Keep every limit of this process; one task of its own talks to the database. Belongs to one event loop."""

    def __init__(self, tables: Tables, ring: KeyRing, *, flush_interval: float = 0.1, lease: float = LEASE) -> None:
        self._tables, self._ring, self._interval, self._lease = tables, ring, flush_interval, lease
        self._meters: dict[tuple[str, str, int], Meter] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._gateway, self._seq, self._valid = clock.new_id(), 0, 0
        self._dirty: set[Meter] = set()
        self._leasing: set[Meter] = set()
        self._pending: _Batch | None = None
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._beating = self._closed = self._failing = False
        self._turning = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._work(), name="windlass-limits")

    # -- what a call does ----------------------------------------------------------------------------------------------

    def limited(self, identity: Identity) -> bool:
        """Tell whether the key or its tenant has any limit."""
        return bool(self._group(identity, clock.now_ns()).meters)

    def reserve(self, identity: Identity, tokens: int, cost: int | None) -> Reservation | None:
        """Reserve from what is held here; None when the database must be asked. Raises RequestRefused."""
        now = clock.now_ns()
        group = self._group(identity, now)
        if not group.meters:
            return Reservation(())
        needs = _needs(tokens, cost)
        enough = now < self._valid
        for meter in group.meters:
            if not meter.has(need := needs[meter.which]):
                enough = False
                meter.check(need, now)
        if not enough:
            return None
        parts = [(meter, needs[meter.which]) for meter in group.meters]
        for meter, need in parts:
            meter.held -= need
            meter.touched = now
        self._mark(group.meters)
        return Reservation(parts)

    async def areserve(self, identity: Identity, tokens: int, cost: int | None) -> Reservation:
        """Reserve, and ask the database for what is not held here. Raises RequestRefused, StoreError."""
        if (quick := self.reserve(identity, tokens, cost)) is not None:
            return quick
        needs = _needs(tokens, cost)
        taken: list[tuple[Meter, int]] = []
        asked: list[tuple[Meter, Waiter]] = []
        try:
            for meter in self._group(identity, clock.now_ns()).meters:
                if (waiter := self._take(meter, needs[meter.which])) is None:
                    taken.append((meter, needs[meter.which]))
                else:
                    asked.append((meter, waiter))
            for _, waiter in asked:
                await waiter.future
        except BaseException:
            # What was not answered yet is given back by whoever answers it.
            granted = [(meter, waiter.need) for meter, waiter in asked if waiter.granted()]
            self._give([*taken, *granted])
            raise
        return Reservation([*taken, *[(meter, waiter.need) for meter, waiter in asked]])

    def settle(self, reservation: Reservation, tokens: int | None, cost: int | None) -> None:
        """Put exact figures in place of the estimates (None: the estimate stays). Once; later calls are void."""
        if reservation.done:
            return
        reservation.done = True
        exact = (None, tokens, cost)
        rest: list[tuple[Meter, int]] = []
        for meter, need in reservation.parts:
            if (used := exact[meter.which]) is not None and used != need:
                rest.append((meter, need - min(max(used, 0), MOST)))
        self._give(rest)

    def release(self, reservation: Reservation) -> None:
        """Give everything back, the request of the rate too: nothing was used. Once; later calls are void."""
        if not reservation.done:
            reservation.done = True
            self._give(reservation.parts)

    # -- what a call is under ------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Look again which limits hold: keys or tenants changed."""
        self._groups.clear()

    def _group(self, identity: Identity, now: int) -> _Group:
        found = self._groups.get((identity.key_id, identity.tenant))
        return self._make_group(identity, now) if found is None or now >= found.until else found

    def _make_group(self, identity: Identity, now: int) -> _Group:
        own = Limits(identity.rpm, identity.tpm, identity.budget, identity.token_budget, identity.period)
        owners = [(f"key:{identity.key_id}", identity.name, own)]
        if (shared := self._ring.tenants.get(identity.tenant)) is not None:
            owners.append((f"tenant:{identity.tenant}", identity.tenant, shared))
        meters: list[Meter] = []
        until = _FAR
        for kind in KINDS:
            for owner, name, limits in owners:
                if (value := getattr(limits, kind)) is None:
                    continue
                start, end = (0, None) if kind in ("rpm", "tpm") else period_of(limits.period, now)
                meter = self._meters.get((owner, kind, start))
                if meter is None:
                    meter = self._meters[owner, kind, start] = Meter(owner, name, kind, start, end)
                meter.bound(limits, value)
                meters.append(meter)
                until = min(until, end or _FAR)
        made = self._groups[identity.key_id, identity.tenant] = _Group(tuple(meters), until)
        return made

    def _take(self, meter: Meter, need: int) -> Waiter | None:
        """Take from what is held here (None), or ask the database. Raises RequestRefused, StoreError."""
        now = clock.now_ns()
        if self._closed or self._task.done():
            raise StoreError("The accounts are closed.")
        if meter.has(need) and now < self._valid and not meter.waiters:
            meter.held -= need
            meter.touched = now
            self._mark((meter,))
            return None
        meter.check(need, now)
        waiter = Waiter(need, self._loop.create_future())
        meter.waiters.append(waiter)
        self._dirty.add(meter)
        self._wake.set()
        return waiter

    def _give(self, parts: Iterable[tuple[Meter, int]]) -> None:
        now = clock.now_ns()
        for meter, amount in parts:
            meter.held += amount
            meter.touched = now
            self._mark((meter,))

    def _mark(self, meters: Iterable[Meter]) -> None:
        self._dirty.update(meters)
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._interval, self._due)

    def _due(self) -> None:
        self._timer = None
        self._wake.set()

    # -- the task that talks to the database ---------------------------------------------------------------------------

    async def flush(self) -> None:
        """Tell the database what was used until now. Raises StoreError when it cannot be told; it is kept then."""
        try:
            await self._turn()
        except StoreError as error:
            self._failed(error)
            raise
        except asyncio.CancelledError:
            # Others may wait for what this turn had begun.
            self._wake.set()
            raise

    async def close(self) -> None:
        """Refuse who waits, and give back what was not used. What is still reserved counts as used."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._beat):
            if timer is not None:
                timer.cancel()
        self._wake.set()
        await self._task
        try:
            await self._turn()
            if self._seq or self._dirty:
                await self._leave()
        except StoreError as error:
            log.warning("limits: what was leased could not be given back; it ends by itself (%s)", error)

    async def _leave(self) -> None:
        for _ in range(2):  # the second time where our leases were taken from us
            now = clock.now_ns()
            batch = self._build(now, last=True)
            assert batch is not None
            work = partial(leave, self._gateway, batch.seq, now, batch.ops)
            if await self._tables.transact(work, idempotent=True):
                return
            self._lost(batch)

    async def _work(self) -> None:
        try:
            while not self._closed:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._turn()
                    self._failing = False
                except StoreError as error:
                    self._failed(error)
        finally:
            self._refuse(StoreError("The accounts are closed."))

    async def _turn(self) -> None:
        """Carry out what failed before, then what there is now. Raises StoreError, after which that stays pending."""
        async with self._turning:
            again = True
            while again:
                batch = self._pending or self._build(clock.now_ns())
                if batch is None:
                    break
                again, self._pending = self._pending is not None, batch
                now = clock.now_ns()
                until = now + round(self._lease * _SECOND)
                work = partial(apply, self._gateway, batch.seq, now, until, batch.ops)
                outcomes = await self._tables.transact(work, idempotent=True)
                self._pending = None
                if outcomes is None:
                    self._lost(batch)
                    again = True
                else:
                    self._valid = until
                    again |= self._grant(batch, outcomes, clock.now_ns())
            if self._leasing and self._beat is None and not self._closed:
                self._beat = self._loop.call_later(min(self._lease / 3, IDLE), self._due_beat)

    def _due_beat(self) -> None:
        self._beat, self._beating = None, True
        self._wake.set()

    def _failed(self, error: StoreError) -> None:
        if not self._failing:
            log.warning("limits: the database cannot be reached; trying again every %g s (%s)", RETRY, error)
        self._failing = True
        self._refuse(error)
        if self._timer is None:
            self._timer = self._loop.call_later(RETRY, self._due)

    def _refuse(self, error: StoreError) -> None:
        waiting = [meter.waiters for meter in self._meters.values()]
        for waiters in [*waiting, *(self._pending.waiters if self._pending is not None else ())]:
            for waiter in waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(StoreError(error.message, hint=error.hint))
        for waiters in waiting:
            waiters.clear()

    def _build(self, now: int, *, last: bool = False) -> _Batch | None:
        """Collect what there is to say of each meter; None when that is nothing."""
        beat, self._beating = self._beating, False
        chosen = self._dirty | self._leasing if beat or last else set(self._dirty)
        self._dirty.clear()
        batch = _Batch(self._seq + 1, [], [], [])
        # In one order everywhere: two gateways that lock the same rows do not wait for each other.
        for meter in sorted(chosen, key=lambda each: each.key):
            waiters = [waiter for waiter in meter.waiters if not waiter.future.done()]
            meter.waiters.clear()
            while waiters and meter.has(waiters[0].need) and now < self._valid:
                meter.held -= waiters[0].need
                waiters.pop(0).future.set_result(None)
            target = self._target(meter, waiters, now, last)
            delta = target - meter.held
            if delta or waiters or (not meter.rate and target != meter.leased):
                batch.meters.append(meter)
                batch.waiters.append(waiters)
                batch.ops.append(_op(meter, waiters, delta, target, now))
                meter.held = target
                # Until the database has said so: what is on its way back is not spent.
                meter.used += delta * meter.interval
        if not batch.ops and not (beat and self._leasing) and not last:
            return None
        self._seq += 1
        return batch

    def _target(self, meter: Meter, waiters: list[Waiter], now: int, last: bool) -> int:
        """Return how much of a meter is to be kept here."""
        ended = meter.end is not None and now >= meter.end
        idle = not meter.rate and now - meter.touched >= IDLE * _SECOND
        # Who waits gets it from the database together with all that lies here: else a part might lack in both places.
        if waiters or last or ended or idle or meter.held < 0 or meter.passed:
            return 0
        return min(meter.held, meter.share)

    def _grant(self, batch: _Batch, outcomes: list[Grant], now: int) -> bool:
        """Take over what the database said; returns whether a lease is to be given back at once."""
        passed = False
        for meter, op, waiters, outcome in zip(batch.meters, batch.ops, batch.waiters, outcomes, strict=True):
            meter.held += outcome.extra
            meter.used, meter.seen = outcome.used, now
            if not meter.rate:
                meter.leased += op.release + outcome.extra
                (self._leasing.add if meter.leased else self._leasing.discard)(meter)
                if meter.end is not None and now >= meter.end and not meter.leased:
                    self._meters.pop(meter.key, None)
                if meter.passed and meter.leased:
                    # Calls elsewhere used more than they reserved, and what lies here is spent already.
                    self._dirty.add(meter)
                    passed = True
            for waiter, granted in zip(waiters, outcome.granted, strict=True):
                if waiter.future.done():
                    # Its call was cancelled, or was told that the database failed.
                    self._give([(meter, waiter.need)] if granted else [])
                elif granted:
                    meter.touched = now
                    waiter.future.set_result(None)
                else:
                    waiter.future.set_exception(meter.refused(waiter.need, now))
        return passed

    def _lost(self, batch: _Batch) -> None:
        """Begin anew after our leases were given to others: what was used of them since is owed."""
        if self._leasing:
            log.warning("limits: the leases of this gateway ended and went back; it takes new ones")
        for meter, op, waiters in zip(batch.meters, batch.ops, batch.waiters, strict=True):
            meter.held -= op.delta
            meter.waiters[:0] = waiters
            self._dirty.add(meter)
        for meter in self._leasing:
            meter.held -= meter.leased
            meter.leased = 0
            self._dirty.add(meter)
        self._leasing.clear()
        self._gateway, self._seq, self._valid = clock.new_id(), 0, 0


def _needs(tokens: int, cost: int | None) -> tuple[int, int, int]:
    return 1, min(max(tokens, 1), MOST), min(max(cost or 0, 1), MOST)


def _op(meter: Meter, waiters: list[Waiter], delta: int, target: int, now: int) -> Op:
    needs = tuple([waiter.need for waiter in waiters])
    meter.need_most = max(needs, default=meter.need_most)
    desire = meter.share if meter.rate else min(meter.share, meter.stride(bool(needs), now) * meter.need_most)
    release = 0 if meter.rate else target - meter.leased
    return Op(meter.owner, meter.kind, meter.start, meter.limit, meter.rate, delta, needs, desire, release)
