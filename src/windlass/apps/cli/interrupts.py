"""What signals do: the first one stops what runs, the second one ends the program at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from windlass.agent.run import Run
from windlass.apps.cli.common import INTERRUPTED, say

__all__ = ["Interrupts", "interruptible"]


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP for as long as a command lives.

    The first stops `run`, or the command itself while none is active; the second kills what tools have started and
    exits with 130. A signal that was ignored when we were started (nohup, `&`) stays ignored.
    """

    def __init__(self) -> None:
        self.hits = 0
        self.run: Run | None = None
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                loop.add_signal_handler(number, self._hit)
            except (NotImplementedError, RuntimeError, ValueError):
                return  # Windows, or not in the main thread: Python's own handling stays

    def _hit(self) -> None:
        self.hits += 1
        if self.hits > 1:
            # What was acknowledged is on disk; nothing more is waited for.
            _kill_descendants()
            os._exit(INTERRUPTED)
        if self.run is not None and not self.run.done:
            self.run.abort("interrupted")
        elif self._task is not None:
            self._task.cancel()

    def settled(self) -> None:
        """A run that was stopped has ended: the next signal is a first one again."""
        self.run, self.hits = None, 0


async def interruptible(work: Callable[[Interrupts], Coroutine[Any, Any, int]]) -> int:
    """Run a command's coroutine under `Interrupts`; returns its exit code, 130 when it was stopped."""
    interrupts = Interrupts()
    try:
        return await work(interrupts)
    except asyncio.CancelledError:
        if not interrupts.hits:
            raise
        say("windlass: interrupted.")
        return INTERRUPTED


def _kill_descendants() -> None:
    """Kill every process below this one, on systems with /proc; twice, for what was started meanwhile."""
    if not sys.platform.startswith("linux"):
        return
    for _ in range(2):
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _descendants(top: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            # The name in parentheses may hold anything; the parent is the second field after it.
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [top]
    while queue:
        below = children.get(queue.pop(), [])
        found.extend(below)
        queue.extend(below)
    return found
