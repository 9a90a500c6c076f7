"""Write the part of a change that a person accepted, and tell the model what was left out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.ports import Preview, ToolContext, Workspace
from windlass.core.text import truncate

__all__ = ["sha256", "write_part"]

#: Bytes of the difference that the model is told, and of a file that is compared line by line.
MAX_DIFF = 8192
MAX_COMPARED = 256 * 1024


def sha256(data: bytes) -> str:
    """Return the SHA-256 of a file's content in hex."""
    return hashlib.sha256(data).hexdigest()


def write_part(
    previews: Sequence[Preview], accepted: Mapping[str, bytes | None]
) -> Callable[[dict[str, Any], ToolContext], Awaitable[str]]:
    """Return what runs in place of a call: it writes `accepted` (path -> content, None deletes), nothing else.

    A file that is no longer as it was shown is not written: the call ends with ToolError, naming what was.
    """

    async def write(args: dict[str, Any], ctx: ToolContext) -> str:
        del args
        if ctx.workspace is None:
            raise ToolError("This agent has no workspace.", hint="Give it one: Agent(workspace=…).")
        done: list[str] = []
        for preview in previews:
            if preview.path in accepted:
                try:
                    await _write(ctx, ctx.workspace, preview, accepted[preview.path])
                except WorkspaceError as error:
                    written = f" Written before: {', '.join(done)}." if done else " Nothing was written."
                    raise ToolError(f"{error.message}{written}", hint=error.hint) from error
                done.append(preview.path)
        return _told(previews, accepted, done)

    return write


async def _write(ctx: ToolContext, workspace: Workspace, preview: Preview, content: bytes | None) -> None:
    path, before = preview.path, preview.before
    change = await ctx.keep(path, before, content)
    try:
        if content is not None:
            await workspace.write(path, content, expected_sha256="" if before is None else sha256(before))
        elif before is None or await workspace.read(path) != before:
            raise WorkspaceError(f"{path} changed after it was shown.", path=path, hint="Read it again.")
        else:
            await workspace.delete(path)
    except WorkspaceError:
        await ctx.emit(replace(change, status="failed"))
        raise
    await ctx.emit(change)


def _told(previews: Sequence[Preview], accepted: Mapping[str, bytes | None], done: list[str]) -> str:
    left = [preview for preview in previews if accepted.get(preview.path, preview.before) != preview.after]
    text = f"Accepted in part: {', '.join(done)} written as the person wanted it. Read it before you edit it again."
    if left:
        diffs = "\n".join([_difference(each, accepted.get(each.path, each.before)) for each in left])
        text += f"\nLeft out, not accepted:\n{truncate(diffs, MAX_DIFF)}"
    return text


def _difference(preview: Preview, now: bytes | None) -> str:
    before, after = now or b"", preview.after or b""
    if max(len(before), len(after)) > MAX_COMPARED or b"\0" in before + after:
        return f"{preview.path}: too large, or not text, to show"
    old, new = (data.decode("utf-8", "replace").split("\n") for data in (before, after))
    names = f"{preview.path} as it is", f"{preview.path} as proposed"
    return "\n".join(difflib.unified_diff(old, new, *names, lineterm=""))
