"""The models that a gateway can tell of: its routes, and what its providers offer, asked in the background."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import WindlassError
from windlass.core.models import Capabilities, facts_of
from windlass.core.settings import SAME_ACCOUNT
from windlass.providers.route import Router
from windlass.providers.vendors import VENDORS
from windlass.server.hiding import hidden
from windlass.wire.ollama_models import ModelRow

__all__ = ["Catalogue"]

log = logging.getLogger("windlass.server")
#: Seconds that a provider's list is taken as it is, and that one which failed is left in peace.
_FRESH, _REST = 300.0, 60.0
#: Seconds that a client waits for lists that were never read; who is slower is in the next answer.
_PATIENCE = 2.0
#: Models of one provider that are told of.
_MOST = 2000


class _Listed(Struct):
    """What one provider offers, and the monotonic time until which nobody asks it again."""

    rows: list[ModelRow]
    until: float = 0.0


class Catalogue:
    """Keep the lists of models of one gateway. `problems` says by name who could not be listed, and why."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._config: Config | None = None
        self._lists: dict[str, _Listed] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def rows(self, config: Config, router: Router) -> list[ModelRow]:
        """Return every model that is known: the routes first, then "provider:model" of each provider with a key.

        Never fails for a provider that cannot be asked, and waits for one only while nothing is known of it.
        """
        routed = self.routed(config, router)
        names, now = _configured(config, router), clock.monotonic()
        for name in names:
            listed = self._lists.get(name)
            if name not in self._asking and (listed is None or listed.until <= now):
                task = asyncio.get_running_loop().create_task(
                    self._ask(name, config, router), name=f"windlass-models-{name}"
                )
                self._asking[name] = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if new := [self._asking[name] for name in names if name not in self._lists and name in self._asking]:
            await asyncio.wait(new, timeout=_PATIENCE)
        offered = [row for name in names if name in self._lists for row in self._lists[name].rows]
        return list({row.id: row for row in reversed((*routed, *offered))}.values())[::-1]

    def routed(self, config: Config, router: Router) -> list[ModelRow]:
        """Return the routes of the file that can be asked, and the default model."""
        if config is not self._config:
            # Other settings: other providers may stand behind the same names.
            self._config = config
            self._lists, self._asking, self.problems = {}, {}, {}
        out: list[ModelRow] = []
        for name in dict.fromkeys([*config.routes, config.default_model]):
            try:
                target = router.route(name).targets[0]
            except WindlassError as error:
                self.problems[name] = str(error)
                continue
            self.problems.pop(name, None)
            row = ModelRow(name, target.provider.name, 0, target.context, target.capabilities, _embeds(target.model))
            out.append(row)
        return out

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _ask(self, name: str, config: Config, router: Router) -> None:
        rows, rest, problem = self._lists[name].rows if name in self._lists else [], _REST, ""
        provider: Any = None
        try:
            provider = router.provider(name)
            if hasattr(provider, "models"):
                ids = await provider.models()
                rows, rest = [_row(name, provider, model) for model in ids[:_MOST]], _FRESH
        except WindlassError as error:
            problem = str(error)
        except Exception as error:
            # A provider of the user's may raise anything; the list of the others is not its to break.
            log.exception("the models of %s cannot be listed", name)
            problem = f"{type(error).__name__}: {error}"
        if config is not self._config:
            return
        del self._asking[name]
        self._lists[name] = _Listed(rows, clock.monotonic() + rest)
        self.problems.pop(name, None)
        if problem:
            self.problems[name] = hidden(problem, provider)


def _configured(config: Config, router: Router) -> list[str]:
    """Return the providers that were set up: in the user's file, by a key or an address, or behind a route."""
    names = [name for name in VENDORS if name not in SAME_ACCOUNT and _is_set(config, name)]
    used = [target.name for target in router.health()]
    every = dict.fromkeys([*config.user_providers, *names, *[name.partition(":")[0] for name in used]])
    # The built-in model alone is nothing that anybody has set up.
    return [name for name in every if name != "local" or ("local" in config.user_providers and "llm" not in config.off)]


def _is_set(config: Config, name: str) -> bool:
    settings = config.provider_settings(name)
    return bool(settings.api_key or settings.base_url or settings.extra.get("access_key_id"))


def _row(name: str, provider: Any, model: str) -> ModelRow:
    known = getattr(provider, "capabilities", None)
    caps: Capabilities | None = None if known is None else known(model)
    context = facts_of(name, model).context or (caps.context if caps is not None else None)
    return ModelRow(f"{name}:{model}", name, 0, context, caps, _embeds(model))


def _embeds(model: str) -> bool:
    return "embed" in model.lower()
