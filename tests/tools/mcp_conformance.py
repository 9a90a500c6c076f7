"""The client of the official conformance suite: `mcp_conformance.py URL` runs an agent with the server at URL.

The suite says in MCP_CONFORMANCE_SCENARIO what it wants to see. A browser is played by following the login page's
redirect; a model by a script that calls every tool once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from windlass.agent.agent import Agent
from windlass.core import clock
from windlass.core.http import Client
from windlass.core.ports import PermissionOption
from windlass.testing.scripted import ScriptedProvider, call, turn
from windlass.tools.mcp import Mcp
from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_connection import McpConnection
from windlass.tools.mcp_files import PrivateFiles
from windlass.tools.mcp_oauth import Login
from windlass.tools.mcp_wishes import Wishes

SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
CONTEXT: dict[str, Any] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
ARGUMENTS = {"add_numbers": {"a": 5, "b": 3}}


class Yes:
    """A person who allows everything."""

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        return "allow_once"


async def browser(url: str) -> None:
    """Open the login page, and the page that it sends to."""
    async with Client() as client:
        answer = await client.request("GET", url)
        where = answer.headers.get("location")
        if where:
            await client.request("GET", where)


async def as_agent(url: str, home: Path) -> None:
    """Run an agent that calls every tool."""
    mcp = Mcp([{"name": "suite", "url": url, "elicitation": True, "timeout": 20}], home=home, eager=True)

    def every(request: Any) -> Any:
        calls = [call(spec.name, **ARGUMENTS.get(spec.name.removeprefix("mcp_suite_"), {})) for spec in request.tools]
        return turn(*calls) if calls else "nothing to do"

    agent = Agent(ScriptedProvider([every, "done"]), capabilities=[mcp], approver=Yes())
    await agent.warmup()
    # The suite's server asks over the stream that a GET opens, and loses the question when the call comes first.
    await clock.sleep(0.5)
    await agent.run("go")
    await agent.destroy()


async def as_login(url: str, home: Path) -> None:
    """Log in as `windlass mcp login` does, then call every tool."""
    server = McpServer(
        name="suite", transport="http", url=url, timeout=20.0, client_id=CONTEXT.get("client_id", ""),
        client_secret=CONTEXT.get("client_secret", ""),
    )  # fmt: skip
    files = PrivateFiles(home)
    login = Login(server, files, browser)
    connection = McpConnection(server, wishes=Wishes(server, None, None, lambda: None), login=login)
    client = await connection.connected()
    for tool in connection.tools:
        await client.call_tool(tool.name, {})
    await connection.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        work = as_login if SCENARIO.startswith("auth/") else as_agent
        await work(sys.argv[-1], Path(home))


if __name__ == "__main__":
    asyncio.run(main())
