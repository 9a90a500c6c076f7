"""What the library logs, as lines of the text: on stderr it would tear the live lines apart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from windlass.apps.tui.paint import one_line

__all__ = ["noted"]

_LOGGERS = ("windlass", "asyncio")


class _Noted(logging.Handler):
    def __init__(self, note: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._note, self._loop = note, asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(record.getMessage())
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, f"! {text}", "warning")


@contextmanager
def noted(note: Callable[[str, str], None]) -> Generator[None]:
    """Give warnings and errors of the library and of asyncio to `note`, from any thread, inside the block."""
    handler = _Noted(note)
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in _LOGGERS}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        for name, (handlers, propagate) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = handlers, propagate
