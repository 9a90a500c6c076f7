"""What the file tools share: finding the workspace, refusing in words, walking folders, saying what changed."""

from __future__ import annotations

import difflib
import functools
import hashlib
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.events import FileChanged
from windlass.core.ports import FileInfo, ToolContext, ToolResult, Workspace

__all__ = [
    "SKIPPED",
    "Refusal",
    "Walk",
    "answers",
    "digest",
    "not_found",
    "parts_below",
    "put",
    "walk",
    "workspace_of",
]

P = ParamSpec("P")

#: Folders that searches do not enter unless they are named: version control and what package managers install.
SKIPPED = frozenset({".git", ".hg", ".svn", ".jj", "node_modules", "__pycache__", ".venv", ".tox", ".mypy_cache"})
MAX_ENTRIES = 50_000
#: Folders between two turns of the event loop: a small listing may come back without waiting.
_BREATH = 16
_NEAR = 3


class Refusal(ToolError):
    """Say to the model why nothing was done; the text is the whole response."""


def answers(function: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
    """Turn a Refusal into the tool's own answer, so that its text is not preceded by `Tool error:`."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return await function(*args, **kwargs)
        except Refusal as refusal:
            return ToolResult(refusal.message, status="error")

    return call


def workspace_of(ctx: ToolContext) -> Workspace:
    """Return the workspace of a call. Raises ToolError when the agent has none."""
    if ctx.workspace is None:
        raise ToolError("This agent has no workspace.", hint="Give it one: Agent(workspace=…).")
    return ctx.workspace


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's content in hex."""
    return hashlib.sha256(data).hexdigest()


async def put(ctx: ToolContext, path: str, data: bytes, before: bytes | None) -> None:
    """Write a file that must still be what was read (`before`; None: not there), and report the change."""
    was = None if before is None else digest(before)
    if ctx.expected.get(path, was or "") != (was or ""):
        raise ToolError(
            f"{path} changed after the change was shown and allowed; nothing was written.", hint="Read it again."
        )
    await workspace_of(ctx).write(path, data, expected_sha256=was or "")
    await ctx.emit(FileChanged(path=path, call_id=ctx.call_id, before=was, after=digest(data)))


async def not_found(ctx: ToolContext, path: str, what: str = "File") -> Refusal:
    """Return `File not found: p`, with the nearest names of the same folder."""
    folder, name = posixpath.split(path.rstrip("/"))
    text = f"{what} not found: {path}"
    try:
        entries = await workspace_of(ctx).list(folder or ".", limit=1000)
    except WorkspaceError:
        return Refusal(text)
    names = {posixpath.basename(entry.path): entry for entry in entries}
    near = difflib.get_close_matches(name[:100], names, n=_NEAR, cutoff=0.6)
    if near:
        text += f". Did you mean {', '.join([posixpath.join(folder, each) for each in near])}?"
    return Refusal(text)


def parts_below(base: str, path: str) -> list[str]:
    """Return the names of `path` below the folder `base`, both as the workspace names them."""
    return (path if base == "." else path.removeprefix(base + "/")).split("/")


class Walk(Struct):
    """What a walk found, sorted by path; `stopped` says why it is not all."""

    entries: list[FileInfo]
    stopped: str = ""


async def walk(
    ctx: ToolContext,
    base: str,
    *,
    depth: int | None,
    keep: Callable[[Sequence[str]], bool],
    seconds: float,
) -> Walk:
    """List what lies below the folder `base` and is kept by `keep(names below base)`, at most `depth` levels deep.

    Links are not followed; folders in SKIPPED are not entered. Bounded by entries and by `seconds`.
    """
    workspace = workspace_of(ctx)
    end = clock.monotonic() + seconds
    found = Walk([])
    waiting, seen, folders = [(base, 1)], 0, 0
    while waiting:
        folder, level = waiting.pop()
        folders += 1
        if folders % _BREATH == 0:
            await clock.sleep(0)
        if clock.monotonic() > end:
            found.stopped = f"stopped after {seconds:g} s"
            break
        entries = await _list(workspace, folder, base, MAX_ENTRIES - seen + 1)
        seen += len(entries)
        for entry in entries:
            parts = parts_below(base, entry.path)
            if keep(parts):
                found.entries.append(entry)
            if entry.kind == "dir" and (depth is None or level < depth) and parts[-1] not in SKIPPED:
                waiting.append((entry.path, level + 1))
        if seen > MAX_ENTRIES:
            found.stopped = f"stopped after {MAX_ENTRIES} entries"
            break
    found.entries.sort(key=lambda entry: entry.path)
    return found


async def _list(workspace: Workspace, folder: str, base: str, limit: int) -> list[FileInfo]:
    try:
        return await workspace.list(folder, depth=1, limit=limit)
    except WorkspaceError:
        if folder == base:
            raise
        return []  # it went away, or may not be read: the rest is still worth having
