"""Adapters as files: PEFT's folder (`adapter_config.json`, `adapter_model.safetensors`) and the engine's GGUF.

PEFT names layers as Hugging Face does and keeps query and key rows in halves instead of pairs (see
`windlass.local.llama`), so the rows of their B change places on the way. Sources:
https://huggingface.co/docs/peft/developer_guides/checkpoint and llama.cpp's src/llama-adapter.cpp.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.convert import halves_to_pairs, hf_name, pairs_to_halves
from windlass.local.gguf import GgufInfo
from windlass.local.gguf_data import GgufFile
from windlass.local.gguf_write import GgufFileWriter
from windlass.local.llama import Llama
from windlass.local.model_files import new_file
from windlass.local.safetensors import SafetensorsFile, write_safetensors
from windlass.training.lora import MATRICES, LoraConfig, LoraLinear, add_lora, lora_layers

__all__ = ["export_lora", "load_lora", "save_lora"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
#: Hugging Face's names of a layer's matrices -> GGUF's, `self_attn.q_proj` -> `attn_q`.
_OURS: Final = {
    hf_name(f"blk.0.{matrix}.weight").split(".0.")[1].removesuffix(".weight"): matrix for matrix in MATRICES
}
#: What PEFT can do and `LoraLinear` cannot -> the values that mean "not used".
_UNUSED: Final[dict[str, tuple[Any, ...]]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []), "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None), "fan_in_fan_out": (False, None), "lora_bias": (False, None),
}  # fmt: skip
_KEY: Final = re.compile(r"base_model\.model\.model\.layers\.(\d{1,6})\.(\w+\.\w+)\.(lora_[AB])\.weight", re.ASCII)
_MOST_CONFIG: Final = 1 << 20
#: An adapter of a layer: A (rank, in) and B (out, rank).
_Pairs = dict[str, tuple[Tensor, Tensor]]


def save_lora(model: Llama, folder: str | os.PathLike[str], *, base: str = "") -> Path:
    """Write the model's adapters into a folder, as PEFT reads them; return the folder.

    `base` is the model's name or path for the reader's `base_model_name_or_path`. Raises ConfigError when the model
    has no adapters, LocalModelError when the folder cannot be written.
    """
    layers = _layers(model)
    where, first = Path(folder), layers[0][1]
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, layer in layers:
        theirs, heads, b = f"{_PREFIX}{_to_hf(name)}", _heads(name, model), _numbers(layer.lora_b)
        tensors[f"{theirs}.lora_A.weight"] = _numbers(layer.lora_a)
        tensors[f"{theirs}.lora_B.weight"] = pairs_to_halves(b, heads) if heads else b
    rank = first.lora_a.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout,
        "target_modules": sorted({_to_hf(name).rpartition(".")[2] for name, _ in layers}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalModelError(f"{where} cannot be made: {error.strerror}.", path=str(where)) from error
    write_safetensors(where / _WEIGHTS, tensors, {"format": "pt"})
    with new_file(where / _CONFIG) as file:
        file.write(msgspec.json.format(msgspec.json.encode(config), indent=2))
    return where


def export_lora(
    model: Llama, path: str | os.PathLike[str], *, dtype: Literal["f32", "f16"] = "f32", name: str = "adapter"
) -> GgufInfo:
    """Write the model's adapters as a GGUF file that the engine puts on the base model (`EngineOptions.adapters`).

    Raises ConfigError when the model has no adapters, LocalModelError when the file cannot be written.
    """
    layers = _layers(model)
    writer = GgufFileWriter("llama")
    writer.add_all({"general.type": "adapter", "general.name": name, "adapter.type": "lora"})
    first = layers[0][1]
    writer.add("adapter.lora.alpha", first.scale * first.lora_a.shape[0], "float32")
    for layer_name, layer in layers:
        for part, tensor in (("lora_a", layer.lora_a), ("lora_b", layer.lora_b)):
            writer.add_tensor(f"{layer_name}.weight.{part}", tensor.shape, dtype.upper(), _numbers(tensor))
    return writer.write(path)


def load_lora(model: Llama, path: str | os.PathLike[str]) -> LoraConfig:
    """Put the adapters of a PEFT folder or of a GGUF file on a model that has none, in place; return their sizes.

    A matrix of a layer that the file leaves out gets an adapter that does nothing. Raises LocalModelError for files
    that are damaged or belong to another model, ConfigError for kinds of adapters that are not plain LoRA.
    """
    where = Path(path)
    if where.is_dir():
        pairs, alpha, dropout = _read_peft(where, model)
    else:
        pairs, alpha, dropout = _read_gguf(where)
    ranks = {a.shape[0] for a, _ in pairs.values()}
    targets = tuple([matrix for matrix in MATRICES if any(name.endswith(f".{matrix}") for name in pairs)])
    if not pairs or len(ranks) != 1:
        raise _wrong(where, "it has adapters of several ranks" if pairs else "it has no adapters of a llama model")
    config = LoraConfig(rank=ranks.pop(), alpha=alpha, dropout=dropout, targets=targets)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, (a, b) in pairs.items():
        if shapes.get(f"{name}.weight") != (b.shape[0], a.shape[1]) or b.shape[1] != config.rank:
            raise _wrong(where, f"{name} does not fit: the model has {shapes.get(f'{name}.weight')}")
    add_lora(model, config)
    with torch.no_grad():
        for name, layer in lora_layers(model):
            if name in pairs:
                layer.lora_a.copy_(pairs[name][0])
                layer.lora_b.copy_(pairs[name][1])
    return config


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()


def _layers(model: Llama) -> list[tuple[str, LoraLinear]]:
    layers = list(lora_layers(model))
    if not layers:
        raise ConfigError("The model has no adapters.", hint="Call add_lora first.")
    return layers


def _to_hf(name: str) -> str:
    return hf_name(f"{name}.weight").removesuffix(".weight")


def _heads(name: str, model: Llama) -> int:
    """Return in how many heads the rows of a matrix turn; 0 where they do not."""
    return {"attn_q": model.config.heads, "attn_k": model.config.kv_heads}.get(name.rpartition(".")[2], 0)


def _read_peft(folder: Path, model: Llama) -> tuple[_Pairs, float, float]:
    try:
        with (folder / _CONFIG).open("rb") as file:
            config = msgspec.json.decode(file.read(_MOST_CONFIG), type=dict[str, Any])
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        dropout = float(config.get("lora_dropout") or 0.0)
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise _wrong(folder, f"its {_CONFIG} cannot be used ({error!r})") from error
    odd = [key for key, plain in _UNUSED.items() if config.get(key, plain[0]) not in plain]
    if config.get("peft_type") != "LORA" or odd:
        said = f"{odd[0]} = {config[odd[0]]!r}" if odd else f"peft_type = {config.get('peft_type')!r}"
        raise ConfigError(f"{folder} is no plain LoRA: {said}.", hint="Merge it into its base with PEFT.")
    if config.get("use_rslora"):
        alpha *= math.sqrt(max(1, rank))
    found: dict[tuple[str, str], Tensor] = {}
    with SafetensorsFile(folder / _WEIGHTS) as file:
        for key in file:
            parts = _KEY.fullmatch(key)
            if parts is None or parts[2] not in _OURS:
                raise _wrong(folder, f"{key!r} is not a part of a llama model's LoRA")
            found[f"blk.{parts[1]}.{_OURS[parts[2]]}", parts[3]] = file.torch(key).float()
    return _paired(folder, found, ("lora_A", "lora_B"), model), alpha, dropout


def _read_gguf(path: Path) -> tuple[_Pairs, float, float]:
    found: dict[tuple[str, str], Tensor] = {}
    with GgufFile(path) as file:
        info = file.info
        if info.text("general.type") != "adapter" or info.text("adapter.type") != "lora":
            raise _wrong(path, "it is a model, not an adapter" if info.tensors else "it is not an adapter")
        if info.architecture != "llama":
            raise _wrong(path, f"it is for the architecture {info.architecture!r}")
        alpha = info.metadata.get("adapter.lora.alpha")
        if not isinstance(alpha, float) or not 0 < alpha < math.inf:
            raise _wrong(path, f"adapter.lora.alpha is {alpha!r}")
        for tensor in info.tensors:
            name, _, part = tensor.name.rpartition(".weight.")
            if len(tensor.dims) != 2 or part not in ("lora_a", "lora_b") or name.rpartition(".")[2] not in MATRICES:
                raise _wrong(path, f"{tensor.name!r} is not a part of a llama model's LoRA")
            found[name, part] = torch.from_numpy(np.array(file.array(tensor.name)))
    return _paired(path, found, ("lora_a", "lora_b"), None), alpha, 0.0


def _paired(path: Path, found: dict[tuple[str, str], Tensor], parts: tuple[str, str], model: Llama | None) -> _Pairs:
    names = sorted({name for name, _ in found})
    pairs: _Pairs = {}
    for name in names:
        a, b = (found.get((name, part)) for part in parts)
        if a is None or b is None or a.dim() != 2 or b.dim() != 2:
            raise _wrong(path, f"{name} has not both of {' and '.join(parts)}")
        if model is not None:
            heads = _heads(name, model)
            if heads and b.shape[0] % (2 * heads):
                raise _wrong(path, f"{name} has {b.shape[0]} rows, not those of {heads} heads")
            b = torch.from_numpy(halves_to_pairs(b.numpy(), heads)) if heads else b
        pairs[name] = a, b
    return pairs


def _wrong(path: Path, problem: str) -> LocalModelError:
    return LocalModelError(
        f"{path} cannot be used as an adapter: {problem}.", path=str(path), hint="Use one made for this model."
    )
