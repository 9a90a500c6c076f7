"""What goes wrong while a model is trained."""

from __future__ import annotations

from typing import Any

from windlass.core.errors import WindlassError

__all__ = ["CheckpointError", "TrainingError"]


class TrainingError(WindlassError):
    """Report a run that cannot go on: a loss that is no number, data that does not fit the model.

    `step` is the step that failed (0: before the first), `checkpoint` the newest good checkpoint, if there is one.
    """

    code = "training"

    def __init__(self, message: str, *, step: int = 0, checkpoint: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step, self.checkpoint = step, checkpoint

    def context(self) -> dict[str, Any]:
        """Return step and checkpoint."""
        return {"step": self.step, "checkpoint": self.checkpoint}


class CheckpointError(TrainingError):
    """Report a checkpoint that is not there, damaged, or of another model; `path` names it."""

    code = "checkpoint"

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path

    def context(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": self.path} if self.path else {}
