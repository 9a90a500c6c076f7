"""create_interaction_tool: who asks somebody, and what the model is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest

import windlass
from windlass.agent.agent import Agent
from windlass.core.errors import ConfigError, ToolError
from windlass.core.messages import ToolResponse
from windlass.core.ports import ToolContext
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.tool_kit import FakeContext, call_tool, check_tool
from windlass.tools.interaction import create_interaction_tool

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"question": {"type": "string"}, "choices": {"type": "array", "items": {"type": "string"}}},
    "required": ["question"],
}


def gives(value: Any) -> Callable[[dict[str, Any]], Any]:
    def function(args: dict[str, Any]) -> Any:
        return value

    return function


def same(args: dict[str, Any]) -> Any:
    return args


class Later:
    """An answer that has to be awaited, from a function that is not async."""

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(0).__await__()
        return "later"


def answers(agent: Agent) -> list[tuple[Any, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(part.response, part.status) for part in parts if isinstance(part, ToolResponse)]


async def test_a_person_is_asked_and_the_run_goes_on() -> None:
    seen: list[dict[str, Any]] = []

    async def on_request(args: dict[str, Any]) -> Any:
        seen.append(args)
        await asyncio.sleep(0)
        return "blue" if len(seen) == 1 else {"choice": "grün", "sure": True}

    ask = create_interaction_tool("ask_user", SCHEMA, on_request, description="Ask.")
    model = ScriptedProvider(
        [call("ask_user", question="Which colour?"), call("ask_user", question="Sure?", choices=["yes"]),
         call("ask_user", question=[1]), "Done."]
    )  # fmt: skip
    agent = Agent(model, tools=[ask])
    await agent.run("Paint it")
    assert answers(agent)[:2] == [("blue", "ok"), ('{"choice":"grün","sure":true}', "ok")]
    assert answers(agent)[2][1] == "error" and "Validation error" in answers(agent)[2][0]
    assert seen == [{"question": "Which colour?"}, {"question": "Sure?", "choices": ["yes"]}]
    (spec,) = model.requests[0].tools
    assert spec.description == "Ask." and "$schema" not in spec.input_schema


async def test_functions_of_every_kind() -> None:
    def plain(args: dict[str, Any]) -> str:
        return args["question"].upper()

    async def with_context(args: dict[str, Any], ctx: ToolContext) -> str:
        ctx.progress("asking")
        return ctx.call_id

    class Asker:
        async def __call__(self, args: dict[str, Any]) -> list[int]:
            return [1, 2]

    ctx = FakeContext()
    given: list[tuple[Callable[..., Any], str]] = [
        (plain, "HM?"),
        (with_context, "call_0"),
        (Asker(), "[1,2]"),
        (gives(None), ""),
        (gives(3), "3"),
        (gives(""), ""),
        (gives(False), "false"),
        (gives(Later()), "later"),
    ]
    for function, expected in given:
        tool = create_interaction_tool("ask", SCHEMA, function)
        assert await call_tool(tool, {"question": "hm?"}, ctx) == expected
    done = await check_tool(create_interaction_tool("ask", SCHEMA, plain), good_args=[{"question": "x"}], bad_args=[{}])
    assert len(done) == 5
    with pytest.raises(ToolError, match="cannot be read by a model"):
        await call_tool(create_interaction_tool("ask", SCHEMA, gives(object())), {"question": "x"})


async def test_a_type_can_be_the_schema() -> None:
    @dataclass
    class Ask:
        question: str
        urgent: bool = False

    tool = create_interaction_tool("ask", Ask, same)
    assert tool.spec.input_schema["required"] == ["question"]
    assert await call_tool(tool, {"question": "q", "urgent": "true"}) == '{"question":"q","urgent":true}'


async def test_what_goes_wrong_is_told_to_the_model() -> None:
    async def fails(args: dict[str, Any]) -> str:
        raise RuntimeError("nobody is there")

    async def waits(args: dict[str, Any]) -> str:
        await asyncio.sleep(60)
        return "late"

    model = ScriptedProvider([[call("fails", question="x"), call("waits", question="x")], "Done."])
    slow = create_interaction_tool("waits", SCHEMA, waits, timeout=0.05)
    agent = Agent(model, tools=[create_interaction_tool("fails", SCHEMA, fails), slow])
    await agent.run("Go")
    assert answers(agent) == [
        ("Tool error: RuntimeError: nobody is there", "error"),
        ("Tool error: no result within 0.05 s; the tool was stopped.", "timeout"),
    ]


async def test_a_stopped_run_stops_the_question() -> None:
    asked, ended = asyncio.Event(), list[str]()

    async def waits(args: dict[str, Any]) -> str:
        asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")
        return "late"

    agent = Agent(ScriptedProvider([call("ask", question="x"), "Done."]), tools=[
        create_interaction_tool("ask", SCHEMA, waits)
    ])  # fmt: skip
    async with agent.run("Go") as run:
        reading = asyncio.create_task(_read(run))
        await asked.wait()
        run.abort()
        await asyncio.wait([reading])
    reading.exception()
    assert ended == ["cancelled"]
    assert answers(agent)[0][1] == "cancelled"


async def _read(run: Any) -> None:
    async for _ in run:
        pass


def test_what_cannot_be_a_tool_is_refused() -> None:
    for name, schema, function in (("a b", SCHEMA, print), ("ok", {"type": "array"}, print), ("ok", SCHEMA, "no")):
        with pytest.raises(ConfigError):
            create_interaction_tool(name, schema, function)  # pyright: ignore[reportArgumentType]
    assert windlass.create_interaction_tool is create_interaction_tool
