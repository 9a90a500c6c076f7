"""What our own tools have beyond a function: refusals in their own words, arguments by other names, and previews."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec

from msgspec import Struct

from windlass.core.errors import ToolError, WindlassError, WorkspaceError
from windlass.core.ports import FileInfo, Preview, ToolContext, ToolResult
from windlass.tools.access import Refusal, put, put_back, remove, workspace_of
from windlass.tools.aliases import Arguments, arguments_of
from windlass.tools.function import FunctionTool
from windlass.tools.reading import note_change

__all__ = ["BuiltinTool", "Change", "ChangeTool", "Plan", "builtin", "changing", "commit", "path_of"]

P = ParamSpec("P")


class BuiltinTool(FunctionTool[P, Awaitable[Any]]):
    """A function of ours as a tool. A Refusal is its answer; `validator` takes the arguments' other names too."""

    @property
    def validator(self) -> Arguments:
        """How arguments are checked."""
        try:
            return self._validator
        except AttributeError:
            self._validator = arguments_of(self.spec.name, self.spec.input_schema)
            return self._validator

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Do it. Raises what the workspace raises."""
        try:
            return await super().call(args, ctx)
        except Refusal as refusal:
            return ToolResult(refusal.message, status="error")


def builtin(**annotations: bool) -> Callable[[Callable[P, Awaitable[Any]]], BuiltinTool[P]]:
    """Make a tool of ours from a function, with the hints of MCP."""
    return lambda function: BuiltinTool(function, annotations=annotations)


class Change(Struct, frozen=True):
    """What becomes of one file: its content before and after, None where there is no file."""

    path: str
    before: bytes | None
    after: bytes | None


class Plan(Struct, frozen=True):
    """What a call would do, and what it then says. `act` does what is no change of a file's content, and says it."""

    changes: tuple[Change, ...] = ()
    said: str = ""
    act: Callable[[], Awaitable[Any]] | None = None


class ChangeTool(BuiltinTool[P]):
    """A tool whose function returns a Plan and changes nothing: `preview` shows it, `call` does it."""

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Make the changes, all or none. Raises what the workspace raises."""
        plan = await super().call(args, ctx)
        if not isinstance(plan, Plan):
            return plan
        await commit(ctx, plan.changes)
        return plan.said if plan.act is None else await plan.act()

    async def preview(self, args: dict[str, Any], ctx: ToolContext, /) -> Sequence[Preview]:
        """Return what a call would change; nothing where it would be refused. Raises what the workspace raises."""
        plan = await super().call(args, ctx)
        if not isinstance(plan, Plan):
            return ()
        return [Preview(each.path, each.before, each.after) for each in plan.changes]


def changing(*, idempotent: bool | None = None) -> Callable[[Callable[P, Awaitable[Any]]], ChangeTool[P]]:
    """Make a tool that changes files from a function that plans what it does."""
    return lambda function: ChangeTool(function, annotations={"destructive": True, "idempotent": idempotent})


def path_of(path: str, info: FileInfo | None) -> str:
    """Return the one name of a file: the workspace's where there is one, else the given one without its detours."""
    if info is not None:
        return info.path
    return path if path.startswith("/") else posixpath.normpath(path)


async def commit(ctx: ToolContext, changes: Sequence[Change]) -> None:
    """Make the changes in their order. When one fails, those before it are undone, and its error is raised."""
    for at, change in enumerate(changes):
        try:
            await _make(ctx, change)
        except BaseException as error:
            lost = await _undo(ctx, changes[: at + 1]) if at else []
            if lost and isinstance(error, WindlassError):
                raise ToolError(f"{error.message} Not undone: {', '.join(lost)}.", hint="Look at them.") from error
            raise


async def _make(ctx: ToolContext, change: Change) -> None:
    if change.after is not None:
        await put(ctx, change.path, change.after, change.before)
    elif change.before is not None:
        await remove(ctx, change.path, change.before)
    note_change(ctx, change.path, change.after)


async def _undo(ctx: ToolContext, changes: Sequence[Change]) -> list[str]:
    """Bring back what was there; returns the files for which that failed."""
    lost: list[str] = []
    for change in reversed(changes):
        try:
            await _restore(ctx, change)
        except WorkspaceError:
            lost.append(change.path)
    return lost


async def _restore(ctx: ToolContext, change: Change) -> None:
    workspace = workspace_of(ctx)
    info = await workspace.stat(change.path)
    now = await workspace.read(change.path) if info is not None and info.kind == "file" else None
    if now == change.before:
        return
    if now != change.after:
        raise WorkspaceError(f"{change.path} was changed by somebody else.")
    await put_back(ctx, change.path, now, change.before)
    note_change(ctx, change.path, change.before)
