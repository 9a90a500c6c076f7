"""One model of one provider as a route sees it: what it can take, and what a request needs of it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from windlass.core.models import Capabilities, Prices, facts_of
from windlass.providers.breaker import Breaker

__all__ = ["Needs", "Target"]

#: No count of tokens made here is exact: a context window counts as too small only where it is by a quarter.
_MARGIN = 1.25


class Needs(Struct, frozen=True):
    """What a request needs of its target; `tokens` is the estimated size of the prompt, 0 where nobody counted.

    `prefill` asks for a model that goes on with an assistant message at the end.
    """

    tools: bool = False
    vision: bool = False
    documents: bool = False
    tokens: int = 0
    prefill: bool = False


class Target:
    """One model of one provider. `name` is "provider:model-id"; `breaker` is shared by all routes it stands in."""

    __slots__ = ("_capabilities", "_prices", "breaker", "model", "name", "provider", "weight")

    def __init__(self, name: str, provider: Any, model: str, breaker: Breaker, weight: float = 1.0) -> None:
        self.name, self.provider, self.model = name, provider, model
        self.breaker, self.weight = breaker, weight
        self._capabilities: Capabilities | None = None
        self._prices: Prices | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the model can take, as its provider says; else as the table of models does."""
        known = self._capabilities
        if known is None:
            of = getattr(self.provider, "capabilities", None)
            known = _stated(self.provider.name, self.model) if of is None else of(self.model)
            self._capabilities = known
        return known

    @property
    def prices(self) -> Prices:
        """What its tokens cost."""
        if self._prices is None:
            self._prices = facts_of(self.provider.name, self.model).prices
        return self._prices

    @property
    def context(self) -> int | None:
        """The context window in tokens; None where it is not known."""
        return self.capabilities.context or facts_of(self.provider.name, self.model).context

    def lacks(self, needs: Needs) -> list[str]:
        """Return what the request needs and this target cannot give, in words; its context window comes last."""
        able = self.capabilities
        missing = [
            name for name in ("tools", "vision", "documents") if getattr(needs, name) and not getattr(able, name)
        ]
        if needs.prefill and not able.prefill:
            missing.append("going on with a begun answer")
        if needs.tokens and (window := self.context) is not None and needs.tokens > window * _MARGIN:
            missing.append(f"a context of {needs.tokens} tokens (it has {window})")
        return missing

    def __repr__(self) -> str:
        return f"Target({self.name!r})"


def _stated(provider: str, model: str) -> Capabilities:
    """Return what the table says of a model whose provider says nothing."""
    facts = facts_of(provider, model)
    return Capabilities(
        facts.vision is not False, facts.documents is not False, facts.tools is not False, context=facts.context
    )
