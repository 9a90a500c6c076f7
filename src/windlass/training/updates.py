"""One update of the weights: passes over a few batches, gradients, clipping, the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from windlass.core.errors import ConfigError
from windlass.training.config import TrainConfig
from windlass.training.data import Batch
from windlass.training.loss import Objective, Sums
from windlass.training.optim import make_optimizer, set_rate
from windlass.training.team import Alone

__all__ = ["Made", "Updates", "device_of"]

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MASK: Final = (1 << 63) - 1


class Made(NamedTuple):
    """What an update left on the device, not yet waited for: its sums and the norm of its gradients."""

    sums: list[Sums]
    norm: Tensor | None


class Updates:
    """A model with its optimisers, on a device, ready to be changed step by step.

    Precision `bf16` and `fp16` are those of the products (autocast); weights and gradients stay in fp32, and fp16's
    gradients are scaled so that small ones are not lost (https://docs.pytorch.org/docs/stable/amp.html).
    """

    def __init__(self, model: nn.Module, config: TrainConfig, team: Alone) -> None:
        self.model, self.config, self.team = model, config, team
        self.device = device_of(config.device)
        model.to(self.device)
        team.prepare(model)
        self.optimizers = make_optimizer(model, config)
        if not self.optimizers:
            raise ConfigError("The model has no parameter that learns.")
        self.plain = Objective(model, config.label_smoothing)
        called: Any = team.wrap(self.plain)
        self._objective: Any = torch.compile(called) if config.compile else called
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def learned(self) -> list[Tensor]:
        """Return the parameters that change."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def update(self, batches: Sequence[Batch], step: int, rate: float, *, count: bool) -> Made:
        """Change the weights by the mean loss over all weighted positions of `batches`, however they are divided.

        Whatever is random in the model draws from `config.seed` and `step` alone. `count` asks for correct tokens.
        """
        self.model.train()
        torch.manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + step * self.team.size + self.team.rank) & _MASK)
        weight = self.team.total([sum([batch.weight for batch in batches])], self.device)[0]
        # Gradients of a team are averaged over it.
        share = self.team.size / weight if weight else 0.0
        sums: list[Sums] = []
        for number, batch in enumerate(batches):
            with self.team.accumulate(self._objective, last=number == len(batches) - 1):
                with self._autocast():
                    found: Sums = self._objective(batch, count)
                self.scaler.scale(found.loss * share).backward()
            sums.append(Sums(*[each.detach() for each in found]))
        return Made(sums, self._apply(rate))

    def _apply(self, rate: float) -> Tensor:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = self.team.clip(self.learned(), self.config.gradient_clip or float("inf"))
        set_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return norm

    @torch.no_grad()
    def look(self, batch: Batch) -> Sums:
        """Return the sums of a batch without learning from it."""
        self.model.eval()
        with self._autocast():
            return self.plain(batch, True)

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        return torch.autocast(self.device.type, _DTYPES[precision], enabled=precision != "fp32")

    # -- what a checkpoint holds ---------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """Return the model's tensors by name, whole."""
        return self.team.whole({name: value.contiguous() for name, value in self.model.state_dict().items()})

    def memory(self) -> dict[str, Tensor]:
        """Return what the optimisers remember: `parameter|what`, whole."""
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        found: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for weight, kept in optimizer.state.items():
                found |= {f"{names[id(weight)]}|{key}": value for key, value in kept.items() if value is not None}
        return self.team.whole(found)

    def restore(self, weights: dict[str, Tensor], memory: dict[str, Tensor]) -> None:
        """Take over what `weights()` and `memory()` gave. Raises RuntimeError or KeyError when it does not fit."""
        self.model.load_state_dict(self.team.share(weights, self.model.state_dict()))
        parameters = dict(self.model.named_parameters())
        names = {id(weight): name for name, weight in parameters.items()}
        kept: dict[str, dict[str, Tensor]] = {}
        for name, value in memory.items():
            parameter, _, key = name.rpartition("|")
            like = parameters[parameter]
            # A count of steps has the shape of no parameter: it is not divided.
            value = self.team.share({name: value}, {name: like})[name] if value.shape == like.shape else value
            kept.setdefault(parameter, {})[key] = value
        for optimizer in self.optimizers:
            order = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
            state = {number: kept[name] for number, name in enumerate(order) if name in kept}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def device_of(name: str) -> torch.device:
    """Return the device of a name; `auto`: the first GPU, else the CPU. Raises ConfigError if it is not there."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"The device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
