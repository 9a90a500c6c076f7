"""The tool kit: built-in tools pass it, and each rule that is broken is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from windlass.core.errors import ToolError
from windlass.core.events import FileChanged
from windlass.core.ports import ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.testing.tool_kit import FakeContext, call_tool, check_tool
from windlass.tools.basic import echo, utc
from windlass.tools.files import edit, list_files, read_file, write_file
from windlass.tools.function import tool
from windlass.tools.search import glob, grep
from windlass.tools.shell import shell
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace


def files() -> MemoryWorkspace:
    return MemoryWorkspace({"a.txt": "one\ntwo\n", "lib/b.py": "def f(): ...\n"})


GOOD: dict[str, tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "echo": (echo, [{"text": "x"}, {"text": ""}], [{}, {"text": 1.5, "more": 2}]),
    "utc": (utc, [{}], [{"zone": "x"}]),
    "read_file": (read_file, [{"path": "a.txt"}, {"path": "a.txt", "offset": "2"}], [{"path": "b"}, {"path": "lib"}]),
    "write_file": (write_file, [{"path": "n/x", "content": "y"}], [{"path": "../x", "content": ""}, {"path": "x"}]),
    "edit": (edit, [{"path": "a.txt", "old_string": "one", "new_string": "1"}],
             [{"path": "a.txt", "old_string": "three", "new_string": "3"}]),
    "list_files": (list_files, [{}, {"depth": 3}], [{"path": "a.txt"}, {"depth": 0}]),
    "glob": (glob, [{"pattern": "**/*.py"}], [{"pattern": "*", "path": "none"}]),
    "grep": (grep, [{"pattern": "def"}], [{"pattern": "("}]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
async def test_built_in_tools_pass(name: str) -> None:
    subject, good, bad = GOOD[name]
    done = await check_tool(subject, good_args=good, bad_args=bad, workspace=files)
    assert done == ["description", "good arguments", "bad arguments", "calls at once", "cancelling"]


async def test_the_shell_passes(tmp_path: Any) -> None:
    bad = [{"command": " "}, {"command": "true", "timeout": 0}]
    await check_tool(shell, good_args=[{"command": "true"}], bad_args=bad, workspace=lambda: LocalWorkspace(tmp_path))
    await check_tool(echo, good_args=[{"text": "x"}])


async def test_a_function_that_is_not_async_passes() -> None:
    @tool(annotations={"read_only": True})
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return a + b

    await check_tool(add, good_args=[{"a": 1, "b": "2"}], bad_args=[{"a": "one", "b": 2}, {"a": 1}])
    assert await call_tool(add, {"a": 1, "b": "2"}) == 3


class Own:
    """A tool of one's own, with something to break."""

    def __init__(self, body: Callable[..., Any], **changes: Any) -> None:
        properties: dict[str, Any] = {"n": {"type": "array", "items": {"type": "integer"}}}
        fields: dict[str, Any] = {
            "name": "own",
            "description": "Do it.",
            "input_schema": {"type": "object", "properties": properties, "required": ["n"]},
            **changes,
        }
        self.timeout: float | None = fields.pop("timeout", None)
        self.spec = ToolSpec(**fields)
        self.body = body

    async def call(self, args: dict[str, Any], ctx: ToolContext) -> Any:
        out = self.body(args, ctx)
        return await out if asyncio.iscoroutine(out) else out


def plain(args: dict[str, Any], ctx: ToolContext) -> str:
    return str(sum(args["n"]))


async def writes(args: dict[str, Any], ctx: ToolContext) -> None:
    assert ctx.workspace is not None
    await ctx.workspace.write("new.txt", b"x")


async def swallows(args: dict[str, Any], ctx: ToolContext) -> str:
    try:
        await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return "still here"
    return "done"


def changes(args: dict[str, Any], ctx: ToolContext) -> None:
    args["n"].append(1)


def unreadable(args: dict[str, Any], ctx: ToolContext) -> object:
    return {"n": {1: object()}}


def refuses(args: dict[str, Any], ctx: ToolContext) -> ToolResult:
    return ToolResult("no", "error")


def fails(error: Exception) -> Callable[..., Any]:
    def body(args: dict[str, Any], ctx: ToolContext) -> Any:
        if args["n"] == []:
            raise error
        return "ok"

    return body


@pytest.mark.parametrize(
    ("subject", "found"),
    [
        (Own(plain, name="my tool"), "description: the name"),
        (Own(plain, description=" "), "description: it has no description"),
        (Own(plain, timeout=0.0), "description: timeout"),
        (Own(plain, input_schema={"type": "string"}), "description: input_schema"),
        (Own(plain, input_schema={"type": "object", "properties": {"n": {"type": "int"}}}), "description: "),
        (Own(changes), "good arguments: .*were changed"),
        (Own(unreadable), "good arguments: .*cannot be read"),
        (Own(refuses), "good arguments: .*error: 'no'"),
        (Own(writes, annotations=ToolAnnotations(read_only=True)), "good arguments: .*only reads"),
        (Own(plain, input_schema={"type": "object"}), "bad arguments: .*KeyError"),
        (Own(plain), "bad arguments: .*'n': \\[\\].*was taken"),
        (Own(fails(ValueError("empty"))), "bad arguments: .*ValueError: empty; a refusal is a ToolError"),
        (Own(swallows), "bad arguments|cancelling: .*swallowed"),
    ],
)
async def test_the_kit_finds(subject: Any, found: str) -> None:
    bad: list[dict[str, Any]] = [{}, {"n": []}] if "bad" in found else []
    with pytest.raises(AssertionError, match=f"(?s)check_tool .*{found}"):
        await check_tool(subject, good_args=[{"n": [1]}], bad_args=bad, workspace=files)


async def test_the_kit_takes_what_is_right_and_needs_an_example() -> None:
    await check_tool(Own(fails(ToolError("empty"))), good_args=[{"n": [1]}], bad_args=[{"n": []}])
    with pytest.raises(AssertionError, match="good_args"):
        await check_tool(echo, good_args=[])


async def test_a_fake_context_keeps_what_a_tool_reports() -> None:
    def child(prompt: str) -> str:
        return prompt.upper()

    ctx = FakeContext(files(), child=child)
    ctx.progress("half", 0.5)
    await ctx.emit(FileChanged(path="a.txt"))
    assert ctx.progressed == [("half", 0.5)] and [event.path for event in ctx.events if isinstance(event, FileChanged)]
    assert await ctx.run_child(prompt="go") == "GO"
    with pytest.raises(ToolError, match="no sub-agents"):
        await FakeContext().run_child(prompt="go")
