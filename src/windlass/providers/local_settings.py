"""The `[providers.local]` table: which model files there are by name, how they are loaded, and how many ask at a time.

[providers.local]
model = "qwen"                      # what `local` alone means: one of `models`, or a file
slots = 4                           # for every model that does not say otherwise
models = { qwen = "~/qwen.gguf", notes = { path = "~/notes.gguf", context = 8192, adapters = ["~/mine.gguf"] } }
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

from msgspec import Struct

from windlass.core.config import Config
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.local.embedded import embedded_model
from windlass.local.engine import Adapter, EngineOptions

__all__ = ["LocalSettings", "ModelSettings", "read_local"]

#: What a model has in common with all others unless it says otherwise, and what is its own.
_COMMON: Final = (
    "slots", "context", "threads", "gpu_layers", "memory_map", "backend", "queue", "idle_seconds", "ignore_memory",
    "load_timeout", "memory",
)  # fmt: skip
_OWN: Final = ("path", "base_url", "api_key", "adapters")
_OPTIONS: Final = ("slots", "context", "threads", "gpu_layers", "memory_map")
#: The least that each number may be.
_LEAST: Final = {"slots": 1, "context": 1, "threads": 1, "gpu_layers": -1, "queue": 0, "memory": 1}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/ -]{0,127}")


class ModelSettings(Struct, frozen=True, kw_only=True):
    """How one model is run.

    `path` is its file, or `base_url` the address of a llama.cpp server that has it (`api_key` is its key). `backend`
    native loads a file in a worker process, server starts a `llama-server` for it. `queue` requests wait for a slot at
    most. `idle_seconds` without a request unload it, None: never. `load_timeout` is in seconds; `memory` caps a worker,
    in bytes; `ignore_memory` loads what needs more memory than is free.
    """

    path: str = ""
    options: EngineOptions = EngineOptions(log=True)
    backend: Literal["native", "server"] = "native"
    base_url: str = ""
    api_key: str = ""
    queue: int = 32
    idle_seconds: float | None = None
    ignore_memory: bool = False
    load_timeout: float = 600.0
    memory: int | None = None


class LocalSettings(Struct, frozen=True, kw_only=True):
    """The models by name; `default` is what stands for no name, the built-in model where it has no path.

    Its settings other than path and adapters are those of files that are named by their path. `default_name` is the
    name of the model that stands for none, where it has one; `slots` is what the table states for all of them, the
    built-in one among them.
    """

    default: ModelSettings = ModelSettings()
    models: dict[str, ModelSettings] = {}
    default_name: str = ""
    slots: int | None = None


def read_local(config: Config) -> LocalSettings:
    """Read the table. Raises ConfigError or UnknownNameError that names the key."""
    settings = config.provider_settings("local")
    table = settings.table
    common = {key: table[key] for key in _COMMON if key in table}
    models: dict[str, ModelSettings] = {}
    given: Any = table.get("models", {})
    if not isinstance(given, Mapping):
        raise ConfigError("[providers.local] models must be a table of names and files.")
    for name, row in cast("Mapping[str, Any]", given).items():
        where = f"[providers.local] models.{name}"
        if name in ("default", "auto", "tiny", embedded_model().profile.name) or not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} is no name for a model.", hint="tiny and default are taken.")
        models[name] = _model(where, {"path": row} if isinstance(row, str) else row, common, config)
    own = {key: table[key] for key in ("base_url", "adapters") if key in table}
    named = settings.model or ""
    if named in models:
        if own:
            raise ConfigError(f"[providers.local] {next(iter(own))} belongs to models.{named}, which `model` names.")
        return LocalSettings(default=models[named], models=models, default_name=named, slots=common.get("slots"))
    own.update({"path": named} if named else {}, **({"api_key": settings.api_key} if settings.api_key else {}))
    if "adapters" in own and not named:
        raise ConfigError("[providers.local] adapters needs a `model` to put them on.")
    default = _model("[providers.local]", own, common, config, pathless=True)
    return LocalSettings(default=default, models=models, slots=common.get("slots"))


def _model(where: str, row: Any, common: Mapping[str, Any], config: Config, *, pathless: bool = False) -> ModelSettings:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} must be the path of a file, or a table.")
    table = cast("Mapping[str, Any]", row)
    for key in table:
        if key not in (*_COMMON, *_OWN):
            raise UnknownNameError(f"key in {where}:", str(key), (*_COMMON, *_OWN))
    values = {**common, **table}
    for key, value in values.items():
        _check(where, key, value)
    path, address = str(values.pop("path", "")), str(values.pop("base_url", "")).rstrip("/").removesuffix("/v1")
    backend = values.pop("backend", None) or ("server" if address else "native")
    if address and (path or backend != "server" or "adapters" in values):
        raise ConfigError(f"{where}: base_url is a server that has its model already.", hint="Give it alone.")
    if not (path or address or pathless):
        raise ConfigError(f"{where} has neither path nor base_url.")
    key = str(values.pop("api_key", ""))
    if key and not address:
        raise ConfigError(f"{where}: api_key is the key of a base_url.")
    options = {name: values.pop(name) for name in _OPTIONS if name in values}
    adapters = tuple([_adapter(where, adapter) for adapter in values.pop("adapters", ())])
    return ModelSettings(
        path=os.path.expanduser(path),  # noqa: PTH111 - "" stays ""
        base_url=address,
        api_key=config.environ.get(key[4:], "") if key.startswith("env:") else key,
        backend=backend,
        options=EngineOptions(log=True, adapters=adapters, **options),
        **values,
    )


def _check(where: str, key: str, value: Any) -> None:
    wanted = ""
    if key in _LEAST:
        if type(value) is not int or value < _LEAST[key]:
            wanted = f"a whole number, at least {_LEAST[key]}"
    elif key in ("idle_seconds", "load_timeout"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            wanted = "a number of seconds above 0"
    elif key in ("memory_map", "ignore_memory"):
        wanted = "" if isinstance(value, bool) else "true or false"
    elif key == "backend":
        wanted = "" if value in ("native", "server") else "native or server"
    elif key == "adapters":
        wanted = "" if isinstance(value, list | tuple) else "a list of files"
    elif not isinstance(value, str) or not value.isprintable() or not value:
        wanted = "text"
    elif key == "base_url" and not value.startswith(("http://", "https://")):
        wanted = "an address that begins with http:// or https://"
    if wanted:
        raise ConfigError(f"{where}: {key} is {value!r}; it must be {wanted}.")


def _adapter(where: str, value: Any) -> Adapter:
    table: Mapping[str, Any] = {"path": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("path"), str) or table.keys() - {"path", "scale"}:
        raise ConfigError(f"{where}: an adapter is a file, or a table of path and scale, not {value!r}.")
    scale = table.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConfigError(f"{where}: the scale of an adapter is {scale!r}; it must be a number.")
    return Adapter(str(Path(table["path"]).expanduser()), float(scale))
