"""Make or tune a local model, checkpoint it, export it."""

from __future__ import annotations

from windlass.core.lazy import face

#: Module -> the names it gives. `__init__.pyi` says the same to type checkers.
_FACE = {
    "windlass.training.abi": (
        "AbiCheckpoint LlmCheckpoint abi_shapes abi_to_checkpoint abi_to_safetensors read_abi write_abi"
    ),
    "windlass.training.checkpoint": "config_of",
    "windlass.training.config": "TrainConfig",
    "windlass.training.curves": "draw",
    "windlass.training.data": "Batch Place Row Source",
    "windlass.training.describe": "describe",
    "windlass.training.distributed": "joined",
    "windlass.training.documents": "ChatFormat",
    "windlass.training.errors": "CheckpointError TrainingError",
    "windlass.training.export": "export_gguf export_hf",
    "windlass.training.files": "DataError InvalidFormat PayloadTooLarge UnsupportedVersion",
    "windlass.training.finetune": "Base load_base",
    "windlass.training.ingest": "open_source",
    "windlass.training.lora": "LoraConfig add_lora merge_lora unmerge_lora",
    "windlass.training.lora_files": "export_lora load_lora save_lora",
    "windlass.training.progress": "Progress",
    "windlass.training.release": "export_adapter export_checkpoint",
    "windlass.training.sources": "TextSource TokenSource",
    "windlass.training.tokenbin": "TokenBin TokenBinWriter read_tokens write_tokens",
    "windlass.training.tokenizer": "Tokenizer",
    "windlass.training.trainer": "Trainer",
    "windlass.training.vectors_io": "Vectors convert_embeddings read_embeddings write_embeddings",
    "windlass.training.wdbx": "Record WdbxReader",
    "windlass.training.wdbx_write": "WdbxWriter token_blocks tokenbin_to_wdbx wdbx_to_tokenbin",
}
__all__ = sorted(name for names in _FACE.values() for name in names.split())  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = face(__name__, _FACE, "train")
