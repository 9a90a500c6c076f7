"""What a SuperNode runs: `partition-id` of its --node-config says which rows are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from federated_flower.options import options
from windlass.training.federated import Train, client_app, from_config

torch.set_num_threads(1)  # several nodes share this machine


def make(config: Mapping[str, Any]) -> Train:
    """Return this node's training."""
    return from_config(options(int(config["partition-id"])))


app = client_app(make)
