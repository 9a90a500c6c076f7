"""The `file` tool: one operation a call, the same in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools.helpers import Context, call, refused, text
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ToolResult, Workspace
from windlass.core.schema import compile_schema
from windlass.tools.fileops import file
from windlass.workspaces.local import LocalWorkspace


def space(ctx: Context) -> Workspace:
    assert ctx.workspace is not None
    return ctx.workspace


async def do(ctx: Context, operation: str, path: str, **args: Any) -> str:
    return await text(file, ctx, operation=operation, path=path, **args)


async def test_a_file_from_its_making_to_its_end(ctx: Context) -> None:
    assert await do(ctx, "create", "a/b.txt", content="one\n") == "Created a/b.txt"
    assert await do(ctx, "append", "a/b.txt", content="two\n") == "Updated a/b.txt: 4 bytes appended"
    assert await do(ctx, "exists", "a/b.txt") == "true"
    assert await do(ctx, "exists", "a/c.txt") == "false"
    said = await do(ctx, "stat", "a/b.txt")
    assert said.startswith("a/b.txt: file, 8 bytes, changed 2")
    assert await do(ctx, "copy", "a/b.txt", destination="c/d.txt") == "Copied a/b.txt to c/d.txt"
    assert await do(ctx, "move", "a/b.txt", destination="c") == "Moved a/b.txt to c"
    assert await space(ctx).read("c/d.txt") == await space(ctx).read("c/b.txt") == b"one\ntwo\n"
    assert await do(ctx, "delete", "c/d.txt") == "Deleted c/d.txt"
    assert await do(ctx, "exists", "c/d.txt") == "false"
    assert [(each.path, each.before is None, each.after is None) for each in ctx.changes] == [
        ("a/b.txt", True, False),
        ("a/b.txt", False, False),
        ("c/d.txt", True, False),
        ("c/b.txt", True, False),
        ("a/b.txt", False, True),
        ("c/d.txt", False, True),
    ]


async def test_folders(ctx: Context) -> None:
    assert await do(ctx, "mkdir", "x/y") == "Created folder x/y"
    assert await do(ctx, "mkdir", "x/y") == "No change needed: x/y"
    assert (await do(ctx, "stat", "x/y")).startswith("x/y: dir, changed ")
    assert await space(ctx).list("x/y") == []
    assert await refused(file, ctx, operation="rmdir", path="x") == "x is not empty. Nothing was removed."
    assert await do(ctx, "rmdir", "x/y") == "Removed folder x/y"
    assert await do(ctx, "exists", "x/y") == "false"
    assert ctx.changes == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"operation": "create", "path": "a"}, "a exists already. Use write_file to replace it."),
        ({"operation": "create", "path": "n", "content": "\udc80"}, "content holds a lone surrogate at 0"),
        ({"operation": "append", "path": "a"}, "No change: content is empty."),
        ({"operation": "append", "path": "aa", "content": "x"}, "File not found: aa. Did you mean a?"),
        ({"operation": "delete", "path": "d"}, "Not a file: d is a folder."),
        ({"operation": "delete", "path": "none"}, "File not found: none"),
        ({"operation": "copy", "path": "a"}, "destination is missing."),
        ({"operation": "copy", "path": "a", "destination": "a"}, "a exists already. Delete it first."),
        ({"operation": "move", "path": "a", "destination": "d"}, "d/a exists already. Delete it first."),
        ({"operation": "move", "path": "d", "destination": "e"}, "Not a file: d is a folder."),
        ({"operation": "mkdir", "path": "a"}, "a exists already, and is no folder."),
        ({"operation": "rmdir", "path": "a"}, "Not a directory: a. Use delete."),
        ({"operation": "rmdir", "path": "none"}, "Directory not found: none"),
        ({"operation": "stat", "path": "none"}, "Path not found: none"),
        ({"operation": "chmod", "path": "none", "mode": "644"}, "File not found: none"),
        ({"operation": "chmod", "path": "d", "mode": "644"}, "Not a file: d is a folder."),
        ({"operation": "chmod", "path": "a"}, "mode is ''; it must be three octal digits"),
        ({"operation": "chmod", "path": "a", "mode": "888"}, "mode is '888'; it must be three octal digits"),
        ({"operation": "chmod", "path": "a", "mode": "4755"}, "mode 4755 sets more than read, write and execute"),
    ],
)
async def test_what_cannot_be_done_says_why(ctx: Context, args: dict[str, Any], said: str) -> None:
    for path in ("a", "d/a"):
        await space(ctx).write(path, b"x")
    assert (await refused(file, ctx, **args)).startswith(said)
    assert ctx.changes == []


async def test_modes_on_disk_and_in_memory(ctx: Context, place: Path) -> None:
    await space(ctx).write("a", b"x")
    if not isinstance(space(ctx), LocalWorkspace):
        said = await refused(file, ctx, operation="chmod", path="a", mode="755")
        assert said == "This workspace keeps no modes: a file in it is only its content."
        return
    assert await do(ctx, "chmod", "a", mode="755") == "Mode of a is 755"
    assert (place / "a").stat().st_mode & 0o7777 == 0o755
    (place / "link").symlink_to("a")
    assert await do(ctx, "chmod", "link", mode="0600") == "Mode of link is 0600"
    assert (place / "a").stat().st_mode & 0o7777 == 0o600


async def test_s07_a_mode_is_not_changed_outside_by_a_hard_link(local: Context, place: Path) -> None:
    outside = place.parent / f"{place.name}-outside"
    outside.write_text("x")
    outside.chmod(0o600)
    (place / "a").hardlink_to(outside)
    try:
        assert await do(local, "chmod", "a", mode="777") == "Mode of a is 777"
        assert outside.stat().st_mode & 0o777 == 0o600
    finally:
        outside.unlink()


async def test_a_mode_that_the_system_refuses_is_said(local: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    await space(local).write("a", b"x")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorkspaceError):
        await do(local, "chmod", "a", mode="600")
    monkeypatch.undo()

    async def gone(path: str) -> str:
        return "not there"

    monkeypatch.setattr(local.workspace, "real_path", gone)
    answer = await call(file, local, operation="chmod", path="a", mode="600")
    assert isinstance(answer, ToolResult)
    assert answer.status == "error"
    assert "No such file" in str(answer.content)


async def test_large_files_are_refused(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.tools.fileops.MAX_FILE", 2)
    await space(ctx).write("a", b"xxx")
    for operation in ("append", "copy", "move", "delete"):
        said = await refused(file, ctx, operation=operation, path="a", content="y", destination="b")
        assert said == "a is too large for this: 3 bytes, at most 2."


def test_an_operation_that_is_none_is_refused() -> None:
    error = compile_schema(file.spec.input_schema).check({"operation": "format", "path": "a"}).error
    assert error is not None
