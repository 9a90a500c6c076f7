"""The blocking face: one event loop in a background thread, shared by all who are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from windlass.core.errors import WindlassError

__all__ = ["background_loop", "run_in_background"]

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the shared loop, started at first use in a daemon thread."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="windlass-sync", daemon=True).start()
        return _loop


def run_in_background(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on the shared loop and wait for it; Ctrl-C cancels it and waits for its clean-up.

    Raises WindlassError inside a running event loop, where waiting would block everybody.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise WindlassError("A blocking call inside a running event loop.", hint="Use `await agent.run(...)` here.")
    future = asyncio.run_coroutine_threadsafe(make(), background_loop())
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
