"""The accounts of a gateway: who asks, what may be used, and what was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from windlass.accounts import records
from windlass.accounts.keys import (
    CHANGED_KEYS,
    CHANGED_SECRETS,
    CHANGED_TENANTS,
    Identity,
    KeyInfo,
    KeyRing,
    Limits,
    Period,
    Role,
    check_key,
    check_limits,
    check_tenant,
    digest_of,
    insert_key,
    new_secret,
    prefix_of,
    put_tenant,
    replace_secret,
    revoke_key,
)
from windlass.accounts.leases import reclaim
from windlass.accounts.limits import LEASE, Limiter, Reservation
from windlass.accounts.records import Group, Recorder, RequestRecord, UsageRow
from windlass.accounts.schema import ROOM, STEPS
from windlass.core import clock
from windlass.core.errors import ConfigError, StoreError
from windlass.stores.tables import Tables, open_tables

__all__ = ["GRACE", "POLL", "Accounts"]

log = logging.getLogger("windlass.accounts")
#: Seconds between looks for changes that others made.
POLL = 0.5
#: Seconds for which a replaced secret is still taken.
GRACE = 24 * 3600.0
_SECOND = 1_000_000_000
#: Budgets of periods that ended so long ago are forgotten; what was used stays in the records.
_KEEP_METERS = 62 * 86_400 * _SECOND


class Accounts:
    """Keys, limits and records on one database, `sqlite:PATH` or `postgresql://…`. Made by `open`, ended by `close`.

    Several gateways may use one database. Belongs to the event loop it was opened on; `identify`, `reserve`, `settle`,
    `release` and `record` never wait. `windlass.accounts.limits` states how far a budget can be passed.
    """

    def __init__(self, tables: Tables, ring: KeyRing, *, flush_interval: float, lease: float) -> None:
        self._tables, self._ring = tables, ring
        self._limiter = Limiter(tables, ring, flush_interval=flush_interval, lease=lease)
        self._recorder = Recorder(tables, flush_interval)
        self._version = -1
        self._refreshing = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None
        #: Called with the id of each key that was revoked, here or elsewhere, within a second.
        self.revoked: list[Callable[[str], None]] = []

    @classmethod
    async def open(
        cls, url: str, *, legacy_key: str = "", flush_interval: float = 0.1, lease: float = LEASE
    ) -> Accounts:
        """Open the accounts, making the tables where they are missing.

        `legacy_key` is one secret that is not kept anywhere: an administrator named "legacy" of tenant "" without
        limits. Records and what was used are written every `flush_interval` seconds. A share of a budget is leased for
        `lease` seconds. Raises ConfigError for a URL that is none, StoreError when the database cannot be used.
        """
        ring = KeyRing(legacy_key)
        tables = open_tables(url)
        made: Accounts | None = None
        try:
            await tables.migrate(ROOM, STEPS)
            made = cls(tables, ring, flush_interval=flush_interval, lease=lease)
            await made.refresh()
            now = clock.now_ns()
            await tables.transact(partial(reclaim, now))
            await tables.execute("DELETE FROM account_meters WHERE start > 0 AND start < ?", (now - _KEEP_METERS,))
        except BaseException:
            await (tables.close() if made is None else made.close())
            raise
        made._poller = asyncio.get_running_loop().create_task(made._poll(), name="windlass-accounts")
        return made

    async def close(self) -> None:
        """Write all records, give back all leases, and let go of the database."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])
        await self._limiter.close()
        await self._recorder.close()
        await self._tables.close()

    @property
    def tables(self) -> Tables:
        """The database, for what else is kept beside the accounts; it is closed with them."""
        return self._tables

    @property
    def version(self) -> int:
        """A number that changes with every change of a key: what was decided of one holds while it is the same."""
        return self._version

    def limited(self, identity: Identity) -> bool:
        """Tell whether anything limits what a key may use; where nothing does, nothing need be reserved."""
        return self._limiter.limited(identity)

    # -- who asks ------------------------------------------------------------------------------------------------------

    @property
    def required(self) -> bool:
        """Whether a key must be shown. It is not before the first was made: then everybody is `ANONYMOUS`.

        Revoking the last key does not open the door again.
        """
        return self._ring.required

    def claims(self, tenant: str) -> bool:
        """Tell whether a key was ever made for a tenant."""
        return bool(tenant) and any(key.tenant == tenant for key in self._ring.keys.values())

    def identify(self, secret: str) -> Identity | None:
        """Return whose secret this is; None for nobody's, and for an expired, revoked or replaced one."""
        return self._ring.identify(secret)

    def refusal(self, secret: str) -> Literal["expired", "revoked", "replaced"] | None:
        """Return why a secret counts no more, for a message to who holds it; None for nobody's."""
        return self._ring.refusal(secret)

    def on_revoked(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback` with the id of each key that is revoked from now on; returns what ends that."""
        self.revoked.append(callback)
        return lambda: self.revoked.remove(callback) if callback in self.revoked else None

    # -- what may be used ----------------------------------------------------------------------------------------------

    def reserve(self, identity: Identity, tokens: int, cost: int | None) -> Reservation | None:
        """Reserve for one call what it will use at most: tokens, input and output, and nano-dollars (None: unknown).

        None says that more must be leased first: `areserve`. Raises RequestRefused with 429: reason
        "rate_limit_exceeded" with `retry_after`, or "insufficient_quota".
        """
        return self._limiter.reserve(identity, tokens, cost)

    async def areserve(self, identity: Identity, tokens: int, cost: int | None) -> Reservation:
        """Reserve as `reserve` does, leasing what is needed. Raises StoreError when the database cannot be asked."""
        return await self._limiter.areserve(identity, tokens, cost)

    def settle(self, reservation: Reservation, tokens: int | None, cost: int | None) -> None:
        """Put what a call really used in place of its estimate; None leaves that as it is. The first call counts."""
        self._limiter.settle(reservation, tokens, cost)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back whole: nothing was used."""
        self._limiter.release(reservation)

    # -- what was used -------------------------------------------------------------------------------------------------

    def record(self, record: RequestRecord) -> None:
        """Keep a record; it is written within `flush_interval`, and at `close`."""
        self._recorder.record(record)

    @property
    def unwritten(self) -> int:
        """How many records wait to be written."""
        return self._recorder.waiting

    @property
    def failing(self) -> bool:
        """Whether the database refused records when it was last asked."""
        return self._recorder.failures > 0

    @property
    def lost_records(self) -> int:
        """How many records were dropped because the database failed for too long."""
        return self._recorder.dropped

    async def flush(self) -> None:
        """Write records and what was used until now. Raises StoreError; nothing is lost then."""
        await self._recorder.flush()
        await self._limiter.flush()

    async def usage(
        self,
        by: Group = "key",
        since: int | None = None,
        until: int | None = None,
        *,
        tenant: str | None = None,
        key: str | None = None,
    ) -> list[UsageRow]:
        """Return the totals of the requests that began in [since, until), UTC ns, those recorded just now too."""
        await self._recorder.flush()
        return await records.usage(self._tables, by, since, until, tenant, key)

    # -- administration ------------------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        *,
        tenant: str = "",
        role: Role = "client",
        models: Sequence[str] = (),
        rpm: int | None = None,
        tpm: int | None = None,
        budget: int | None = None,
        token_budget: int | None = None,
        period: Period = "total",
        expires: int | None = None,
    ) -> tuple[KeyInfo, str]:
        """Make a key; returns it and its secret, which is not kept anywhere. Raises ConfigError, StoreError."""
        check_key(name, tenant, role, models, expires)
        check_limits(Limits(rpm, tpm, budget, token_budget, period))
        secret = new_secret()
        key = KeyInfo(
            clock.new_id(), name, tenant, role, tuple(models), rpm, tpm, budget, token_budget, period, expires,
            prefix=prefix_of(secret), created=clock.now_ns(),
        )  # fmt: skip
        await self._tables.transact(partial(insert_key, key, digest_of(secret)), idempotent=True)
        await self.refresh()
        return self._ring.keys[key.key_id], secret

    async def list(self, *, tenant: str | None = None) -> list[KeyInfo]:
        """Return every key, revoked ones included, the oldest first."""
        await self.refresh()
        found = [key for key in self._ring.keys.values() if tenant is None or key.tenant == tenant]
        return sorted(found, key=lambda key: (key.created, key.key_id))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key for good, everywhere within a second; False when it was revoked before.

        Raises UnknownNameError, StoreError.
        """
        done = await self._tables.transact(partial(revoke_key, key_id, clock.now_ns()))
        await self.refresh()
        return done

    async def rotate(self, key_id: str, *, grace: float = GRACE) -> tuple[KeyInfo, str]:
        """Give a key a new secret, which is returned; the old one is taken for `grace` more seconds (0: no more).

        Limits and records stay the key's. Raises UnknownNameError, ConfigError for a revoked key, StoreError.
        """
        if not 0 <= grace <= 10 * 365 * 86_400:
            raise ConfigError(f"grace is {grace!r}; it must be from 0 seconds to ten years.")
        secret, now = new_secret(), clock.now_ns()
        work = partial(replace_secret, key_id, digest_of(secret), prefix_of(secret), now, now + round(grace * _SECOND))
        await self._tables.transact(work, idempotent=True)
        await self.refresh()
        return self._ring.keys[key_id], secret

    async def set_tenant_limits(self, tenant: str, limits: Limits) -> None:
        """Put limits on what all keys of a tenant use together, in place of those it had. Raises ConfigError."""
        check_tenant(tenant)
        await self._tables.transact(partial(put_tenant, tenant, check_limits(limits)), idempotent=True)
        await self.refresh()

    @property
    def tenants(self) -> dict[str, Limits]:
        """The tenants that have limits of their own."""
        return dict(self._ring.tenants)

    # -- changes, also of others ---------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Take over what was changed, here or by others. Raises StoreError."""
        async with self._refreshing:
            version = int((await self._tables.fetch("SELECT version FROM account_version WHERE one = 1"))[0][0])
            if version == self._version:
                return
            seen = (self._version,)
            changed = [await self._tables.fetch(sql, seen) for sql in (CHANGED_KEYS, CHANGED_SECRETS, CHANGED_TENANTS)]
            gone = self._ring.take(*changed)
            self._limiter.changed()
            # What was written meanwhile is read once more with the next version.
            self._version = version
        for key_id in gone:
            for callback in list(self.revoked):
                try:
                    callback(key_id)
                except Exception:
                    log.exception("accounts: a callback failed for the revoked key %s", key_id)

    async def _poll(self) -> None:
        failing = False
        while True:
            await clock.sleep(POLL)
            try:
                await self.refresh()
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("accounts: changes of keys cannot be seen until the database is back (%s)", error)
                failing = True
