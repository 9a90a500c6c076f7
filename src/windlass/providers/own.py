"""The providers that need no address: the models on this machine, and the echo."""

from __future__ import annotations

from windlass.core.config import Config
from windlass.core.ports import Provider
from windlass.providers.echo import EchoProvider
from windlass.providers.local import LocalProvider
from windlass.providers.local_settings import read_local

__all__ = ["local_provider", "make"]


def make(name: str, config: Config) -> Provider:
    """Make `local` or `echo`. Raises as `local_provider`."""
    return EchoProvider() if name == "echo" else local_provider(config)


def local_provider(config: Config, path: str | None = None, *, any_path: bool = True) -> LocalProvider:
    """Make the provider of the models on this machine, as `[providers.local]` says; `path` is its default model.

    Raises FeatureOff where models on this machine are switched off, ConfigError for a table that is wrong.
    """
    config.require("llm")
    return LocalProvider(path, any_path=any_path, settings=read_local(config))
