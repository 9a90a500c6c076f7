"""Ask the person at the terminal whether a tool call may run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from windlass.apps.cli.common import say
from windlass.apps.cli.terminal import discard_typed, read_line
from windlass.core import json
from windlass.core.errors import WorkspaceError
from windlass.core.ports import Approver, PermissionOption, Workspace
from windlass.core.text import visible

__all__ = ["CarefulApprover", "TerminalApprover", "shown_call"]

_ANSWERS: dict[str, PermissionOption] = {
    "y": "allow_once",
    "yes": "allow_once",
    "a": "allow_always",
    "always": "allow_always",
}
#: Lines of a call that are shown at first; the rest is a `v` away.
_LINES = 40


class TerminalApprover:
    """Asks on the controlling terminal, so that piped input and output stay what they are.

    What is shown is the exact call, with control and look-alike characters made visible. No answer means no, and what
    was typed before the question is no answer.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    def open(cls) -> TerminalApprover | None:
        """Open the terminal; None where there is none."""
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        except OSError:
            return None

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Show the call and read y, n, a (always this exact call) or v (show all of it)."""
        async with self._one_at_a_time:
            lines = shown_call(input)
            cut = len(lines) - _LINES
            head = f"\nAllow {visible(name)}? ({visible(reason)})\n"
            self._write(head + "\n".join(lines[:_LINES]) + (f"\n    [{cut} more lines]" if cut > 0 else ""))
            while True:
                discard_typed(self._handle)
                more = ", [v]iew all" if cut > 0 else ""
                self._write(f"\n[y]es, [n]o, [a]lways this exact call{more}: ")
                answer = ((await read_line(self._handle)) or "").strip().lower()
                if cut <= 0 or answer not in ("v", "view"):
                    return _ANSWERS.get(answer, "reject_once")
                self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # a closed terminal: the read that follows finds no answer
            while data:
                data = data[os.write(self._handle, data) :]

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._handle)


def shown_call(input: dict[str, Any]) -> list[str]:
    """Return the arguments of a call as lines for a person; every line of theirs is marked as theirs.

    >>> shown_call({"command": "ls\\n[y]es", "timeout": 3})
    ['    command: ls', '           | [y]es', '    timeout: 3']
    """
    lines: list[str] = []
    for key, value in input.items():
        text = value if isinstance(value, str) else json.dumps(value).decode()
        name = visible(key).replace("\n", "\\n")
        first, *rest = visible(text).split("\n")
        lines.append(f"    {name}: {first}")
        lines.extend([f"    {' ' * len(name)}| {line}" for line in rest])
    return lines


class CarefulApprover:
    """Decides for the demonstration model, which calls the wrong tool now and then.

    A file that is there is replaced only if a person says so, whatever `--yes` allows.
    """

    def __init__(self, person: Approver | None, workspace: Callable[[], Workspace | None], *, yes: bool) -> None:
        self._person, self._workspace, self._yes = person, workspace, yes

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Answer yourself where `--yes` or the lack of a terminal decides, else ask the person."""
        path = str(input.get("path", ""))
        replaced = name == "write_file" and await self._is_there(path)
        if self._yes and not replaced:
            return "allow_once"
        if replaced:
            reason = f"{path} exists and would be replaced"
        if self._person is not None:
            return await self._person.approve(name, input, reason)
        if replaced:
            say(
                f"windlass: {path} exists. The built-in model replaces no file unless a person at a terminal allows it."
            )
        return "reject_once"

    async def _is_there(self, path: str) -> bool:
        workspace = self._workspace()
        try:
            return workspace is not None and await workspace.stat(path) is not None
        except WorkspaceError:
            return False  # the write will meet the same error, and say it
