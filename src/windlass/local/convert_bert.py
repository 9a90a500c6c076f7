"""Turn a BERT sentence-embedding model (a folder of sentence-transformers' layout) into a GGUF file.

Metadata and tensor names are those of llama.cpp's `bert` architecture (github.com/ggml-org/llama.cpp,
gguf-py/gguf/constants.py). Its tokenizer and ours (`wordpiece`) lower-case every text and strip accents, so that only
uncased models can be converted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.gguf import GgufInfo
from windlass.local.gguf_write import FILE_TYPES, GgufFileWriter
from windlass.local.hf_folder import HfFolder

__all__ = ["BERT_TYPES", "bert_to_gguf"]

#: What the matrices can be written as.
BERT_TYPES: Final = ("F32", "F16", "Q8_0")
#: The parts that make no vector: the head that predicts words, and positions that only count.
_LEFT_OUT: Final = ("pooler.", "cls.", "embeddings.position_ids")
#: Small, and added to sums of 32-bit floats: these are never shortened.
_FULL: Final = ("position_embd.weight", "token_types.weight")
_MAX_LIST: Final = 64 << 20
#: Special tokens -> the key of their id.
_SPECIAL: Final = {
    "[PAD]": "padding", "[UNK]": "unknown", "[CLS]": "bos", "[SEP]": "seperator", "[MASK]": "mask",
}  # fmt: skip
#: Names of pooling, of older and newer folders -> llama.cpp's number.
_POOLING: Final = {"mean_tokens": 1, "mean": 1, "cls_token": 2, "cls": 2, "lasttoken": 3}


def bert_to_gguf(folder: str | os.PathLike[str], path: str | os.PathLike[str], kind: str = "F16") -> GgufInfo:
    """Write the model in `folder` to the GGUF file `path`, whole or not at all, and return its header.

    The matrices become `kind` (F32, F16, Q8_0). Pooling (mean, CLS, last token) comes from the folder. Raises
    LocalModelError for a model that the engine would not run as it is meant, and says why; ConfigError for an unknown
    `kind`.
    """
    if kind not in BERT_TYPES:
        raise ConfigError(f"There is no type {kind!r} for this.", hint=f"Use {', '.join(BERT_TYPES)}.")
    with HfFolder(folder) as source:
        _check(source)
        writer = GgufFileWriter("bert")
        writer.add_all(_described(source))
        writer.add("general.file_type", FILE_TYPES[kind])
        tokens = _vocabulary(source)
        writer.add("tokenizer.ggml.tokens", [_spelled(token) for token in tokens])
        writer.add("tokenizer.ggml.token_type", [_kind_of(token) for token in tokens])
        for token, use in _SPECIAL.items():
            if token in tokens:
                writer.add(f"tokenizer.ggml.{use}_token_id", tokens.index(token))
        _add_tensors(writer, source, kind)
        return writer.write(path)


def _refuse(source: HfFolder, why: str) -> LocalModelError:
    return LocalModelError(f"{source.path} cannot be converted: {why}.", path=str(source.path))


def _check(source: HfFolder) -> None:
    """Raise LocalModelError for what the engine's `bert` would compute otherwise than the model."""
    config = source.config
    if config.get("model_type") != "bert":
        raise _refuse(source, f"its model_type is {config.get('model_type')!r}, not 'bert'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _refuse(source, "its positions are not absolute")
    if config.get("hidden_act", "gelu") not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        raise _refuse(source, f"its activation is {config['hidden_act']!r}, not GELU")
    if not source.json("tokenizer_config.json", missing=True).get("do_lower_case", True):
        raise _refuse(source, "its vocabulary is cased, and every text is lower-cased here")


def _described(source: HfFolder) -> dict[str, Any]:
    def size(key: str, default: int | None = None) -> int:
        value = source.config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise _refuse(source, f"{key} of its config.json is {value!r}")
        return value

    epsilon = source.config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float):
        raise _refuse(source, f"layer_norm_eps of its config.json is {epsilon!r}")
    return {
        "general.name": source.path.resolve().name,
        "bert.context_length": size("max_position_embeddings"),
        "bert.block_count": size("num_hidden_layers"),
        "bert.embedding_length": size("hidden_size"),
        "bert.feed_forward_length": size("intermediate_size"),
        "bert.attention.head_count": size("num_attention_heads"),
        "bert.attention.layer_norm_epsilon": epsilon,
        "bert.attention.causal": False,
        "bert.pooling_type": _pooling(source),
        "bert.vocab_size": size("vocab_size"),
        "tokenizer.ggml.token_type_count": size("type_vocab_size", 2),
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
    }


def _pooling(source: HfFolder) -> int:
    """Return how the model makes one vector of its tokens', as its modules say; the mean where nothing is said."""
    listed = source.path / "modules.json"
    if not listed.is_file():
        return _POOLING["mean"]
    folder = ""
    for module in _listed(source, listed):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            folder = str(module.get("path", ""))
        elif kind not in ("Transformer", "Normalize"):
            raise _refuse(source, f"it has a module {kind[:80]!r}, which a GGUF file cannot hold")
    if not folder or Path(folder).name != folder:
        return _POOLING["mean"]
    config = source.json(f"{folder}/config.json")
    chosen = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    chosen = [name for name in chosen if name != "include_prompt"]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise _refuse(source, f"it pools by {' and '.join(chosen) or 'nothing'}")
    return _POOLING[chosen[0]]


def _listed(source: HfFolder, path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError) as error:
        raise _refuse(source, f"{path.name} cannot be read: {error}") from error


def _vocabulary(source: HfFolder) -> list[str]:
    """Return the tokens by their ids, as many as the model has rows for."""
    listed = source.path / "vocab.txt"
    if listed.is_file() and listed.stat().st_size <= _MAX_LIST:
        tokens = listed.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    else:
        model = source.json("tokenizer.json").get("model")
        if not isinstance(model, dict) or model.get("type") != "WordPiece":
            raise _refuse(source, "it has no WordPiece vocabulary")
        table: dict[str, int] = model["vocab"]
        tokens = sorted(table, key=table.__getitem__)
        if [table[token] for token in tokens] != list(range(len(tokens))):
            raise _refuse(source, "its vocabulary has gaps")
    rows: int = source.config["vocab_size"]
    missing = [name for name in ("[CLS]", "[SEP]", "[UNK]", "[PAD]") if name not in tokens]
    if missing or len(tokens) > rows:
        raise _refuse(source, f"its vocabulary has {f'no {missing[0]}' if missing else f'more than {rows} tokens'}")
    # Some models have more rows than tokens, to fill a block.
    return [*tokens, *[f"[unused_row_{row}]" for row in range(len(tokens), rows)]]


def _spelled(token: str) -> str:
    # The engine marks where a word begins, BERT where it goes on.
    if token in _SPECIAL or _is_unused(token):
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"


def _kind_of(token: str) -> int:
    """Return GGUF's kind of token: normal 1, unknown 2, control 3, unused 5."""
    if token in _SPECIAL:
        return 2 if token == "[UNK]" else 3  # noqa: S105
    return 5 if _is_unused(token) else 1


def _is_unused(token: str) -> bool:
    return token.startswith("[unused") and token.endswith("]")


def _add_tensors(writer: GgufFileWriter, source: HfFolder, kind: str) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, source.config["num_hidden_layers"])
    found: set[str] = set()
    for key in source.names:
        plain = key.removeprefix("bert.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            plain = plain.removesuffix(old) + new if plain.endswith(old) else plain
        if plain.startswith(_LEFT_OUT):
            continue
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise _refuse(source, f"it has a tensor {key[:80]!r}, which BERT has not")
        found.add(name)
        file = source.file(key)
        shape = file.tensor(key).shape
        short = len(shape) > 1 and name not in _FULL
        writer.add_tensor(name, shape, kind if short else "F32", _rows(partial(file.numpy, key)))
    if "token_embd.weight" not in found:
        raise _refuse(source, "it has no word embeddings")


def _rows(read: Callable[[], NDArray[Any]]) -> Callable[[], Iterable[NDArray[Any]]]:
    return lambda: [read().astype(np.float32)]
