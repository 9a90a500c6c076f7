"""A run on a terminal: a bar with its rate, loss and time left; plain lines where it is no terminal."""

from __future__ import annotations

import shutil
import sys
from typing import Final, TextIO

from windlass.core import clock
from windlass.core.events import CheckpointSaved, Event, Log, RunFinished, RunStarted, TrainStep
from windlass.core.text import strip_escapes

__all__ = ["Progress", "duration"]

#: Seconds between two lines where it is no terminal, and between two drawings of the bar.
LINE_EVERY: Final = 10.0
DRAW_EVERY: Final = 0.1
_BAR: Final = 24


class Progress:
    """A sink that shows a run on `stream` (stderr): one line that changes on a terminal, else a line now and then.

    `total` is the number of steps that the run will have made when it ends (0: unknown).
    """

    def __init__(self, total: int = 0, stream: TextIO | None = None, *, terminal: bool | None = None) -> None:
        self.total, self.stream = total, stream or sys.stderr
        self.terminal = self.stream.isatty() if terminal is None else terminal
        self._first: tuple[int, float, float] | None = None
        self._shown = -LINE_EVERY
        self._drawn = False
        self._eval = ""

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, TrainStep):
            self._step(event)
        elif isinstance(event, RunStarted):
            self._say(f"Training on {event.prompt}.")
        elif isinstance(event, Log):
            self._say(event.message if event.level == "info" else f"{event.level}: {event.message}")
        elif isinstance(event, CheckpointSaved):
            self._say(f"Step {event.step}: saved {event.path}")
        elif isinstance(event, RunFinished):
            self._clear()

    def _step(self, event: TrainStep) -> None:
        now, metrics = clock.monotonic(), event.metrics
        tokens = metrics.get("tokens", 0.0)
        if self._first is None:
            rate = metrics.get("tokens_per_second", 0.0)
            self._first = event.step, now, tokens
            left = 0.0
        else:
            step, began, before = self._first
            passed = max(now - began, 1e-9)
            rate, left = (tokens - before) / passed, (self.total - event.step) * passed / max(event.step - step, 1)
        last = event.step == self.total
        if "eval_loss" in metrics:
            self._eval = f", held-out loss {metrics['eval_loss']:.4f}"
        if not last and now - self._shown < (DRAW_EVERY if self.terminal else LINE_EVERY):
            return
        self._shown = now
        known = self.total >= event.step > 0 and self.total
        count = f"{event.step}/{self.total}" if known else str(event.step)
        soon = f", {duration(left)} left" if known and self._first[0] != event.step and not last else ""
        text = f"step {count}{soon}, loss {metrics.get('loss', 0.0):.4f}{self._eval}, {rate:,.0f} tokens/s"
        self._draw(text, event.step / self.total if known else None)

    def _draw(self, text: str, share: float | None) -> None:
        if not self.terminal:
            self.stream.write(text + "\n")
        else:
            bar = "" if share is None else f"[{'#' * round(share * _BAR):<{_BAR}}] "
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r\x1b[2K{(bar + text)[:width]}")
            self._drawn = True
        self.stream.flush()

    def _clear(self) -> None:
        if self._drawn:
            # The last state of the bar stays to be read.
            self.stream.write("\n")
            self._drawn = False
        self.stream.flush()

    def _say(self, text: str) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[2K")
            self._drawn = False
        self.stream.write(strip_escapes(text).replace("\n", " ") + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(7.6), duration(75), duration(3700)
    ('8s', '1m15s', '1h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
