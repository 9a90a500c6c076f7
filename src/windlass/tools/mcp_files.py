"""Small private files in the data folder: approved definitions and tokens, one file per server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from windlass.core import json
from windlass.core.errors import ConfigError
from windlass.core.private import replace_private

__all__ = ["PrivateFiles"]

_MAX = 8 << 20
_OTHER = re.compile(r"[^a-zA-Z0-9_-]+")


class PrivateFiles:
    """JSON objects by (name, identity) in a folder of mode 0700, each in a file of mode 0600, replaced whole.

    Reading a broken file raises ConfigError that names it; a missing one is an empty object.
    """

    __slots__ = ("folder",)

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str, identity: str) -> Path:
        """Return the file of one server."""
        digest = hashlib.sha256(f"{name}\0{identity}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.folder / f"{_OTHER.sub('_', name)[:40]}-{digest}.json"

    def read(self, name: str, identity: str) -> dict[str, Any]:
        """Return what is kept."""
        path = self.path(name, identity)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is broken: {error}.", hint="Remove it and approve or log in again.") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{path} holds no object.", hint="Remove it and approve or log in again.")
        return found

    def write(self, name: str, identity: str, data: dict[str, Any]) -> None:
        """Keep `data`, durably. Raises ConfigError."""
        path = self.path(name, identity)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_private(path, json.dumps(data))
        except OSError as error:
            raise ConfigError(f"Cannot write {path}: {error.strerror}.") from error

    def forget(self, name: str, identity: str) -> bool:
        """Remove what is kept; False when there was nothing."""
        try:
            self.path(name, identity).unlink()
        except FileNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("*.json"))) if self.folder.is_dir() else iter(())
