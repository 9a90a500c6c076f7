"""The output matrix and the loss after it in one, a few rows at a time: all logits of a batch are never there at once.

For small models with large vocabularies the logits are the largest thing of a step. Here each piece of them is made,
turned into its part of the loss and of both gradients, and forgotten, while it is still in the processor's cache.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["HeadLoss", "right"]

#: Logits at once.
_ON_CPU, _ELSEWHERE = 1 << 20, 1 << 26
_LEAST: Final = 64


def right(scores: Tensor, targets: Tensor) -> Tensor:
    """Return, for scores (n, vocab), 1 where the target's is the highest, its share where several are, else 0: (n,).

    To find the maximum and compare with it is many times faster than `argmax` on a CPU.
    """
    top = scores.amax(-1)
    several = (scores == top[:, None]).sum(-1)
    return (scores.gather(1, targets[:, None])[:, 0] >= top) / several


class HeadLoss(torch.autograd.Function):
    """Weighted sums of the cross-entropy of `x @ weight.T`: what `windlass.training.loss` computes with whole logits.

    Arguments: x (n, width), weight (vocab, width), targets (n,), weights (n,), smoothing, whether to count. Returns
    loss, entropy and correct as `Sums` has them; only the loss has a gradient. Under autocast to bfloat16 the products
    are in it, the rest is in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float, count: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the sums and, while the logits are there, both gradients."""
        kind = x.device.type
        half = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if half else weight.dtype
        with torch.autocast(kind, enabled=False):
            inputs, matrix = x.to(dtype), weight.to(dtype)
            need_x, need_weight = ctx.needs_input_grad[:2]
            grad_x = torch.empty_like(inputs) if need_x else None
            grad_weight = torch.zeros_like(weight) if need_weight else None
            sums = torch.zeros(3, dtype=torch.float32, device=x.device)
            size = max(_LEAST, (_ON_CPU if kind == "cpu" else _ELSEWHERE) // len(weight))
            for at in range(0, len(x), size):
                part, target, share = (each[at : at + size] for each in (inputs, targets, weights))
                logs = F.log_softmax((part @ matrix.T).float(), -1)
                found = logs.gather(1, target[:, None])[:, 0]
                entropy = -(found * share).sum()
                sums[0] += entropy if not smoothing else (1 - smoothing) * entropy - smoothing * (logs.mean(-1) @ share)
                sums[1] += entropy
                if count:
                    sums[2] += right(logs, target) @ share
                if not need_x and not need_weight:
                    continue
                # d loss / d logits: softmax minus what should have been, in the place of the logarithms.
                slope = logs.exp_()
                if smoothing:
                    slope -= smoothing / len(weight)
                slope.mul_(share[:, None]).scatter_add_(1, target[:, None], (smoothing - 1) * share[:, None])
                slope = slope.to(dtype)
                if grad_x is not None:
                    torch.mm(slope, matrix, out=grad_x[at : at + size])
                if grad_weight is not None and dtype == weight.dtype:
                    grad_weight.addmm_(slope.T, part)
                elif grad_weight is not None:
                    grad_weight += slope.T @ part
        ctx.save_for_backward(grad_x, grad_weight)
        loss, entropy, correct = sums.unbind()
        loss, entropy, correct = loss.clone(), entropy.clone(), correct.clone()
        ctx.mark_non_differentiable(entropy, correct)
        return loss, entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        """Scale the gradients that were made before by that of the loss."""
        above: Tensor = grad_outputs[0]
        grad_x, grad_weight = ctx.saved_tensors
        return (
            None if grad_x is None else grad_x * above,
            None if grad_weight is None else grad_weight * above,
            None,
            None,
            None,
            None,
        )
