"""The named sets, the two demo tools, what all tools have in common, and the paths that none may follow."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from tests.tools.helpers import Context, call, text
from windlass.core import clock
from windlass.core.errors import PathEscape, UnknownNameError
from windlass.core.ports import Tool
from windlass.tools.basic import echo, utc
from windlass.tools.todo import todo_write
from windlass.tools.toolsets import BASIC, CODING, DEMO, FILES, TOOLSETS, toolset
from windlass.tools.web import web_fetch


def test_the_sets() -> None:
    assert [tool.spec.name for tool in toolset("files")] == [
        "read_file",
        "write_file",
        "edit",
        "multi_edit",
        "list_files",
        "glob",
        "grep",
    ]
    assert [tool.spec.name for tool in toolset("basic")] == [
        "shell",
        "read_file",
        "write_file",
        "edit",
        "multi_edit",
        "list_files",
        "spawn",
    ]
    assert [tool.spec.name for tool in toolset("demo")] == ["echo", "utc"]
    assert toolset("none") == ()
    assert set(CODING) == {*FILES, *BASIC, todo_write, web_fetch}
    with pytest.raises(UnknownNameError, match="Did you mean 'files'"):
        toolset("file")


def test_what_the_coding_tools_cost_a_request() -> None:
    told = [
        {"name": t.spec.name, "description": t.spec.description, "input_schema": t.spec.input_schema} for t in CODING
    ]
    assert len(msgspec.json.encode(told)) <= 4600


@pytest.mark.parametrize("tool", [*CODING, *DEMO], ids=lambda tool: tool.spec.name)
def test_every_tool_is_well_described(tool: Tool) -> None:
    assert isinstance(tool, Tool)
    jsonschema_rs.meta.validate(tool.spec.input_schema)
    assert tool.spec.input_schema["type"] == "object"
    assert tool.spec.description.endswith(".") or "e.g." in tool.spec.description
    changes = tool.spec.name in ("shell", "write_file", "edit", "multi_edit")
    assert bool(tool.spec.annotations.destructive) is changes
    assert bool(tool.spec.annotations.read_only) is not changes


def test_the_sets_hold_no_tool_twice() -> None:
    for tools in TOOLSETS.values():
        names = [tool.spec.name for tool in tools]
        assert len(set(names)) == len(names)


class Stopped(clock.Clock):
    def now_ns(self) -> int:
        return 1_700_000_000_123_456_789


async def test_echo_and_utc() -> None:
    assert await text(echo, Context(), text="hé") == "hé"
    with clock.use(Stopped()):
        assert await text(utc, Context()) == "2023-11-14T22:13:20.123456Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", await text(utc, Context()))


ESCAPES = ["../x", "a/../../x", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "..", "a/../..", "//etc/passwd"]
OTHERS: dict[str, dict[str, Any]] = {
    "read_file": {},
    "write_file": {"content": "x"},
    "edit": {"old_string": "x", "new_string": "y"},
    "multi_edit": {"edits": [{"old_string": "x", "new_string": "y"}]},
    "list_files": {},
    "glob": {"pattern": "*"},
    "grep": {"pattern": "root"},
}


def _path_tools() -> list[Tool]:
    # By introspection: a tool that takes a path later on is tested too, or fails here for want of its other arguments.
    return [tool for tool in (*CODING, *DEMO) if "path" in tool.spec.input_schema["properties"]]


def test_s03_every_tool_that_takes_a_path_is_in_the_table() -> None:
    assert {tool.spec.name for tool in _path_tools()} == set(OTHERS)


@pytest.fixture
def beside(place: Path) -> Generator[Path]:
    """Give the file that `../x` would be."""
    path = place.parent / "x"
    existed = path.exists()
    yield path
    assert path.exists() is existed


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("tool", _path_tools(), ids=lambda tool: tool.spec.name)
async def test_s01_a_path_that_leaves_is_refused(ctx: Context, tool: Tool, path: str) -> None:
    with pytest.raises(PathEscape):
        await call(tool, ctx, path=path, **OTHERS[tool.spec.name])
    assert ctx.events == []


@pytest.mark.parametrize("pattern", ["../*", "a/../../*", "/etc/*", "~/*", "*/../../x", "file:///etc/*", "{..,a}/*"])
async def test_s01_patterns_that_leave_are_refused(ctx: Context, pattern: str) -> None:
    glob = next(tool for tool in FILES if tool.spec.name == "glob")
    grep = next(tool for tool in FILES if tool.spec.name == "grep")
    with pytest.raises(PathEscape):
        await call(glob, ctx, pattern=pattern)
    if ".." in pattern:
        with pytest.raises(PathEscape):
            await call(grep, ctx, pattern="x", glob=pattern)
