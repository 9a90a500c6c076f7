"""Several processes that train one model, each on its share of every batch, started by `torchrun`.

Every process has the same weights and takes every `size`-th row of one order of all rows, so that a step's result is
that of one process that reads all of them, and a checkpoint of n processes is taken up by any other number. Without
torchrun there is one process and nothing of this is in its way. Sources:
https://docs.pytorch.org/docs/stable/elastic/run.html,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from windlass.core.errors import ConfigError
from windlass.training.config import TrainConfig
from windlass.training.team import Alone

__all__ = ["Several", "Sharded", "joined"]

_NAMES: Final = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def joined(config: TrainConfig) -> Generator[Alone]:
    """Give the team that torchrun started, this process in it, for the length of the block; without torchrun: `Alone`.

    Every process must have the same `config`, data and weights. Process `i` of a machine takes its GPU `i` and speaks
    NCCL where `config.device` is CUDA, else it computes on the CPU and speaks Gloo. Raises ConfigError when torchrun's
    variables are incomplete or a process has no GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Alone()
        return
    missing = [name for name in _NAMES if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but not {', '.join(missing)}.", hint="Start the run with torchrun.")
    device = _own_device(config.device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Sharded(device) if config.parallel == "fsdp" else Several(device)
    finally:
        dist.destroy_process_group()


def _own_device(kind: str) -> torch.device:
    device = torch.device(kind if kind != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return device
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local} has no GPU: this machine has {torch.cuda.device_count()}.",
            hint="Lower --nproc-per-node, or use the CPU (--device cpu).",
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class Several(Alone):
    """Processes that each hold the whole model (DistributedDataParallel): gradients are averaged in every step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the module that averages gradients."""
        return DistributedDataParallel(objective, device_ids=[self.device] if self.device.type == "cuda" else None)

    def accumulate(self, objective: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients in the last pass of a step alone."""
        if isinstance(objective, DistributedDataParallel) and not last:
            return objective.no_sync()
        return contextlib.nullcontext()

    def total(self, numbers: list[float], device: torch.device) -> list[float]:
        """Return the sums of `numbers` over all processes, in double precision."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums.tolist()

    def agree(self, stop: bool, device: torch.device) -> bool:
        """Tell whether any process wants to stop."""
        return self.total([float(stop)], device)[0] > 0

    def wait(self) -> None:
        """Return when all processes are here."""
        dist.barrier()


class Sharded(Several):
    """Processes that each hold a part of every weight, its gradient and what the optimiser keeps of it (FSDP2).

    A layer's weights are put together when it computes and let go afterwards.
    """

    def prepare(self, model: nn.Module) -> None:
        """Cut the model's parameters, layer by layer, in place."""
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in getattr(model, "blk", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        # The loss calls it in the place of `forward`, and uses the embedding after it.
        if hasattr(model, "hidden"):
            register_fsdp_forward_method(model, "hidden")

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the module as it is: its model exchanges gradients by itself."""
        return objective

    def accumulate(self, objective: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients in the last pass of a step alone; whole ones are kept until then."""
        for module in objective.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        return contextlib.nullcontext()

    def clip(self, weights: list[Tensor], most: float) -> Tensor:
        """Scale gradients down by the norm of all parts together."""
        return _whole(nn.utils.clip_grad_norm_(weights, most))

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors put together from their parts."""
        return {name: _whole(tensor) for name, tensor in tensors.items()}

    def share(self, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's parts of whole tensors, laid out as those of `like`."""
        return {name: _part(tensor, like.get(name)) for name, tensor in tensors.items()}


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
