"""Make or tune a local model, checkpoint it, export it."""

from __future__ import annotations

from windlass.core.lazy import face

#: Module -> the names it gives. `__init__.pyi` says the same to type checkers.
_FACE = {
    "windlass.training.config": "TrainConfig",
    "windlass.training.data": "Batch Place Row Source",
}
__all__ = sorted(name for names in _FACE.values() for name in names.split())  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = face(__name__, _FACE, "train")
