"""Models of the llama family from Hugging Face's layout to GGUF and back.

The two layouts differ in names and in one thing more: GGUF's llama turns *neighbouring* numbers of a head together
(GGML's NORMAL order, as Meta's own files), Hugging Face's the two *halves* of a head, so that the rows of the query and
key matrices are in another order. Tensors go through one by one; a large model needs the memory of its largest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.convert_tokenizer import from_gguf_tokenizer, to_gguf_tokenizer
from windlass.local.gguf import GgufInfo
from windlass.local.gguf_data import GgufFile, from_float
from windlass.local.gguf_write import FILE_TYPES, GgufFileWriter, Rows
from windlass.local.hf_folder import HfFolder, hf_config
from windlass.local.llama import Llama, LlamaConfig
from windlass.local.llama_gguf import llama_config
from windlass.local.model_files import new_file
from windlass.local.safetensors import LazyTensor, SafetensorsInfo, write_safetensors

__all__ = [
    "WRITTEN_TYPES",
    "gguf_to_hf",
    "halves_to_pairs",
    "hf_name",
    "hf_to_gguf",
    "llama_metadata",
    "llama_shapes",
    "load_hf",
    "pairs_to_halves",
    "write_llama",
]

HfType = Literal["F32", "F16", "BF16"]
#: Types that matrices can be written as without the engine.
WRITTEN_TYPES: Final = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
_TORCH_NAMES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCK: Final = 32

_OUTER: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER: Final = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
#: Numbers in old folders that are computed, not learnt.
_COMPUTED: Final = re.compile(r"(?:model\.layers\.\d+\.self_attn\.)?(?:model\.)?rotary_emb\.inv_freq")

Progress = Callable[[int, int], object]


def halves_to_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return the rows (heads * size, ...) of a query or key matrix of Hugging Face's order in GGUF's order."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def pairs_to_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return the rows (heads * size, ...) of a query or key matrix of GGUF's order in Hugging Face's order."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def llama_metadata(config: LlamaConfig) -> dict[str, Any]:
    """Return the `llama.*` keys of GGUF for these sizes; `llama_gguf.llama_config` reads them back."""
    return {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.context,
        "llama.embedding_length": config.width,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.feed_forward,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_size,
        "llama.rope.freq_base": config.rope_theta,
    }


def write_llama(
    path: str | os.PathLike[str],
    config: LlamaConfig,
    tensors: Mapping[str, Rows],
    *,
    kind: str = "F16",
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> GgufInfo:
    """Write a llama model as GGUF.

    `tensors` are by GGUF's names, in GGUF's order of rows, as arrays or functions that
    yield rows; all that `config` asks for must be there and nothing else. `kind`, one of `WRITTEN_TYPES`, is for the
    matrices (F16 where blocks do not divide the rows); norms are F32. `metadata` adds keys: the name, the tokenizer.

    Raises ConfigError for tensors that are missing or not of the model, LocalModelError when it cannot be written.
    """
    if kind not in WRITTEN_TYPES:
        raise UnknownNameError("tensor type", kind, WRITTEN_TYPES)
    shapes = llama_shapes(config)
    if shapes.keys() != tensors.keys():
        less, more = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        raise ConfigError(f"The model's tensors are not those of its sizes: missing {less[:3]}, unknown {more[:3]}.")
    writer = GgufFileWriter("llama")
    writer.add_all(metadata or {})
    for key, value in llama_metadata(config).items():
        writer.add(key, value, "float32" if isinstance(value, float) else "uint32")
    writer.add("general.file_type", FILE_TYPES[kind], "uint32")
    writer.add("general.quantization_version", 2, "uint32")
    for name, shape in shapes.items():
        divided = kind in _TORCH_NAMES or shape[-1] % _BLOCK == 0
        writer.add_tensor(name, shape, "F32" if len(shape) == 1 else kind if divided else "F16", tensors[name])
    return writer.write(path, progress=progress)


def llama_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model by GGUF's names, with their shapes, the outermost dimension first."""
    keys = config.kv_heads * config.head_size
    wide, inner = config.width, config.feed_forward
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (wide,),
        "attn_q.weight": (wide, wide),
        "attn_k.weight": (keys, wide),
        "attn_v.weight": (keys, wide),
        "attn_output.weight": (wide, wide),
        "ffn_norm.weight": (wide,),
        "ffn_gate.weight": (inner, wide),
        "ffn_up.weight": (inner, wide),
        "ffn_down.weight": (wide, inner),
    }
    blocks = {f"blk.{n}.{name}": shape for n in range(config.layers) for name, shape in layer.items()}
    ends = {} if config.tied else {"output.weight": (config.vocab_size, wide)}
    return {"token_embd.weight": (config.vocab_size, wide), **blocks, "output_norm.weight": (wide,), **ends}


def hf_to_gguf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    kind: str = "F16",
    name: str = "",
    progress: Progress | None = None,
) -> GgufInfo:
    """Turn a folder of Hugging Face's layout (llama or mistral, one or several safetensors files) into a GGUF file.

    `kind` is one of `WRITTEN_TYPES`; `name` becomes `general.name` (empty: the folder's). The tokenizer must be
    byte-level BPE. Blocking. Raises LocalModelError for what cannot be converted faithfully, and says why.
    """
    with HfFolder(folder) as source:
        config = source.llama_config()
        metadata: dict[str, Any] = {
            "general.type": "model",
            "general.name": name or source.path.resolve().name,
            **_tokenizer_keys(source, config.vocab_size),
        }
        tensors = {name: partial(_from_hf, source, name, config) for name in _checked(source, config)}
        return write_llama(path, config, tensors, kind=kind.upper(), metadata=metadata, progress=progress)


def load_hf(folder: str | os.PathLike[str]) -> Llama:
    """Return the model in a folder of Hugging Face's layout, in float32 on the CPU. Raises as `hf_to_gguf`."""
    with HfFolder(folder) as source:
        config = source.llama_config()
        shapes = _checked(source, config)
        model = Llama(config)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, shape in shapes.items():
                rows = np.concatenate([np.atleast_2d(part) for part in _from_hf(source, name, config)])
                weights[name].copy_(torch.from_numpy(rows.astype(np.float32)).reshape(shape))
        return model.eval()


def gguf_to_hf(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, kind: HfType = "BF16"
) -> SafetensorsInfo:
    """Turn a llama GGUF file of any type into a folder of Hugging Face's layout, which is made when it is missing.

    `config.json`, `model.safetensors` with weights of `kind`, and for byte-level BPE `tokenizer.json` and
    `tokenizer_config.json`. Returns the header of the weights. Blocking. Raises LocalModelError for a model or
    tokenizer that has no such form, ConfigError for weights that `kind` cannot hold.
    """
    if kind not in _TORCH_NAMES:
        raise UnknownNameError("tensor type", kind, _TORCH_NAMES)
    target = Path(folder)
    with GgufFile(path) as file:
        config = llama_config(file.info)
        shapes = llama_shapes(config)
        found = {tensor.name: tensor.dims[::-1] for tensor in file.info.tensors}
        if found != shapes:
            odd = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
            raise LocalModelError(f"{path} is no plain llama: see its tensors {odd[:3]}.", path=os.fspath(path))
        wanted = [key for key in file.info.metadata if key.startswith("tokenizer.")]
        texts = from_gguf_tokenizer({key: file.value(key) for key in wanted}, os.fspath(path)) if wanted else ({}, {})
        documents = {"config.json": _config_document(config, kind, file.info, texts[1])}
        if wanted:
            documents |= {"tokenizer.json": texts[0], "tokenizer_config.json": texts[1]}
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalModelError(f"{target} cannot be made: {error.strerror}.", path=str(target)) from error
        for document, value in documents.items():
            with new_file(target / document) as written:
                written.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        tensors = {
            hf_name(name): LazyTensor(kind, shape, partial(_to_hf, file, name, config, kind))
            for name, shape in shapes.items()
        }
        return write_safetensors(target / "model.safetensors", tensors, {"format": "pt"})


def hf_name(name: str) -> str:
    """Return Hugging Face's name of a tensor, given GGUF's."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_INNER[rest]}"


def _checked(source: HfFolder, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the model's tensors after comparing them with those of the folder."""
    shapes = llama_shapes(config)
    known = {hf_name(name) for name in shapes}
    # Some folders keep the output matrix although it is the embedding.
    extra = {name for name in source.names if name not in known and not _COMPUTED.fullmatch(name)}
    extra -= {"lm_head.weight"} if config.tied else set()
    if extra:
        raise LocalModelError(
            f"{source.path} has tensors that no llama has, such as {min(extra)!r}.", path=str(source.path)
        )
    for name, shape in shapes.items():
        given = source.file(hf_name(name)).tensor(hf_name(name)).shape
        if given != shape:
            raise LocalModelError(
                f"The tensor {hf_name(name)!r} of {source.path} is {given}, not {shape}.", path=str(source.path)
            )
    return shapes


def _heads(name: str, config: LlamaConfig) -> int:
    """Return how many heads' rows are to be put in another order; 0 for other tensors."""
    if name.endswith(".attn_q.weight"):
        return config.heads
    return config.kv_heads if name.endswith(".attn_k.weight") else 0


def _from_hf(source: HfFolder, name: str, config: LlamaConfig) -> Iterable[NDArray[Any]]:
    file, heads = source.file(hf_name(name)), _heads(name, config)
    if heads:
        return [halves_to_pairs(file.numpy(hf_name(name)), heads)]
    return file.rows(hf_name(name))


def _to_hf(file: GgufFile, name: str, config: LlamaConfig, kind: str) -> Iterator[NDArray[Any]]:
    heads = _heads(name, config)
    pieces = [pairs_to_halves(file.array(name), heads)] if heads else file.floats(name)
    for piece in pieces:
        yield from_float(piece, kind)


def _tokenizer_keys(source: HfFolder, vocab_size: int) -> dict[str, Any]:
    settings = source.json("tokenizer_config.json", missing=True)
    template = source.text("chat_template.jinja")
    if template:
        settings = {**settings, "chat_template": template}
    keys = to_gguf_tokenizer(source.json("tokenizer.json"), settings, vocab_size, str(source.path))
    for role, name in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        number = source.config.get(name)
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < vocab_size:
            keys.setdefault(f"tokenizer.ggml.{role}_token_id", number)
    return keys


def _config_document(config: LlamaConfig, kind: str, info: GgufInfo, settings: dict[str, Any]) -> dict[str, Any]:
    document = hf_config(config, _TORCH_NAMES[kind])
    if settings:
        for role, name in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
            number = info.metadata.get(f"tokenizer.ggml.{role}_token_id")
            document |= {name: number} if isinstance(number, int) else {}
    return document
