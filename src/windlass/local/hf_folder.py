"""A model folder of Hugging Face's layout: `config.json`, one or several safetensors files, `tokenizer.json`.

Nothing in it is run and nothing is unpickled: a folder that has only `pytorch_model.bin` is refused.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.llama import LlamaConfig
from windlass.local.safetensors import SafetensorsFile

__all__ = ["HfFolder", "hf_config", "hf_to_llama_config"]

_MAX_CONFIG: Final = 1 << 20
_MAX_JSON: Final = 64 << 20
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Settings that change the computation -> the values with which it is that of `Llama`.
_PLAIN: Final[dict[str, tuple[Any, ...]]] = {
    "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (None,),
    "sliding_window": (None,), "pretraining_tp": (1,), "partial_rotary_factor": (1, 1.0),
}  # fmt: skip
_FAMILIES: Final = ("llama", "mistral")


class HfFolder:
    """An open model folder; `config` is its loaded `config.json`. Use it in a `with` block.

    Every safetensors file is opened and checked at once; tensors are read when they are asked for. Raises
    LocalModelError when something is missing, malformed or not where the index says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        self.config = self.json("config.json", _MAX_CONFIG)
        self._where: dict[str, SafetensorsFile] = {}
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        if not (self.path / _INDEX).exists():
            if not (self.path / _ONE).exists():
                raise LocalModelError(
                    f"{self.path} holds no {_ONE} and no {_INDEX}.",
                    path=str(self.path),
                    hint="Other checkpoints (pytorch_model.bin) are pickled and never opened: save it as safetensors.",
                )
            file = stack.enter_context(SafetensorsFile(self.path / _ONE))
            self._where = dict.fromkeys(file, file)
            return
        mapping = self.json(_INDEX).get("weight_map")
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
            raise self._broken(f"{_INDEX} has no weight_map of names")
        names = sorted(set(mapping.values()))
        for name in names:
            # A name from the file, not a path: it must not lead out of the folder.
            if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name or ":" in name:
                raise self._broken(f"{_INDEX} names {name[:80]!r}, which is not a safetensors file of the folder")
        files = {name: stack.enter_context(SafetensorsFile(self.path / name)) for name in names}
        for tensor, name in mapping.items():
            if tensor not in files[name]:
                raise self._broken(f"{_INDEX} says that {tensor[:80]!r} is in {name}, and it is not")
            self._where[tensor] = files[name]
        listed = sum(len([*file]) for file in files.values())
        if listed != len(mapping):
            raise self._broken(f"its files hold {listed} tensors, {_INDEX} names {len(mapping)}")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @property
    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._where)

    def file(self, name: str) -> SafetensorsFile:
        """Return the open file that holds a tensor. Raises LocalModelError when none does."""
        if name not in self._where:
            raise self._broken(f"it has no tensor {name!r}")
        return self._where[name]

    def json(self, name: str, limit: int = _MAX_JSON, *, missing: bool = False) -> dict[str, Any]:
        """Return a JSON object of the folder; with `missing` an empty one when there is no such file."""
        file = self.path / name
        try:
            with file.open("rb") as opened:
                data = opened.read(limit + 1)
            if len(data) > limit:
                raise self._broken(f"{name} is longer than {limit} bytes")
            loaded: Any = msgspec.json.decode(data)
        except FileNotFoundError as error:
            if missing:
                return {}
            raise self._broken(f"it has no {name}") from error
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise self._broken(f"{name} cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise self._broken(f"{name} is not a JSON object")
        return loaded

    def text(self, name: str) -> str:
        """Return a small text file of the folder, empty when there is none."""
        try:
            with (self.path / name).open("rb") as opened:
                return opened.read(_MAX_CONFIG).decode("utf-8", "replace")
        except OSError:
            return ""  # it is optional

    def llama_config(self) -> LlamaConfig:
        """Return the sizes that `config.json` states. Raises LocalModelError for what `Llama` is not."""
        return hf_to_llama_config(self.config, str(self.path))

    def _broken(self, problem: str) -> LocalModelError:
        return LocalModelError(f"{self.path} is not a usable model folder: {problem}.", path=str(self.path))


def hf_to_llama_config(config: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """Return the sizes that a loaded `config.json` states.

    Raises LocalModelError, naming `where`, for another architecture and for parts that `Llama` has not (biases, scaled
    rotary embeddings, windows of attention, heads of an odd size).
    """

    def wrong(problem: str) -> LocalModelError:
        return LocalModelError(
            f"{where} is not a llama as Windlass has it: {problem}.",
            path=where,
            hint="llama.cpp's convert_hf_to_gguf.py knows more architectures; its GGUF file runs here.",
        )

    if config.get("model_type") not in _FAMILIES:
        raise wrong(f"model_type is {config.get('model_type')!r}, not {' or '.join(_FAMILIES)}")
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise wrong(f"{key} is {str(config[key])[:80]}")
    rope: Any = config.get("rope_parameters") or {}  # where transformers 5 keeps them
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise wrong(f"rope_parameters are {str(rope)[:80]}")

    def number(key: str, default: Any = None) -> Any:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 31:
            raise wrong(f"{key} is {str(value)[:40]}")
        return value

    def whole(key: str, default: Any = None) -> int:
        value = number(key, default)
        if not isinstance(value, int):
            raise wrong(f"{key} is {value}")
        return value

    try:
        found = LlamaConfig(
            vocab_size=whole("vocab_size"),
            width=whole("hidden_size"),
            layers=whole("num_hidden_layers"),
            heads=whole("num_attention_heads"),
            kv_heads=whole("num_key_value_heads", config.get("num_attention_heads")),
            feed_forward=whole("intermediate_size"),
            context=whole("max_position_embeddings", 2048),
            rope_theta=float(number("rope_theta", rope.get("rope_theta", 10000.0))),
            norm_eps=float(number("rms_norm_eps", 1e-6)),
            tied=config.get("tie_word_embeddings") is True,
        )
    except ConfigError as error:
        raise wrong(error.message.rstrip(".")) from error
    if whole("head_dim", found.head_size) != found.head_size:
        raise wrong(f"head_dim is {config['head_dim']}, not {found.head_size}")
    return found


def hf_config(config: LlamaConfig, dtype: str = "float32") -> dict[str, Any]:
    """Return what `config.json` holds for a model of these sizes; `dtype` is torch's name of that of the weights."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "torch_dtype": dtype,
        "use_cache": True,
    }
