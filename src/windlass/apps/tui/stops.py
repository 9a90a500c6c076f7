"""What signals do to the terminal: the first stops what runs, the second leaves, the third ends the program at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from windlass.apps.cli.interrupts import Interrupts

__all__ = ["Stops"]


class Stops(Interrupts):
    """SIGINT as Ctrl-C; SIGTERM and SIGHUP leave. After `leaving`, one more of any kind ends the program at once."""

    def __init__(self, interrupt: Callable[[], None], leave: Callable[[int], None]) -> None:
        self._interrupt, self._leave = interrupt, leave
        self.leaving = False
        self._modes = _terminal_modes()
        super().__init__()
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                    loop.add_signal_handler(number, self._end)

    def _hit(self) -> None:
        if not self.leaving:
            self._interrupt()
            return
        _restore_terminal(self._modes)
        self.hits = 1
        super()._hit()

    def _end(self) -> None:
        if self.leaving:
            self._hit()
        else:
            self._leave(130)


def _terminal_modes() -> Any:
    try:
        import termios
    except ImportError:
        return None
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError):
        return None


def _restore_terminal(modes: Any) -> None:
    if modes is None:
        return
    import termios

    with contextlib.suppress(termios.error, OSError, ValueError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)
