"""One limit of one key or tenant, and what this process may hand out of it without asking the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from windlass.accounts.keys import Limits, Period
from windlass.accounts.leases import interval_of
from windlass.core.errors import RequestRefused
from windlass.core.usage import format_cost

__all__ = ["KINDS", "Kind", "Meter", "Waiter", "period_of"]

Kind = Literal["budget", "token_budget", "rpm", "tpm"]
#: In the order in which they are asked: a spent budget is the better answer where both refuse.
KINDS: tuple[Kind, ...] = ("budget", "token_budget", "rpm", "tpm")
#: Which of (requests, tokens, nano-dollars) a limit counts.
_COUNTS: dict[Kind, int] = {"rpm": 0, "tpm": 1, "token_budget": 1, "budget": 2}
_DAY = 86_400_000_000_000
_SECOND = 1_000_000_000
#: A lease is at most this part of a limit.
SHARE = 20
#: For so long a budget that was found spent is refused without asking again.
RECHECK = _SECOND
#: For how many calls a lease is taken at least.
_LEAST_CALLS = 32


class Waiter(NamedTuple):
    """A call that waits until the database has granted `need`."""

    need: int
    future: asyncio.Future[None]

    def granted(self) -> bool:
        """Tell whether it was granted; who asked too early is not answered any more."""
        return not self.future.cancel() and not self.future.cancelled() and self.future.exception() is None


def period_of(period: Period, now: int) -> tuple[int, int | None]:
    """Return start and end of the period that holds `now`, in UTC ns; (0, None) for one without end."""
    if period == "total":
        return 0, None
    if period == "day":
        start = now // _DAY * _DAY
        return start, start + _DAY
    first = datetime.fromtimestamp(now // _SECOND, UTC).replace(day=1, hour=0, minute=0, second=0)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()) * _SECOND, int(after.timestamp()) * _SECOND


class Meter:
    """A limit. `held` is what may be handed out here (negative: used beyond it), `leased` what the database thinks."""

    __slots__ = (
        "asked", "calls", "end", "held", "interval", "kind", "leased", "limit", "name", "need_most", "owner", "period",
        "rate", "seen", "start", "touched", "used", "waiters", "which",
    )  # fmt: skip

    def __init__(self, owner: str, name: str, kind: Kind, start: int, end: int | None) -> None:
        self.owner, self.name, self.kind, self.start, self.end = owner, name, kind, start, end
        self.which, self.rate = _COUNTS[kind], kind in ("rpm", "tpm")
        self.limit = self.interval = 1
        self.period: Period = "total"
        self.held = self.leased = self.touched = self.need_most = 0
        #: What the database said last, and when.
        self.used, self.seen = 0, -RECHECK
        self.waiters: list[Waiter] = []
        #: When the database was asked for more last, and for how many calls.
        self.asked, self.calls = -RECHECK, _LEAST_CALLS

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is called in the database."""
        return self.owner, self.kind, self.start

    def bound(self, limits: Limits, value: int) -> None:
        """Take over the limit; what was known of a refusal under another one is forgotten."""
        self.period = limits.period
        if value != self.limit:
            self.limit, self.seen = value, -RECHECK
            self.interval = interval_of(value) if self.rate else 1
            self.used = 0

    @property
    def share(self) -> int:
        """The most that is held without being used."""
        return self.limit // SHARE

    @property
    def passed(self) -> bool:
        """Whether calls used more than they reserved, as far as the database knows: what comes back pays for that."""
        return not self.rate and self.used > self.limit

    def stride(self, asked: bool, now: int) -> int:
        """Return for how many calls to lease: one that was used up within a second is followed by one twice as large.

        A busy gateway then asks the database about once a second, and one that is not holds little.
        """
        if asked:
            soon = now - self.asked < _SECOND
            self.calls = min(self.calls * 2, 1 << 24) if soon else max(_LEAST_CALLS, self.calls // 2)
            self.asked = now
        return self.calls

    def has(self, need: int) -> bool:
        """Tell whether `need` may be handed out of what is held."""
        return self.held >= need and (self.rate or self.used <= self.limit)

    def check(self, need: int, now: int) -> None:
        """Raise RequestRefused when it is known already that the database would not grant this."""
        if need > self.limit:
            raise self._too_large(need) if self.rate else self._spent(need, self.limit)
        if self.rate and self._wait(need, now) > 0:
            raise self.refused(need, now)
        if not self.rate and now - self.seen < RECHECK and self.limit - self.used + self.held < need:
            raise self.refused(need, now)

    def refused(self, need: int, now: int) -> RequestRefused:
        """Return the refusal of a call that does not fit."""
        if not self.rate:
            return self._spent(need, max(self.limit - self.used + self.held, 0))
        seconds = max(self._wait(need, now), 1_000_000) / _SECOND
        unit = "requests" if self.kind == "rpm" else "tokens"
        return RequestRefused(
            429,
            f"{self._whose()} may use {self.limit} {unit} per minute, and they are used up.",
            kind="rate_limit_error",
            reason="rate_limit_exceeded",
            retry_after=seconds,
            retry=True,
            hint=f"Try again in {seconds:.3f} s.",
        )

    def _wait(self, need: int, now: int) -> int:
        """Return in how many ns `need` units are there at the earliest."""
        return self.used + (need - self.held - self.limit) * self.interval - now

    def _too_large(self, need: int) -> RequestRefused:
        return RequestRefused(
            429,
            f"This request needs {need} tokens, and {self._whose(small=True)} may use {self.limit} per minute.",
            kind="rate_limit_error",
            reason="rate_limit_exceeded",
            hint="Send a shorter request, or ask for fewer output tokens.",
        )

    def _spent(self, need: int, left: int) -> RequestRefused:
        money = self.kind == "budget"
        limit, rest, asked = [format_cost(value) if money else f"{value} tokens" for value in (self.limit, left, need)]
        when = "" if self.period == "total" else f" per {self.period} (UTC)"
        return RequestRefused(
            429,
            f"{self._whose()} has a budget of {limit}{when}; {rest} are left, and this request may use {asked}.",
            kind="insufficient_quota",
            reason="insufficient_quota",
        )

    def _whose(self, *, small: bool = False) -> str:
        the = "the" if small else "The"
        return f"{the} {self.owner.partition(':')[0]} {self.name!r}"
