"""A route as a provider: until the first content it asks one target after the other, then it lets items through."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import ConfigError, ProviderError, ProviderTimeoutError, StreamInterrupted
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem
from windlass.core.models import Capabilities, cost_of, facts_of
from windlass.core.request import Budget, Request
from windlass.providers.attempts import Attempts
from windlass.providers.route import Route, Router
from windlass.providers.target import Target

__all__ = ["RouteProvider", "make"]

_CONTENT = (TextItem, ReasoningItem, ToolCallItem, Finish)
#: What the first target is asked as it is, and what with its own model in the request.
_AS_IT_IS = frozenset({"models", "default_max_tokens", "notice"})
_WITH_ITS_MODEL = frozenset({"count", "dropped"})


class RouteProvider:
    """Answer with whichever target of a route can, and say with notices who was asked instead of whom.

    The model of the request does not count: each target is asked for its own. The `Finish` names the model that
    answered and carries its cost. A target without content after the route's `first_token_timeout` is left for the
    next one; after the first content nothing is asked again, and a stream that stands still for `idle_timeout` ends
    with ProviderTimeoutError. Where the limits of the request's budget are tighter, they hold.

    `models`, `count`, `dropped`, `embed` and the like are those of the first target. Raises ProviderError kinds: when
    all targets failed the first one's error, with the others' as notes.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self.name, self.default_model = route.name, route.name

    @property
    def structured_output(self) -> bool:
        """Whether every target takes a JSON Schema for its answer."""
        return all(bool(getattr(target.provider, "structured_output", False)) for target in self.route.targets)

    def capabilities(self, model: str = "") -> Capabilities:
        """Return what the first target can take."""
        del model  # a route has one
        return self.route.targets[0].capabilities

    def __getattr__(self, name: str) -> Any:
        first = self.route.targets[0] if "route" in self.__dict__ else None
        if first is not None and name in _AS_IT_IS:
            return getattr(first.provider, name)
        if first is not None and name in _WITH_ITS_MODEL:
            return partial(_asked_as, getattr(first.provider, name), first.model)
        if first is not None and name == "embed":
            # No other target: vectors of different models do not belong together.
            return partial(_embedded_by, first.provider.embed, first.model)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the notices of who is asked, then the items of the target that answers."""
        budget = request.budget if isinstance(request.budget, Budget) else None
        told = 0
        with self.route.attempts(self.route.needs_of(request), budget) as attempts:
            while True:
                attempts.decide()
                for notice in attempts.notices[told:]:
                    yield notice
                told = len(attempts.notices)
                target = await attempts.next()
                if target is None:
                    raise attempts.last_error
                for notice in attempts.notices[told:]:
                    yield notice  # after its wait it was decided anew
                told = len(attempts.notices)
                asked = replace(request, model=target.model, budget=attempts.budget)
                reading = _Reading(target, attempts, self.route)
                try:
                    async with aclosing(target.provider.stream(asked)) as items:
                        while (item := await reading.next(items)) is not None:
                            yield item
                    return
                except (ProviderError, ConfigError) as error:
                    attempts.failed(error)
                    if reading.content:
                        raise

    async def close(self) -> None:
        """Close the connections of every target in the running event loop."""
        for provider in {id(target.provider): target.provider for target in self.route.targets}.values():
            closing = provider.close() if hasattr(provider, "close") else None
            if inspect.isawaitable(closing):
                await closing


def _asked_as(ask: Callable[[Request], Any], model: str, request: Request) -> Any:
    return ask(replace(request, model=model))


def _embedded_by(embed: Callable[..., Any], own: str, texts: Sequence[str], model: str = "", **options: Any) -> Any:
    del model  # vectors are those of the target's own
    return embed(texts, own, **options)


class _Reading:
    """Reads one target's items: keeps its deadlines, and holds back until its first content what would mislead."""

    def __init__(self, target: Target, attempts: Attempts, route: Route) -> None:
        self.content = False
        self._target, self._attempts = target, attempts
        self._first, self._idle = route.first_token_timeout, route.idle_timeout
        self._begun = clock.monotonic()
        self._text: list[str] = []
        self._ready: list[Item] = []
        self._held: list[Item] = []
        self._ended = False

    async def next(self, items: Any) -> Item | None:
        """Return the next item, None after the finish. Raises ProviderError kinds."""
        while not self._ready:
            item = await self._read(items)
            if self._ended:
                return None
            if item is None:
                raise StreamInterrupted(
                    f"{self._target.name} ended its answer without a terminal event.", **self._where()
                )
            self._take(item)
        return self._ready.pop(0)

    def _take(self, item: Item) -> None:
        if isinstance(item, NoticeItem):
            self._ready.append(item)
            return
        if not self.content:
            self._held.append(item)
            if not isinstance(item, _CONTENT):
                return
            # What a target used that never answered is not what the answer used.
            self.content = True
            self._attempts.answered(clock.monotonic() - self._begun)
            self._held.pop()
            self._ready += self._held
        if isinstance(item, TextItem):
            self._text.append(item.text)
        elif isinstance(item, Finish):
            item, self._ended = self._named(item), True
        self._ready.append(item)

    async def _read(self, items: Any) -> Item | None:
        limit = self._limit()
        if limit is None:
            return await anext(items, None)
        timer = clock.deadline(limit)
        try:
            async with timer:
                return await anext(items, None)
        except TimeoutError:
            if not timer.expired():
                raise
        raise ProviderTimeoutError(f"{self._target.name} {self._too_late()}.", **self._where())

    def _limit(self) -> float | None:
        """Return the seconds to wait for the next item; None is without end."""
        limit = self._idle if self.content else self._first
        if limit is not None and not self.content:
            limit = max(0.0, self._begun + limit - clock.monotonic())
        left = self._attempts.budget.remaining()
        return limit if left is None or (limit is not None and limit <= left) else left

    def _too_late(self) -> str:
        left = self._attempts.budget.remaining()
        limit = self._idle if self.content else self._first
        if limit is None or (left is not None and left <= 0.0):
            return "did not finish in the time given"
        return (
            f"sent nothing for {limit:g} s amid its answer" if self.content else f"sent no content within {limit:g} s"
        )

    def _where(self) -> dict[str, Any]:
        target = self._target
        return {"provider": target.provider.name, "model": target.model, "partial": "".join(self._text)}

    def _named(self, finish: Finish) -> Finish:
        """Say who answered and what it cost, which only the route knows."""
        provider, model = self._target.provider.name, finish.model or self._target.model
        cost = finish.cost
        if cost is None:
            cost = cost_of(finish.usage, facts_of(provider, model).prices)
        return replace(finish, model=model or None, cost=cost)


def make(name: str, config: Config) -> RouteProvider:
    """Make the provider of a route of `[routes]`; all routes of one configuration share their targets' health.

    Raises ConfigError for a target that means nothing or has no key, when no other is left.
    """
    router = config.provider("[routes]", lambda: Router(config, any_path=True))
    return config.provider(f"[routes] {name}", lambda: RouteProvider(router.route(name)))
