"""OpenAI's agents SDK, unchanged: an agent with a function tool over both of its APIs."""

from __future__ import annotations

import agents
import openai
import pytest
from agents import Agent, Model, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool

from tests.server.conftest import StartGateway


@pytest.mark.parametrize("api", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_agent_with_a_function_tool(gateway: StartGateway, api: type[Model], streamed: bool) -> None:
    agents.set_tracing_disabled(True)
    made = await gateway(routes={"fast": "fault:ok"})
    seen: list[int] = []

    @function_tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        seen.append(a + b)
        return a + b

    async with openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="any", max_retries=0) as client:
        model = api(model="fast", openai_client=client)  # pyright: ignore[reportCallIssue]
        agent = Agent(name="adder", instructions="Add.", model=model, tools=[add])
        asked = 'call add {"a": 2, "b": 3}'
        if streamed:
            running = Runner.run_streamed(agent, asked)
            async for _ in running.stream_events():
                pass
            output, last = running.final_output, running.last_response_id
        else:
            done = await Runner.run(agent, asked)
            output, last = done.final_output, done.last_response_id
        assert (seen, output) == ([5], "one two three four five six seven eight nine ten")
        if api is OpenAIResponsesModel:
            # The SDK's own way of going on: the conversation is the gateway's to remember.
            again = await Runner.run(agent, "and again", previous_response_id=last)
            assert again.final_output.startswith("one")
            kept = await made.gateway.stored.get("", again.last_response_id or "")
            assert kept is not None and kept.previous == last
            items = await made.gateway.stored.conversation("", kept)
            assert items is not None and [item.get("type", item.get("role")) for item in items] == [
                "user", "function_call", "function_call_output", "message", "user", "message"
            ]  # fmt: skip
