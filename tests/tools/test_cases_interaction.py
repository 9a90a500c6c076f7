"""Asking whoever embeds the agent, as a tool: what reference C calls createInteractionTool."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest

from windlass import Agent
from windlass.core.errors import ConfigError
from windlass.core.messages import ToolResponse
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.tool_kit import check_tool
from windlass.tools.interaction import create_interaction_tool


class Question(TypedDict):
    question: str
    options: list[str]


def answers(agent: Agent) -> list[tuple[Any, str]]:
    return [(part.response, part.status) for m in agent.messages for part in m.parts if isinstance(part, ToolResponse)]


async def test_the_run_waits_for_whoever_answers() -> None:
    """Text comes as it is, anything else as JSON; nobody is asked for permission, since asking is all it does."""
    asked: list[dict[str, Any]] = []
    gate = asyncio.Event()

    async def on_request(given: dict[str, Any]) -> Any:
        asked.append(given)
        await gate.wait()
        return "the red one" if len(asked) == 1 else {"chosen": given["options"][0]}

    tool = create_interaction_tool("ask_user", Question, on_request)
    script = [
        call("ask_user", question="Which?", options=["red", "blue"]),
        call("ask_user", question="", options=["x"]),
    ]
    agent = Agent(ScriptedProvider([*script, "Thanks."]), tools=[tool], tool_timeout=0.01)
    run = agent.run("paint it").start()
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert len(asked) == 1 and not run.done, "a person takes longer than a tool's usual limit"
    gate.set()
    assert (await run).text == "Thanks."
    assert answers(agent) == [("the red one", "ok"), ('{"chosen":"x"}', "ok")]
    assert asked[0] == {"question": "Which?", "options": ["red", "blue"]}


async def test_what_the_model_asks_is_checked_and_failures_are_told() -> None:
    def on_request(given: dict[str, Any], ctx: Any) -> str:
        ctx.progress("asking")
        raise RuntimeError("nobody is there")

    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    tool = create_interaction_tool("ask", schema, on_request, description="Ask.", timeout=5)
    agent = Agent(ScriptedProvider([call("ask"), call("ask", q="?"), "Then not."]), tools=[tool])
    assert (await agent.run("go")).text == "Then not."
    assert answers(agent) == [
        ("Validation error: Missing required field: q", "error"),
        ("Tool error: RuntimeError: nobody is there", "error"),
    ]


async def test_a_run_that_is_stopped_stops_waiting() -> None:
    async def on_request(given: dict[str, Any]) -> str:
        await asyncio.Event().wait()
        return ""

    agent = Agent(
        ScriptedProvider([call("ask")]), tools=[create_interaction_tool("ask", {"type": "object"}, on_request)]
    )
    async with agent.run("go") as run:
        while not agent.messages or agent.messages[-1].role != "assistant":
            await asyncio.sleep(0.005)
        run.abort("changed my mind")
    assert answers(agent)[0][1] == "cancelled"


async def test_it_passes_the_kit_and_names_what_is_wrong() -> None:
    async def echo(given: dict[str, Any]) -> dict[str, Any]:
        return given

    await check_tool(
        create_interaction_tool("ask_user", Question, echo),
        good_args=[{"question": "a", "options": []}],
        bad_args=[{"question": 1}, {}],
    )
    with pytest.raises(ConfigError, match="cannot be a tool's name"):
        create_interaction_tool("ask user", Question, echo)
    with pytest.raises(ConfigError, match="timeout"):
        create_interaction_tool("ask", Question, echo, timeout=0)
