"""What the tests of running commands look at: processes by a token in their command line, descriptors, children."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path

_numbers = itertools.count(1)


def token() -> str:
    """Return a number of seconds that no other process sleeps for: `sleep 1<token>` can be told from all others."""
    return f"00.{os.getpid()}{next(_numbers):04d}"


def alive(mark: str) -> list[int]:
    """Return the processes (zombies not) that have `mark` in their command line; never this one."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command, stat = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
        except OSError:
            continue
        if mark.encode() in command and stat[stat.rindex(")") + 2] not in "ZX":
            found.append(int(entry.name))
    return found


#: Children that were there before the test: a database server that other tests of this process use.
known: set[int] = set()


def children() -> list[int]:
    """Return the children of this process that the test made, zombies too."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:  # the thread ended meanwhile
            continue
    return [pid for pid in found if pid not in known]


def descriptors() -> int:
    """Return how many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


class Gaps:
    """Measure how long the event loop is kept busy in one piece, in CPU time, which other processes cannot stretch."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.ticks = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Gaps:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _tick(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.002)
            now = time.thread_time()
            self.worst, before = max(self.worst, now - before), now
            self.ticks += 1
