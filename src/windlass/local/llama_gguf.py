"""Read a llama-architecture GGUF model into torch: any type of tensor that the `gguf` package can turn into numbers.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The names and the layout of tensors are those of
`windlass.local.llama` already, so that nothing is renamed or permuted.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import torch

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.gguf import GgufInfo
from windlass.local.gguf_data import GgufFile
from windlass.local.llama import Llama, LlamaConfig, rotary

__all__ = ["llama_config", "load_gguf"]

#: Rotary tables are made for this many positions at most, 64 MB for a head of 64.
_MAX_CONTEXT: Final = 131_072
_PER_LAYER: Final = 9
#: What changes the computation and is not in `Llama`: key of the metadata -> the values that mean "not used".
_UNUSED: Final[dict[str, tuple[Any, ...]]] = {
    "expert_count": (0,), "attention.sliding_window": (0,), "rope.scaling.type": ("none",), "rope.scale_linear": (1.0,),
    "attention.causal": (True,), "logit_scale": (1.0, 0.0), "residual_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0), "attention.scale": (0.0,), "use_parallel_residual": (False,),
}  # fmt: skip


def load_gguf(path: str | os.PathLike[str], *, context: int | None = None) -> tuple[Llama, dict[str, Any]]:
    """Return the model in the file, in float32 on the CPU, and its metadata as `read_header` gives them.

    `context` shortens the rotary tables; without it they are the model's own, of at most 131072 positions. Raises
    LocalModelError when the file is no whole llama model or has a part that `Llama` has not (experts, biases, scaled
    rotary embeddings). Blocking; takes 4 bytes per parameter, twice that for the largest tensor.
    """
    with GgufFile(path) as file:
        config = llama_config(file.info, context)
        # On `meta` nothing is drawn at random and no memory taken; the tables are made anew.
        with torch.device("meta"):
            model = Llama(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {tensor.name: tuple(reversed(tensor.dims)) for tensor in file.info.tensors}
        if wanted != found:
            raise _mismatch(file.info, wanted, found)
        try:
            state = {name: torch.from_numpy(_own(file.array(name))) for name in wanted}
        except ConfigError as error:
            raise _error(file.info, str(error).rstrip(".")) from error
        model.load_state_dict(state, assign=True)
        model.cos, model.sin = rotary(config)
        return model.eval(), file.info.metadata


def llama_config(info: GgufInfo, context: int | None = None) -> LlamaConfig:
    """Return the sizes that a header states. Raises LocalModelError when it is not a llama that `Llama` can be."""
    if info.architecture != "llama":
        said = repr(info.architecture) if info.architecture else "not stated"
        raise _error(info, f"its architecture is {said}, not 'llama'")
    for key, plain in _UNUSED.items():
        value = info.metadata.get(f"llama.{key}", plain[0])
        if value not in plain:
            raise _error(info, f"llama.{key} is {value!r}, which the torch model cannot do")
    dims = {tensor.name: tensor.dims for tensor in info.tensors}
    if len(dims.get("token_embd.weight", ())) != 2:
        raise _error(info, "it has no table of token embeddings")
    heads, layers = _whole(info, "attention.head_count"), _whole(info, "block_count")
    if layers * _PER_LAYER > len(info.tensors):
        raise _error(info, f"{layers} layers cannot be made of {len(info.tensors)} tensors")
    length = _whole(info, "context_length")
    try:
        config = LlamaConfig(
            vocab_size=dims["token_embd.weight"][1],
            width=_whole(info, "embedding_length"),
            layers=layers,
            heads=heads,
            kv_heads=_whole(info, "attention.head_count_kv", heads),
            feed_forward=_whole(info, "feed_forward_length"),
            context=min(length, context or length, _MAX_CONTEXT),
            rope_theta=_number(info, "rope.freq_base", 10000.0),
            norm_eps=_number(info, "attention.layer_norm_rms_epsilon", None),
            tied="output.weight" not in dims,
        )
    except ConfigError as error:
        raise _error(info, str(error).rstrip(".")) from error
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        size = _whole(info, key, config.head_size)
        if size != config.head_size:
            raise _error(info, f"llama.{key} is {size}, which the torch model only does at {config.head_size}")
    return config


def _own(array: Any) -> Any:
    """Return an array that may be written to: what was read from a file may share its bytes."""
    return array if array.flags.writeable else array.copy()


def _mismatch(info: GgufInfo, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> LocalModelError:
    more, less = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
    if less:
        return _error(info, f"{len(less)} tensors are missing, such as {less[0]!r}")
    if more:
        return _error(info, f"it has tensors that the torch model has not, such as {more[0]!r}")
    name = next(name for name in wanted if wanted[name] != found[name])
    return _error(info, f"tensor {name!r} is {found[name]}, not {wanted[name]}")


def _whole(info: GgufInfo, key: str, default: int | None = None) -> int:
    value = info.metadata.get(f"llama.{key}", default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise _error(info, f"llama.{key} is {value!r}, not a whole number above 0")
    return value


def _number(info: GgufInfo, key: str, default: float | None) -> float:
    value = info.metadata.get(f"llama.{key}", default)
    # What is not a number is not above 0 either.
    if not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _error(info, f"llama.{key} is {value!r}, not a number above 0")
    # The shortest number that is this float32: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value)))


def _error(info: GgufInfo, problem: str) -> LocalModelError:
    return LocalModelError(
        f"{info.path} cannot be read as a llama model: {problem}.",
        path=info.path,
        hint="Run it with the engine (`local:PATH`) instead, or use another file.",
    )
