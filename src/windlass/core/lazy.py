"""A package's lazy face (PEP 562): a name is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from windlass.core.errors import ConfigError

__all__ = ["face"]


def face(
    package: str, names: Mapping[str, str], extra: str = "", extras: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """Return a `__getattr__` for `package`; `names` maps modules to the names, with spaces, that they give.

    `extra` is what to install when an import fails; `extras` says it by the library that is missing. The function
    raises AttributeError for a name that is not there and ConfigError for one whose libraries are missing.
    """
    where = {name: module for module, listed in names.items() for name in listed.split()}

    def find(name: str) -> Any:
        module = where.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if not extra or (error.name or "").startswith("windlass"):
                raise
            needed = (extras or {}).get((error.name or "").split(".")[0], extra)
            raise ConfigError(
                f"{package}.{name} needs {error.name}, which is not installed.",
                hint=f"pip install 'windlass[{needed}]'",
            ) from error

    return find
