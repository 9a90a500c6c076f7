"""What the file tools share: finding the workspace, refusing in words, walking folders, saying what changed."""

from __future__ import annotations

import difflib
import functools
import hashlib
import posixpath
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from msgspec import Struct
from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.ports import FileInfo, ToolContext, ToolResult, Workspace
from windlass.tools.ignore import IGNORE_FILE, MAX_IGNORE_BYTES, Rules, is_ignored, parse_ignore

__all__ = [
    "SKIPPED",
    "Refusal",
    "Walk",
    "answers",
    "digest",
    "not_found",
    "parts_below",
    "put",
    "put_back",
    "remove",
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
    """Write a file that must still be what was read (`before`; None: not there), and report the change.

    Both contents are kept before anything is written, so that the change can be undone whatever happens meanwhile.
    """
    was = None if before is None else digest(before)
    if ctx.expected.get(path, was or "") != (was or ""):
        raise ToolError(
            f"{path} changed after the change was shown and allowed; nothing was written.", hint="Read it again."
        )
    async with _changing(ctx, path, before, data) as workspace:
        await workspace.write(path, data, expected_sha256=was or "")


async def remove(ctx: ToolContext, path: str, before: bytes) -> None:
    """Remove a file that must still be what was read (`before`), and report the change."""
    was = digest(before)
    if ctx.expected.get(path, was) != was:
        raise ToolError(
            f"{path} changed after the change was shown and allowed; nothing was removed.", hint="Read it again."
        )
    async with _changing(ctx, path, before, None) as workspace:
        if await _digest_at(workspace, path) != was:
            raise WorkspaceError(f"{path} was changed by someone else since it was read.", path=path)
        await workspace.delete(path)


async def put_back(ctx: ToolContext, path: str, now: bytes | None, before: bytes | None) -> None:
    """Undo a change that this call made (`now` to `before`; None: no file), and report it."""
    # What a person saw when they allowed the call was the file before it: `expected` says nothing here.
    async with _changing(ctx, path, now, before) as workspace:
        if before is None:
            await workspace.delete(path)
        else:
            await workspace.write(path, before, expected_sha256="" if now is None else digest(now))


@asynccontextmanager
async def _changing(
    ctx: ToolContext, path: str, before: bytes | None, after: bytes | None
) -> AsyncGenerator[Workspace]:
    """Put a change on record, let it be made, and tell of it; one that was refused is taken off the record."""
    workspace = workspace_of(ctx)
    change = await ctx.keep(path, before, after)
    try:
        yield workspace
    except WorkspaceError:
        # Some failures come after the write (its last sync): what was done stays on record as done.
        if await _digest_at(workspace, path) != change.after:
            await ctx.emit(replace(change, status="failed"))
        raise
    await ctx.emit(change)


async def _digest_at(workspace: Workspace, path: str) -> str | None:
    """Return the SHA-256 of what is at `path` now, None for nothing, '' for what cannot be read."""
    try:
        return digest(await workspace.read(path))
    except WorkspaceError as error:
        return None if isinstance(error.__cause__, FileNotFoundError) else ""


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
    """What a walk found, sorted by path; `stopped` says why it is not all, `ignored` counts what rules left out."""

    entries: list[FileInfo]
    stopped: str = ""
    ignored: int = 0


async def walk(
    ctx: ToolContext,
    base: str,
    *,
    depth: int | None,
    keep: Callable[[Sequence[str]], bool],
    seconds: float,
    ignore: bool = False,
) -> Walk:
    """List what lies below the folder `base` and is kept by `keep(names below base)`, at most `depth` levels deep.

    Links are not followed; folders in SKIPPED are not entered. Bounded by entries and by `seconds`. `ignore` leaves out
    what the `.gitignore` files of the workspace name.
    """
    workspace = workspace_of(ctx)
    end = clock.monotonic() + seconds
    found = Walk([])
    seen = folders = 0
    waiting = [(base, 1, await _rules_above(workspace, base) if ignore else ())]
    while waiting:
        folder, level, rules = waiting.pop()
        folders += 1
        if folders % _BREATH == 0:
            await clock.sleep(0)
        if clock.monotonic() > end:
            found.stopped = f"stopped after {seconds:g} s"
            break
        entries = await _list(workspace, folder, base, MAX_ENTRIES - seen + 1)
        seen += len(entries)
        if ignore:
            rules = await _with_rules_of(workspace, folder, entries, rules)
        for entry in entries:
            parts = parts_below(base, entry.path)
            if rules and is_ignored(rules, entry.path.split("/"), folder=entry.kind == "dir"):
                found.ignored += 1
                continue
            if keep(parts):
                found.entries.append(entry)
            if entry.kind == "dir" and (depth is None or level < depth) and parts[-1] not in SKIPPED:
                waiting.append((entry.path, level + 1, rules))
        if seen > MAX_ENTRIES:
            found.stopped = f"stopped after {MAX_ENTRIES} entries"
            break
    found.entries.sort(key=lambda entry: entry.path)
    return found


async def _rules_above(workspace: Workspace, base: str) -> tuple[Rules, ...]:
    """Return the rules of the folders that lead to `base`, from the root on; those of `base` come with its list."""
    names = [] if base == "." else base.split("/")
    found: tuple[Rules, ...] = ()
    for depth in range(len(names)):
        found += await _rules_of(workspace, "/".join([*names[:depth], IGNORE_FILE]), depth)
    return found


async def _with_rules_of(
    workspace: Workspace, folder: str, entries: Sequence[FileInfo], rules: tuple[Rules, ...]
) -> tuple[Rules, ...]:
    for entry in entries:
        if entry.kind == "file" and entry.path.rsplit("/", 1)[-1] == IGNORE_FILE:
            return rules + await _rules_of(workspace, entry.path, 0 if folder == "." else folder.count("/") + 1)
    return rules


async def _rules_of(workspace: Workspace, path: str, depth: int) -> tuple[Rules, ...]:
    try:
        data = await workspace.read(path, limit=MAX_IGNORE_BYTES)
    except WorkspaceError:
        return ()  # there is none, or it may not be read
    rules = parse_ignore(data)
    return ((depth, rules),) if rules else ()


async def _list(workspace: Workspace, folder: str, base: str, limit: int) -> list[FileInfo]:
    try:
        return await workspace.list(folder, depth=1, limit=limit)
    except WorkspaceError:
        if folder == base:
            raise
        return []  # it went away, or may not be read: the rest is still worth having
