"""Ask the person at the terminal whether a tool call may run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any, TextIO

from windlass.agent.agent import Agent
from windlass.core.errors import WorkspaceError
from windlass.core.ports import PermissionOption
from windlass.core.text import visible
from windlass.core.threads import run_in_thread

__all__ = ["TerminalApprover", "guard_existing"]

_ANSWERS: dict[str, PermissionOption] = {
    "y": "allow_once",
    "yes": "allow_once",
    "a": "allow_always",
    "always": "allow_always",
    "n": "reject_once",
    "no": "reject_once",
    "": "reject_once",
}


class TerminalApprover:
    """Asks on the controlling terminal, so that piped input and output stay what they are.

    What is shown is the exact call, with control and look-alike characters made visible. No answer means no.
    """

    def __init__(self, ask: TextIO, answer: TextIO) -> None:
        self._ask, self._answer = ask, answer
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    def open(cls) -> TerminalApprover | None:
        """Open the terminal; None where there is none."""
        try:
            handle = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            return None
        return cls(os.fdopen(os.dup(handle), "w"), os.fdopen(handle, "r"))

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Show the call and read y, n or a (always)."""
        async with self._one_at_a_time:
            shown = "\n".join([f"    {key}: {visible(str(value))}" for key, value in input.items()])
            self._ask.write(f"\nAllow {visible(name)}? ({visible(reason)})\n{shown}\n[y]es, [n]o, [a]lways this call: ")
            self._ask.flush()
            line = await run_in_thread(self._answer.readline)
            return _ANSWERS.get(line.strip().lower(), "reject_once")


def guard_existing(agent: Agent, approver: TerminalApprover | None) -> Callable[[Any], Any]:
    """Return a gate that asks before write_file replaces a file, and refuses where nobody can be asked."""

    async def gate(ctx: Any) -> None:
        if ctx.name != "write_file" or agent.workspace is None:
            return
        path = str(ctx.input.get("path", ""))
        found = None
        with contextlib.suppress(WorkspaceError):
            found = await agent.workspace.stat(path)
        if found is None:
            return
        answer: PermissionOption = "reject_once"
        if approver is not None:
            answer = await approver.approve(ctx.name, ctx.input, f"{path} exists and would be replaced")
        if not answer.startswith("allow"):
            ctx.block, ctx.reason = True, f"{path} exists and is not replaced without being asked"

    return gate
