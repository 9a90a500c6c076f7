"""One streamed answer, pulled: options, events, states, statistics. Names and defaults are reference E's.

    response = model.respond("Once upon a time", StreamingConfig(max_tokens=64))
    while (event := response.next()) is not None:
        ...

`next()` may be called from one thread, `cancel()` from any; `async for` reads it on an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from math import inf
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn, Self

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.local.backend import Ended, Generation, Piece, Prefilled, Produced, StreamSink
from windlass.local.stopping import Stopper

__all__ = ["StreamState", "StreamingConfig", "StreamingResponse", "StreamingStats", "TokenEvent"]

_SECOND: Final = 1_000_000_000


class StreamState(StrEnum):
    """Where a stream stands. The last three are final; none of them replaces another."""

    IDLE = "idle"
    PREFILLING = "prefilling"
    GENERATING = "generating"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ERRORED = "errored"


_FINAL: Final = (StreamState.COMPLETED, StreamState.CANCELLED, StreamState.ERRORED)


class TokenEvent(Struct, frozen=True, omit_defaults=False):
    """One step of a stream.

    The first says that the prompt was read and the last (`is_final`) that the text is whole: both have no text and
    token id 0. `text` is what can be shown since the event before, None where tokens are not decoded. `position` is
    the token's place in the answer, from 0; the last event's is the number of tokens. `timestamp_ns` is UTC.
    """

    token_id: int
    text: str | None
    position: int
    is_final: bool = False
    timestamp_ns: int = 0
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class StreamingStats(Struct, frozen=True, kw_only=True):
    """What a stream has taken so far, measured where it is read, in nanoseconds.

    `time_to_first_token_ns` counts from the start, 0 before there is one. `engine_prefill_ns` and
    `engine_generation_ns` are the engine's own timings, 0 until the end and where it gives none. `reason` is why it
    ended: stop, length, timeout, cancelled or error.
    """

    tokens_generated: int = 0
    prompt_tokens: int = 0
    prefill_time_ns: int = 0
    generation_time_ns: int = 0
    time_to_first_token_ns: int = 0
    engine_prefill_ns: int = 0
    engine_generation_ns: int = 0
    reason: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer per second since the prompt was read; 0 before that."""
        return self.tokens_generated * _SECOND / self.generation_time_ns if self.generation_time_ns else 0.0

    @property
    def time_to_first_token_ms(self) -> float:
        """`time_to_first_token_ns` in milliseconds."""
        return self.time_to_first_token_ns / 1e6


class StreamingConfig(Struct, frozen=True, kw_only=True):
    """How an answer is made and read.

    `temperature` 0 is greedy and `top_k` 0 off. `stop_tokens` (ids) end the text and are not told; None: the model's
    own ends alone, which count in any case; `stop` strings end it too. `decode_tokens` False leaves texts out.
    `generation_timeout_ns` (0: none) ends the stream as if the text were whole. `min_token_delay_ns` is the least time
    between two tokens. `max_buffer_size` (0: none) is how many events may wait unread before generation waits; where
    one thread serves several answers (workers, servers) it does not, but `max_tokens` bounds it.
    `initial_buffer_capacity` is kept for its name: a buffer here grows by itself. Callbacks are called by whoever
    reads: `on_token` with each event that has a token, then `on_complete` with the statistics or `on_error` with the
    error. `logprobs` is how many tokens are told at each place; `grammar` is GBNF, `json_schema` a JSON Schema;
    `scales` are those of the model's adapters; `ignore_end` goes on where the model would end. Raises ConfigError for
    values out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    stop_tokens: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: str = ""
    json_schema: dict[str, Any] | None = None
    logprobs: int = 0
    scales: tuple[float, ...] | None = None
    ignore_end: bool = False
    initial_buffer_capacity: int = 256
    max_buffer_size: int = 0
    decode_tokens: bool = True
    generation_timeout_ns: int = 0
    min_token_delay_ns: int = 0
    on_token: Callable[[TokenEvent], object] | None = None
    on_complete: Callable[[StreamingStats], object] | None = None
    on_error: Callable[[BaseException], object] | None = None

    def __post_init__(self) -> None:
        for name in ("initial_buffer_capacity", "max_buffer_size", "generation_timeout_ns", "min_token_delay_ns"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0.")

    def asked(self, prompt: str | tuple[int, ...]) -> Generation:
        """Return what a backend is asked for this prompt. Raises ConfigError for values out of range."""
        return Generation(
            prompt=prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=self.stop,
            stop_tokens=self.stop_tokens or (),
            grammar=self.grammar,
            json_schema=self.json_schema,
            logprobs=self.logprobs,
            scales=self.scales,
            ignore_end=self.ignore_end,
        )


class _Buffer(StreamSink):
    """Carry items from the backend's thread to the reader, who may wait in a thread or on an event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Produced] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._wake: Callable[[], object] | None = None
        self._refusing = self._stopped = False
        self.end: Ended | BaseException | None = None

    def put(self, item: Produced, /) -> bool:
        with self._changed:
            while self._limit and len(self._items) >= self._limit and not self._refusing:
                self._changed.wait()
            if self._refusing:
                return True
            self._items.append(item)
            self._tell()
            return False

    def finish(self, end: Ended | BaseException, /) -> None:
        with self._changed:
            if self.end is None:
                self.end = end
            self._tell()

    def refuse(self) -> None:
        """Take no more items."""
        with self._changed:
            self._refusing = True
            self._items.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Take no more items, and wake the reader."""
        self.refuse()
        with self._changed:
            self._stopped = True
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            wake, self._wake = self._wake, None
            # A loop that is closed has no reader any more.
            with contextlib.suppress(RuntimeError):
                wake()

    def take(self) -> tuple[Produced | None, bool]:
        """Return the next item, None when there is none, and whether none can come."""
        with self._changed:
            if self._items:
                item = self._items.popleft()
                if self._limit:
                    self._changed.notify_all()
                return item, False
            return None, self._stopped or self.end is not None

    def wait(self, seconds: float | None, items: bool = True) -> None:
        """Block until the end, a stop, or (with `items`) something to take; at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_go_on(items), seconds)

    async def awaited(self, seconds: float | None, items: bool = True) -> None:
        """Wait as `wait`, on the event loop."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with clock.deadline(seconds):
                while True:
                    with self._changed:
                        if self._may_go_on(items):
                            return
                        ready.clear()
                        self._wake = lambda: loop.call_soon_threadsafe(ready.set)
                    await ready.wait()
        except TimeoutError:
            return

    def _may_go_on(self, items: bool) -> bool:
        return self._stopped or (items and (bool(self._items) or self.end is not None))


class StreamingResponse:
    """One answer, event by event. Made idle: its first `next()` starts it.

    `start` is `Backend.start` of a loaded model, and `limit` how many events may wait unread, 0: any number. Leaving a
    `with` block, or `close()`, cancels what still runs.
    """

    def __init__(
        self,
        start: Callable[[Generation, StreamSink], Callable[[], None]],
        ask: Generation,
        config: StreamingConfig,
        *,
        limit: int = 0,
    ) -> None:
        self._start, self._ask, self.config = start, ask, config
        self._buffer = _Buffer(limit)
        self._stopper = Stopper(ask.stop, frozenset(ask.stop_tokens))
        self._ready: deque[Piece] = deque()
        self._lock = threading.Lock()  # over the state
        self._state = StreamState.IDLE
        self._halt: Callable[[], None] = _nothing
        self._ended: Ended | None = None  # why, once the text is whole
        self._reason = ""
        self._begun = self._prefilled = self._last = 0.0
        self._first_ns = self._tokens = self._prompt_tokens = 0

    @property
    def state(self) -> StreamState:
        """Where the stream stands."""
        return self._state

    @property
    def is_cancelled(self) -> bool:
        """True once `cancel` came before the end."""
        return self._state is StreamState.CANCELLED

    @property
    def stats(self) -> StreamingStats:
        """What it has taken so far."""
        ended = self._ended or Ended()
        return StreamingStats(
            tokens_generated=self._tokens,
            prompt_tokens=self._prompt_tokens,
            prefill_time_ns=_ns(self._prefilled - self._begun) if self._prefilled else 0,
            generation_time_ns=_ns(self._last - self._prefilled) if self._last and self._prefilled else 0,
            time_to_first_token_ns=self._first_ns,
            engine_prefill_ns=ended.prefill_ns,
            engine_generation_ns=ended.generation_ns,
            reason=self._reason,
        )

    def next(self) -> TokenEvent | None:
        """Return the next event, None after the last one and after `cancel`. Blocking.

        Raises what the backend raises, once; later calls give None.
        """
        self._begin()
        while True:
            event, wait = self._step()
            if wait is None:
                return event
            self._buffer.wait(*wait)

    async def anext(self) -> TokenEvent | None:
        """Return the next event as `next`, waiting on the event loop."""
        self._begin()
        while True:
            event, wait = self._step()
            if wait is None:
                return event
            await self._buffer.awaited(*wait)

    def cancel(self) -> None:
        """End the stream, from any thread: its reader gets None, the engine stops at its next token."""
        self._end(StreamState.CANCELLED, "cancelled")

    def close(self) -> None:
        """Cancel what still runs."""
        self.cancel()

    async def aclose(self) -> None:
        """Cancel what still runs."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        event = await self.anext()
        if event is None:
            raise StopAsyncIteration
        return event

    def _begin(self) -> None:
        with self._lock:
            if self._state is not StreamState.IDLE:
                return
            self._state = StreamState.PREFILLING
            self._begun = clock.monotonic()
        try:
            halt = self._start(self._ask, self._buffer)
        except BaseException as error:
            self._fail(error)
        with self._lock:
            self._halt = halt
            cancelled = self._state in _FINAL
        if cancelled:
            halt()

    def _step(self) -> tuple[TokenEvent | None, _Wait | None]:
        """Return the next event, or None and how long to wait before the next step."""
        if self._state in _FINAL:
            return None, None
        now = clock.monotonic()
        left = self._left(now)
        if left <= 0:
            return self._complete("timeout"), None
        while not self._ready:
            if self._ended is not None:
                return self._complete(self._ended.reason), None
            item, over = self._buffer.take()
            if isinstance(item, Prefilled):
                return self._read(item, now), None
            if item is not None:
                self._feed(item)
            elif not over:
                return None, _Wait(left if left < inf else None)
            elif self._state is StreamState.PREFILLING and isinstance(self._buffer.end, Ended):
                return self._read(Prefilled(0), now), None  # there was nothing to read
            else:
                self._finished()
        pause = self._last + self.config.min_token_delay_ns / _SECOND - now if self._last else 0.0
        if pause > 0:
            return None, _Wait(min(pause, left), items=False)
        return self._tell(self._ready.popleft(), now), None

    def _left(self, now: float) -> float:
        limit = self.config.generation_timeout_ns
        return self._begun + limit / _SECOND - now if limit else inf

    def _read(self, item: Prefilled, now: float) -> TokenEvent | None:
        self._prefilled, self._prompt_tokens = now, item.prompt_tokens
        with self._lock:
            if self._state in _FINAL:
                return None
            self._state = StreamState.GENERATING
        return TokenEvent(0, None, 0, timestamp_ns=clock.now_ns())

    def _feed(self, piece: Piece) -> None:
        pieces, over = self._stopper.feed(piece)
        self._ready.extend(pieces)
        if over:
            self._ended = Ended("stop")
            self._buffer.refuse()
            self._halt()

    def _finished(self) -> None:
        """Take the backend's end: what was held back can be shown, or its error is raised."""
        end = self._buffer.end
        if isinstance(end, BaseException):
            self._fail(end)
        self._ready.extend(self._stopper.flush())
        self._ended = end or Ended()

    def _tell(self, piece: Piece, now: float) -> TokenEvent | None:
        if not self._tokens:
            self._first_ns = _ns(now - self._begun)
        self._tokens += 1
        self._last = now
        text = piece.text if self.config.decode_tokens else None
        event = TokenEvent(piece.token_id, text, piece.position, False, clock.now_ns(), piece.logprob, piece.top)
        if self.config.on_token is not None:
            try:
                self.config.on_token(event)
            except BaseException:
                self.cancel()
                raise
        return event if self._state is not StreamState.CANCELLED else None

    def _complete(self, reason: str) -> TokenEvent | None:
        if not self._end(StreamState.COMPLETED, reason):
            return None
        if self.config.on_complete is not None:
            self.config.on_complete(self.stats)
        return TokenEvent(0, None, self._tokens, True, clock.now_ns())

    def _fail(self, error: BaseException) -> NoReturn:
        if self._end(StreamState.ERRORED, "error") and self.config.on_error is not None:
            self.config.on_error(error)
        raise error

    def _end(self, state: StreamState, reason: str) -> bool:
        """Make `state` the last one, unless there is a last one already."""
        with self._lock:
            if self._state in _FINAL:
                return False
            self._state, self._reason = state, reason
            halt = self._halt
        self._buffer.stop()
        halt()
        return True


class _Wait(NamedTuple):
    seconds: float | None
    items: bool = True


def _nothing() -> None:
    """Nothing runs yet that could be stopped."""


def _ns(seconds: float) -> int:
    return int(seconds * _SECOND)
