"""The learning rate as a function of the step: five shapes, no state."""

from __future__ import annotations

import math

from windlass.training.config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of the update after `step` updates (0: the first); `lr`, `min_lr` and lengths from `config`.

    - constant: lr
    - cosine: half a cosine from lr at 0 to min_lr at decay_steps
    - warmup_cosine: a line up to lr, reached by the update number warmup_steps, then half a cosine to min_lr at
      decay_steps
    - step: lr x 0.1 after every decay_steps, without a floor
    - polynomial: min_lr + (lr - min_lr)(1 - step / decay_steps)^0.9

    After decay_steps the cosines and the polynomial stay at min_lr. Reference E's cosine is a whole period that begins
    anew, so its rate rises again from half-way on: ours does not.
    """
    kind, top, low = config.schedule, config.lr, config.min_lr
    if kind == "constant":
        return top
    if kind == "step":
        return top * 0.1 ** (step // config.decay_steps)
    begin = config.warmup_steps if kind == "warmup_cosine" else 0
    if step < begin:
        return top * (step + 1) / begin
    progress = min((step - begin) / max(config.decay_steps - begin, 1), 1.0)
    if kind == "polynomial":
        return low + (top - low) * (1 - progress) ** 0.9
    return low + (top - low) * 0.5 * (1 + math.cos(math.pi * progress))
