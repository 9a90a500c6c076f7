"""smolagents ToolCallingAgent (blocking loop, sync tool), custom Model."""

from common import *
from smolagents import ToolCallingAgent, tool, Model
from smolagents.models import (
    ChatMessage,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
    TokenUsage,
    ChatMessageStreamDelta,
)

NAME, DISTS, IMPORT, CLI, SYNC = (
    "smolagents",
    ["smolagents"],
    "from smolagents import ToolCallingAgent",
    ["smolagent", "--help"],
    True,
)


@tool
def lookup(q: str) -> str:
    """Look up an item.

    Args:
        q: the item
    """
    return TOOL_RESULT


class Fake(Model):
    def __init__(self, n, hook=None):
        super().__init__()
        self.n, self.i, self.hook = n, 0, hook

    def generate(self, messages, **k):
        i = self.i
        self.i += 1
        if self.hook:
            self.hook(i)
        name, args = ("lookup", '{"q": "item"}') if i < self.n else ("final_answer", '{"answer": "done"}')
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content="",
            tool_calls=[
                ChatMessageToolCall(
                    id=f"c{i}", type="function", function=ChatMessageToolCallFunction(name=name, arguments=args)
                )
            ],
            token_usage=TokenUsage(10, 5),
        )


class FakeStream(Model):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def generate(self, messages, **k):
        raise NotImplementedError

    def generate_stream(self, messages, **k):
        for _ in range(self.n):
            yield ChatMessageStreamDelta(content="tok ")
        from smolagents.models import ChatMessageToolCallStreamDelta

        yield ChatMessageStreamDelta(
            tool_calls=[
                ChatMessageToolCallStreamDelta(
                    index=0,
                    id="f",
                    type="function",
                    function=ChatMessageToolCallFunction(name="final_answer", arguments='{"answer": "done"}'),
                )
            ]
        )


def run_sync(n, hook=None):
    m = Fake(n, hook)
    a = ToolCallingAgent(tools=[lookup], model=m, verbosity_level=0, max_steps=n + 5)
    r = a.run(PROMPT)
    assert r == "done" and m.i == n + 1
    return n


async def loop(n_tools, hook=None):
    return run_sync(n_tools, hook)


async def plain():
    return ToolCallingAgent(tools=[], model=Fake(0), verbosity_level=0).run(PROMPT)


async def stream(n):
    from rich.console import Console

    a = ToolCallingAgent(tools=[], model=FakeStream(n), verbosity_level=0, stream_outputs=True)
    a.logger.console = Console(file=open("/dev/null", "w"))
    k = 0
    for ev in a.run(PROMPT, stream=True):
        if isinstance(ev, ChatMessageStreamDelta) and ev.content == "tok ":
            k += 1
    return k
