"""Local training that any process can do: a line through points that only this node has, by gradient descent.

`windlass federate join --train tests.training.federated_toy:train_a` trains on the points of node a.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.training.federated import Trained

F32 = NDArray[np.float32]
SIZE = 3
SAMPLES = {"a": 20, "b": 60}


def points(node: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a node's inputs (n, 3) and targets (n,); both nodes' points lie on nearly the same plane."""
    rng = np.random.default_rng(sum(node.encode()))
    inputs = rng.normal(size=(SAMPLES[node], SIZE))
    return inputs, inputs @ np.array([1.0, -2.0, 0.5]) + rng.normal(scale=0.1, size=SAMPLES[node])


def local(node: str) -> Callable[[F32, int], Trained]:
    """Return the training of a node: five steps of gradient descent; `loss` is that of the weights it got."""
    inputs, targets = points(node)

    def train(weights: F32, number: int) -> Trained:
        # Where the test looks on: how often which round was trained.
        if log := os.environ.get("TOY_LOG"):
            with Path(log).open("a") as file:
                file.write(f"{node} {number}\n")
        # Where the test holds a node: round 1 is not trained before this file is there.
        while number == 1 and (gate := os.environ.get("TOY_GATE")) and not Path(gate).exists():
            time.sleep(0.01)
        vector = weights.astype(np.float64)
        loss = float(np.mean((inputs @ vector - targets) ** 2))
        for _ in range(5):
            vector = vector - 0.1 * 2 / len(targets) * inputs.T @ (inputs @ vector - targets)
        return Trained(vector.astype(np.float32), len(targets), {"loss": loss})

    return train


train_a, train_b = local("a"), local("b")


def offline(rounds: int) -> tuple[F32, list[float]]:
    """Return what `rounds` rounds of weighted averaging over both nodes give, and the loss before each."""
    weights, losses, total = np.zeros(SIZE, np.float32), list[float](), sum(SAMPLES.values())
    for number in range(rounds):
        made = {node: local(node)(weights, number) for node in SAMPLES}
        losses.append(sum(made[node].metrics["loss"] * count for node, count in SAMPLES.items()) / total)
        mean = sum(made[node].weights.astype(np.float64) * (count / total) for node, count in SAMPLES.items())
        weights = np.asarray(mean).astype(np.float32)
    return weights, losses
