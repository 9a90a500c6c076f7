"""Optimisers by name: torch's own sgd, adam and adamw in their fused form, and Muon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from windlass.training.config import TrainConfig

__all__ = ["MUON_MOMENTUM", "Muon", "make_optimizer", "orthogonal", "set_rate"]

#: Muon's own momentum (`TrainConfig.momentum` is sgd's).
MUON_MOMENTUM: Final = 0.95
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_NS_STEPS: Final = 5
_HEADS: Final = ("output", "lm_head")


def orthogonal(matrices: Tensor) -> Tensor:
    """Return, for (n, rows, columns), about the nearest matrices whose singular values are all 1, in bfloat16.

    Five steps of the quintic Newton-Schulz iteration of Keller Jordan's Muon
    (https://kellerjordan.github.io/posts/muon/); singular values end between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices of hidden layers: each update is the momentum made orthogonal.

    It is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of an AdamW update (Liu et al. 2025,
    arXiv:2502.16982), so that one learning rate serves both. Weight decay is decoupled. Matrices of one shape are
    worked on together. Equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` of torch 2.9 and later.
    """

    def __init__(self, params: Any, lr: float, momentum: float = MUON_MOMENTUM, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the weights by their gradients."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(tuple(weight.shape), []).append(weight)
            for weights in alike.values():
                self._update(weights, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _update(self, weights: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        grads = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        calls: Any = torch  # torch's own optimisers use these too: one call for many tensors
        calls._foreach_lerp_(buffers, grads, 1 - momentum)
        # Nesterov: the step is taken from where the momentum leads.
        ahead = torch.stack(calls._foreach_lerp(grads, buffers, momentum))
        turned = orthogonal(ahead).to(weights[0].dtype).unbind()
        calls._foreach_mul_(weights, 1 - lr * decay)
        calls._foreach_add_(weights, list(turned), alpha=-lr * 0.2 * math.sqrt(max(weights[0].shape)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return what updates `model`: one optimiser, or for muon two: matrices of the layers, and AdamW for the rest.

    The rest are embeddings, the output matrix and everything that is no matrix. Weight decay is for matrices alone,
    embeddings included; it is decoupled in adamw and muon and a part of the gradient in sgd and adam, as in torch.
    Frozen parameters are left out.
    """
    learned = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    embedded = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    made: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        inner = [w for name, w in learned if w.dim() == 2 and id(w) not in embedded and _module(name) not in _HEADS]
        taken = {id(weight) for weight in inner}
        learned = [(name, weight) for name, weight in learned if id(weight) not in taken]
        if inner:
            made.append(Muon(inner, lr=config.lr, weight_decay=config.weight_decay))
    groups: list[dict[str, Any]] = [
        {"params": [w for _, w in learned if w.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [w for _, w in learned if w.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return made
    if config.optimizer == "sgd":
        made.append(torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True))
    else:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        betas = (config.beta1, config.beta2)
        made.append(kind(groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=True))
    return made


def _module(name: str) -> str:
    """Return the name of the module that a parameter is directly in."""
    return name.rpartition(".")[0].rpartition(".")[2]


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Give all groups a learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
