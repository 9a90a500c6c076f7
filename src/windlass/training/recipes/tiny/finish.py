"""End a run of the recipe whenever it is stopped: lower its rate to nothing over some steps, and write the model file.

`python -m windlass.training.recipes.tiny.finish CHECKPOINTS tiny-1.gguf --steps 600`
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from windlass.core.events import TrainStep
from windlass.local.llama import Llama
from windlass.training import checkpoint
from windlass.training.export import export_gguf
from windlass.training.schedule import learning_rate
from windlass.training.trainer import Trainer

__all__ = ["finish", "main"]


def finish(folder: Path, file: Path, steps: int) -> Trainer:
    """Go on from the newest checkpoint for `steps` steps (0: none) and write the model as Q8_0 under the file's name.

    The learning rate falls from where it is to 0 as half a cosine. Raises CheckpointError.
    """
    state = checkpoint.read(checkpoint.find(folder)).state
    changes: dict[str, Any] = {
        "schedule": "warmup_cosine",
        "lr": learning_rate(state.config, state.step),
        "min_lr": 0.0,
        "warmup_steps": state.step,
        "decay_steps": state.step + max(steps, 1),
        "max_steps": state.step + steps,
        "export_gguf_path": None,
    }
    trainer = Trainer.load(folder, changes=changes)
    if steps:
        with closing(trainer.run()) as events:  # pyright: ignore[reportArgumentType]
            for event in events:
                if isinstance(event, TrainStep) and event.step % 20 == 0:
                    sys.stderr.write(f"step {event.step}, loss {event.metrics['loss']:.4f}\n")
    export_gguf(cast(Llama, trainer.model), trainer.tokenizer, file, dtype="q8_0", name=file.stem)
    return trainer


def main(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="tiny.finish", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=0, help="steps over which the rate falls (default: only write)")
    options = parser.parse_args(args)
    finish(options.folder, options.file, options.steps)
    sys.stdout.write(f"{options.file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
