"""The way from an engine's thread to its asker: chunks go in on one side and come out on the other."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator

__all__ = ["Channel", "Whole"]


class Channel:
    """Carry the chunks of one answer from any thread to the loop it was made on.

    The loop is woken once per batch, not once per token. What waits unread is at most one answer, which the model's
    context bounds: holding the engine's thread back would not help, because the engine queues on its own side.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._chunks: deque[bytes] = deque()
        self._woken = False
        self.closed = False
        self.done = False
        self.error: BaseException | None = None

    def put(self, chunk: bytes) -> bool:
        """Take one chunk (an empty one only asks); True tells the writer to stop."""
        if not self.closed and chunk:
            self._chunks.append(chunk)
            self._wake()
        return self.closed

    def finish(self, error: BaseException | None = None) -> None:
        """End the answer, with the error that `batches` raises after the last chunk; only the first call counts."""
        if not self.done:
            self.error, self.done = error, True
            self._wake()

    def close(self) -> None:
        """Tell the writer to stop: nobody reads any more."""
        self.closed = True

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            self.closed = True  # the loop is gone, and the reader with it

    async def batches(self) -> AsyncGenerator[list[bytes]]:
        """Yield the chunks that have come since last time, until the answer ends. Raises what `finish` was given."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._woken = False
            done = self.done  # looked at before the chunks: whatever came before the end is then among them
            batch: list[bytes] = []
            while self._chunks:
                batch.append(self._chunks.popleft())
            if batch:
                yield batch
            if done:
                break
        if self.error is not None:
            raise self.error


class Whole:
    """Keep the chunks of one answer for a thread that waits for all of them."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._error: BaseException | None = None
        self._done = threading.Event()

    def put(self, chunk: bytes) -> bool:
        """Take one chunk (an empty one only asks); it never tells the writer to stop."""
        if chunk:
            self._chunks.append(chunk)
        return False

    def finish(self, error: BaseException | None = None) -> None:
        """End the answer, with the error that `wait` raises; only the first call counts."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    def close(self) -> None:
        """Nothing: who waits for the whole answer does not leave early."""

    def wait(self) -> list[bytes]:
        """Block until the answer ends and return its chunks. Raises what `finish` was given."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._chunks
