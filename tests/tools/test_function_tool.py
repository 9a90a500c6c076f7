"""Functions, objects and dicts as tools."""

from __future__ import annotations

import asyncio
import datetime
import functools
import threading
from typing import Any

import pytest

from tests.tools.helpers import Context, call
from windlass.core import clock
from windlass.core.errors import ConfigError, ToolError, UnknownNameError
from windlass.core.ports import Tool, ToolContext
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.tools.function import FunctionTool, SpecTool, as_tool, tool


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool(name="later", description="When.", timeout=3, annotations={"read_only": True}, title="Later")
async def tomorrow(day: datetime.date, ctx: ToolContext) -> str:
    ctx.progress("thinking")
    return (day + datetime.timedelta(days=1)).isoformat()


async def test_a_function_becomes_a_tool_and_stays_a_function() -> None:
    assert add(1, 2) == 3
    assert add.__doc__ == "Add two integers."
    assert isinstance(add, Tool)
    assert add.spec.description == "Add two integers."
    assert add.timeout is None
    assert add.runs_in_thread
    assert await call(add, Context(), a="19", b=23) == 42


async def test_options_context_and_types() -> None:
    ctx = Context()
    assert tomorrow.spec == ToolSpec(
        "later",
        "When.",
        {
            "type": "object",
            "properties": {"day": {"type": "string", "format": "date"}},
            "required": ["day"],
            "additionalProperties": False,
        },
        title="Later",
        annotations=ToolAnnotations(read_only=True),
    )
    assert tomorrow.timeout == 3.0
    assert not tomorrow.runs_in_thread
    assert await call(tomorrow, ctx, day="2024-02-28") == "2024-02-29"
    assert ctx.reported == ["thinking"]
    with pytest.raises(ToolError, match="Field day: "):
        await call(tomorrow, ctx, day="soon")


async def test_a_plain_function_runs_beside_the_loop_and_reports_to_it() -> None:
    threads: list[int] = []

    class Noting(Context):
        def progress(self, text: str = "", data: Any = None) -> None:
            threads.append(threading.get_ident())
            super().progress(text, data)

    @tool
    def work(ctx: ToolContext) -> bool:
        ctx.progress("half")
        assert ctx.call_id == "call-1"
        return threading.current_thread() is not threading.main_thread()

    ctx = Noting()
    assert await call(work, ctx) is True
    await asyncio.sleep(0)
    assert (ctx.reported, threads) == (["half"], [threading.get_ident()])


async def test_r58_a_plain_function_past_its_deadline_is_left_and_heard_no_more() -> None:
    release, ended = threading.Event(), threading.Event()

    @tool
    def hang(ctx: ToolContext) -> None:
        release.wait()
        ctx.progress("too late")
        ended.set()

    ctx = Context()
    with pytest.raises(TimeoutError):
        async with clock.deadline(0.05):
            await call(hang, ctx)
    release.set()
    async with clock.deadline(20):
        while not ended.is_set():
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert ctx.reported == []


async def test_what_a_function_raises_comes_through() -> None:
    @tool
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await call(fail, Context())


async def test_partials_methods_and_lambdas_around_coroutines() -> None:
    class Box:
        def __init__(self) -> None:
            self.timeout = "mine"

        async def put(self, a: int) -> int:
            return a

        async def __call__(self, a: int) -> int:
            return a + 1

    box = Box()
    assert await call(as_tool(box.put), Context(), a=1) == 1
    assert await call(as_tool(functools.partial(box.put)), Context(), a=2) == 2
    called = as_tool(box)
    assert (called.spec.name, called.timeout) == ("Box", None)
    assert await call(called, Context(), a=1) == 2

    @tool
    def around(a: int) -> Any:
        return box.put(a)

    assert await call(around, Context(), a=3) == 3


def test_as_tool_keeps_tools() -> None:
    assert as_tool(add) is add
    made = SpecTool(ToolSpec("x"), _increment)
    assert as_tool(made) is made


def _increment(args: dict[str, Any]) -> Any:
    return args["a"] + 1


async def test_a_dict_becomes_a_tool() -> None:
    schema = {"$schema": "x", "type": "object", "properties": {"a": {"type": "integer"}}}
    made = as_tool({"name": "f", "description": "d", "parameters": schema, "call": _increment})
    assert made.spec == ToolSpec("f", "d", {"type": "object", "properties": {"a": {"type": "integer"}}})
    assert await call(made, Context(), a="1") == 2

    async def with_context(args: dict[str, Any], ctx: ToolContext) -> str:
        return ctx.run_id + args["a"]

    function = {"name": "g", "parameters": {"type": "object"}, "strict": True}
    made = as_tool({"type": "function", "function": function, "handler": with_context, "timeout": 2})
    assert (made.timeout, await made.call({"a": "!"}, Context())) == (2.0, "run-1!")


def _no_annotation(a) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
async def _generates() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("thing", "kind", "text"),
    [
        (5, ConfigError, "5 cannot be a tool"),
        (int, ConfigError, "cannot be a tool"),
        (ToolSpec("x"), ConfigError, "cannot be a tool"),
        (_no_annotation, ConfigError, "Parameter 'a' of _no_annotation has no annotation"),
        (_generates, ConfigError, "_generates is a generator"),
        (lambda: 1, ConfigError, "'<lambda>' cannot be a tool's name"),
        ({"call": print}, ConfigError, "A tool without a name"),
        ({"name": "x"}, ConfigError, "The tool 'x' has no `call`"),
        ({"name": "x y", "call": print}, ConfigError, "'x y' cannot be a tool's name"),
        ({"name": "x", "call": print, "input_schema": {"type": "text"}}, ConfigError, "Broken JSON Schema at #/type"),
        ({"name": "x", "call": print, "timeout": 0}, ConfigError, "The timeout of x is 0"),
        ({"name": "x", "call": print, "descripton": "d"}, UnknownNameError, "Did you mean 'description'?"),
        ({"name": "x", "call": print, "annotations": {"readonly": True}}, UnknownNameError, "'read_only'"),
        ({"name": "x", "call": print, "annotations": {"read_only": 5}}, ConfigError, "annotations of x"),
    ],
)
def test_what_cannot_be_a_tool_says_why(thing: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        as_tool(thing)
    assert text in str(caught.value)


def test_a_class_is_no_function() -> None:
    with pytest.raises(ConfigError, match="is no function"):
        FunctionTool(dict)
