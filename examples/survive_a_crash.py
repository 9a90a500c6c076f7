"""A program that is killed in the middle of a tool call, and the one that goes on after it.

python examples/survive_a_crash.py
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import windlass
from windlass.testing.scripted import ScriptedProvider, call


@windlass.tool
async def charge(cents: int) -> str:
    """Charge the customer's card."""
    os.kill(os.getpid(), signal.SIGKILL)
    return f"charged {cents}"


async def first(store: str) -> None:
    """Start the work, and die in it."""
    agent = windlass.Agent(ScriptedProvider([call("charge", cents=500)]), tools=[charge])
    await agent.session_for("order-7", store).send("Charge 5 dollars.")


async def second(store: str) -> None:
    """Go on: the call is reported as unknown, and is not made again."""
    agent = windlass.Agent(ScriptedProvider(["I will check whether the charge went through before I repeat it."]))
    async with agent.session_for("order-7", store) as session:
        result = await session.run()
        for message in session.messages:
            for part in message.parts:
                if isinstance(part, windlass.ToolResponse):
                    print(f"{part.status}: {part.response}")
        print(result.text)
        assert result.stop_reason == "end_turn"


def main() -> None:
    """Run both programs on one store."""
    if len(sys.argv) > 1:
        asyncio.run(first(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:{Path(folder) / 'sessions.db'}"
        died = subprocess.run([sys.executable, __file__, store], check=False)
        print(f"the first program ended with {died.returncode}")
        asyncio.run(second(store))


if __name__ == "__main__":
    main()
