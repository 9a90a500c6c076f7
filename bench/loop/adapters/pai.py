"""pydantic-ai with a Model subclass (FunctionModel re-estimates tokens over the whole history on each call: see pai_fn)."""

import warnings

warnings.filterwarnings("ignore")
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from common import *
from pydantic_ai import Agent
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.usage import RequestUsage, UsageLimits

NAME, DISTS, IMPORT, CLI, SYNC = (
    "pydantic-ai",
    ["pydantic-ai-slim"],
    "from pydantic_ai import Agent",
    ["pai", "--help"],
    False,
)
COUNT = {"n": 0}
agent = Agent(system_prompt=SYSTEM)


@agent.tool_plain
async def lookup(q: str) -> str:
    "Look up an item."
    COUNT["n"] += 1
    return TOOL_RESULT


plain_agent = Agent(system_prompt=SYSTEM)
LIM = UsageLimits(request_limit=None)


@dataclass
class SR(StreamedResponse):
    n: int = 0
    ts: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    async def _get_event_iterator(self):
        for _ in range(self.n):
            for ev in self._parts_manager.handle_text_delta(vendor_part_id="content", content="tok "):
                yield ev
        self._usage += RequestUsage(input_tokens=10, output_tokens=5)

    async def close_stream(self):
        pass

    model_name = property(lambda s: "fake")
    provider_name = property(lambda s: "fake")
    provider_url = property(lambda s: None)
    timestamp = property(lambda s: s.ts)


class Fake(Model):
    def __init__(self, n, hook=None, deltas=0):
        super().__init__()
        self.n, self.i, self.hook, self.deltas = n, 0, hook, deltas

    model_name = property(lambda s: "fake")
    system = property(lambda s: "fake")

    async def request(self, messages, model_settings, model_request_parameters):
        i = self.i
        self.i += 1
        if self.hook:
            await call_hook(self.hook, i)
        u = RequestUsage(input_tokens=10, output_tokens=5)
        if i < self.n:
            return ModelResponse(
                [ToolCallPart("lookup", '{"q": "item"}', tool_call_id=f"c{i}")], usage=u, model_name="fake"
            )
        return ModelResponse([TextPart("done")], usage=u, model_name="fake")

    @asynccontextmanager
    async def request_stream(self, messages, model_settings, model_request_parameters, run_context=None):
        mrp = model_request_parameters
        yield SR(model_request_parameters=mrp, n=self.deltas)


async def loop(n_tools, hook=None):
    COUNT_BEFORE = COUNT["n"]
    m = Fake(n_tools, hook)
    r = await agent.run(PROMPT, model=m, usage_limits=LIM)
    assert r.output == "done" and m.i == n_tools + 1
    return n_tools


async def plain():
    return (await plain_agent.run(PROMPT, model=Fake(0))).output


async def stream(n):
    k = 0
    async with plain_agent.run_stream(PROMPT, model=Fake(0, deltas=n)) as r:
        async for d in r.stream_text(delta=True, debounce_by=None):
            k += 1
    return k
