"""Watch the event loop: where it stands still for about a second, the log says in which function."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Generator

__all__ = ["watched"]

log = logging.getLogger("windlass.watchdog")
# The real time, whatever the program's clock says: it is about this machine.
#: Seconds without an answer of the loop that are too many, and between two questions: together a second.
PATIENCE, PAUSE = 0.75, 0.25
#: Frames that are shown, innermost last.
FRAMES = 6


class _Watch(threading.Thread):
    """Asks the loop whether it still turns, from a thread of its own.

    A process that was stopped (Ctrl-Z, a laptop that slept) is late as a whole and used no processor time: that is no
    block. Each place is told once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float, pause: float) -> None:
        super().__init__(name="windlass-watchdog", daemon=True)
        self._loop, self._patience, self._pause = loop, patience, pause
        self._of = threading.get_ident()
        self._turned, self._end = threading.Event(), threading.Event()
        self._told: set[tuple[str, int]] = set()

    def run(self) -> None:
        while not self._end.wait(self._pause):
            asked, used = time.monotonic(), time.process_time()
            self._turned.clear()
            try:
                self._loop.call_soon_threadsafe(self._turned.set)
            except RuntimeError:
                return  # the loop is closed
            if self._turned.wait(self._patience):
                continue
            took = time.monotonic() - asked
            if took < 2 * self._patience or time.process_time() - used > took / 2:
                self._tell(took + self._pause)
            while not self._turned.wait(self._pause) and not self._end.is_set():
                pass

    def end(self) -> None:
        """Ask no more, and wait for the thread; it may be in the middle of a sentence."""
        self._end.set()
        self._turned.set()
        self.join(2.0)

    def _tell(self, took: float) -> None:
        frame = sys._current_frames().get(self._of)  # pyright: ignore[reportPrivateUsage]
        stack = traceback.extract_stack(frame)[-FRAMES:]
        if not stack or (place := (stack[-1].filename, stack[-1].lineno or 0)) in self._told:
            return
        self._told.add(place)
        where = "".join(traceback.format_list(stack)).rstrip()
        log.warning("The event loop has stood still for about %.1f s, in:\n%s", took, where)


@contextlib.contextmanager
def watched(loop: asyncio.AbstractEventLoop, patience: float = PATIENCE, pause: float = PAUSE) -> Generator[None]:
    """Watch a loop that runs in this thread, as long as the block lasts.

    A block longer than `patience` + `pause` seconds is always noticed, one longer than `patience` may be.
    """
    watch = _Watch(loop, patience, pause)
    watch.start()
    try:
        yield
    finally:
        watch.end()
