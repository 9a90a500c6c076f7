"""Where training rows come from: anything that can give its n-th row, and the order in which rows are read.

A source has no state: row `n` is always the same. So the order is a pure function of the seed, and a run is taken up
again, bit by bit the same, from two numbers: the epoch and how many of its rows were read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor

from windlass.core.errors import ConfigError
from windlass.local.llama import segment_mask

__all__ = ["Batch", "Place", "Row", "Source", "collate", "order", "places"]


class Row(NamedTuple):
    """One row of tokens, at most as long as the model's context.

    `tokens` (t,) are token ids. `weights` (t,), if given, is how much each token counts in the loss *as the one to be
    predicted* (0: not at all). `segments` (t,) numbers the texts of a packed row: a token sees its own text and
    segment 0 alone (see `windlass.local.llama.segment_mask`). `positions` (t,) stand instead of 0, 1, 2...
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32] | None = None
    segments: NDArray[np.int32] | None = None
    positions: NDArray[np.int32] | None = None


class Source(Protocol):
    """Rows by number. `row(n)` is the same at every call and in every process; it may read a file or compute."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    def __len__(self) -> int: ...
    def row(self, index: int) -> Row: ...


class Place(Struct, frozen=True):
    """Where a run is in its data: `epoch` from 0, and `position`, the rows of it that were read."""

    epoch: int = 0
    position: int = 0


class Batch(NamedTuple):
    """Rows side by side, filled up with zeros: (batch, t) tensors; `mask` is None when every row is one text.

    `targets[i, j]` is the token after `inputs[i, j]`, `weights` its share of the loss (0 for padding). `chosen` (n,)
    numbers the positions, of all rows one after the other, whose weight is not 0; None: all. `weight` is the sum of the
    weights and `tokens` counts the predictions without padding, both known without asking the device.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None
    chosen: Tensor | None = None
    weight: float = 0.0
    tokens: int = 0


def order(rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which an epoch reads its rows, (rows,): a permutation that seed and epoch alone decide."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def places(
    rows: int, size: int, epochs: int, seed: int, start: Place, *, ordered: bool = False
) -> Iterator[tuple[list[int], Place]]:
    """Yield, for each batch of `size` rows from `start` on, the rows' numbers and the place after it.

    `ordered` reads each epoch from row 0 on, for a source whose order is a curriculum (it has `ordered = True`). An
    epoch's last batch may be smaller. Raises ConfigError when there are no rows.
    """
    if rows < 1:
        raise ConfigError("The training data has no rows.", hint="Give more data or a shorter seq_len.")
    for epoch in range(start.epoch, epochs):
        numbers = np.arange(rows) if ordered else order(rows, epoch, seed)
        first = start.position if epoch == start.epoch else 0
        for at in range(first, rows, size):
            end = min(at + size, rows)
            after = Place(epoch, end) if end < rows else Place(epoch + 1, 0)
            yield numbers[at:end].tolist(), after


def collate(rows: list[Row], device: torch.device | str = "cpu") -> Batch:
    """Return rows as one batch. A row of n tokens gives n - 1 predictions; a mask is made only where one is needed."""
    longest = max([len(row.tokens) for row in rows])
    tokens = np.zeros((len(rows), longest), np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    packed = any(row.segments is not None for row in rows)
    moved = any(row.positions is not None for row in rows)
    segments = np.full((len(rows), longest), -1, np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        tokens[i, :n] = row.tokens
        weights[i, :n] = 1 if row.weights is None else row.weights
        segments[i, :n] = 0 if row.segments is None else row.segments
        positions[i, :n] = np.arange(n) if row.positions is None else row.positions
    if packed:
        # What begins a text of a packed row is not foretold by the text before it.
        crossing = (segments[:, 1:] != segments[:, :-1]) & (segments[:, :-1] != 0)
        weights[:, 1:][crossing] = 0
    counted = weights[:, 1:].ravel()
    chosen = np.flatnonzero(counted)

    def place(array: NDArray[Any]) -> Tensor:
        made = torch.from_numpy(array)
        return made.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else made

    ids = place(tokens)
    return Batch(
        ids[:, :-1],
        ids[:, 1:],
        place(weights)[:, 1:],
        segment_mask(place(segments)[:, :-1]) if packed else None,
        place(positions)[:, :-1] if moved else None,
        place(chosen) if len(chosen) < len(counted) else None,
        float(counted.sum(dtype=np.float64)),
        sum([len(row.tokens) - 1 for row in rows]),
    )
