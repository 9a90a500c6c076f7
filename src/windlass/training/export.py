"""Write a trained model where others read it: a GGUF file for engines, a folder for Hugging Face's libraries.

In F32 the engine computes the same logits as torch to 1e-5; F16, BF16 and the quantised types round the matrices, never
the norms. Adapters are merged on the way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.convert import hf_name, pairs_to_halves, write_llama
from windlass.local.convert_tokenizer import to_gguf_tokenizer
from windlass.local.gguf import GgufArray, GgufInfo
from windlass.local.gguf_data import GgufFile
from windlass.local.hf_folder import hf_config
from windlass.local.llama import Llama
from windlass.local.model_files import new_file
from windlass.local.safetensors import write_safetensors
from windlass.training.lora import merged_state
from windlass.training.tokenizer import Tokenizer

__all__ = ["Dtype", "export_gguf", "export_hf"]

Dtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


def export_gguf(
    model: Llama,
    tokenizer: Tokenizer | None,
    path: str | os.PathLike[str],
    *,
    dtype: Dtype = "f16",
    name: str = "",
    chat_template: str | None = None,
    tokenizer_of: str | os.PathLike[str] | None = None,
    extra_metadata: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> GgufInfo:
    """Write the model to `path`, whole and at once; return the file's header. Blocking.

    `dtype` is that of the matrices (F16 where the blocks of 32 of a quantised type do not divide their rows); `name`
    becomes `general.name` (empty: the file's own). The tokenizer is `tokenizer`, or that of the GGUF file
    `tokenizer_of`, copied key by key; `chat_template` (Jinja) replaces its own. `extra_metadata` adds keys or replaces
    the tokenizer's. `state` are the model's tensors where it does not hold them itself (see `merged_state`).

    Raises ConfigError for a tokenizer that has more tokens than the model and for weights that are not finite,
    LocalModelError for a tokenizer that llama.cpp does not know and when the file cannot be written.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"{dtype!r} is no type to export to.", hint=f"One of {', '.join(get_args(Dtype))}.")
    size = model.config.vocab_size
    if tokenizer_of is not None:
        keys = _tokenizer_keys(tokenizer_of, size)
    elif tokenizer is None:
        raise ConfigError("A model without a tokenizer cannot be exported.", hint="Give tokenizer= or tokenizer_of=.")
    elif tokenizer.vocab_size > size:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model {size}.", hint="Give the model's own."
        )
    else:
        inside, side = (msgspec.json.decode(data) for data in tokenizer.files().values())
        keys = to_gguf_tokenizer(inside, side, size)
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    metadata = {"general.type": "model", "general.name": name or Path(path).stem, **keys, **(extra_metadata or {})}
    # An empty list has no type, and no merges are no key.
    metadata = {key: value for key, value in metadata.items() if value != []}
    return write_llama(path, model.config, _arrays(model, state), kind=dtype.upper(), metadata=metadata)


def export_hf(
    model: Llama,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write the model as a folder that `transformers` and `load_hf` read, in float32; return the folder.

    `config.json`, `model.safetensors`, and the tokenizer's two files if there is one. Raises ConfigError for weights
    that are not finite, LocalModelError when it cannot be written.
    """
    where, config = Path(folder), model.config
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, array in _arrays(model).items():
        turned = heads.get(name.split(".")[-2], 0)
        tensors[hf_name(name)] = pairs_to_halves(array, turned) if turned else array
    texts = {"config.json": msgspec.json.format(msgspec.json.encode(hf_config(config)), indent=2)}
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalModelError(f"{where} cannot be made: {error.strerror}.", path=str(where)) from error
    for file_name, data in (texts | (tokenizer.files() if tokenizer else {})).items():
        with new_file(where / file_name) as file:
            file.write(data)
    write_safetensors(where / "model.safetensors", tensors, {"format": "pt"})
    return where


def _arrays(model: Llama, state: Mapping[str, Tensor] | None = None) -> dict[str, NDArray[np.float32]]:
    """Return the weights by GGUF's names, adapters merged. Raises ConfigError for what is not finite."""
    merged = merged_state(model, state)
    arrays = {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in merged.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ConfigError(f"{name} holds infinities or what is not a number.", hint="Export an earlier checkpoint.")
    return arrays


def _tokenizer_keys(path: str | os.PathLike[str], size: int) -> dict[str, Any]:
    with GgufFile(path) as file:
        tokens = file.info.metadata.get("tokenizer.ggml.tokens")
        count = tokens.count if isinstance(tokens, GgufArray) else 0
        if count != size:
            raise ConfigError(f"{path} has {count} tokens, the model {size}.", hint="Name the model it was tuned from.")
        return {key: file.value(key) for key in file.info.metadata if key.startswith("tokenizer.")}
