"""A preview shows what the call then does, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.helpers import Context
from windlass.core.errors import PathEscape, ToolError
from windlass.core.ports import Preview, Workspace
from windlass.tools.access import digest
from windlass.tools.builtin import ChangeTool
from windlass.tools.fileops import file
from windlass.tools.files import edit, multi_edit, write_file
from windlass.tools.patching import apply_patch

Files = dict[str, bytes]
START: Files = {"a": b"x\nline\n", "b": b"b\n", "d/c": b"c"}
PATCH = (
    "*** Begin Patch\n*** Add File: n\n+new\n*** Update File: a\n*** Move to: e/a\n@@\n-x\n+y\n"
    "*** Delete File: d/c\n*** End Patch"
)
CALLS: list[tuple[ChangeTool[...], dict[str, Any], dict[str, tuple[bytes | None, bytes | None]]]] = [
    (write_file, {"path": "./n", "content": "new"}, {"n": (None, b"new")}),
    (write_file, {"path": "a", "content": "new"}, {"a": (START["a"], b"new")}),
    (edit, {"path": "d/../a", "old_string": "x", "new_string": "y"}, {"a": (START["a"], b"y\nline\n")}),
    (multi_edit, {"path": "a", "edits": [{"old_string": "x", "new_string": "y"}]}, {"a": (START["a"], b"y\nline\n")}),
    (
        apply_patch,
        {"patch": PATCH},
        {"n": (None, b"new\n"), "e/a": (None, b"y\nline\n"), "a": (START["a"], None), "d/c": (b"c", None)},
    ),
    (file, {"operation": "append", "path": "a", "content": "z"}, {"a": (START["a"], START["a"] + b"z")}),
    (file, {"operation": "create", "path": "n", "content": "z"}, {"n": (None, b"z")}),
    (file, {"operation": "copy", "path": "a", "destination": "d"}, {"d/a": (None, START["a"])}),
    (file, {"operation": "move", "path": "a", "destination": "m"}, {"m": (None, START["a"]), "a": (START["a"], None)}),
    (file, {"operation": "delete", "path": "a"}, {"a": (START["a"], None)}),
    (file, {"operation": "mkdir", "path": "new"}, {}),
    (file, {"operation": "stat", "path": "a"}, {}),
    # What would be refused has nothing to show.
    (edit, {"path": "a", "old_string": "q", "new_string": "y"}, {}),
    (write_file, {"path": "a", "content": "x\nline\n"}, {}),
    (apply_patch, {"patch": "nothing"}, {}),
]


async def files_of(workspace: Workspace) -> Files:
    return {info.path: await workspace.read(info.path) for info in await workspace.list(depth=9) if info.kind == "file"}


@pytest.mark.parametrize(("tool", "args", "wanted"), CALLS)
async def test_a_preview_is_what_the_call_does(
    ctx: Context, tool: ChangeTool[...], args: dict[str, Any], wanted: dict[str, tuple[bytes | None, bytes | None]]
) -> None:
    workspace = ctx.workspace
    assert workspace is not None
    for path, data in START.items():
        await workspace.write(path, data)
    folders = {info.path for info in await workspace.list(depth=9)}
    shown = await tool.preview(args, ctx)
    assert {each.path: (each.before, each.after) for each in shown} == wanted
    assert all(isinstance(each, Preview) for each in shown)
    assert await files_of(workspace) == START
    assert {info.path for info in await workspace.list(depth=9)} == folders
    assert ctx.events == []
    # What was shown and allowed is what happens.
    ctx.expected = {each.path: digest(each.before) if each.before is not None else "" for each in shown}
    await tool.call(args, ctx)
    after = START | {path: data for path, (_, data) in wanted.items() if data is not None}
    assert await files_of(workspace) == {
        path: data for path, data in after.items() if wanted.get(path, "") != (data, None)
    }
    assert {each.path for each in ctx.changes} == set(wanted)


@pytest.mark.parametrize(("tool", "args", "wanted"), [each for each in CALLS if each[2]])
async def test_s06_what_changed_after_it_was_shown_is_not_touched(
    ctx: Context, tool: ChangeTool[...], args: dict[str, Any], wanted: dict[str, tuple[bytes | None, bytes | None]]
) -> None:
    workspace = ctx.workspace
    assert workspace is not None
    for path, data in START.items():
        await workspace.write(path, data)
    shown = await tool.preview(args, ctx)
    ctx.expected = {each.path: digest(each.before) if each.before is not None else "" for each in shown}
    # Somebody else changes the last file that the call is about; the edit itself would still fit.
    path = shown[-1].path
    there = shown[-1].before
    if there is None:
        return
    await workspace.write(path, there + b"more")
    before = await files_of(workspace)
    with pytest.raises(ToolError, match="after the change was shown and allowed"):
        await tool.call(args, ctx)
    assert await files_of(workspace) == before


async def test_previews_refuse_paths_that_leave(ctx: Context) -> None:
    with pytest.raises(PathEscape):
        await write_file.preview({"path": "../x", "content": "x"}, ctx)
    with pytest.raises(PathEscape):
        await apply_patch.preview({"patch": "*** Begin Patch\n*** Add File: ../x\n+x\n*** End Patch"}, ctx)
