"""Names to parts: built-in rows, then entry points, then dotted paths.

The built-in rows are data, because scanning entry points costs more than starting Python. One entry-point group per
port (`windlass.providers`, `windlass.tools`, …) is read only when a name is not built in. `pkg.module:attr` works
wherever a name does.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from windlass.core.errors import ConfigError, UnknownNameError

__all__ = ["BUILTIN", "names", "resolve"]

#: port -> name -> "module:attr". ARCHITECTURE.md lists these arrows, and a test compares the two.
BUILTIN: dict[str, dict[str, str]] = {
    "providers": {},
    "tools": {},
    "toolsets": {},
    "stores": {},
    "workspaces": {},
    "sinks": {},
    "presets": {},
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
    for entry in metadata.entry_points(group=f"windlass.{port}"):
        if entry.name == name:
            return load(entry.value)
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
    found = {entry.name for entry in metadata.entry_points(group=f"windlass.{port}")}
    return sorted(found | set(BUILTIN[port]))
