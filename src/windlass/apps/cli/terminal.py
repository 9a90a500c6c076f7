"""Read lines from a terminal, so that a read which is given up takes nothing with it."""

from __future__ import annotations

import os
import select
import sys

from windlass.core.threads import run_in_thread

__all__ = ["discard_typed", "read_line"]


async def read_line(handle: int) -> str | None:
    """Return the next line without its end, None at the end of input or when the terminal was closed.

    A cancelled call leaves what is typed later to the next one: the thread that waits is woken and ends.
    """
    if os.name == "nt":
        line = await run_in_thread(sys.stdin.readline)
        return line.rstrip("\r\n") if line else None
    woken, wake = os.pipe()

    def wait() -> bytes:
        try:
            ready, _, _ = select.select([handle, woken], [], [])
            # In its usual mode a terminal hands over one line at a time.
            return os.read(handle, 65536) if woken not in ready else b""
        except OSError:
            return b""  # hung up
        finally:
            os.close(woken)

    try:
        data = await run_in_thread(wait)
    finally:
        os.close(wake)
    return data.decode("utf-8", "replace").rstrip("\r\n") if data else None


def discard_typed(handle: int) -> None:
    """Forget what was typed or pasted before a question was asked: it is no answer to it."""
    try:
        import termios
    except ImportError:
        return
    termios.tcflush(handle, termios.TCIFLUSH)
