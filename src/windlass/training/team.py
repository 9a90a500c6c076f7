"""The processes of one run. This is a run of one process; `windlass.training.distributed` makes others."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

__all__ = ["Alone"]


class Alone:
    """One process. What several do differently is here: override it to spread a run.

    Every process of a team reads all row numbers and takes the rows `rank`, `rank + size`, ... of each step. `rank` 0
    writes checkpoints and logs and is the one whose events are shown.
    """

    rank: int = 0
    size: int = 1

    def prepare(self, model: nn.Module) -> None:
        """Change the model in place before its optimiser is made (sharding does)."""

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the module that is called in a step, so that its gradients are averaged over the team."""
        return objective

    def accumulate(self, objective: nn.Module, *, last: bool) -> AbstractContextManager[object]:  # noqa: ARG002 - for those who override it
        """Hold the exchange of gradients until the last pass of a step."""
        return contextlib.nullcontext()

    def total(self, numbers: list[float], device: torch.device) -> list[float]:  # noqa: ARG002
        """Return the sums of `numbers` over all processes."""
        return numbers

    def clip(self, weights: list[Tensor], most: float) -> Tensor:
        """Scale gradients down to a norm of at most `most` (infinity: leave them); return the norm they had."""
        return nn.utils.clip_grad_norm_(weights, most)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors for a checkpoint; every process calls it, rank 0 uses what it returns."""
        return tensors

    def share(self, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Return this process's parts of whole tensors, laid out as those of `like`."""
        return tensors

    def agree(self, stop: bool, device: torch.device) -> bool:  # noqa: ARG002
        """Tell whether any process wants to stop."""
        return stop

    def wait(self) -> None:
        """Return when all processes are here."""
