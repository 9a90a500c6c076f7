"""The trainer of `windlass.training` as what a federated node runs, and its model as one vector of weights.

The vector holds the parameters that learn, one after the other in the order of `named_parameters`, as float32. A model
tuned by adapters alone (LoRA) so shares its adapters alone. Buffers and the optimiser's state stay where they are: each
round begins with a fresh optimiser, as in FedAvg.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn

from windlass.core.errors import ConfigError
from windlass.core.events import Event, RunFinished, TrainStep
from windlass.local.safetensors import write_safetensors
from windlass.training.config import TrainConfig
from windlass.training.federated.aggregate import check_vector
from windlass.training.federated.client import Train, Trained
from windlass.training.federated.errors import InvalidUpdate
from windlass.training.trainer import Trainer

__all__ = [
    "flatten",
    "from_config",
    "from_trainer",
    "initial_weights",
    "read_config",
    "save_model",
    "unflatten",
]


class Trains(Protocol):
    """What `from_trainer` needs of a trainer; `windlass.training.Trainer` has it."""

    model: nn.Module

    def run(self) -> Iterator[Event]: ...


def _learned(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def flatten(model: nn.Module) -> NDArray[np.float32]:
    """Return the parameters that learn as one vector (model_size,) float32; a shared one is there once."""
    parts = [weight.detach().to("cpu", torch.float32).reshape(-1) for _, weight in _learned(model)]
    if not parts:
        raise ConfigError("The model has no parameter that learns.")
    return torch.cat(parts).numpy()


def unflatten(vector: NDArray[np.floating], model: nn.Module) -> None:
    """Set the parameters that learn from a vector that `flatten` made. Raises InvalidUpdate for another length."""
    check_vector(vector, sum(weight.numel() for _, weight in _learned(model)), "The vector")
    whole, at = torch.from_numpy(np.array(vector, np.float32)), 0
    with torch.no_grad():
        for _, weight in _learned(model):
            weight.copy_(whole[at : at + weight.numel()].view_as(weight))
            at += weight.numel()


def from_trainer(make: Callable[[int], Trains]) -> Train:
    """Return local training by a trainer: `make(round)` gives it, new or the same again, and its run is one round.

    The model is set to the global weights first. The update counts as many samples as the run read tokens (else steps);
    its metrics are `loss`, the mean over its steps, and what the last evaluation gave (`eval_loss` and so on). A run
    that ends with an error raises it.
    """

    def train(weights: NDArray[np.float32], number: int) -> Trained:
        trainer = make(number)
        unflatten(weights, trainer.model)
        losses: list[float] = []
        metrics: dict[str, float] = {}
        tokens = 0
        for event in trainer.run():
            if isinstance(event, TrainStep):
                losses.append(event.metrics["loss"])
                metrics.update({name: value for name, value in event.metrics.items() if name.startswith("eval_")})
            elif isinstance(event, RunFinished):
                tokens = event.usage.input_tokens
        if not losses:
            raise InvalidUpdate("The training run of this round made no step.", hint="Give it rows and epochs.")
        metrics["loss"] = sum(losses) / len(losses)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return Trained(flatten(trainer.model), tokens or len(losses), finite)

    return train


def from_config(config: TrainConfig) -> Train:
    """Return local training by `windlass.training.Trainer` with these options; each round is a whole run of them.

    Rounds read the rows in different orders: the seed grows with the round. Checkpoints, logs and exports are left out,
    since every round would write them anew.
    """
    plain = replace(config, checkpoint_path=None, checkpoint_interval=0, log_dir=None, tensorboard=False, wandb=False,
                    export_gguf_path=None)  # fmt: skip
    return from_trainer(lambda number: Trainer(replace(plain, seed=config.seed + number)))


def read_config(path: Path | str) -> TrainConfig:
    """Read the options of a training run from a TOML file whose keys are `TrainConfig`'s. Raises ConfigError."""
    try:
        return msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), TrainConfig, strict=True)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} holds no options of a training run: {error}.") from None


def initial_weights(config: TrainConfig) -> NDArray[np.float32]:
    """Return the weights with which a run with these options would begin, (model_size,) float32."""
    return flatten(Trainer(config).model)


def save_model(path: Path | str, vector: NDArray[np.float32], config: TrainConfig) -> None:
    """Write the model of `config` with these weights as a safetensors file, each parameter under its name.

    Raises LocalModelError when it cannot be written, InvalidUpdate for weights of another model.
    """
    model = Trainer(config).model
    unflatten(vector, model)
    write_safetensors(path, {name: weight.detach().to("cpu", torch.float32) for name, weight in _learned(model)})
