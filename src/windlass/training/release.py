"""Write the model of a checkpoint, or its adapters, as a file; the data it was trained on is not needed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from windlass.core.errors import ConfigError
from windlass.local.llama import Llama, LlamaConfig
from windlass.training import checkpoint
from windlass.training.errors import CheckpointError
from windlass.training.export import Dtype, export_gguf
from windlass.training.finetune import adapt, tokenizer_file
from windlass.training.lora_files import export_lora, save_lora
from windlass.training.tokenizer import Tokenizer

__all__ = ["export_adapter", "export_checkpoint"]


def export_checkpoint(path: str | os.PathLike[str], file: str | os.PathLike[str], *, dtype: Dtype = "f16") -> Path:
    """Write the model of a checkpoint (or of the newest in a folder) to `file`, adapters merged; return its path.

    Raises CheckpointError when the checkpoint is damaged, ConfigError when it holds no llama or no tokenizer,
    LocalModelError when the file cannot be written.
    """
    model, found = _model_of(path)
    tokenizer = Tokenizer.load(found.path) if (found.path / "tokenizer.json").is_file() else None
    export_gguf(model, tokenizer, file, dtype=dtype, tokenizer_of=tokenizer_file(found.state.config))
    return Path(file)


def export_adapter(path: str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Write the adapters of a checkpoint alone: to a `.gguf` file for the engine, else to a folder as PEFT has it.

    Returns the path. Raises CheckpointError when the checkpoint is damaged, ConfigError when it has no adapters,
    LocalModelError when they cannot be written.
    """
    model, found = _model_of(path)
    if Path(file).suffix == ".gguf":
        return Path(export_lora(model, file, name=Path(file).stem).path)
    return save_lora(model, file, base=found.state.config.base or "")


def _model_of(path: str | os.PathLike[str]) -> tuple[Llama, checkpoint.Checkpoint]:
    found = checkpoint.read(checkpoint.find(path))
    if found.state.shape is None:
        raise ConfigError(f"{found.path} holds no llama model; only those can be exported.")
    model = Llama(msgspec.convert(found.state.shape, LlamaConfig))
    adapt(model, found.state.config)
    try:
        model.load_state_dict(found.model)
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{found.path} does not fit its own shape: {text}", path=str(found.path)) from error
    return model, found
