"""One streamed answer: events, states, stopping, waiting, and the bytes of its Server-Sent Events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.backend import Ended, Generation, Piece, Prefilled, StreamSink
from windlass.local.backend_native import Chunks
from windlass.local.sse import format_complete, format_error, format_token, sse, sse_async
from windlass.local.stopping import Stopper
from windlass.local.streaming import StreamingConfig, StreamingResponse, StreamingStats, StreamState, TokenEvent

LAST_GUARD = 30.0


class Player:
    """A backend's `start` that plays what a test says, on a thread of its own, as real ones do."""

    def __init__(self, *items: Prefilled | Piece | threading.Event | BaseException, end: Ended | None = None) -> None:
        self._items, self._end = items, end or Ended()
        self.stopped = threading.Event()
        self.over = threading.Event()
        self.told = 0

    def start(self, ask: Generation, sink: StreamSink, /) -> Callable[[], None]:
        del ask
        threading.Thread(target=self._play, args=(sink,), daemon=True).start()
        return self.stopped.set

    def _play(self, sink: StreamSink) -> None:
        end: Ended | BaseException = self._end
        for item in self._items:
            if isinstance(item, threading.Event):
                while not item.wait(0.01):
                    if self.stopped.is_set():
                        break
                continue
            if isinstance(item, BaseException):
                end = item
                break
            if sink.put(item) or self.stopped.is_set():
                break
            self.told += 1
        sink.finish(end)
        self.over.set()


def words(*texts: str, first: int = 0) -> list[Piece]:
    return [Piece(100 + first + number, text, first + number) for number, text in enumerate(texts)]


def response(player: Player, limit: int = 0, **options: Any) -> StreamingResponse:
    config = StreamingConfig(**options)
    return StreamingResponse(player.start, config.asked("x"), config, limit=limit)


def shown(events: Iterator[TokenEvent] | StreamingResponse) -> list[tuple[int, str | None, int, bool]]:
    return [(event.token_id, event.text, event.position, event.is_final) for event in events]


def test_events_come_in_order_and_states_follow() -> None:
    gate = threading.Event()
    player = Player(gate, Prefilled(7), *words("Hel", "lo"), end=Ended("length", 5, 6))
    stream = response(player)
    assert stream.state is StreamState.IDLE
    waiting = threading.Thread(target=gate.set)
    events: list[TokenEvent] = []
    waiting.start()
    first = stream.next()
    assert first is not None
    assert (first.text, first.is_final, first.position) == (None, False, 0)
    assert stream.state is StreamState.GENERATING
    events = list(stream)
    assert shown(iter(events)) == [(100, "Hel", 0, False), (101, "lo", 1, False), (0, None, 2, True)]
    assert (stream.state, stream.next(), stream.is_cancelled) == (StreamState.COMPLETED, None, False)
    stats = stream.stats
    assert (stats.tokens_generated, stats.prompt_tokens, stats.reason) == (2, 7, "length")
    assert (stats.engine_prefill_ns, stats.engine_generation_ns) == (5, 6)
    assert stats.prefill_time_ns > 0
    assert stats.time_to_first_token_ns >= stats.prefill_time_ns
    stamps = [first.timestamp_ns, *[event.timestamp_ns for event in events]]
    assert stamps == sorted(stamps)


def test_prefilling_is_a_state_of_its_own() -> None:
    gate = threading.Event()
    stream = response(Player(gate, Prefilled(1)))
    reader = threading.Thread(target=stream.next)
    reader.start()
    while stream.state is StreamState.IDLE:
        pass
    assert stream.state is StreamState.PREFILLING
    gate.set()
    reader.join(LAST_GUARD)
    assert stream.state is StreamState.GENERATING
    stream.cancel()


def test_statistics_count_per_second() -> None:
    stats = StreamingStats(tokens_generated=50, generation_time_ns=2_000_000_000, time_to_first_token_ns=1_500_000)
    assert (stats.tokens_per_second, stats.time_to_first_token_ms) == (25.0, 1.5)
    assert StreamingStats().tokens_per_second == 0.0


def test_cancel_from_another_thread_wakes_a_waiting_reader() -> None:
    never = threading.Event()
    player = Player(Prefilled(1), *words("a"), never, *words("b", first=1))
    stream = response(player)
    seen = [stream.next(), stream.next()]
    got: list[TokenEvent | None] = []
    reader = threading.Thread(target=lambda: got.append(stream.next()))
    reader.start()
    stream.cancel()
    reader.join(LAST_GUARD)
    assert [event is not None for event in seen] == [True, True]
    assert got == [None]
    assert (stream.state, stream.is_cancelled, stream.stats.reason) == (StreamState.CANCELLED, True, "cancelled")
    assert player.over.wait(LAST_GUARD)
    assert player.told == 2
    assert stream.next() is None


def test_cancelled_is_never_overwritten() -> None:
    stream = response(Player(Prefilled(1), *words("a")))
    while stream.next() is not None:
        pass
    stream.cancel()
    assert stream.state is StreamState.COMPLETED
    other = response(Player(Prefilled(1), *words("a")))
    other.cancel()
    assert (other.next(), other.state) == (None, StreamState.CANCELLED)

    def give_up(event: TokenEvent) -> None:
        assert event.text == "a"
        in_between.cancel()

    in_between = response(Player(Prefilled(1), *words("a", "b")), on_token=give_up)
    assert [in_between.next() is not None for _ in range(2)] == [True, False]
    assert in_between.state is StreamState.CANCELLED


@pytest.mark.parametrize("waits", ["before the prompt is read", "between tokens"])
def test_timeout_ends_as_if_whole(waits: str) -> None:
    never = threading.Event()
    items = [never] if waits.startswith("before") else [Prefilled(1), *words("a"), never]
    done: list[StreamingStats] = []
    player = Player(*items)
    stream = response(player, generation_timeout_ns=50_000_000, on_complete=done.append)
    events = list(stream)
    assert (events[-1].is_final, events[-1].text) == (True, None)
    assert (stream.state, stream.stats.reason) == (StreamState.COMPLETED, "timeout")
    assert [stats.reason for stats in done] == ["timeout"]
    assert player.over.wait(LAST_GUARD)


def test_an_error_is_raised_once_and_told() -> None:
    told: list[BaseException] = []
    error = LocalModelError("The engine is gone.")
    stream = response(Player(Prefilled(1), *words("a"), error), on_error=told.append)
    assert [stream.next() is not None for _ in range(2)] == [True, True]
    with pytest.raises(LocalModelError, match="is gone"):
        stream.next()
    assert (stream.state, stream.next(), told) == (StreamState.ERRORED, None, [error])


def test_an_error_of_start_is_raised_too() -> None:
    def start(ask: Generation, sink: StreamSink, /) -> Callable[[], None]:
        raise ConfigError("It cannot.")

    config = StreamingConfig()
    stream = StreamingResponse(start, config.asked("x"), config)
    with pytest.raises(ConfigError):
        stream.next()
    assert stream.state is StreamState.ERRORED


def test_stop_tokens_are_not_told() -> None:
    player = Player(Prefilled(1), *words("a", "b", "c"))
    stream = response(player, stop_tokens=(102,))
    assert shown(stream) == [(0, None, 0, False), (100, "a", 0, False), (101, "b", 1, False), (0, None, 2, True)]
    assert stream.stats.reason == "stop"


def test_callbacks_are_called_in_order() -> None:
    log: list[str] = []

    def told(event: TokenEvent) -> None:
        log.append(event.text or "")

    def whole(stats: StreamingStats) -> None:
        log.append(f"complete {stats.tokens_generated}")

    stream = response(
        Player(Prefilled(1), *words("a", "b")), on_token=told, on_complete=whole, on_error=lambda: log.append("error")
    )
    list(stream)
    assert log == ["a", "b", "complete 2"]


def test_a_callback_that_raises_cancels() -> None:
    def fail(event: TokenEvent) -> None:
        raise ValueError(event.text)

    player = Player(Prefilled(1), *words("a", "b"))
    stream = response(player, on_token=fail)
    stream.next()
    with pytest.raises(ValueError, match=r"^a$"):
        stream.next()
    assert stream.is_cancelled
    assert player.over.wait(LAST_GUARD)


def test_without_decoding_there_are_no_texts() -> None:
    stream = response(Player(Prefilled(1), *words("a", "b")), decode_tokens=False)
    assert [(event.token_id, event.text) for event in stream] == [(0, None), (100, None), (101, None), (0, None)]


def test_generation_waits_for_the_reader_where_the_buffer_is_small() -> None:
    player = Player(Prefilled(1), *words(*"abcdefgh"))
    stream = response(player, limit=2)
    assert stream.next() is not None
    for _ in range(200):  # however long it may: no more than two wait and one is on its way
        assert player.told <= 4
    assert [event.text for event in stream] == [*"abcdefgh", None]
    blocked = Player(Prefilled(1), *words(*"abcdefgh"))
    given_up = response(blocked, limit=1)
    given_up.next()
    given_up.cancel()
    assert blocked.over.wait(LAST_GUARD)


def test_tokens_keep_their_distance() -> None:
    stream = response(Player(Prefilled(1), *words("a", "b", "c")), min_token_delay_ns=20_000_000)
    list(stream)
    assert stream.stats.generation_time_ns >= 40_000_000
    slow = response(Player(Prefilled(1), *words("a", "b")), min_token_delay_ns=3_600_000_000_000)
    slow.next()
    slow.next()
    threading.Timer(0.05, slow.cancel).start()
    assert slow.next() is None


async def test_async_reads_the_same_events() -> None:
    gate = threading.Event()
    stream = response(Player(gate, Prefilled(3), *words("a", "b")))
    asyncio.get_running_loop().call_later(0.02, gate.set)
    assert [event.text async for event in stream] == [None, "a", "b", None]
    late = response(Player(threading.Event()), generation_timeout_ns=30_000_000)
    assert [event.is_final async for event in late] == [True]
    given_up = response(Player(threading.Event()))
    asyncio.get_running_loop().call_later(0.02, given_up.cancel)
    assert await given_up.anext() is None


def test_options_out_of_range_are_refused() -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}, {"repetition_penalty": 0.0},
        {"stop": ("",)}, {"grammar": "root ::= [a]", "json_schema": {}},
    )  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError):
            StreamingConfig(**options).asked("x")
    with pytest.raises(ConfigError, match="generation_timeout_ns is -1"):
        StreamingConfig(generation_timeout_ns=-1)


def test_defaults_are_those_of_the_reference() -> None:
    config = StreamingConfig()
    assert (config.max_tokens, config.temperature, config.top_k, config.top_p) == (256, 0.7, 40, 0.9)
    assert (config.repetition_penalty, config.initial_buffer_capacity) == (1.1, 256)
    assert (config.decode_tokens, config.generation_timeout_ns, config.seed) == (True, 0, None)


@given(
    st.lists(st.text(alphabet="abX", max_size=4), max_size=12),
    st.lists(st.text(alphabet="abX", min_size=1), max_size=3),
)
def test_a_stop_string_ends_the_text_wherever_tokens_cut_it(texts: list[str], stops: list[str]) -> None:
    stopper, out, over = Stopper(stops), "", False
    for piece in words(*texts):
        pieces, over = stopper.feed(piece)
        out += "".join([piece.text for piece in pieces])
        if over:
            break
    whole = "".join(texts)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert over == bool(ends)
    if not over:
        out += "".join([piece.text for piece in stopper.flush()])
    # The stop that is complete first wins; of those the one that begins first.
    first = min([(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0], default=(0, len(whole)))
    assert out == whole[: first[1]] if len(ends) < 2 else whole.startswith(out)


def chunk(text: str, token: int, count: int, **more: Any) -> bytes:
    verbose = {"tokens": [token], "tokens_predicted": count, "tokens_evaluated": 3, **more.pop("verbose", {})}
    choice = {"text": text, "finish_reason": more.pop("finish_reason", None)}
    return msgspec.json.encode({"choices": [choice], "__verbose": verbose, **more})


class Kept(StreamSink):
    def __init__(self) -> None:
        self.items: list[Any] = []

    def put(self, item: Any, /) -> bool:
        self.items.append(item)
        return False

    def finish(self, end: Any, /) -> None:
        self.items.append(end)


def test_the_token_that_ends_a_text_is_not_told_but_control_tokens_are() -> None:
    sink = Kept()
    line = Chunks(sink)
    line.put(msgspec.json.encode({"choices": [], "prompt_progress": {"total": 3, "processed": 0}}))
    line.put(msgspec.json.encode({"choices": [], "prompt_progress": {"total": 3, "processed": 3}}))
    line.put(chunk("a", 5, 1))
    line.put(chunk("", 7, 2))
    line.put(chunk("b", 6, 3))
    line.put(chunk("", 2, 4))
    timings = {"prompt_ms": 1.5, "predicted_ms": 2.0}
    line.put(chunk("", 0, 4, finish_reason="stop", verbose={"tokens": [], "stop_type": "eos"}, timings=timings))
    line.finish()
    assert sink.items == [
        Prefilled(3), Piece(5, "a", 0), Piece(7, "", 1), Piece(6, "b", 2), Ended("stop", 1_500_000, 2_000_000),
    ]  # fmt: skip


def test_sse_bytes() -> None:
    assert (
        format_token(TokenEvent(123, "hello", 5))
        == b'data: {"token_id":123,"text":"hello","position":5,"is_final":false}\n\n'
    )
    assert format_token(TokenEvent(0, None, 6, True)) == b'data: {"token_id":0,"position":6,"is_final":true}\n\n'
    stats = StreamingStats(tokens_generated=50, generation_time_ns=2_000_000_000, time_to_first_token_ns=12_345_678)
    complete = b'data: {"event":"complete","tokens_generated":50,"tokens_per_second":25.0'
    assert format_complete(stats) == complete + b"}\n\n"
    assert format_complete(stats, first_token=True) == complete + b',"time_to_first_token_ms":12.346}\n\n'
    assert format_error("it broke") == b'data: {"event":"error","error":"it broke"}\n\n'


@given(st.integers(0, 2**32 - 1), st.none() | st.text(), st.integers(0, 2**31), st.booleans())
def test_sse_of_any_token_is_one_event_that_reads_back(token: int, text: str | None, place: int, final: bool) -> None:
    data = format_token(TokenEvent(token, text, place, final))
    assert data.startswith(b"data: ")
    assert data.endswith(b"}\n\n")
    inner = data[6:-2]
    assert b"\n" not in inner
    assert b"\r" not in inner
    expected: dict[str, Any] = {"token_id": token, "text": text, "position": place, "is_final": final}
    if text is None:
        del expected["text"]
    found = msgspec.json.decode(inner)
    assert found == expected
    assert list(found) == list(expected)


async def test_a_stream_as_sse_ends_with_complete_or_error() -> None:
    good = b"".join(sse(response(Player(Prefilled(1), *words("a")))))
    assert good.startswith(b'data: {"token_id":0,"position":0,"is_final":false}\n\ndata: {"token_id":100,"text":"a",')
    assert good.count(b"\n\n") == 4
    assert b'{"event":"complete","tokens_generated":1,' in good
    bad = [piece async for piece in sse_async(response(Player(Prefilled(1), LocalModelError("It broke."))))]
    assert bad[-1] == b'data: {"event":"error","error":"It broke."}\n\n'
    assert len(bad) == 2
