"""Windlass with its defaults. The loop detector is on, so every call asks for another item, of the same four letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from common import PROMPT, SYSTEM, TOOL_RESULT, call_hook

import windlass
from windlass.core.items import Finish, Item, TextItem, ToolCallItem
from windlass.core.messages import Message, Text, ToolCall
from windlass.core.request import Request
from windlass.core.usage import Usage

NAME, DISTS, IMPORT, CLI, SYNC = (
    "windlass",
    ["windlass"],
    "import windlass; windlass.Agent",
    ["windlass", "--help"],
    False,
)
USAGE = Usage(10, 5)


@windlass.tool
async def lookup(q: str) -> str:
    """Look up an item."""
    return TOOL_RESULT


class Fake:
    """Answers at once, without a look at the history."""

    name, model = "fake", "fake"

    def __init__(self, n: int, hook: Any = None, deltas: int = 0) -> None:
        self.n, self.i, self.hook, self.deltas = n, 0, hook, deltas

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        i = self.i
        self.i += 1
        if self.hook:
            await call_hook(self.hook, i)
        if i < self.n:
            item = f"{i % 10_000:04}"
            text = f'{{"q": "{item}"}}'
            yield ToolCallItem(0, f"c{i}", "lookup", text)
            call = ToolCall(f"c{i}", "lookup", {"q": item}, text)
            yield Finish(Message("assistant", (call,)), USAGE, "tool_call")
            return
        for _ in range(self.deltas):
            yield TextItem("tok ")
        yield Finish(Message("assistant", (Text("tok " * self.deltas or "done"),)), USAGE)


AGENT = windlass.Agent(Fake(0), system=SYSTEM, tools=[lookup], max_turns=100_000)
PLAIN = windlass.Agent(Fake(0), system=SYSTEM)


async def _run(n: int, hook: Any = None, store: Any = None) -> int:
    session = AGENT.session_for(store=store)
    fake = Fake(n, hook)
    result = await session.run(PROMPT, model=fake)
    assert result.text == "done" and fake.i == n + 1
    assert result.stats.tool_counts.get("lookup", 0) == n
    return n


async def loop(n: int, hook: Any = None) -> int:
    return await _run(n, hook)


async def plain() -> str:
    return (await PLAIN.session_for().run(PROMPT)).text


async def stream(n: int) -> int:
    seen = 0
    async with PLAIN.session_for().run(PROMPT, model=Fake(0, deltas=n)) as run:
        async for event in run:
            if type(event) is windlass.TextDelta:
                seen += 1
    return seen


async def loop_persist(n: int, path: str) -> int:
    store = windlass.SqliteStore(path)
    try:
        return await _run(n, store=store)
    finally:
        await store.close()
