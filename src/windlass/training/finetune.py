"""Go on with a model that exists, a GGUF file or a folder of Hugging Face's layout: all of it or adapters (LoRA)."""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec
import torch

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.convert import load_hf
from windlass.local.convert_tokenizer import from_gguf_tokenizer
from windlass.local.gguf_data import GgufFile
from windlass.local.hf_folder import HfFolder
from windlass.local.llama import Llama
from windlass.local.llama_gguf import load_gguf
from windlass.local.model_files import kind_of
from windlass.training.config import TrainConfig
from windlass.training.lora import MATRICES, LoraConfig, add_lora
from windlass.training.tokenizer import Tokenizer

__all__ = ["Base", "adapt", "load_base", "tokenizer_file"]


class Base(NamedTuple):
    """A model to go on with. `tokenizer` is None where it is not byte-level BPE; then `note` says so."""

    model: Llama
    tokenizer: Tokenizer | None
    note: str = ""


def load_base(path: str | os.PathLike[str]) -> Base:
    """Read a llama model, any type of weights, into float32 on the CPU, with its tokenizer. Blocking.

    Raises LocalModelError when it is no model or one that `Llama` cannot be.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        raise LocalModelError(
            f"{path} holds weights alone.", path=os.fspath(path), hint="Name the folder with its config.json."
        )
    if kind == "folder":
        with HfFolder(path) as folder:
            documents = [folder.json(name, missing=True) for name in ("tokenizer.json", "tokenizer_config.json")]
        model = load_hf(path)
    else:
        model, _ = load_gguf(path)
        try:
            documents = list(_documents(path))
        except LocalModelError as error:
            return Base(model, None, f"{error.message} The data must be tokens, or name a tokenizer.")
    if not documents[0]:
        return Base(model, None, f"{path} has no tokenizer.json. The data must be tokens, or name a tokenizer.")
    inside, side = (msgspec.json.encode(document) for document in documents)
    return Base(model, Tokenizer.from_text(inside.decode(), side, os.fspath(path)))


def adapt(model: torch.nn.Module, config: TrainConfig) -> None:
    """Add the adapters that `config.lora_rank` and its like ask for, drawn from `config.seed` alone; 0: none.

    Raises ConfigError for sizes that make no sense and for a model that is no llama.
    """
    if not config.lora_rank:
        return
    if not isinstance(model, Llama):
        raise ConfigError("lora_rank is for llama models.")
    lora = LoraConfig(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=tuple(config.lora_targets) or MATRICES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        add_lora(model, lora)


def tokenizer_file(config: TrainConfig) -> str | None:
    """Return the GGUF file whose tokenizer an export of this run copies key by key, if it was tuned from one."""
    return config.base if config.base and not config.tokenizer and kind_of(config.base) == "gguf" else None


def _documents(path: str | os.PathLike[str]) -> tuple[dict[str, object], dict[str, object]]:
    with GgufFile(path) as file:
        keys = {key: file.value(key) for key in file.info.metadata if key.startswith("tokenizer.")}
    return from_gguf_tokenizer(keys, os.fspath(path))
