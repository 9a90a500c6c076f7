"""The providers that need no address: the model in this process, and the echo."""

from __future__ import annotations

from windlass.core.config import Config
from windlass.core.ports import Provider
from windlass.providers.echo import EchoProvider
from windlass.providers.local import LocalProvider

__all__ = ["make"]


def make(name: str, config: Config) -> Provider:
    """Make `local` or `echo`; `[providers.local] model` may name the GGUF file that is used by default."""
    if name == "echo":
        return EchoProvider()
    return LocalProvider(config.provider_settings(name).model)
