"""What is trained, the same on every node but for the rows: two runs with different seeds draw different ones."""

from __future__ import annotations

from windlass.training import TrainConfig


def options(partition: int) -> TrainConfig:
    """Return the options of the node that holds this part of the data; a round is one epoch."""
    return TrainConfig(
        epochs=1, batch_size=16, sample_count=128 * (partition + 1), lr=0.01, warmup_steps=1, seed=1000 * partition,
        device="cpu",
    )  # fmt: skip
