"""Names to parts: built-in rows, then entry points, then dotted paths.

The built-in rows are data, because scanning entry points costs more than starting Python. One entry-point group per
port (`windlass.providers`, `windlass.tools`, …) is read only when a name is not built in. `pkg.module:attr` works
wherever a name does.
"""

from __future__ import annotations

import importlib
from typing import Any

from windlass.core.config import Config
from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["BUILTIN", "embedder", "load", "make", "model", "names", "provider", "resolve"]

_VENDORS = (
    "openai", "openrouter", "cerebras", "groq", "deepseek", "mistral", "together", "fireworks", "baseten", "cohere",
    "huggingface", "gemini", "llama_cpp", "vllm", "lmstudio", "openai-responses", "codex",
)  # fmt: skip
#: port -> name -> "module:attr". ARCHITECTURE.md lists these arrows, and a test compares the two.
BUILTIN: dict[str, dict[str, str]] = {
    "providers": {
        **dict.fromkeys(_VENDORS, "windlass.providers.vendors:make"),
        "anthropic": "windlass.providers.vendors:make",
        "ollama": "windlass.providers.vendors:make",
        "bedrock": "windlass.providers.vendors:make",
        "local": "windlass.providers.own:make",
        "echo": "windlass.providers.own:make",
        "fault": "windlass.providers.fault:make",
    },
    "tools": {
        name: f"windlass.tools.{module}:{name}"
        for module, names in {
            "files": ("read_file", "write_file", "edit", "multi_edit", "list_files"),
            "search": ("glob", "grep"),
            "shell": ("shell",),
            "patching": ("apply_patch",),
            "todo": ("todo_write",),
            "outline": ("outline",),
            "fileops": ("file",),
            "web": ("web_fetch", "http_request"),
            "basic": ("echo", "utc"),
            "spawn": ("spawn",),
        }.items()
        for name in names
    },
    "toolsets": {
        **{name: f"windlass.tools.toolsets:{name.upper()}" for name in ("files", "basic", "coding", "demo", "none")},
        "web": "windlass.tools.web:WEB",
    },
    "stores": {
        "memory": "windlass.stores.memory:MemoryStore",
        "sqlite": "windlass.stores.sqlite:SqliteStore",
        "remote": "windlass.stores.remote:RemoteStore",
        "filemap": "windlass.stores.filemap:folder",
        "postgresql": "windlass.stores.postgres:PostgresStore",
        "postgres": "windlass.stores.postgres:PostgresStore",
    },
    "capabilities": {
        "skills": "windlass.tools.skills:Skills",
        "mcp": "windlass.tools.mcp:Mcp",
        "memory": "windlass.tools.memory:Memory",
    },
    "embedders": {
        "hashing": "windlass.core.hashing:HashingEmbedder",
    },
    "vectors": {
        "sqlite": "windlass.stores.vectors:VectorStore",
    },
    "workspaces": {
        "memory": "windlass.workspaces.memory:MemoryWorkspace",
        "local": "windlass.workspaces.local:LocalWorkspace",
        "sandbox": "windlass.workspaces.sandbox:SandboxWorkspace",
        "docker": "windlass.workspaces.docker:DockerWorkspace",
        "remote": "windlass.workspaces.remote:connect",
    },
}


def resolve(port: str, name: str) -> Any:
    """Return the object behind `name` for a port.

    Raises UnknownNameError with the nearest known name, or ConfigError when the part cannot be imported.
    """
    target = BUILTIN[port].get(name)
    if target is None and ":" in name and "." in name.split(":", 1)[0]:
        target = name
    if target is not None:
        return load(target)
    if (value := _plugins(port).get(name)) is not None:
        return load(value)
    raise UnknownNameError(port.removesuffix("s"), name, names(port))


def load(target: str) -> Any:
    """Import `pkg.module:attr`. Raises ConfigError that names what is missing."""
    module, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except ImportError as error:
        raise ConfigError(f"Cannot import {target}: {error}.", hint="Is its package installed?") from error
    except AttributeError:
        raise ConfigError(f"{module} has no {attribute}.", hint="Check the part after the colon.") from None
    return value


def names(port: str) -> list[str]:
    """Return every name that a port knows, sorted."""
    return sorted({*_plugins(port), *BUILTIN[port]})


def _plugins(port: str) -> dict[str, str]:
    # By name: the scan's machinery costs more than the rest of this package, and most programs never need it.
    return load("windlass.core.plugins:find")(port)


def make(port: str, spec: Any) -> Any:
    """Return the part that `spec` describes: an object as it is, "name" or "name:argument" made by its factory.

    A workspace that is no name is the path of a folder. Raises UnknownNameError.
    """
    if spec is None or not isinstance(spec, str):
        return spec
    name, colon, argument = spec.partition(":")
    if port == "workspaces" and name not in BUILTIN[port]:
        name, argument, colon = "local", spec, ":"
    factory = resolve(port, name)
    return factory(argument) if colon else factory()


def model(spec: Any, config: Any = None, api_key: str | None = None) -> tuple[Any, str, str]:
    """Return (provider, model id, "provider:model-id") for what a user calls a model.

    An object with `stream` is a provider itself; its `model` attribute, if any, is the id. None and "auto" are the
    configured default, and without one the embedded model; "provider:auto" is that provider's default. For a route the
    provider is the route, and its name stands for the other two. `api_key` wins over every configured key. Raises
    UnknownNameError, MissingKeyError or ConfigError.
    """
    if hasattr(spec, "stream"):
        model_id = str(getattr(spec, "model", "") or "")
        return spec, model_id, f"{spec.name}:{model_id}" if model_id else str(spec.name)
    config = config if config is not None else Config.from_environment()
    full = spec if spec is not None else config.default_model
    if not isinstance(full, str):
        raise ConfigError(f"A model is a string such as 'openai:gpt-4.1-mini' or a provider object, not {spec!r}.")
    name, _, model_id = config.alias(full).partition(":")
    if api_key is not None:
        config = config.with_key(name, api_key)
    if (route := config.routed(full)) is not None:
        return load("windlass.providers.routed:make")(route, config), route, route
    made = provider(name, config)
    if not model_id or model_id.strip().lower() == "auto":
        model_id = str(getattr(made, "default_model", ""))
    return made, model_id, f"{name}:{model_id}" if model_id else name


def embedder(spec: Any, config: Config | None = None) -> tuple[Any, str]:
    """Return (embedder, model id) for "hashing", for "provider:model-id", or for an object with `embed`.

    Raises UnknownNameError, MissingKeyError, FeatureOff where embeddings are switched off, or ConfigError for a
    provider that makes none.
    """
    if not isinstance(spec, str):
        return spec, str(getattr(spec, "model", "") or "")
    config = config if config is not None else Config.from_environment()
    config.require("embeddings")
    if spec.partition(":")[0] in names("embedders"):
        return make("embedders", spec), ""
    name, _, model_id = config.alias(spec).partition(":")
    try:
        made = provider(name, config)
    except UnknownNameError as error:
        raise UnknownNameError("embedder", name, [*names("embedders"), *error.known]) from None
    if not hasattr(made, "embed"):
        raise ConfigError(f"{name} makes no embeddings.", hint="Use an OpenAI-compatible provider, Ollama or local.")
    return made, model_id


def provider(name: str, config: Config) -> Any:
    """Return the provider of that name, made at first use and kept with `config`. Raises as `model`."""
    return config.provider(name, lambda: _provider_factory(name, config)(name, config))


def _provider_factory(name: str, config: Config) -> Any:
    if name in config.user_providers and name not in BUILTIN["providers"]:
        return load("windlass.providers.vendors:make")
    try:
        return resolve("providers", name)
    except UnknownNameError:
        known = [*names("providers"), *config.user_providers]
        raise UnknownNameError("provider", name, known) from None
