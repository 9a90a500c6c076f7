"""For screen readers and terminals that only add lines: nothing is redrawn, the cursor never moves back."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from windlass.apps.cli.terminal import discard_typed, read_line
from windlass.apps.tui.surface import Question
from windlass.core import clock

__all__ = ["Reader"]

_MOST = 30


class Person(Protocol):
    """What the lines do."""

    @property
    def running(self) -> bool: ...
    @property
    def waiting(self) -> str: ...
    def submit(self, text: str) -> None: ...
    def lost(self) -> None: ...


class Reader:
    """A surface of plain lines. While an answer runs, lines are queued; `/stop` and `/steer TEXT` act at once."""

    def __init__(self, person: Person, out: TextIO | None = None, handle: int | None = None) -> None:
        self._person, self._out = person, out or sys.stdout
        self._handle = sys.stdin.fileno() if handle is None else handle
        self._expected: asyncio.Future[str] | None = None
        self._done: asyncio.Future[int] | None = None
        self._calm_at = 0.0
        self._told = ""

    @property
    def width(self) -> int:
        """Columns; lines are left to the terminal where it says nothing."""
        return shutil.get_terminal_size((80, 24)).columns

    def write(self, text: str) -> None:
        """Print lines."""
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):
            self._person.lost()

    def changed(self) -> None:
        """Say what is being waited for, once, when it is something else."""
        what = self._person.waiting.partition(" (")[0].partition(" in ")[0]
        if what != self._told:
            self._told = what
            if what and what not in ("answering", "thinking", "starting", "writing a call"):
                self.write(f"{what}\n")

    def say(self, text: str) -> None:
        """Print the word."""
        self.write(f"{text}\n")

    def attention(self, _what: str, /) -> None:
        """Ring the bell."""
        if self._out.isatty():
            self.write("\a")

    def put_back(self, text: str) -> None:
        """Say what was not sent: there is no input line to put it into."""
        self.write(f"not sent: {text}\n")

    def leave(self, code: int) -> None:
        """End with this exit code."""
        if self._expected is not None and not self._expected.done():
            self._expected.cancel()
        if self._done is not None and not self._done.done():
            self._done.set_result(code)

    async def ask(self, question: Question) -> str:
        """Ask; the answer is the first letter of the next line that is typed 0.3 s later or more."""
        while True:
            discard_typed(self._handle)
            self._calm_at = clock.monotonic() + 0.3
            self.write(f"{question.text} {question.hint}: \n")
            answer = (await self._line()).strip().lower()[:1]
            if answer in question.choices:
                return answer
            if not answer:
                return question.safe

    async def choose(self, title: str, rows: Sequence[str]) -> int | None:
        """Print the rows with numbers; the next line is a number, or nothing."""
        shown = rows[:_MOST]
        for number, row in enumerate(shown, 1):
            self.write(f"{number}. {row}\n")
        self.write(f"{title}: a number, or nothing to leave:\n")
        answer = (await self._line()).strip()
        return int(answer) - 1 if answer.isdecimal() and 0 < int(answer) <= len(shown) else None

    async def _line(self) -> str:
        self._expected = asyncio.get_running_loop().create_future()
        try:
            return await self._expected
        finally:
            self._expected = None

    async def run(self) -> int:
        """Read lines until the end; returns the exit code."""
        self._done = asyncio.get_running_loop().create_future()
        reading = asyncio.create_task(self._read())
        try:
            return await self._done
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            line = await read_line(self._handle)
            if line is None:
                self.leave(0)
                return
            expected = self._expected
            if expected is None or expected.done():
                self._person.submit(line)
            elif clock.monotonic() >= self._calm_at:
                expected.set_result(line)
