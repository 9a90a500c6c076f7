"""Parts of other distributions: entry points, one group per port. Imported only when a name is not built in."""

from __future__ import annotations

from importlib import metadata

__all__ = ["find"]


def find(port: str) -> dict[str, str]:
    """Return name -> "module:attr" of the entry-point group `windlass.PORT`."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=f"windlass.{port}")}
