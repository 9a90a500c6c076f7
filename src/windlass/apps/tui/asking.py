"""Ask the person whether a call may run; a change of files is shown as a diff and can be taken in part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from windlass.agent.permission import Answer
from windlass.agent.permission import Question as Call
from windlass.apps.cli.approve import shown_call
from windlass.apps.cli.hunks import Hunk, hunks, merged
from windlass.apps.tui.diffs import painted, title
from windlass.apps.tui.paint import Painter
from windlass.apps.tui.surface import Question, Surface
from windlass.apps.tui.toollines import ToolLines, short_digest
from windlass.core.ports import PermissionOption, Preview
from windlass.core.text import visible

__all__ = ["Asker"]

_LINES = 40
_YES_NO = {"y": "yes", "n": "no", "a": "always this exact call"}
_OPTIONS: dict[str, PermissionOption] = {"y": "allow_once", "a": "allow_always", "n": "reject_once"}


class Asker:
    """The approver of the terminal: one question at a time, about the exact call.

    What is shown has control, hidden and look-alike characters made visible, and the beginning of the call's SHA-256;
    the line of the tool that runs carries the same digits.
    """

    def __init__(self, surface: Surface, painter: Painter, lines: ToolLines) -> None:
        self._surface, self._paint, self._lines = surface, painter, lines
        self._one_at_a_time = asyncio.Lock()

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Show the call and ask: yes, no, always this exact call, view all of it."""
        async with self._one_at_a_time:
            return await self._call(name, input, reason)

    async def approve_changes(
        self, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview], /
    ) -> PermissionOption | Mapping[str, bytes | None]:
        """Show what would change and ask: all of it, none, or hunk by hunk.

        Returns path -> content (None: deleted) where only a part was accepted.
        """
        async with self._one_at_a_time:
            return await self._changes(name, input, reason, previews)

    async def approve_batch(self, calls: Sequence[Call], /) -> Sequence[Answer]:
        """Show several calls of one message and ask: all, none, or about each."""
        async with self._one_at_a_time:
            for call in calls:
                self._head(call.name, call.input, call.reason)
                if call.previews:
                    self._files([(preview, hunks(preview)) for preview in call.previews], _LINES)
                else:
                    self._rows(shown_call(call.input), _LINES)
            self._surface.attention(f"{len(calls)} calls need your answer")
            choices = {"y": "yes to all", "n": "no to all", "e": "ask about each"}
            answer = await self._ask(f"Allow these {len(calls)} calls?", choices)
            if answer != "e":
                return [self._told(answer, call.name, call.input) for call in calls]
            return [
                await self._changes(call.name, call.input, call.reason, call.previews)
                if call.previews
                else await self._call(call.name, call.input, call.reason)
                for call in calls
            ]

    async def _call(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        self._head(name, input, reason)
        rows, choices = shown_call(input), dict(_YES_NO)
        if self._rows(rows, _LINES):
            choices["v"] = "view all"
        self._surface.attention(f"{name} needs your answer")
        answer = await self._ask(f"Allow {visible(name)}?", choices)
        if answer == "v":
            self._rows(rows, None)
            answer = await self._ask(f"Allow {visible(name)}?", _YES_NO)
        return self._told(answer, name, input)

    async def _changes(
        self, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview]
    ) -> PermissionOption | Mapping[str, bytes | None]:
        self._head(name, input, reason)
        files = [(preview, hunks(preview)) for preview in previews]
        count = sum([len(found) for _, found in files])
        cut = self._files(files, _LINES)
        self._surface.attention(f"{name} needs your answer")
        choices = {**_YES_NO, **({"h": "hunk by hunk"} if count > 1 else {}), **({"v": "view all"} if cut else {})}
        text = f"Apply {count} change{'' if count == 1 else 's'}?"
        answer = await self._ask(text, choices)
        if answer == "v":
            self._files(files, None)
            choices.pop("v")
            answer = await self._ask(text, choices)
        if answer == "h":
            return await self._by_hunk(name, input, files)
        return self._told(answer, name, input)

    async def _by_hunk(
        self, name: str, input: dict[str, Any], files: Sequence[tuple[Preview, list[Hunk]]]
    ) -> PermissionOption | Mapping[str, bytes | None]:
        taken: dict[str, bytes | None] = {}
        kept = total = 0
        rest = ""
        for preview, found in files:
            accepted: list[bool] = []
            for number, hunk in enumerate(found, 1):
                answer = rest
                if not answer:
                    self._surface.write(painted(self._paint, hunk))
                    choices = {"y": "yes", "n": "no", "a": "all that follow", "q": "none that follow"}
                    answer = await self._ask(f"{visible(preview.path)}: hunk {number} of {len(found)}?", choices)
                    rest = answer if answer in "aq" else ""
                accepted.append(answer in "ya")
            kept, total = kept + sum(accepted), total + len(accepted)
            if any(accepted):
                taken[preview.path] = merged(preview, found, accepted)
        if kept in (0, total):
            return self._told("y" if kept else "n", name, input)
        self._lines.allowed.add(short_digest(name, input))
        self._surface.write(self._paint.line((f"  allowed {kept} of {total} hunks", "warning")))
        return taken

    def _head(self, name: str, input: dict[str, Any], reason: str) -> None:
        digest = short_digest(name, input)
        line = self._paint.line((f"Allow {visible(name)}?", "question"), (f" ({visible(reason)}) #{digest}", "dim"))
        self._surface.write("\n" + line)

    def _rows(self, rows: Sequence[str], limit: int | None) -> bool:
        """Show the rows of a call; tells whether some were left out."""
        shown = rows[:limit]
        self._surface.write("".join([self._paint.raw(row) for row in shown]))
        if len(shown) == len(rows):
            return False
        self._surface.write(self._paint.raw((f"    [{len(rows) - len(shown)} more lines]", "warning")))
        return True

    def _files(self, files: Sequence[tuple[Preview, list[Hunk]]], limit: int | None) -> bool:
        """Show the changes of files; tells whether some lines were left out."""
        for preview, found in files:
            self._surface.write(self._paint.raw((title(preview, found), "tool")))
            for hunk in found:
                self._surface.write(painted(self._paint, hunk, limit))
        return limit is not None and any(len(hunk.lines) > limit for _, found in files for hunk in found)

    async def _ask(self, text: str, choices: Mapping[str, str]) -> str:
        return await self._surface.ask(Question(text, dict(choices), "q" if "q" in choices else "n"))

    def _told(self, answer: str, name: str, input: dict[str, Any]) -> PermissionOption:
        option = _OPTIONS.get(answer, "reject_once")
        allowed = option.startswith("allow")
        if allowed:
            self._lines.allowed.add(short_digest(name, input))
        word = "allowed, and this exact call from now on" if option == "allow_always" else "allowed"
        self._surface.write(self._paint.line((f"  {word if allowed else 'refused'}", "dim" if allowed else "error")))
        return option
