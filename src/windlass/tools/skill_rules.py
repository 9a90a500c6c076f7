"""What a skill's `allowed-tools` permits: a narrowing of the tools the agent has, never a widening.

The names are those that skills are written with (`Bash`, `Read`) or an agent's own. What cannot be judged is not
allowed. A pattern such as `Bash(git:*)` is no boundary, since git itself can run other programs; the workspace is one.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.ports import Workspace
from windlass.tools.aliases import CLAUDE_ALIASES
from windlass.tools.globs import NameFilter

__all__ = ["Allowed", "AllowedError", "parse_allowed", "refusal", "split_outside"]

#: A skill's name for a tool -> our tools of that kind.
_TOOLS: dict[str, tuple[str, ...]] = {
    **{theirs: (ours,) for ours, theirs in CLAUDE_ALIASES.items()},
    "Shell": ("shell",),
    "Edit": ("edit", "multi_edit"),
    "MultiEdit": ("multi_edit",),
    "List": ("list_files",),
    "Agent": ("spawn",),
    "WebFetch": ("web_fetch", "fetch"),
    "WebSearch": ("web_search",),
    "NotebookEdit": ("notebook_edit",),
}
_ENTRY = re.compile(r"(?P<tool>[A-Za-z0-9_.*-]+)(?:\((?P<pattern>.*)\))?", re.DOTALL)
#: What makes more than one plain command of a line, outside quotes; the second, what still acts in double quotes.
_ACTS = frozenset(";&|<>()$`\\\n\r{}#!")
_ACTS_QUOTED = frozenset("$`\\\n\r")
_BLANKS = re.compile(r"[ \t]+")


class AllowedError(ValueError):
    """Say which entry of an allowed-tools list cannot be read."""


class Allowed(Struct, frozen=True):
    """One entry: the tools it names (shell-style patterns), and what their argument must match (None: anything)."""

    text: str
    tools: tuple[str, ...]
    pattern: str | None = None


def split_outside(text: str, separators: str, opening: str, closing: str) -> list[str]:
    """Split at any of `separators` that is not between brackets; empty pieces are left out. Raises ValueError."""
    out, piece, depth = list[str](), "", 0
    for char in text:
        depth += (char == opening) - (char == closing)
        if depth < 0:
            raise ValueError(f"a {closing} without its {opening}")
        if char in separators and not depth:
            out.append(piece)
            piece = ""
        else:
            piece += char
    if depth:
        raise ValueError(f"a {opening} that is never closed")
    return [each.strip() for each in [*out, piece] if each.strip()]


def parse_allowed(value: str | Sequence[str]) -> tuple[Allowed, ...]:
    """Read `Bash(git:*) Read`, with blanks or commas between, or a list of entries. Raises AllowedError."""
    entries: list[str] = []
    for text in [value] if isinstance(value, str) else value:
        try:
            entries += split_outside(text, " ,\t\n", "(", ")")
        except ValueError as error:
            raise AllowedError(f"allowed-tools has {error}: {text!r:.100}") from None
    return tuple([_entry(text) for text in entries])


def _entry(text: str) -> Allowed:
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise AllowedError(f"allowed-tools: {text!r:.100} is no tool, nor a tool with a pattern in parentheses")
    name, pattern = found["tool"], found["pattern"]
    server = name.removeprefix("mcp__")
    names = ("mcp_" + server.replace("__", "_", 1),) if server != name else _TOOLS.get(name, (name,))
    return Allowed(text, names, pattern if pattern not in ("", "*") else None)


async def refusal(
    allowed: Sequence[Allowed], tool: str, args: Mapping[str, Any], workspace: Workspace | None
) -> str | None:
    """Return why a call is not among what is allowed, None when it is. `tool` is its own name, not an alias."""
    entries = [each for each in allowed if any(fnmatch.fnmatchcase(tool, name) for name in each.tools)]
    if not entries:
        return f"{tool} is not one of its tools"
    for entry in entries:
        if entry.pattern is None or await _fits(entry.pattern, tool, args, workspace):
            return None
    return f"this call is not what it allows: {', '.join([each.text for each in entries])}"


async def _fits(pattern: str, tool: str, args: Mapping[str, Any], workspace: Workspace | None) -> bool:
    if tool == "shell":
        return _command_fits(pattern, args.get("command"))
    path = args.get("path")
    if not isinstance(path, str) or not path:
        return False
    try:
        names = await _real_names(path, workspace)
        # A pattern that begins with a slash or a dot means the workspace's root.
        return names is not None and NameFilter(re.sub(r"^(?:\./|/+)", "", pattern)).keeps(names)
    except (WorkspaceError, ToolError):
        return False


async def _real_names(path: str, workspace: Workspace | None) -> list[str] | None:
    """Return the names of a path below the workspace's root, links followed where the workspace can say so."""
    real = getattr(workspace, "real_path", None)
    if real is not None:
        path = await real(path)
    elif path.startswith("/"):
        return None
    clean = posixpath.normpath(path)
    return None if clean == ".." or clean.startswith(("../", "/")) else clean.split("/")


def _command_fits(pattern: str, command: Any) -> bool:
    if not isinstance(command, str) or not _plain(command):
        return False
    words = _BLANKS.sub(" ", command.strip())
    start = pattern.removesuffix(":*") if pattern.endswith(":*") else pattern.removesuffix(" *")
    start = _BLANKS.sub(" ", start.strip())
    if start != _BLANKS.sub(" ", pattern.strip()):
        return bool(start) and "*" not in start and (words == start or words.startswith(f"{start} "))
    return "*" not in pattern and words == start


def _plain(command: str) -> bool:
    """Tell whether a line is one command that a shell neither expands, redirects nor goes on from."""
    quote = ""
    for char in command:
        if quote:
            if char == quote:
                quote = ""
            elif quote == '"' and char in _ACTS_QUOTED:
                return False
        elif char in "'\"":
            quote = char
        elif char in _ACTS:
            return False
    return not quote and "\0" not in command
