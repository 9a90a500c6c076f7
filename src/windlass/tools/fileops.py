"""Reference B's `file` tool: one tool for what else is done with files and folders.

It works on the workspace's port alone, so it does the same in memory and on disk. Contents are written atomically; a
copied or moved file has the mode that new files have. The mode of a file that may be written is changed where the
workspace has a shell.
"""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from windlass.core import clock
from windlass.core.ports import FileInfo, ToolContext, ToolResult, Workspace
from windlass.tools.access import Refusal, digest, not_found, workspace_of
from windlass.tools.builtin import Change, Plan, changing, path_of
from windlass.tools.reading import check_read

__all__ = ["file"]

MAX_FILE = 16 * 1024 * 1024
Operation = Literal["create", "append", "delete", "copy", "move", "mkdir", "rmdir", "exists", "stat", "chmod"]


class _Call:
    """The arguments of one call."""

    def __init__(self, ctx: ToolContext, path: str, content: str, destination: str, mode: str) -> None:
        self.ctx, self.path, self.content, self.destination, self.mode = ctx, path, content, destination, mode

    @property
    def workspace(self) -> Workspace:
        return workspace_of(self.ctx)

    async def existing(self) -> FileInfo:
        """Return the file at `path`. Raises Refusal for a folder or nothing."""
        info = await self.workspace.stat(self.path)
        if info is None:
            raise await not_found(self.ctx, self.path)
        if info.kind == "dir":
            raise Refusal(f"Not a file: {self.path} is a folder.")
        return info

    async def read(self, info: FileInfo) -> bytes:
        """Return a file's content. Raises Refusal for one that is too large."""
        data = await self.workspace.read(self.path, limit=MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise Refusal(f"{self.path} is too large for this: {info.size} bytes, at most {MAX_FILE}.")
        return data

    def encoded(self) -> bytes:
        """Return `content` as bytes. Raises Refusal where UTF-8 cannot carry it."""
        try:
            return self.content.encode()
        except UnicodeEncodeError as error:
            raise Refusal(f"content holds a lone surrogate at {error.start}: UTF-8 cannot carry it.") from None


@changing()
async def file(
    ctx: ToolContext, operation: Operation, path: str, content: str = "", destination: str = "", mode: str = ""
) -> Any:
    """Do one thing with a file or folder. copy and move need destination, chmod mode (octal)."""
    return await _OPERATIONS[operation](_Call(ctx, path, content, destination, mode))


async def _create(call: _Call) -> Any:
    info = await call.workspace.stat(call.path)
    if info is not None:
        raise Refusal(f"{call.path} exists already. Use write_file to replace it.")
    return Plan((Change(path_of(call.path, None), None, call.encoded()),), f"Created {call.path}")


async def _append(call: _Call) -> Any:
    info = await call.existing()
    before = await call.read(info)
    added = call.encoded()
    if not added:
        raise Refusal("No change: content is empty.")
    check_read(call.ctx, info.path, before)
    return Plan((Change(info.path, before, before + added),), f"Updated {call.path}: {len(added)} bytes appended")


async def _delete(call: _Call) -> Any:
    info = await call.existing()
    before = await call.read(info)
    check_read(call.ctx, info.path, before)
    return Plan((Change(info.path, before, None),), f"Deleted {call.path}")


async def _copy(call: _Call) -> Any:
    info = await call.existing()
    return Plan(
        (Change(await _target(call, info), None, await call.read(info)),), f"Copied {call.path} to {call.destination}"
    )


async def _move(call: _Call) -> Any:
    info = await call.existing()
    data = await call.read(info)
    changes = (Change(await _target(call, info), None, data), Change(info.path, data, None))
    return Plan(changes, f"Moved {call.path} to {call.destination}")


async def _target(call: _Call, source: FileInfo) -> str:
    """Return where a copy goes: into a folder that exists, else under the new name. Raises Refusal where a file is."""
    if not call.destination:
        raise Refusal("destination is missing.")
    info = await call.workspace.stat(call.destination)
    if info is not None and info.kind == "dir":
        inside = posixpath.join(info.path, posixpath.basename(source.path))
        info, name = await call.workspace.stat(inside), inside
    else:
        name = path_of(call.destination, info)
    if info is not None:
        raise Refusal(f"{name} exists already. Delete it first.")
    return posixpath.normpath(name)


async def _mkdir(call: _Call) -> Any:
    info = await call.workspace.stat(call.path)
    if info is not None:
        if info.kind == "dir":
            return f"No change needed: {call.path}"
        raise Refusal(f"{call.path} exists already, and is no folder.")
    return Plan(act=lambda: _make_folder(call))


async def _make_folder(call: _Call) -> str:
    # The port makes folders for what is written in them: a file that does not stay leaves its folder.
    passing = posixpath.join(call.path, f".{clock.new_id()}")
    await call.workspace.write(passing, b"", expected_sha256="")
    await call.workspace.delete(passing)
    return f"Created folder {call.path}"


async def _rmdir(call: _Call) -> Any:
    info = await call.workspace.stat(call.path)
    if info is None:
        raise await not_found(call.ctx, call.path, "Directory")
    if info.kind != "dir":
        raise Refusal(f"Not a directory: {call.path}. Use delete.")
    if await call.workspace.list(call.path, limit=1):
        raise Refusal(f"{call.path} is not empty. Nothing was removed.")
    return Plan(act=lambda: _remove_folder(call))


async def _remove_folder(call: _Call) -> str:
    await call.workspace.delete(call.path)
    return f"Removed folder {call.path}"


async def _exists(call: _Call) -> Any:
    return "true" if await call.workspace.stat(call.path) is not None else "false"


async def _stat(call: _Call) -> Any:
    info = await call.workspace.stat(call.path)
    if info is None:
        raise await not_found(call.ctx, call.path, "Path")
    changed = clock.rfc3339(info.mtime_ns) if info.mtime_ns else "unknown"
    size = f", {info.size} bytes" if info.kind == "file" else ""
    return f"{info.path}: {info.kind}{size}, changed {changed}"


async def _chmod(call: _Call) -> Any:
    info = await call.existing()
    if (
        not call.mode.isascii()
        or not call.mode.isdigit()
        or not 3 <= len(call.mode) <= 4
        or set(call.mode) - set("01234567")
    ):
        raise Refusal(f"mode is {call.mode!r:.40}; it must be three octal digits such as 644 or 755.")
    if int(call.mode, 8) > 0o777:
        raise Refusal(f"mode {call.mode} sets more than read, write and execute; that is not done here.")
    if "shell" not in call.workspace.capabilities:
        raise Refusal("This workspace keeps no modes: a file in it is only its content.")
    return Plan(act=lambda: _set_mode(call, info))


async def _set_mode(call: _Call, info: FileInfo) -> Any:
    # `chmod` knows neither what is protected nor that the file may have a name outside: writing it anew is refused for
    # the one and leaves no other name.
    data = await call.read(info)
    await call.workspace.write(info.path, data, expected_sha256=digest(data))
    # The path as it is with its links resolved, where the workspace can tell: chmod itself follows them anywhere.
    real: Callable[[str], Awaitable[str]] | None = getattr(call.workspace, "real_path", None)
    path = await real(info.path) if real is not None else info.path
    result = await call.workspace.exec(["chmod", call.mode, "--", f"./{path}"], timeout=10.0, max_output=1000)
    if result.exit_code != 0:
        why = result.output.decode("utf-8", "replace").strip() or "it did not end"
        return ToolResult(f"The mode was not changed: {why}", "error")
    return f"Mode of {call.path} is {call.mode}"


_OPERATIONS: dict[str, Callable[[_Call], Awaitable[Any]]] = {
    "create": _create,
    "append": _append,
    "delete": _delete,
    "copy": _copy,
    "move": _move,
    "mkdir": _mkdir,
    "rmdir": _rmdir,
    "exists": _exists,
    "stat": _stat,
    "chmod": _chmod,
}
