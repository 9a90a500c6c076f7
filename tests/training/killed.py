"""Runs that are killed inside the writing of a checkpoint, each in a fork of this process, which has torch loaded.

It reads lines `FOLDER EPOCHS CALL OUTPUT` and answers each with the child's id and, when it has ended, its exit code.
The child kills itself, as `kill -9` would, at call number CALL of those that change the file system (0: not at all).
Into OUTPUT it writes steps and losses in hexadecimal, to the last bit, and at the end how many such calls there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.rows import Rows, config, llama
from windlass.core.events import TrainStep
from windlass.training import checkpoint
from windlass.training.trainer import Trainer

calls = 0


def counted(function: Callable[..., Any], kill_at: int) -> Callable[..., Any]:
    """Die before the call whose turn it is, or half-way through it where that can be."""

    def call(*args: Any, **kwargs: Any) -> Any:
        global calls
        calls += 1
        if kill_at == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def torn(save: Callable[..., Any], kill_at: int) -> Callable[..., Any]:
    """Write half of a tensor file, then die."""

    def call(tensors: Any, path: Path) -> None:
        global calls
        calls += 1
        save(tensors, path)
        if kill_at == calls:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def train(folder: str, epochs: str, call: str, output: str) -> None:
    """Go on from what is there, or begin."""
    kill_at = int(call)
    lines = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    options = config(
        epochs=int(epochs), checkpoint_path=folder, checkpoint_interval=3, max_checkpoints=2,
        schedule="warmup_cosine", warmup_steps=5, decay_steps=30,
    )  # fmt: skip
    trainer = Trainer(options, model=llama(), source=Rows(), eval_source=Rows(5, shift=1))
    if Path(folder).is_dir() and any(entry.name.startswith("step-") for entry in Path(folder).iterdir()):
        trainer.resume(folder)
    for name in ("fsync", "rename", "mkdir"):
        setattr(os, name, counted(getattr(os, name), kill_at))
    setattr(checkpoint, "save_file", torn(checkpoint.save_file, kill_at))  # noqa: B010
    setattr(shutil, "rmtree", counted(shutil.rmtree, kill_at))  # noqa: B010
    for event in trainer.run():
        if isinstance(event, TrainStep):
            found = [event.metrics["loss"], event.metrics["grad_norm"], event.metrics.get("eval_loss", 0.0)]
            os.write(lines, (" ".join([str(event.step), *[value.hex() for value in found]]) + "\n").encode())
    os.write(lines, f"calls {calls}\n".encode())


def main() -> None:
    """Serve runs until there is nothing to read."""
    torch.set_num_threads(1)
    # What torch loads when it is first used is loaded before the forks.
    list(Trainer(config(max_steps=1), model=llama(), source=Rows()).run())
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            train(*line.split())
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
