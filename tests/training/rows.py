"""Rows and models for tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from windlass.core.events import Event, TrainStep
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.data import Row
from windlass.training.trainer import Trainer

SHAPE = LlamaConfig(
    vocab_size=17, width=8, layers=2, heads=2, kv_heads=1, feed_forward=12, context=16, tied=False
)  # fmt: skip


class Rows:
    """Random rows of unlike lengths and weights: row n is always the same."""

    name = "rows"
    vocab_size = 17

    def __init__(self, count: int = 24, *, weights: bool = True, shift: int = 0) -> None:
        self.count, self.weights, self.shift = count, weights, shift

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Row:
        draw = np.random.default_rng([index, self.shift])
        length = int(draw.integers(4, 13)) if self.weights else 9
        tokens = draw.integers(0, self.vocab_size, length).astype(np.int32)
        counted = draw.choice([0.0, 0.5, 1.0], length).astype(np.float32)
        counted[-1] = 1.0
        return Row(tokens, counted if self.weights else None)


def llama(seed: int = 0, **sizes: Any) -> Llama:
    """A small model with the weights of a seed."""
    torch.manual_seed(seed)
    values = {name: getattr(SHAPE, name) for name in SHAPE.__struct_fields__}
    return Llama(LlamaConfig(**{**values, **sizes}))


def config(**options: Any) -> TrainConfig:
    """Options of a short run."""
    usual: dict[str, Any] = {"epochs": 3, "batch_size": 4, "schedule": "constant", "lr": 3e-3, "min_lr": 0.0}
    chosen: dict[str, Any] = {**usual, "device": "cpu", **options}
    return TrainConfig(**chosen)


def trainer(source: Any = None, **options: Any) -> Trainer:
    """A trainer over a small model and `Rows`."""
    return Trainer(config(**options), model=llama(), source=source or Rows())


def steps(events: Iterable[Event]) -> list[dict[str, float]]:
    """The metrics of all steps, without what depends on time."""
    found = [event.metrics for event in events if isinstance(event, TrainStep)]
    return [{name: value for name, value in each.items() if name != "tokens_per_second"} for each in found]


def losses(events: Iterable[Event]) -> list[float]:
    """The loss of every step."""
    return [each["loss"] for each in steps(events)]
