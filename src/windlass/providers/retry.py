"""Retry a provider: before the first content only, inside one budget, with the waits that servers ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from windlass.core import clock
from windlass.core.errors import AuthError, ProviderError
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem
from windlass.core.ports import Embeddings
from windlass.core.request import Budget, Request
from windlass.core.usage import Usage
from windlass.providers.embeddings import batches, joined

__all__ = ["RetryAllowance", "Retrying"]

_T = TypeVar("_T")
_CONTENT = (TextItem, ReasoningItem, ToolCallItem, Finish)


class RetryAllowance:
    """Keep retries to a tenth of all requests, so that many agents do not storm a provider that is down.

    Every request adds `share`, every retry takes one; `burst` is what may be saved up and what is there at the start.
    """

    __slots__ = ("_tokens", "burst", "share")

    def __init__(self, share: float = 0.08, burst: float = 2.0) -> None:
        self.share, self.burst = share, burst
        self._tokens = burst

    def requested(self) -> None:
        """Count a request."""
        self._tokens = min(self._tokens + self.share, max(self.burst, 10.0))

    def take(self) -> bool:
        """Take one retry; False when there is none left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def give_back(self) -> None:
        """A retry helped: its failure was no storm."""
        self._tokens = min(self._tokens + 1.0, max(self.burst, 10.0))


class Retrying:
    """Wrap a provider: rate limits, overload, timeouts and lost connections are asked again.

    The number of attempts comes from the request's `Budget` (3 without one). Waits grow from `base` by doubling with
    full jitter; a `Retry-After` is kept to, and one longer than `max_wait` ends the attempts. A refused credential is
    renewed once where the provider can (`refresh()`). Each wait is announced by a notice before it begins.
    """

    def __init__(self, provider: Any, *, base: float = 0.5, max_wait: float = 60.0) -> None:
        self.provider = provider
        self.name: str = provider.name
        self.base, self.max_wait = base, max_wait
        self.allowance = RetryAllowance()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.provider, name)

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the items of the first attempt that gets as far as content. Raises the last attempt's error."""
        budget = request.budget if isinstance(request.budget, Budget) else Budget()
        limit = budget.attempts
        budget.take_attempt()
        self.allowance.requested()
        attempt, refreshed, retried = 1, False, False
        while True:
            content = False
            try:
                async with aclosing(self.provider.stream(request)) as items:
                    async for item in items:
                        if not content and isinstance(item, _CONTENT):
                            content = True
                            if retried:
                                self.allowance.give_back()
                        yield item
                return
            except ProviderError as error:
                error.attempt, error.max_attempts = attempt, limit
                if content:
                    raise
                if isinstance(error, AuthError) and not refreshed and await self._refresh():
                    refreshed = True
                    continue
                wait, why = self._wait(error, attempt, budget), str(error)
                if wait is None:
                    raise
            attempt, retried = attempt + 1, True
            yield NoticeItem("retry", why, self.name, request.model, attempt, wait)
            await clock.sleep(wait)

    async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts; each batch is asked for again by itself. Raises the last attempt's error."""

        async def ask(batch: Sequence[str]) -> Embeddings:
            return await self._again(lambda: self.provider.embed(batch, model, dimensions=dimensions), Budget())

        return joined([await ask(batch) for batch in batches(texts, self.name)], model)

    async def count(self, request: Request) -> Usage:
        """Return the input tokens of a request. Raises the last attempt's error."""
        budget = request.budget if isinstance(request.budget, Budget) else Budget()
        return await self._again(lambda: self.provider.count(request), budget)

    async def _again(self, ask: Callable[[], Awaitable[_T]], budget: Budget) -> _T:
        limit = budget.attempts
        budget.take_attempt()
        self.allowance.requested()
        attempt, refreshed = 1, False
        while True:
            try:
                answer = await ask()
            except ProviderError as error:
                error.attempt, error.max_attempts = attempt, limit
                if isinstance(error, AuthError) and not refreshed and await self._refresh():
                    refreshed = True
                    continue
                wait = self._wait(error, attempt, budget)
                if wait is None:
                    raise
            else:
                if attempt > 1:
                    self.allowance.give_back()
                return answer
            attempt += 1
            await clock.sleep(wait)

    def _wait(self, error: ProviderError, attempt: int, budget: Budget) -> float | None:
        """Return the seconds to wait before the next attempt; None when there is to be none."""
        if not error.retryable:
            return None
        wait = error.retry_after
        if wait is None:
            wait = min(self.base * 2 ** (attempt - 1), self.max_wait) * (0.5 + 0.5 * clock.random())
        left = budget.remaining()
        if wait > self.max_wait or (left is not None and wait >= left):
            return None
        # A wait the server itself asked for is no storm of ours.
        if error.retry_after is None and not self.allowance.take():
            return None
        return wait if budget.take_attempt() else None

    async def _refresh(self) -> bool:
        refresh = getattr(self.provider, "refresh", None)
        return bool(await refresh()) if refresh is not None else False
