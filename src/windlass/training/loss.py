"""What is minimised: the cross-entropy of the next token, over the positions that count."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from windlass.local.llama import Llama
from windlass.training.data import Batch
from windlass.training.head import HeadLoss, right

__all__ = ["Objective", "Sums", "perplexity"]


class Sums(NamedTuple):
    """Weighted sums over the positions of a batch, scalars on its device: divide by the sum of the weights.

    `loss` is what is minimised; `entropy` the same without label smoothing; `correct` counts positions whose most
    likely token is the target (0 unless it was asked for).
    """

    loss: Tensor
    entropy: Tensor
    correct: Tensor


class Objective(nn.Module):
    """A model with its loss, as one module: what is compiled and what is spread over processes.

    `model` is a `Llama` or any module that takes `(tokens, positions=, mask=)` and gives logits (batch, t, vocab).
    """

    def __init__(self, model: nn.Module, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, batch: Batch, count: bool = False) -> Sums:
        """Return the sums of a batch; `count` asks for `correct` too.

        A Llama's output matrix, the dearest of a small model, is only used at positions whose weight is not 0.
        """
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        model: Any = self.model
        x = (model.hidden if isinstance(model, Llama) else model)(
            batch.inputs, positions=batch.positions, mask=batch.mask
        ).flatten(0, 1)
        if batch.chosen is not None:
            x, targets, weights = (each.index_select(0, batch.chosen) for each in (x, targets, weights))
        if not isinstance(model, Llama):
            return _sums(x.float(), targets, weights, self.smoothing, count)
        matrix = _matrix(model)
        if matrix is not None and _pays(x.device.type):
            found: Any = HeadLoss.apply(x, matrix, targets, weights, self.smoothing, count)
            return Sums(*found)
        x = F.linear(x, model.token_embd.weight) if model.output is None else model.output(x)
        return _sums(x.float(), targets, weights, self.smoothing, count)


def _matrix(model: Llama) -> Tensor | None:
    """Return the output matrix if it is nothing but one."""
    if model.output is None:
        return model.token_embd.weight
    # A layer that does more (an adapter, a bias) is called as it is. Not by its state_dict: that would cut the weights
    # of processes that share them into parts again.
    alone = type(model.output) is nn.Linear and len(list(model.output.parameters())) == 1
    return model.output.weight if alone else None


def _pays(kind: str) -> bool:
    """Tell whether loss and matrix are computed together: a compiler does that itself, fp16 needs its scale first."""
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return not half and not torch.compiler.is_compiling()


def _sums(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, count: bool) -> Sums:
    entropies = F.cross_entropy(logits, targets, reduction="none")
    entropy = loss = (entropies * weights).sum()
    if smoothing:
        # As torch's label_smoothing: a share of the target's probability is spread over all tokens.
        even = (torch.logsumexp(logits, -1) - logits.mean(-1)) * weights
        loss = (1 - smoothing) * entropy + smoothing * even.sum()
    correct = right(logits, targets) @ weights if count else torch.zeros_like(entropy)
    return Sums(loss, entropy.detach(), correct.detach())


def perplexity(entropy: float) -> float:
    """Return e to the entropy in nats; infinity where that is no float any more."""
    return math.exp(entropy) if entropy < 700 else math.inf
