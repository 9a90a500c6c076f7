"""openai-agents, custom Model; tracing off (set_tracing_disabled), see oai_trace for the default."""

import os
from common import *
from agents import Agent, Runner, function_tool, set_tracing_disabled, RunConfig
from agents.models.interface import Model
from agents.items import ModelResponse
from agents.usage import Usage
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    Response,
    ResponseCompletedEvent,
    ResponseTextDeltaEvent,
)

if not os.environ.get("BENCH_TRACE"):
    set_tracing_disabled(True)
NAME, DISTS, IMPORT, CLI, SYNC = "openai-agents", ["openai-agents"], "from agents import Agent, Runner", None, False


@function_tool
async def lookup(q: str) -> str:
    "Look up an item."
    return TOOL_RESULT


def text_msg(t):
    return ResponseOutputMessage(
        id="m",
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(text=t, type="output_text", annotations=[])],
    )


class Fake(Model):
    def __init__(self, n, hook=None, deltas=0):
        self.n, self.i, self.hook, self.deltas = n, 0, hook, deltas

    async def get_response(self, *a, **k):
        i = self.i
        self.i += 1
        if self.hook:
            await call_hook(self.hook, i)
        out = (
            [
                ResponseFunctionToolCall(
                    arguments='{"q": "item"}', call_id=f"c{i}", name="lookup", type="function_call", id=f"f{i}"
                )
            ]
            if i < self.n
            else [text_msg("done")]
        )
        return ModelResponse(
            output=out, usage=Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15), response_id=None
        )

    async def stream_response(self, *a, **k):
        for j in range(self.deltas):
            yield ResponseTextDeltaEvent(
                content_index=0,
                delta="tok ",
                item_id="m",
                output_index=0,
                sequence_number=j,
                type="response.output_text.delta",
                logprobs=[],
            )
        yield ResponseCompletedEvent(
            type="response.completed",
            sequence_number=self.deltas,
            response=Response(
                id="r",
                created_at=0,
                model="fake",
                object="response",
                output=[text_msg("tok " * self.deltas)],
                tool_choice="auto",
                tools=[],
                parallel_tool_calls=True,
            ),
        )


async def loop(n_tools, hook=None):
    m = Fake(n_tools, hook)
    a = Agent(name="a", instructions=SYSTEM, tools=[lookup], model=m)
    r = await Runner.run(a, PROMPT, max_turns=n_tools + 5)
    assert r.final_output == "done" and m.i == n_tools + 1
    return n_tools


async def plain():
    return (await Runner.run(Agent(name="a", instructions=SYSTEM, model=Fake(0)), PROMPT)).final_output


async def stream(n):
    k = 0
    r = Runner.run_streamed(Agent(name="a", instructions=SYSTEM, model=Fake(0, deltas=n)), PROMPT)
    async for ev in r.stream_events():
        if ev.type == "raw_response_event" and ev.data.type == "response.output_text.delta":
            k += 1
    return k


async def loop_persist(n_tools, path):
    from agents import SQLiteSession

    m = Fake(n_tools)
    s = SQLiteSession("s", path)
    r = await Runner.run(
        Agent(name="a", instructions=SYSTEM, tools=[lookup], model=m), PROMPT, max_turns=n_tools + 5, session=s
    )
    assert r.final_output == "done" and len(await s.get_items()) >= 2 * n_tools + 2
    s.close()
    return n_tools
