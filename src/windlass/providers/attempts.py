"""Who is asked next, and when: the one state machine behind every request that may go to several targets.

A failure that another call may mend goes to the next target at once, then round again after a wait; one that lies in
the target's configuration goes to the next one too; one that lies in the request goes only where it may fit better.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ConfigError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    WindlassError,
)
from windlass.core.items import NoticeItem
from windlass.core.request import Budget
from windlass.providers.breaker import Pass
from windlass.providers.local_slots import NoRoom
from windlass.providers.retry import RetryAllowance
from windlass.providers.target import Target

__all__ = ["Attempts"]

#: A target that had less time than this was not slow: the request's own deadline was short.
_FAIR = 30.0
#: A deadline that is as near as this, in seconds, is over: timers are not exact.
_ROUNDING = 0.05


class _Rule(Struct, frozen=True):
    """What an error means: whose fault it is, and whether the same target may be asked again."""

    fault: Literal["target", "setting", "request", "size", "none"]
    again: bool = False


#: The first row that an error is a kind of counts.
_RULES: tuple[tuple[type[WindlassError], _Rule], ...] = (
    (ContextExceededError, _Rule("size")),
    (AuthError, _Rule("setting")),
    (ModelNotFoundError, _Rule("setting")),
    (ConfigError, _Rule("setting")),
    (BadRequestError, _Rule("request")),
    (StreamInterrupted, _Rule("target", again=True)),
    (TransportError, _Rule("target", again=True)),
    (WindlassError, _Rule("target")),
)


def _rule(error: WindlassError) -> _Rule:
    if isinstance(error, NoRoom):
        return _Rule("none")  # asking again at once would only jump its queue
    cause = error if isinstance(error, TransportError) else error.__cause__
    if isinstance(cause, TransportError) and cause.recovery == "none":
        return _Rule("target")  # a certificate that proves nothing, a body without end: the same again next time
    if isinstance(error, ProviderError) and error.retryable:
        return _Rule("target", again=True)
    return next(rule for kind, rule in _RULES if isinstance(error, kind))


class _Past:
    """What this request knows of one target: how often it was asked, when it may be again, and why not."""

    __slots__ = ("asked", "due", "error", "out", "renewed")

    def __init__(self) -> None:
        self.asked, self.due = 0, 0.0
        #: Whether it is not to be asked again, and whether its key was renewed.
        self.out = self.renewed = False
        self.error: WindlassError | None = None


class Attempts:
    """Walk the targets of one request.

    `next` gives the target to ask, waiting where a wait is due; after each, say `failed(error)`, `answered()`, or
    `abandoned()` when nobody wants the answer any more. Everything happens inside one budget: the route's own limits
    and the caller's, of which each call takes one attempt.

    An untried target is asked at once and costs no retry allowance: it is not the server in trouble. A target that is
    asked again does, and so does another model of a provider that has just failed in this request; so a provider
    that is down gets at most one call for each request and a tenth of that on top. Waits grow from `base` by doubling,
    with full jitter; a target is never asked again before its Retry-After. A wait longer than `max_wait` (seconds) is
    not waited for. A credential that is refused is renewed once where the provider can (`refresh()`).

    `notices` tells each switch and retry; who wants to pass one on before its wait begins calls `decide` before `next`
    (and `close` in the end, as `with` does). `count` is how many calls were made.
    """

    def __init__(
        self,
        route: str,
        order: Sequence[Target],
        budget: Budget,
        *,
        given: Budget | None = None,
        allowance: RetryAllowance | None = None,
        first_token_timeout: float | None = None,
        base: float = 0.5,
        max_wait: float = 60.0,
    ) -> None:
        self.route, self.order = route, tuple(order)
        #: The bound of the whole request; `given` is the caller's own, from which it was made.
        self.budget, self._given = budget, given
        self.limit = budget.attempts
        self.count = 0
        self.notices: list[NoticeItem] = []
        self._allowance = allowance or RetryAllowance()
        self._base, self._max_wait = base, max_wait
        self._fair = first_token_timeout or _FAIR
        self._past = {target.name: _Past() for target in order}
        self._strained: set[str] = set()
        self._current: Target | None = None
        self._pass: Pass | None = None
        self._begun = 0.0
        self._step: tuple[Target, float] | None = None
        self._told: Target | None = None
        self._renewing: Target | None = None
        self._made: Target | None = None
        #: A token of the allowance in hand, and whether the current call was paid with one.
        self._paid = self._cost = self._entered = False
        self._patience = max_wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the walk --------------------------------------------------------------------------------------------------

    def resume(self, target: Target) -> None:
        """Begin with a call that was made already, without leave: `next` gives its target at once, whatever it is now.

        That another request found the target failing meanwhile is no reason to drop what this one got.
        """
        self._made = target

    async def next(self) -> Target | None:
        """Return the target to ask now, after the wait that is due; None when there is none any more."""
        self.abandoned()
        if not self._entered:
            self._entered = True
            self._allowance.requested()
        if self._made is not None:
            target, self._made = self._made, None
            self.budget.take_attempt()
            if self._given is not None:
                self._given.take_attempt()
            self._enter(target, target.breaker.late())
            return target
        try:
            if self._renewing is not None:
                await self._renew(self._renewing)
            while self.decide():
                assert self._step is not None
                (target, wait), self._step = self._step, None
                if wait > 0.0:
                    # Others may change its state meanwhile, so it is decided anew after the wait.
                    self._patience -= wait
                    await clock.sleep(wait)
                elif self._admitted(target):
                    return target
        except BaseException:
            self.close()
            raise
        self.close()
        return None

    def decide(self) -> bool:
        """Settle what `next` will do, so that its notice is there before its wait; False when it will give None."""
        if self._step is None and self._renewing is None:
            self._step = self._choose()
            if self._step is not None:
                self._tell(*self._step)
        return self._step is not None or self._renewing is not None

    def answered(self, first_token_s: float | None = None) -> None:
        """Report that the target's content came, `first_token_s` seconds after it was asked."""
        if self._pass is not None:
            self._pass.answered(first_token_s)
            if self._cost:
                # A retry helped: its failure was no storm.
                self._cost = False
                self._allowance.give_back()

    def failed(self, error: WindlassError) -> None:
        """Report that the target failed, before its first content or after."""
        target, leave = self._current, self._pass
        if target is None or leave is None:
            return
        self._current = self._pass = None
        past, rule = self._past[target.name], _rule(error)
        past.error = error
        if isinstance(error, ProviderError):
            error.attempt, error.max_attempts = self.count, self.limit
        wait = getattr(error, "retry_after", None) if rule.again else None
        if (
            rule.fault == "target"
            and not self._was_hurried(error)
            and not (wait is not None and isinstance(error, RateLimitError))
        ):
            leave.failed(error.code)
        else:
            leave.release(error.code)
        if rule.again:
            self._strained.add(target.provider.name)
            if wait is not None:
                target.breaker.rest(wait)
            else:
                wait = min(self._base * 2.0 ** (past.asked - 1), self._max_wait) * clock.random()
            past.due = clock.monotonic() + wait
        else:
            past.out = True
        if rule.fault == "setting":
            self._refused(target, past, error)
        elif rule.fault in ("request", "size"):
            self._narrow(target, rule.fault)

    def abandoned(self) -> None:
        """Report that the call came to nothing for no fault of the target's: the client left."""
        leave, self._current, self._pass = self._pass, None, None
        if leave is not None:
            leave.release()

    def skip(self) -> None:
        """Give back the target unasked; it is not offered again."""
        target = self._current
        if target is None:
            return
        self.abandoned()
        past = self._past[target.name]
        past.asked, past.out = past.asked - 1, True
        self.count -= 1
        for budget in (self.budget, self._given):
            if budget is not None:
                budget.attempts += 1
        if self._cost:
            self._cost, self._paid = False, True

    def close(self) -> None:
        """Give back what is held: the place of a probe, a retry that was not made. May be called again."""
        self.abandoned()
        self._step = None
        if self._paid:
            self._paid = False
            self._allowance.give_back()

    # -- how it went -----------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether the caller's own deadline or attempts are spent: then its client is told not to ask again."""
        given = self._given
        return given is not None and (given.attempts <= 0 or given.remaining() == 0.0)

    @property
    def last_error(self) -> WindlassError:
        """The error to tell when nobody answered: the preferred target's, with those of the others as its notes."""
        known = [(target, error) for target in self.order if (error := self._past[target.name].error) is not None]
        if not known:
            return self._nobody()
        error = known[0][1]
        told: list[str] = getattr(error, "__notes__", [])
        for target, other in known[1:]:
            if (note := f"{target.name}: {other}") not in told:
                error.add_note(note)
        return error

    def _nobody(self) -> WindlassError:
        """Return why nobody could even be asked."""
        first = self.order[0]
        where: dict[str, Any] = {"provider": first.provider.name, "model": first.model}
        if self.budget.remaining() == 0.0:
            return ProviderTimeoutError(f"The time for this request was over before {self.route} was asked.", **where)
        if self.budget.attempts <= 0:
            return ProviderError(f"No attempt is left for {self.route}.", **where)
        waits = [(target.breaker.ready_in, target) for target in self.order]
        listed = ", ".join(
            [
                f"{target.name} for {max(wait, 1.0):.0f} s"
                + (f" ({code})" if (code := target.breaker.last_error) else "")
                for wait, target in waits
            ]
        )
        soonest = max(1.0, min([wait for wait, _ in waits]))
        return OverloadedError(
            f"{self.route} has no target that can be asked now: resting are {listed}.",
            status=503,
            retry_after=soonest,
            **where,
        )

    # -- deciding --------------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[Target, float] | None:
        left = self.budget.remaining()
        given = self._given
        if self.budget.attempts <= 0 or left == 0.0 or (given is not None and given.attempts <= 0):
            return None
        if not self.count and self.order[0].breaker.healthy and not self._past[self.order[0].name].out:
            return self.order[0], 0.0
        now = clock.monotonic()
        fresh: list[tuple[float, int, int]] = []
        again: list[tuple[int, float, int]] = []
        resting: list[tuple[float, int, int]] = []
        for place, target in enumerate(self.order):
            past, breaker = self._past[target.name], target.breaker
            if past.out or breaker.blocked:
                continue
            wait = max(past.due - now, breaker.resting, 0.0)
            if wait > self._patience or (left is not None and wait >= left):
                continue
            if breaker.resting:
                resting.append((wait, past.asked, place))
            elif past.asked:
                again.append((past.asked, wait, place))
            else:
                fresh.append((0.0, int(not breaker.healthy), place))
        # First who was not asked yet, those marked as unfit last among them; then round again, unless a wait that a
        # server asked for is over sooner.
        rounds = [(wait, asked, place) for asked, wait, place in sorted(again)]
        sooner = bool(resting) and (not rounds or min(resting)[0] < rounds[0][0])
        later = [*sorted(resting), *rounds] if sooner else [*rounds, *sorted(resting)]
        for wait, _, place in [*sorted(fresh), *later]:
            target = self.order[place]
            if self._costs(target, self._past[target.name].asked) and not self._paid:
                if not self._allowance.take():
                    continue
                self._paid = True
            return target, wait
        return None

    def _costs(self, target: Target, asked: int) -> bool:
        return asked > 0 or target.provider.name in self._strained

    def _admitted(self, target: Target) -> bool:
        """Enter the call in every book."""
        leave = target.breaker.admit()
        if leave is None:
            return False
        if not self.budget.take_attempt() or not (self._given is None or self._given.take_attempt()):
            leave.release()
            return False
        self._enter(target, leave)
        return True

    def _enter(self, target: Target, leave: Pass) -> None:
        past = self._past[target.name]
        self._cost = self._costs(target, past.asked)
        if self._cost:
            self._paid = False
        self._current, self._pass, self._begun = target, leave, clock.monotonic()
        self._told, self._patience = None, self._max_wait
        past.asked += 1
        self.count += 1

    def _tell(self, target: Target, wait: float) -> None:
        """Add the notice of a retry or a switch, once for each step."""
        if self._told is target or (not self.count and target is self.order[0] and not wait):
            return
        self._told = target
        again = self._past[target.name].error is not None or (not self.count and target is self.order[0])
        kind: Literal["retry", "switched"] = "retry" if again else "switched"
        text = self._why(target) if again else f"{self._why(target)} {target.name} is asked instead."
        self.notices.append(NoticeItem(kind, text, target.provider.name, target.model, self.count + 1, wait or None))

    def _why(self, target: Target) -> str:
        if (error := self._past[target.name].error) is not None:
            return str(error)
        errors = [str(past.error) for past in self._past.values() if past.error is not None]
        if errors:
            return errors[-1]
        first = self.order[0]
        code = first.breaker.last_error or "rate_limited"
        return f"{first.name} rests for {max(first.breaker.ready_in, 1.0):.0f} s ({code})."

    def _was_hurried(self, error: WindlassError) -> bool:
        """Tell a target that was slow from a request with a short deadline, which must not open anybody's breaker."""
        left = self.budget.remaining()
        if not isinstance(error, (ProviderTimeoutError, TransportTimeout)) or left is None or left > _ROUNDING:
            return False
        return clock.monotonic() - self._begun < self._fair

    def _refused(self, target: Target, past: _Past, error: WindlassError) -> None:
        if isinstance(error, AuthError) and not past.renewed and hasattr(target.provider, "refresh"):
            self._renewing = target
        else:
            target.breaker.misfit()

    async def _renew(self, target: Target) -> None:
        self._renewing = None
        past = self._past[target.name]
        past.renewed = True
        try:
            fresh = bool(await target.provider.refresh())
        except ProviderError as error:
            past.error, fresh = error, False
        if fresh:
            # As if it had not been asked yet: with a key that works it is no retry.
            past.out, past.asked, past.due = False, 0, 0.0
        else:
            target.breaker.misfit()

    def _narrow(self, refused: Target, fault: Literal["request", "size", "target", "setting", "none"]) -> None:
        """Take out the targets that would refuse the same request for the same reason."""
        for target in self.order:
            if fault == "request":
                same = target.capabilities == refused.capabilities
            else:
                # An unknown window may be larger, unless it is that of the same model.
                window, known = target.context, refused.context
                same = target.model == refused.model if window is None or known is None else window <= known
            if same:
                self._past[target.name].out = True
