"""What a coordinator is told, checked before it starts; names and defaults are reference E's where it has any."""

from __future__ import annotations

import math
import re
from typing import Literal, TypeAlias, get_args

from msgspec import Struct

from windlass.core.errors import ConfigError

__all__ = ["NODE_ID", "FederatedConfig", "Strategy", "UpdateKind"]

Strategy: TypeAlias = Literal["mean", "weighted_mean", "trimmed_mean", "median", "krum"]
UpdateKind: TypeAlias = Literal["weights", "delta"]
#: The names that nodes can have.
NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FederatedConfig(Struct, frozen=True, kw_only=True):
    """Options of a coordinator.

    A round is aggregated from `min_updates` to `max_updates` updates, of which those that lie here for more than
    `staleness_seconds` do not count. `update` says whether nodes send their weights or what they changed in the global
    ones. `trim` is the share that trimmed_mean cuts at either end; krum keeps the best `keep` and stands up to
    `malicious` nodes.

    `clip` bounds the L2 norm of what an update changes (0: no bound). `noise` (needs `clip` and strategy mean or
    weighted_mean: of the others the sensitivity is not known) adds to the result normal numbers with the deviation
    `noise * clip * s`, s being the largest share of one update, 1/n for the mean. See `aggregate.gaussian_noise` for
    what privacy that gives and what not. `seed` makes the noise of every round repeatable, which is for tests: who
    knows it can take the noise off.

    Raises ConfigError for values that cannot be.
    """

    min_updates: int = 1
    max_updates: int = 64
    staleness_seconds: float = 300.0
    strategy: Strategy = "mean"
    update: UpdateKind = "weights"
    trim: float = 0.2
    malicious: int = 0
    keep: int = 1
    clip: float = 0.0
    noise: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("strategy", Strategy), ("update", UpdateKind)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} is {getattr(self, name)!r}.", hint=f"One of {', '.join(get_args(choices))}.")
        if not 1 <= self.min_updates <= self.max_updates:
            raise ConfigError(
                f"min_updates is {self.min_updates} and max_updates {self.max_updates}.",
                hint="1 <= min_updates <= max_updates.",
            )
        for name, least in (("malicious", 0), ("keep", 1), ("staleness_seconds", 0.0), ("clip", 0.0), ("noise", 0.0)):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} is {value}; it must be a number of at least {least}.")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0.")
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"trim is {self.trim}; it must be at least 0 and below 0.5.")
        if self.noise and (not self.clip or self.strategy not in ("mean", "weighted_mean")):
            raise ConfigError("noise needs clip, and strategy mean or weighted_mean.",
                              hint="Only then is it known how much one node can change the result.")  # fmt: skip
        if self.strategy == "krum" and self.malicious and self.max_updates < 2 * self.malicious + 3:
            raise ConfigError(f"Krum needs max_updates of at least {2 * self.malicious + 3} here.")
