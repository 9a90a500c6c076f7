from windlass.training.abi import (
    AbiCheckpoint,
    LlmCheckpoint,
    abi_shapes,
    abi_to_checkpoint,
    abi_to_safetensors,
    read_abi,
    write_abi,
)
from windlass.training.checkpoint import config_of
from windlass.training.config import TrainConfig
from windlass.training.curves import draw
from windlass.training.data import Batch, Place, Row, Source
from windlass.training.describe import describe
from windlass.training.distributed import joined
from windlass.training.documents import ChatFormat
from windlass.training.errors import CheckpointError, TrainingError
from windlass.training.export import export_gguf, export_hf
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge, UnsupportedVersion
from windlass.training.finetune import Base, load_base
from windlass.training.ingest import open_source
from windlass.training.lora import LoraConfig, add_lora, merge_lora, unmerge_lora
from windlass.training.lora_files import export_lora, load_lora, save_lora
from windlass.training.progress import Progress
from windlass.training.release import export_adapter, export_checkpoint
from windlass.training.sources import TextSource, TokenSource
from windlass.training.tokenbin import TokenBin, TokenBinWriter, read_tokens, write_tokens
from windlass.training.tokenizer import Tokenizer
from windlass.training.trainer import Trainer
from windlass.training.vectors_io import Vectors, convert_embeddings, read_embeddings, write_embeddings
from windlass.training.wdbx import Record, WdbxReader
from windlass.training.wdbx_write import WdbxWriter, token_blocks, tokenbin_to_wdbx, wdbx_to_tokenbin

__all__ = [
    "AbiCheckpoint",
    "Base",
    "Batch",
    "ChatFormat",
    "CheckpointError",
    "DataError",
    "InvalidFormat",
    "LlmCheckpoint",
    "LoraConfig",
    "PayloadTooLarge",
    "Place",
    "Progress",
    "Record",
    "Row",
    "Source",
    "TextSource",
    "TokenBin",
    "TokenBinWriter",
    "TokenSource",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "UnsupportedVersion",
    "Vectors",
    "WdbxReader",
    "WdbxWriter",
    "abi_shapes",
    "abi_to_checkpoint",
    "abi_to_safetensors",
    "add_lora",
    "config_of",
    "convert_embeddings",
    "describe",
    "draw",
    "export_adapter",
    "export_checkpoint",
    "export_gguf",
    "export_hf",
    "export_lora",
    "joined",
    "load_base",
    "load_lora",
    "merge_lora",
    "open_source",
    "read_abi",
    "read_embeddings",
    "read_tokens",
    "save_lora",
    "token_blocks",
    "tokenbin_to_wdbx",
    "unmerge_lora",
    "wdbx_to_tokenbin",
    "write_abi",
    "write_embeddings",
    "write_tokens",
]
