"""Ask the person at the terminal whether a tool call may run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from windlass.agent.permission import Question
from windlass.agent.policy import call_hash
from windlass.agent.rules import paths_of
from windlass.apps.cli.common import say
from windlass.apps.cli.hunks import Hunk, hunks, merged, preview_lines
from windlass.apps.cli.terminal import discard_typed, read_line
from windlass.core import clock, json
from windlass.core.errors import WorkspaceError
from windlass.core.ports import Approver, PermissionOption, Preview, Workspace
from windlass.core.text import visible

__all__ = ["CarefulApprover", "TerminalApprover", "YesApprover", "shown_call"]

_ANSWERS: dict[str, PermissionOption] = {
    "y": "allow_once",
    "yes": "allow_once",
    "a": "allow_always",
    "always": "allow_always",
}
#: Lines that are shown at first; the rest is a `v` away.
_LINES = 40
#: Seconds without a key before an answer is asked for: what is typed or pasted meanwhile is no answer.
_IDLE = 0.3


class TerminalApprover:
    """Asks on the controlling terminal, so that piped input and output stay what they are.

    What is shown is the exact call, or what it would change, with control and look-alike characters made visible, and
    the beginning of the call's SHA-256 (`windlass.agent.policy.call_hash`). No answer means no; what was typed before
    the prompt is no answer, and the prompt only comes when nothing was typed for 300 ms.
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
            self._head(name, input, reason)
            return _option(await self._shown(shown_call(input), "[y]es, [n]o, [a]lways this exact call"))

    async def approve_changes(
        self, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview], /
    ) -> PermissionOption | Mapping[str, bytes | None]:
        """Show what would change as a diff and read y, n, a, v or h (hunk by hunk).

        Returns path -> content (None: deleted) where only a part was accepted.
        """
        async with self._one_at_a_time:
            files = [(preview, hunks(preview)) for preview in previews]
            count = sum([len(found) for _, found in files])
            self._head(name, input, reason)
            lines = [line for preview, found in files for line in preview_lines(preview, found)]
            one_by_one = ", [h]unk by hunk" if count > 1 else ""
            answer = await self._shown(lines, f"[y]es, [n]o, [a]lways this exact call{one_by_one}")
            if answer in ("h", "hunk") and count > 1:
                return await self._by_hunk(files)
            return _option(answer)

    async def approve_batch(
        self, questions: Sequence[Question], /
    ) -> Sequence[PermissionOption | Mapping[str, bytes | None]]:
        """Show several calls of one message and read y (all of them), n (none) or e (ask about each)."""
        async with self._one_at_a_time:
            lines: list[str] = []
            for number, each in enumerate(questions, 1):
                lines.append(f"  {number}. {_title(each.name, each.input, each.reason)}")
                lines.extend(shown_call(each.input) if not each.previews else [])
                lines.extend([line for one in each.previews for line in preview_lines(one, hunks(one))])
            self._write(f"\nAllow these {len(questions)} calls?\n")
            answer = await self._shown(lines, "[y]es to all, [n]o to all, ask about [e]ach")
        if answer not in ("e", "each"):
            allowed = answer in ("y", "yes")
            return ["allow_once" if allowed else "reject_once" for _ in questions]
        out: list[PermissionOption | Mapping[str, bytes | None]] = []
        for each in questions:
            if each.previews:
                out.append(await self.approve_changes(each.name, each.input, each.reason, each.previews))
            else:
                out.append(await self.approve(each.name, each.input, each.reason))
        return out

    async def _by_hunk(
        self, files: Sequence[tuple[Preview, list[Hunk]]]
    ) -> PermissionOption | Mapping[str, bytes | None]:
        taken: dict[str, bytes | None] = {}
        kept = total = 0
        rest: bool | None = None
        for preview, found in files:
            accepted: list[bool] = []
            for number, hunk in enumerate(found, 1):
                if rest is None:
                    head = f"\n  {visible(preview.path)}, hunk {number} of {len(found)}\n"
                    self._write(head)
                    prompt = "[y]es, [n]o, [a]ll that follow, [q] none that follow"
                    answer = await self._shown([f"  {line}" for line in hunk.lines], prompt)
                    rest = {"a": True, "q": False}.get(answer)
                    accepted.append(answer in ("y", "yes", "a"))
                else:
                    accepted.append(rest)
            kept, total = kept + sum(accepted), total + len(accepted)
            if any(accepted):
                taken[preview.path] = merged(preview, found, accepted)
        if kept == total:
            return "allow_once"
        return taken if kept else "reject_once"

    def _head(self, name: str, input: dict[str, Any], reason: str) -> None:
        self._write(f"\nAllow {_title(name, input, reason)}\n")

    async def _shown(self, lines: list[str], prompt: str) -> str:
        """Show lines, the first of many at first, and read a lower-case answer; all of them are a `v` away."""
        cut = len(lines) - _LINES
        self._write("\n".join(lines[:_LINES]) + (f"\n    [{cut} more lines]" if cut > 0 else ""))
        while True:
            await _idle(self._handle)
            self._write(f"\n{prompt}{', [v]iew all' if cut > 0 else ''}: ")
            answer = ((await read_line(self._handle)) or "").strip().lower()
            if cut <= 0 or answer not in ("v", "view"):
                return answer
            self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # a closed terminal: the read that follows finds no answer
            while data:
                data = data[os.write(self._handle, data) :]

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._handle)


async def _idle(handle: int) -> None:
    """Wait until nothing was typed for a moment, and forget what was."""
    termios = importlib.import_module("termios") if os.name != "nt" else None
    if termios is None or not os.isatty(handle):
        return
    mode = termios.tcgetattr(handle)
    # In its usual mode a terminal tells nothing of a line before its end.
    keyed = [*mode[:3], mode[3] & ~termios.ICANON, *mode[4:]]
    termios.tcsetattr(handle, termios.TCSANOW, keyed)
    try:
        discard_typed(handle)
        quiet_until = clock.monotonic() + _IDLE
        while (left := quiet_until - clock.monotonic()) > 0:
            await clock.sleep(min(left, _IDLE / 10))
            if select.select([handle], [], [], 0)[0]:
                if not os.read(handle, 4096):
                    return  # hung up
                quiet_until = clock.monotonic() + _IDLE
    except OSError:
        return  # hung up: the read that follows finds no answer
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSANOW, mode)
            discard_typed(handle)


def _option(answer: str) -> PermissionOption:
    return _ANSWERS.get(answer, "reject_once")


def _title(name: str, input: dict[str, Any], reason: str) -> str:
    return f"{visible(name)}? ({visible(reason)}) #{call_hash(name, input)[:12]}"


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


class YesApprover:
    """Says yes for a person who said `--yes`: to all but protected paths, about which they are still asked."""

    def __init__(self, person: Approver | None, protected: Callable[[str], str | None]) -> None:
        self._person, self._protected = person, protected

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Answer in the person's place; a protected path is theirs to decide, and refused without them."""
        why = next((found for path in paths_of(input) if (found := self._protected(path))), None)
        if why is None:
            return "allow_once"
        if self._person is not None:
            return await self._person.approve(name, input, reason)
        say(f"windlass: {why}: refused, since --yes does not cover it and there is nobody to ask.")
        return "reject_once"


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
