"""Low-rank adapters (LoRA): small trainable matrices beside frozen weights, Hu et al. 2021 (arXiv:2106.09685).

A layer's output W x becomes W x + alpha / rank * B A x. Only A (rank x in) and B (out x rank, zero at first) learn. The
layer keeps its place and name, so that a state dict still is the base model's, with `lora_a` and `lora_b` beside each
`weight`. Files are in `lora_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import Tensor, nn

from windlass.core.errors import ConfigError
from windlass.local.llama import Llama

__all__ = [
    "MATRICES",
    "LoraConfig",
    "LoraLinear",
    "add_lora",
    "lora_layers",
    "merge_lora",
    "merged_state",
    "unmerge_lora",
]

#: The matrices of a layer, by their names in GGUF.
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class LoraConfig(Struct, frozen=True, kw_only=True):
    """Sizes of adapters.

    `rank` of the added matrices; their product is scaled by `alpha / rank`; `dropout` is the share of a layer's inputs
    that the adapter does not see in a training step; `targets` are the matrices that get one, by their GGUF names.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"The rank of a LoRA is {self.rank}; it must be at least 1.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha of a LoRA is {self.alpha}; it must be a number above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"The dropout of a LoRA is {self.dropout}; it must be at least 0 and below 1.")
        unknown = sorted({*self.targets} - {*MATRICES})
        if unknown or not self.targets:
            said = ", ".join(unknown) if unknown else "nothing"
            raise ConfigError(f"LoRA targets {said}.", hint=f"Name some of {', '.join(MATRICES)}.")


class LoraLinear(nn.Module):
    """A linear layer without bias, frozen, and its adapter. `before` holds the own weights while it is merged."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.weight = base.weight.requires_grad_(False)
        self.lora_a = nn.Parameter(self.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(base.out_features, config.rank))
        self.dropout, self.scale = config.dropout, config.alpha / config.rank
        self.before: Tensor | None = None
        # PEFT's start, which is that of torch's linear layers.
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight)
        if self.before is not None:
            return out
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return out + self.scale * F.linear(narrow, self.lora_b)

    def merged(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the weights of a plain layer that does what this one does with these tensors."""
        return (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)


def add_lora(model: Llama, config: LoraConfig) -> Llama:
    """Freeze the model and put an adapter beside each target matrix, in place; return the model.

    It computes the same as before until the adapters have learnt. Raises ConfigError when it has adapters already.
    """
    if next(lora_layers(model), None) is not None:
        raise ConfigError("The model has adapters already.", hint="Load it again, or go on with those it has.")
    model.requires_grad_(False)
    for block in model.blk:
        for name in config.targets:
            layer = getattr(block, name)
            setattr(block, name, LoraLinear(layer, config))
    return model


def lora_layers(model: Llama) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the layers with adapters and their names, such as `blk.0.attn_q`, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def merge_lora(model: Llama) -> None:
    """Add the adapters to the weights, in place: no cost per token any more. The own weights are kept for `unmerge`."""
    for _, layer in lora_layers(model):
        if layer.before is None:
            merged = layer.merged(layer.weight, layer.lora_a, layer.lora_b)
            layer.before = layer.weight.detach().clone()
            layer.weight.data.copy_(merged)


def unmerge_lora(model: Llama) -> None:
    """Take the adapters out of the weights again, bit by bit as they were."""
    for _, layer in lora_layers(model):
        if layer.before is not None:
            layer.weight.data.copy_(layer.before)
            layer.before = None


@torch.no_grad()
def merged_state(model: Llama, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the state dict of a plain model that does the same; the model itself is left as it is.

    `state` are the model's tensors where it does not hold them itself: those of a team of processes, put together.
    """
    state = model.state_dict() if state is None else state
    merged = {name: tensor for name, tensor in state.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, layer in lora_layers(model):
        if layer.before is None:
            tensors = [state[f"{name}.{part}"] for part in ("weight", "lora_a", "lora_b")]
            merged[f"{name}.weight"] = layer.merged(*tensors)
    return merged
