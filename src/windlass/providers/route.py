"""Routes: a name of the user's, or of a model, and the targets that stand behind it.

What a name means is settled in this order: a name of `[routes]`; "auto" or nothing, the configured default model;
"provider:model-id" or a provider's name or alias; then, where nothing before fits, a bare model id of the provider
that was *chosen* (`provider` set by a flag, a variable or a file). A bare id is never guessed to be somebody else's
model: without a chosen provider only the built-in model's own names are taken.
"""

from __future__ import annotations

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from msgspec import Struct

from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.errors import (
    ConfigError,
    ContextExceededError,
    ModelNotFoundError,
    UnknownNameError,
    UnsupportedInputError,
)
from windlass.core.estimate import estimate_tokens
from windlass.core.features import FeatureOff
from windlass.core.messages import Blob, Part, ToolResponse, Uri
from windlass.core.request import Budget, Request
from windlass.core.routes import RouteSettings, RouteTarget
from windlass.local.embedded import embedded_model
from windlass.providers.attempts import Attempts
from windlass.providers.breaker import Breaker, BreakerLimits, BreakerState
from windlass.providers.own import local_provider
from windlass.providers.retry import RetryAllowance, Retrying
from windlass.providers.target import Needs, Target

__all__ = ["Route", "Router", "TargetHealth", "needs_of"]

#: How many names that clients made up are remembered, and how long one may be.
_KEPT, _LONGEST = 256, 256


class TargetHealth(Struct, frozen=True):
    """How one target does.

    `latency` is the moving average of the seconds to the first content, `rests_until` UTC nanoseconds (None: it may be
    asked). `last_error` is the code of the last error; `problem` says why a target cannot be asked at all.
    """

    name: str
    state: BreakerState
    healthy: bool
    consecutive_failures: int = 0
    latency: float | None = None
    rests_until: int | None = None
    last_error: str = ""
    problem: str = ""


class _Choice(Struct, frozen=True):
    """A route's targets as they stand in the file: in order, or one drawn by weight before the others."""

    weighted: bool
    entries: tuple[tuple[float, _Choice | Target], ...]

    def leaves(self) -> Iterator[Target]:
        """Yield every target, in the order of the file."""
        for _, entry in self.entries:
            if isinstance(entry, Target):
                yield entry
            else:
                yield from entry.leaves()

    def ordered(self) -> list[Target]:
        """Return the targets in the order in which this request is to try them; one may be there twice."""
        lists = [(weight, [entry] if isinstance(entry, Target) else entry.ordered()) for weight, entry in self.entries]
        if self.weighted and len(lists) > 1:
            at = _drawn([weight if any(t.breaker.healthy for t in targets) else 0.0 for weight, targets in lists])
            if at is None:
                at = _drawn([weight for weight, _ in lists])
            if at:
                lists.insert(0, lists.pop(at))
        return [target for _, targets in lists for target in targets]


def _once(targets: Iterable[Target]) -> tuple[Target, ...]:
    return tuple({target.name: target for target in targets}.values())


def _drawn(weights: list[float]) -> int | None:
    """Draw an index by weight; None when all are 0."""
    point = clock.random() * sum(weights)
    for index, weight in enumerate(weights):
        if weight and point < weight:
            return index
        point -= weight
    return None


def needs_of(request: Request) -> Needs:
    """Return what a request needs of its target, from all of its messages; `prefill` is for the caller to ask."""
    kinds = {kind for message in request.messages for kind in _media(message.parts)}
    return Needs(_tools(request), "image" in kinds, "document" in kinds, estimate_tokens(request))


def _tools(request: Request) -> bool:
    return bool(request.tools) and request.tool_choice != "none"


def _media(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, (Blob, Uri)):
            yield part.modality
        elif isinstance(part, ToolResponse) and not isinstance(part.response, str):
            yield from _media(part.response)


class Route:
    """A name and its targets. `settings` are those of the file; a plain model has the defaults."""

    def __init__(self, name: str, settings: RouteSettings, choice: _Choice, router: Router) -> None:
        self.name, self.settings = name, settings
        self._choice, self._router = choice, router
        #: Every target once, in the order of the file.
        self.targets: tuple[Target, ...] = _once(choice.leaves())

    @property
    def first_token_timeout(self) -> float | None:
        """Seconds until the first content of one attempt; None where the route sets no limit."""
        return self.settings.first_token_timeout

    @property
    def idle_timeout(self) -> float | None:
        """Seconds between two items after the first content; None where the route sets no limit."""
        return self.settings.idle_timeout

    @property
    def continues(self) -> bool:
        """Whether a stream that broke may be continued on another target."""
        return self.settings.continues and len(self.targets) > 1

    def needs_of(self, request: Request) -> Needs:
        """Return what matters of a request here; its messages are only read where the targets differ in them."""
        return needs_of(request) if self._particular else Needs(tools=_tools(request))

    @cached_property
    def _particular(self) -> bool:
        able = {(t.capabilities.vision, t.capabilities.documents, t.context) for t in self.targets}
        return len(able) > 1

    def attempts(self, needs: Needs | None = None, budget: Budget | None = None) -> Attempts:
        """Begin a request: `budget` is the caller's bound, which the route's own can only make tighter.

        Raises UnsupportedInputError or ContextExceededError that says which target lacks what, when none is left.
        """
        order = self.targets if len(self.targets) == 1 else _once(self._choice.ordered())
        if needs is not None:
            able = tuple([target for target in order if not target.lacks(needs)])
            if not able:
                raise self._unable(order, {target.name: target.lacks(needs) for target in order})
            order = able
        settings, router = self.settings, self._router
        limit = settings.attempts or max(router.max_attempts, len(order))
        return Attempts(
            self.name, order, _tighter(settings, limit, budget), given=budget, allowance=router.allowance,
            first_token_timeout=settings.first_token_timeout, base=router.base, max_wait=router.max_wait,
        )  # fmt: skip

    def _unable(self, order: Sequence[Target], lacking: Mapping[str, list[str]]) -> Exception:
        listed = "; ".join([f"{name} lacks {', '.join(what)}" for name, what in lacking.items()])
        too_long = next((t for t in order if len(lacking[t.name]) == 1 and "context" in lacking[t.name][0]), None)
        kind = UnsupportedInputError if too_long is None else ContextExceededError
        first = too_long or order[0]
        hint = "Shorten the conversation." if too_long is not None else ""
        return kind(
            f"No target of {self.name} can take this request: {listed}.",
            provider=first.provider.name, model=first.model, status=400, hint=hint,
        )  # fmt: skip


def _tighter(settings: RouteSettings, attempts: int, given: Budget | None) -> Budget:
    end = None if settings.timeout is None else clock.monotonic() + settings.timeout
    if given is not None:
        attempts = min(attempts, given.attempts)
        if end is None or (given.deadline is not None and given.deadline < end):
            end = given.deadline
    return Budget.until(end, attempts)


class Router:
    """Make routes of names. One for a process: breakers and the allowance of retries are shared by all its requests.

    Providers are made once, without the retries of their own. `any_path` lets a name open model files: for the user's
    own programs only; a gateway must not let its clients choose files. (A file that the user's `[routes]` name is
    always one.) `allow_any` False takes only the routes and the default model. `base` and `max_wait` (seconds) are
    those of `Attempts`.
    """

    def __init__(
        self,
        config: Config,
        *,
        any_path: bool = False,
        allow_any: bool = True,
        base: float = 0.5,
        limits: BreakerLimits | None = None,
    ) -> None:
        self.config, self.any_path, self.allow_any, self.base = config, any_path, allow_any, base
        self.max_wait: float = config.get("max_wait")
        self.max_attempts: int = config.get("max_attempts")
        self.allowance = RetryAllowance()
        self._limits = limits
        self._routes: dict[str, Route] = {}
        self._others: OrderedDict[str, Route] = OrderedDict()
        self._breakers: dict[str, Breaker] = {}
        self._providers: dict[str, Any] = {}
        #: Why a target of the file cannot be asked, by its name there.
        self._problems: dict[str, ConfigError] = {}

    # -- names -----------------------------------------------------------------------------------------------------

    def route(self, name: str) -> Route:
        """Return what a name stands for.

        Raises ModelNotFoundError with the nearest names for one that is unknown or not allowed, MissingKeyError or
        ConfigError for one that is known but cannot be asked as it is configured.
        """
        if (found := self._routes.get(name)) is not None:
            return found
        if (found := self._others.get(name)) is not None:
            self._others.move_to_end(name)
            return found
        if name.strip() in self.config.routes:
            return self._configured(name.strip())
        made = self._made(name)
        self._others[name] = made
        while len(self._others) > _KEPT:
            self._others.popitem(last=False)
        return made

    def check(self) -> list[str]:
        """Make every route of the file; returns a sentence for each target that cannot be asked (a missing key).

        Raises ConfigError for a target that means nothing, naming file and key.
        """
        for name in self.config.routes:
            self._build(name)
        return [f"{name}: {error}" for name, error in self._problems.items()]

    def health(self) -> list[TargetHealth]:
        """Return how every target does: those of the file, and those that were asked for by name."""
        routes = [*self._routes.values(), *self._others.values()]
        targets = {target.name: target for route in routes for target in route.targets}
        return [
            *[_health(target.name, target.breaker) for target in targets.values()],
            *[
                TargetHealth(name, "closed", False, last_error=error.code, problem=str(error))
                for name, error in self._problems.items()
            ],
        ]

    def provider(self, name: str) -> Any:
        """Return a provider by its own name, made at first use and closed with the router. Raises as `route`."""
        return self._provider(name)

    def local_plans(self) -> list[tuple[str, bool]]:
        """Return what each model file that the configuration names will need; see `LocalProvider.plans`. Blocking."""
        wanted = "local" in self.config.user_providers and "llm" not in self.config.off
        made = [self._provider("local")] if wanted else []
        made += [one for name, one in self._providers.items() if name != "local" and name.startswith("local:")]
        return [row for provider in made for row in provider.plans()]

    async def close(self) -> None:
        """Close the providers' connections of the running event loop."""
        for provider in self._providers.values():
            closing = provider.close() if hasattr(provider, "close") else None
            if inspect.isawaitable(closing):
                await closing

    # -- making them -----------------------------------------------------------------------------------------------

    def _configured(self, name: str) -> Route:
        if (found := self._routes.get(name) or self._build(name)) is None:
            named = _names(self.config.routes[name], self.config.routes)
            raise next(self._problems[target] for target in named if target in self._problems)
        return found

    def _build(self, name: str) -> Route | None:
        """Make a route of the file; None when no target of it can be asked."""
        if name not in self._routes:
            settings = self.config.routes[name]
            choice = self._choice(settings)
            if any(True for _ in choice.leaves()):
                self._routes[name] = Route(name, settings, choice, self)
        return self._routes.get(name)

    def _choice(self, settings: RouteSettings) -> _Choice:
        entries: list[tuple[float, _Choice | Target]] = []
        for row in settings.targets:
            if (inner := self.config.routes.get(row.model)) is not None:
                choice = self._choice(inner)
                if choice.entries:
                    entries.append((row.weight, choice))
            elif (target := self._listed(row, settings.origin)) is not None:
                entries.append((row.weight, target))
        return _Choice(settings.mode == "weighted", tuple(entries))

    def _listed(self, row: RouteTarget, origin: str) -> Target | None:
        """Make a target that stands in the file; None when it cannot be asked, which is remembered."""
        try:
            name, provider, model = self._resolved(row.model, listed=True)
        except (UnknownNameError, ModelNotFoundError) as error:
            raise ConfigError(f"{origin}: {error}") from None
        except ConfigError as error:
            self._problems[row.model] = error
            return None
        return Target(name, provider, model, self._breakers.setdefault(name, Breaker(self._limits)), row.weight)

    def _made(self, name: str) -> Route:
        """Make the route of a name that is in no file."""
        stated = self.config.default_model if name.strip().lower() in ("", "auto") else name.strip()
        if stated in self.config.routes:
            return self._configured(stated)
        taken = self.allow_any or stated == self.config.default_model
        # Names come back in headers and logs.
        if not taken or len(name) > _LONGEST or not name.isprintable():
            raise self._unknown(name)
        try:
            # What stands in the configuration may name a file; who asks for just that chooses none.
            full, provider, model = self._resolved(stated, listed=stated == self.config.default_model)
        except FeatureOff as error:
            raise ModelNotFoundError(error.message, model=stated, status=404) from error
        target = Target(full, provider, model, self._breakers.get(full) or Breaker(self._limits))
        return Route(full, RouteSettings((RouteTarget(full),)), _Choice(False, ((1.0, target),)), self)

    def _resolved(self, text: str, *, listed: bool) -> tuple[str, Any, str]:
        """Return ("provider:model-id", provider, model id) of a name that is no route."""
        head, _, model = self.config.alias(text).partition(":")
        if not self._knows(head):
            head, model = self._bare(text)
        if model.strip().lower() == "auto":
            model = ""
        if head == "local" and not self.any_path:
            return self._local(model, listed)
        provider = self._provider(head)
        model = model or str(getattr(provider, "default_model", ""))
        return f"{head}:{model}" if model else head, provider, model

    def _bare(self, text: str) -> tuple[str, str]:
        """Return (provider, model) for a bare model id; see the rule at the top."""
        chosen = self.config.where("provider")
        if chosen.origin != "default":
            return self.config.provider_name(str(chosen.value)), text
        if text in ("default", embedded_model().profile.name):
            return "local", text
        raise self._unknown(text)

    def _local(self, model: str, listed: bool) -> tuple[str, Any, str]:
        """Return the models of this process for callers that may not choose files."""
        name = f"local:{model}" if model else "local"
        if listed and model.endswith(".gguf"):
            if name not in self._providers:
                self._providers[name] = local_provider(self.config, model, any_path=False)
            return name, self._providers[name], "default"
        return name, self._provider("local"), model

    def _provider(self, name: str) -> Any:
        if name not in self._providers and name == "local" and not self.any_path:
            self._providers[name] = local_provider(self.config, any_path=False)
        elif name not in self._providers:
            made = registry.provider(name, self.config)
            self._providers[name] = made.provider if isinstance(made, Retrying) else made
        return self._providers[name]

    def _knows(self, provider: str) -> bool:
        return provider in registry.BUILTIN["providers"] or provider in self.config.user_providers or (
            provider in self._plugins
        )  # fmt: skip

    @cached_property
    def _plugins(self) -> frozenset[str]:
        # Once: entry points are searched for in every distribution that is installed.
        return frozenset(registry.names("providers"))

    def _unknown(self, name: str) -> ModelNotFoundError:
        known = [*self.config.routes]
        if self.allow_any:
            known += [*self._plugins, *self.config.user_providers]
        near = difflib.get_close_matches(name[:_LONGEST], known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join([repr(one) for one in near])}?" if near else ""
        shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
        return ModelNotFoundError(f"There is no model or route {shown!r}.", model=shown, status=404, hint=hint)


def _names(settings: RouteSettings, routes: Mapping[str, RouteSettings]) -> Iterator[str]:
    for row in settings.targets:
        if (inner := routes.get(row.model)) is not None:
            yield from _names(inner, routes)
        else:
            yield row.model


def _health(name: str, breaker: Breaker) -> TargetHealth:
    wait = breaker.ready_in
    return TargetHealth(
        name,
        breaker.state,
        breaker.healthy,
        breaker.consecutive,
        breaker.latency,
        clock.now_ns() + int(wait * 1e9) if wait else None,
        breaker.last_error,
    )
