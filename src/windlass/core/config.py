"""Settings: files, environment and flags, each value with its origin."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Config"]


class Config:
    """The settings of a process."""

    def __init__(self, values: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.values = dict(values or {})
        self.environ = os.environ if environ is None else environ
        self.user_providers: dict[str, Any] = dict(self.values.get("providers", {}))
        self._made: dict[str, Any] = {}

    @classmethod
    def from_environment(cls) -> Config:
        """Return the settings that environment variables give; no file is read."""
        return cls()

    @property
    def default_model(self) -> str:
        """The model used where none is named."""
        return str(self.values.get("model") or self.environ.get("WINDLASS_MODEL") or "local")

    def alias(self, name: str) -> str:
        """Return the model that a route's name stands for."""
        return name

    def provider(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the provider of that name, made at first use."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
