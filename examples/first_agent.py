"""An agent with one tool: the answer, what it used, and every event on the way.

    python examples/first_agent.py [PROVIDER:MODEL]

Without an argument the model plays a script, so that this runs anywhere.
"""

from __future__ import annotations

import asyncio
import sys

import windlass
from windlass.testing.scripted import ScriptedProvider, call


@windlass.tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def main() -> None:
    """Ask once, and show what happens."""
    model = sys.argv[1] if len(sys.argv) > 1 else ScriptedProvider([call("add", a=19, b=23), "19 + 23 is 42."])
    agent = windlass.Agent(model, tools=[add])
    async with agent.run("What is 19 + 23?") as run:
        async for event in run:
            if isinstance(event, windlass.TextDelta):
                print(event.text, end="", flush=True)
            elif isinstance(event, windlass.ToolStarted):
                print(f"[{event.name} {event.input}]")
    result = run.result
    print(
        f"\n{result.stop_reason}: {result.usage.input_tokens} in, {result.usage.output_tokens} out, cost {result.cost}"
    )
    await agent.destroy()


if __name__ == "__main__":
    asyncio.run(main())
