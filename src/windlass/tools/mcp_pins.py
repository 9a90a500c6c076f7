"""Approved definitions (S79): what a tool said of itself when it was taken is what it must still say.

The first definition of a tool is approved by using the server at all, or, with `strict`, by a person. One that changes
later, at a start or while a session runs, is switched off until somebody has looked at the difference.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_files import PrivateFiles

__all__ = ["Change", "Definition", "Pins", "digest"]


class Definition(Struct, frozen=True):
    """What a server says of one tool, as it came."""

    name: str
    description: str
    schema: Any

    def text(self) -> str:
        """Return it in lines, for a difference that people read."""
        schema = msgspec.json.format(msgspec.json.encode(self.schema, order="deterministic"), indent=2).decode()
        return f"name: {self.name}\ndescription: {self.description}\ninput schema: {schema}\n"


class Change(Struct, frozen=True):
    """A tool whose definition is not the approved one: `kind` is changed or new; `diff` is a unified difference."""

    server: str
    tool: str
    kind: str
    diff: str


def digest(definition: Definition) -> str:
    """Return the SHA-256 in hex of name, description and schema."""
    return hashlib.sha256(msgspec.json.encode(definition, order="deterministic")).hexdigest()


class Pins:
    """The approved definitions of servers, kept in `files` (None: only in memory).

    `strict` approves nothing by itself. Raises ConfigError for a file that cannot be read or written.
    """

    def __init__(self, files: PrivateFiles | None, *, strict: bool = False) -> None:
        self._files, self._strict = files, strict
        self._kept: dict[tuple[str, str], dict[str, Any]] = {}

    def _tools(self, server: McpServer) -> dict[str, Any]:
        key = (server.name, server.identity)
        kept = self._kept.get(key)
        if kept is None:
            kept = {} if self._files is None else self._files.read(*key)
            if not isinstance(kept.get("tools"), dict):
                kept["tools"] = {}
            self._kept[key] = kept
        return kept["tools"]

    def check(self, server: McpServer, found: Sequence[Definition]) -> list[Change]:
        """Compare what a server says now; returns what must be switched off, and keeps what is new unless strict."""
        tools = self._tools(server)
        changes: list[Change] = []
        fresh: list[Definition] = []
        for definition in found:
            row: Any = tools.get(definition.name)
            if not isinstance(row, Mapping):
                fresh.append(definition)
            elif row.get("sha256") != digest(definition):
                old = Definition(definition.name, str(row.get("description", "")), row.get("schema"))
                changes.append(Change(server.name, definition.name, "changed", _diff(old, definition)))
        if self._strict:
            changes += [Change(server.name, item.name, "new", _diff(None, item)) for item in fresh]
        elif fresh:
            self.approve(server, fresh)
        return changes

    def approve(self, server: McpServer, definitions: Iterable[Definition]) -> None:
        """Approve definitions as they are now."""
        tools = self._tools(server)
        for item in definitions:
            tools[item.name] = {"sha256": digest(item), "description": item.description, "schema": item.schema}
        if self._files is not None:
            key = (server.name, server.identity)
            self._files.write(*key, {"server": server.name, "identity": server.identity, **self._kept[key]})


def _diff(old: Definition | None, new: Definition) -> str:
    before = [] if old is None else old.text().splitlines(keepends=True)
    lines = difflib.unified_diff(before, new.text().splitlines(keepends=True), "approved", "now", n=2)
    return "".join(lines)
