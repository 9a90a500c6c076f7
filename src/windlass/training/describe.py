"""Say what a checkpoint is: ours, or one of reference E's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from windlass.core.clock import rfc3339
from windlass.training import checkpoint
from windlass.training.abi import LlmCheckpoint, read_abi

__all__ = ["describe"]


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is known of a checkpoint: a folder of ours (or the newest in it), or a file ABIC or ABLC.

    Keys: `kind` (windlass, ABIC, ABLC), `path`, `step`, `time` (RFC 3339, UTC), `parameters`; for ours also `epoch`,
    `tokens`, `metrics`, `shape`, `source`, `rows`, `config` (options that differ from the defaults), `tokenizer`.
    Sums are verified. Raises CheckpointError or InvalidFormat when it is damaged or no checkpoint.
    """
    where = Path(path).expanduser()
    if where.is_file() and where.name != "state.json":
        return _foreign(where)
    found = checkpoint.read(checkpoint.find(where.parent if where.is_file() else where))
    state = found.state
    usual = msgspec.to_builtins(type(state.config)())
    return {
        "kind": "windlass",
        "path": str(found.path),
        "step": state.step,
        "epoch": state.place.epoch,
        "tokens": state.tokens,
        "time": rfc3339(state.time),
        "parameters": sum([tensor.numel() for tensor in found.model.values()]),
        "metrics": state.metrics,
        "shape": state.shape,
        "source": state.source,
        "rows": state.rows,
        "tokenizer": (found.path / "tokenizer.json").is_file(),
        "config": {
            name: value for name, value in msgspec.to_builtins(state.config).items() if value != usual.get(name)
        },
    }


def _foreign(path: Path) -> dict[str, Any]:
    found = read_abi(path)
    about: dict[str, Any] = {
        "kind": "ABLC" if isinstance(found, LlmCheckpoint) else "ABIC",
        "path": str(path),
        "step": found.step,
        "time": rfc3339(found.timestamp * 1_000_000_000),
        "parameters": len(found.weights),
    }
    if isinstance(found, LlmCheckpoint):
        about |= {"epoch": found.epoch, "tokens": found.tokens, "moments": len(found.first)}
    return about
