"""Serve the protocol on our own stdin and stdout until the client closes them."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import Any, cast

from acp.agent.connection import AgentSideConnection

from windlass.apps.acp.agent import AcpAgent
from windlass.apps.acp.build import Options, config_for
from windlass.apps.acp.stdio import Lines, open_pipes, take_pipes
from windlass.apps.cli.common import INTERRUPTED, OK, open_store
from windlass.apps.cli.interrupts import Interrupts, interruptible
from windlass.workspaces.process import become_subreaper

__all__ = ["serve"]


async def serve(**chosen: Any) -> int:
    """Serve one client; returns the exit code. What is `chosen` are the fields of `Options`.

    At the end of its input, and at SIGTERM, SIGINT or SIGHUP, what runs is cancelled and kept. Raises ConfigError where
    a terminal is at the input, and StoreError.
    """
    options = Options(**chosen)
    become_subreaper()
    return await interruptible(lambda interrupts: _serve(interrupts, options))


async def _serve(interrupts: Interrupts, options: Options) -> int:
    async with AsyncExitStack() as stack:
        store = open_store(config_for(options, os.getcwd(), os.environ))  # noqa: PTH109
        stack.push_async_callback(store.close)
        agent = AcpAgent(options, store)
        reader, write, close = await open_pipes(*take_pipes())
        stack.callback(close)
        # The unstable methods are those of closing and resuming a session; the protocol has them by now.
        connection = AgentSideConnection(
            cast(Any, agent), Lines(reader, write, agent.close), listening=False, use_unstable_protocol=True
        )
        stack.push_async_callback(connection.close)
        stack.push_async_callback(agent.close)
        await connection.listen()
    return INTERRUPTED if interrupts.hits else OK
