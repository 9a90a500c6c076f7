"""A circuit breaker: stop asking what keeps failing, and let one request at a time find out whether it is back.

The pattern is Nygard's ("Release It!"), with the three states everybody knows. Times are those of `core/clock`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from windlass.core import clock

__all__ = ["Breaker", "BreakerLimits", "BreakerState", "Pass"]

BreakerState = Literal["closed", "open", "half_open"]
_Outcome = Literal["answered", "failed", "released"]
#: The share of the newest latency in the moving average.
_ALPHA = 0.2


class BreakerLimits(Struct, frozen=True):
    """When a breaker opens and for how long.

    It opens after `failures` in a row, or when more than `share` of at least `least` calls within `window` seconds
    failed. It stays open for `cool_down` seconds, twice as long after each probe that fails, up to `longest`, each
    time a fifth more or less. `most_rest` caps the rest that a server may ask for: a day is a quota, a year is a bug.
    A probe that nobody reports on frees its place after `lease` seconds.
    """

    failures: int = 5
    share: float = 0.5
    least: int = 20
    window: float = 30.0
    cool_down: float = 10.0
    longest: float = 300.0
    most_rest: float = 86_400.0
    lease: float = 600.0


class _Before(Struct, frozen=True):
    """What an answer put back to zero, and how many there had been with it."""

    consecutive: int
    trips: int
    answers: int


class Pass:
    """Leave to ask once. Report what came of it: `answered`, `failed` or `release`; only the first end counts.

    An answer that breaks off after it began may still be reported with `failed`: it then counts as a failure only.
    """

    __slots__ = ("_report", "_state", "before", "epoch", "probe")

    def __init__(self, report: Callable[[Pass, _Outcome, float | None, str], None], epoch: int, probe: bool) -> None:
        self._report = report
        self._state: Literal["out", "answered", "done"] = "out"
        #: Which period of the breaker it belongs to, whether it is the probe, and what its answer changed.
        self.epoch, self.probe = epoch, probe
        self.before: _Before | None = None

    def answered(self, latency: float | None = None) -> None:
        """Report the first content, `latency` seconds after it was asked for."""
        if self._state == "out":
            self._state = "answered"
            self._report(self, "answered", latency, "")

    def failed(self, code: str = "") -> None:
        """Report a failure of the target; `code` is the error's."""
        if self._state != "done":
            self._state = "done"
            self._report(self, "failed", None, code)

    def release(self, code: str = "") -> None:
        """Report that nothing was learnt: the client left, or its request was at fault (then with a `code`)."""
        if self._state == "out":
            self._report(self, "released", None, code)
        self._state = "done"


class Breaker:
    """The health of one target.

    `admit` gives a Pass or None. Results that come late, from before the breaker last changed its state, are not
    counted. `rest` keeps everybody away for a time without counting a failure, `misfit` marks what must be set right
    by a person: a target whose key or model is refused is asked last, until it answers or `longest` is over.
    """

    __slots__ = (
        "_answers", "_counts", "_epoch", "_misfit_until", "_open_until", "_probe", "_probe_since", "_rest_until",
        "_trips", "consecutive", "last_error", "latency", "limits",
    )  # fmt: skip

    def __init__(self, limits: BreakerLimits | None = None) -> None:
        self.limits = limits or BreakerLimits()
        #: Failures in a row; the last error's code; the moving average of the seconds to the first content.
        self.consecutive = 0
        self.last_error = ""
        self.latency: float | None = None
        self._epoch = self._trips = self._answers = 0
        self._open_until: float | None = None
        self._probe: Pass | None = None
        self._probe_since = self._rest_until = self._misfit_until = 0.0
        #: (second, answers, failures): a bucket a second is enough, and bounded.
        self._counts: deque[list[int]] = deque()

    # -- asking for leave ------------------------------------------------------------------------------------------

    @property
    def state(self) -> BreakerState:
        """Closed, open, or half open: its cool-down is over and a probe is due or on its way."""
        if self._open_until is None:
            return "closed"
        return "open" if clock.monotonic() < self._open_until else "half_open"

    @property
    def resting(self) -> float:
        """Seconds that the target asked to be left alone, 0 when none."""
        if not self._rest_until:
            return 0.0
        left = self._rest_until - clock.monotonic()
        if left <= 0.0:
            self._rest_until = left = 0.0
        return left

    @property
    def available(self) -> bool:
        """Whether `admit` would give a pass now."""
        return not self.blocked and not self.resting

    @property
    def blocked(self) -> bool:
        """Whether it is open, or half open with its one probe under way; a rest is no block."""
        return self._open_until is not None and (self.state == "open" or self._probing())

    @property
    def healthy(self) -> bool:
        """Whether it may be asked now and nothing is known against it."""
        return self.available and (not self._misfit_until or clock.monotonic() >= self._misfit_until)

    @property
    def sound(self) -> bool:
        """Whether it may be asked without leave: it is closed, and nothing is known against it."""
        unfit = self._misfit_until and clock.monotonic() < self._misfit_until
        return self._open_until is None and not unfit and not self.resting

    @property
    def ready_in(self) -> float:
        """Seconds until it may be asked: its rest, and what is left of its cool-down; a probe may be under way then."""
        cooling = 0.0 if self._open_until is None else self._open_until - clock.monotonic()
        return max(0.0, cooling, self.resting)

    def admit(self) -> Pass | None:
        """Give leave to ask once; None while it is open, resting, or being probed."""
        if not self.available:
            return None
        leave = Pass(self._report, self._epoch, self._open_until is not None)
        if leave.probe:
            self._probe, self._probe_since = leave, clock.monotonic()
        return leave

    def late(self) -> Pass:
        """Return the Pass of a call that was made without leave, while it was `sound`; it opened since, or did not."""
        return Pass(self._report, self._epoch if self._open_until is None else -1, probe=False)

    def _probing(self) -> bool:
        return self._probe is not None and clock.monotonic() - self._probe_since < self.limits.lease

    # -- what is known of it ---------------------------------------------------------------------------------------

    def rest(self, seconds: float) -> None:
        """Leave the target alone for so long (429 or 503 with Retry-After); a longer rest already asked for stays."""
        seconds = min(seconds, self.limits.most_rest)
        self._rest_until = max(self._rest_until, clock.monotonic() + seconds)

    def misfit(self) -> None:
        """Mark a target that refuses our key or does not have the model."""
        self._misfit_until = clock.monotonic() + self.limits.longest

    def well(self, latency: float | None) -> None:
        """Count an answer to who asked without leave, as may be done while it is `sound`."""
        if latency is not None:
            self.latency = latency if self.latency is None else self.latency + _ALPHA * (latency - self.latency)
        if self._open_until is None:
            self._misfit_until, self.consecutive = 0.0, 0
            self._answers += 1
            self._count(1, 0)

    def _report(self, leave: Pass, outcome: _Outcome, latency: float | None, code: str) -> None:
        self.last_error = code or self.last_error
        if outcome == "answered":
            self._answered(leave, latency)
        elif outcome == "failed":
            self._failed(leave)
        elif leave is self._probe:
            self._probe = None

    def _answered(self, leave: Pass, latency: float | None) -> None:
        if latency is not None:
            self.latency = latency if self.latency is None else self.latency + _ALPHA * (latency - self.latency)
        self._misfit_until = 0.0
        if leave.epoch != self._epoch:
            return
        self._answers += 1
        leave.before = _Before(self.consecutive, self._trips, self._answers)
        if leave.probe:
            self._probe = self._open_until = None
            leave.epoch = self._epoch = self._epoch + 1
            self._trips = 0
            self._counts.clear()
        self.consecutive = 0
        self._count(1, 0)

    def _failed(self, leave: Pass) -> None:
        if leave.epoch != self._epoch:
            return
        if (before := leave.before) is not None:
            # Its answer was counted when it began: now it is as if it had never been, unless others answered since.
            if before.answers == self._answers:
                self.consecutive, self._trips = before.consecutive, before.trips
            self._count(-1, 0)
        self.consecutive += 1
        self._count(0, 1)
        if leave is self._probe or (self._open_until is None and self._too_many()):
            self._open()

    def _open(self) -> None:
        limits = self.limits
        seconds = min(limits.cool_down * 2.0**self._trips, limits.longest) * (0.8 + 0.4 * clock.random())
        self._open_until, self._probe = clock.monotonic() + seconds, None
        self._trips, self._epoch = min(self._trips + 1, 30), self._epoch + 1

    def _count(self, answers: int, failures: int) -> None:
        second = int(clock.monotonic())
        if not self._counts or self._counts[-1][0] != second:
            self._counts.append([second, 0, 0])
            while self._counts[0][0] <= second - self.limits.window:
                self._counts.popleft()
        self._counts[-1][1] += answers
        self._counts[-1][2] += failures

    def _too_many(self) -> bool:
        if self.consecutive >= self.limits.failures:
            return True
        oldest = clock.monotonic() - self.limits.window
        recent = [bucket for bucket in self._counts if bucket[0] > oldest]
        answers, failures = sum([bucket[1] for bucket in recent]), sum([bucket[2] for bucket in recent])
        return failures + answers >= self.limits.least and failures > self.limits.share * (failures + answers)
