"""What the SuperLink runs: the first weights, the strategy, and what is done with the last weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federated_flower.options import options
from windlass.training.federated import FederatedConfig, initial_weights, save_weights, server_app


def done(config: Mapping[str, Any], weights: NDArray[np.float32], rounds: Sequence[Mapping[str, Any]]) -> None:
    """Show how the loss fell, and keep the model."""
    for number, metrics in enumerate(rounds, 1):
        print(f"round {number}: loss {metrics['loss']:.3f}")
    if config["out"]:
        save_weights(str(config["out"]), weights)


app = server_app(
    lambda _: initial_weights(options(0)),
    lambda config: FederatedConfig(strategy=config["strategy"]),
    done=done,
)
