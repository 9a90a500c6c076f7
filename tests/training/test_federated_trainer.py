"""The trainer as what a node runs: weights in and out, and a small network that two nodes teach each other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from windlass.core.errors import ConfigError
from windlass.local.safetensors import SafetensorsFile
from windlass.training import TrainConfig
from windlass.training.federated import (
    Coordinator,
    FederatedConfig,
    InvalidUpdate,
    Update,
    flatten,
    from_config,
    initial_weights,
    read_config,
    save_model,
    unflatten,
)


def model() -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False))
    made[0].weight.requires_grad_(False)
    return made


def test_a_model_is_one_vector_and_back_without_what_does_not_learn() -> None:
    made, other = model(), model()
    vector = flatten(made)
    assert (vector.shape, vector.dtype) == ((3 + 3 + 3 + 3,), np.float32)
    unflatten(np.arange(12.0), other)
    assert flatten(other).tolist() == list(range(12))
    assert torch.equal(next(other.parameters()), next(made.parameters())), "frozen"
    unflatten(vector, other)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))
    for wrong in (np.zeros(11), np.full(12, np.nan)):
        with pytest.raises(InvalidUpdate):
            unflatten(wrong, other)
    with pytest.raises(ConfigError, match="no parameter"):
        flatten(nn.ReLU())


def test_a_tied_weight_travels_once() -> None:
    made = nn.ModuleDict({"one": nn.Linear(4, 4, bias=False)})
    made["two"] = made["one"]
    assert flatten(made).shape == (16,)


def options(seed: int, **more: object) -> TrainConfig:
    base = {"epochs": 1, "batch_size": 16, "sample_count": 256, "lr": 0.02, "warmup_steps": 1, "device": "cpu"}
    return TrainConfig(seed=seed, **{**base, **more})  # pyright: ignore[reportArgumentType]


def test_two_nodes_teach_one_model_and_the_loss_falls(tmp_path: Path) -> None:
    """The real trainer on two seeds' rows; checkpoints and logs of the options are left out."""
    weights = initial_weights(options(0))
    made = Coordinator(FederatedConfig(strategy="weighted_mean", min_updates=2), len(weights), weights=weights)
    learn = {
        "a": from_config(options(0, checkpoint_path=str(tmp_path / "c"), log_dir=str(tmp_path / "l"))),
        "b": from_config(options(100)),
    }
    for name in learn:
        made.register_node(name)
    for number in range(3):
        for name, train in learn.items():
            sent = train(made.weights, number)
            assert sent.sample_count > 256
            made.submit_update(Update(node_id=name, step=number + 1, weights=sent.weights,
                                      sample_count=sent.sample_count, round=number, metrics=sent.metrics))  # fmt: skip
        made.aggregate()
    losses = [entry["loss"] for entry in made.history]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.8 * losses[0], losses
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(learn["a"](weights, 0).weights, learn["a"](weights, 0).weights), "a round is repeatable"
    save_model(tmp_path / "m.safetensors", made.weights, options(0))
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert file.info.parameters == len(weights) and len(file.info.tensors) > 3


async def test_the_trainer_runs_in_threads_at_the_same_time() -> None:
    from windlass.core.threads import run_in_thread

    weights = initial_weights(options(0))
    alone = from_config(options(0))(weights, 0)
    both = await asyncio.gather(*[run_in_thread(from_config(options(0)), weights, 0) for _ in range(2)])
    for each in both:
        assert np.array_equal(each.weights, alone.weights)


def test_options_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('epochs = 2\noptimizer = "sgd"\nlr = 0.5\n')
    assert read_config(path) == TrainConfig(epochs=2, optimizer="sgd", lr=0.5)
    for text in ("epochs = 'two'", "epochs = ", "optimizer = 'x'"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_config(path)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_config(tmp_path / "none.toml")
