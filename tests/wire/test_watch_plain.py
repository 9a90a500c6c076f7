"""Chat answers are read by their few telling fields: whatever they hold, as if each event had been decoded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ProviderError, StreamInterrupted, WireError
from windlass.core.items import Finish
from windlass.core.usage import Usage
from windlass.wire import openai_chat
from windlass.wire.watch import ChatWatcher
from windlass.wire.watch_whole import read_whole

CHAT = openai_chat.DIALECT
DONE = b"data: [DONE]\n\n"


class Plodding(ChatWatcher):
    """Decodes every event by itself, as watchers did before they knew better."""

    __slots__ = ()

    def _read(self, data: bytes) -> None:
        if not self._read_any:
            self._read_any = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        self._read_slowly(data)


class Told:
    """What a watcher made of a stream."""

    def __init__(self, watcher: ChatWatcher, pieces: Sequence[bytes]) -> None:
        self.passed, self.error = b"", ""
        try:
            for piece in pieces:
                self.passed += watcher.feed(piece)
            self.passed += watcher.close()
        except ProviderError as error:
            self.passed += watcher.sound
            self.error = type(error).__name__
        self.known = (watcher.usage, watcher.cost, watcher.finish_reason, watcher.model, watcher.finished, watcher.done,
                      watcher.begun)  # fmt: skip
        self.events = watcher.events


# ---------------------------------------------------------------------------------------------------------- generated

#: Texts that read like the fields that are looked for, as they are and as JSON writes them into a string.
_PATTERNS = [
    '"finish_reason":null', '"finish_reason":"stop"', '"usage":{', '"usage":null', '"error"', '"x_groq"',
    '"choices":[]', "finish_reason", "usage", "error", "\n\ndata: ", "data: [DONE]", "\\", '"', '\\"', "é😀",
    "\u2028", "\x00",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.sampled_from(_PATTERNS), st.sampled_from([json.dumps(text) for text in _PATTERNS]),
              st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    max_size=3,
).map("".join)  # fmt: skip
COUNTS = st.integers(0, 1000)
USAGES = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"prompt_tokens": COUNTS, "completion_tokens": COUNTS},
        optional={
            "total_tokens": COUNTS,
            "prompt_tokens_details": st.one_of(
                st.none(), st.fixed_dictionaries({}, optional={"cached_tokens": st.one_of(st.none(), COUNTS),
                                                               "cache_write_tokens": COUNTS})),
            "completion_tokens_details": st.fixed_dictionaries({}, optional={"reasoning_tokens": COUNTS}),
            "prompt_cache_hit_tokens": COUNTS,
            "cost": st.sampled_from([0.5, 0, None, "0.1"]),
        },
    ),
    st.sampled_from([{}, [], {"prompt_tokens": None}, {"prompt_tokens": 1.5, "completion_tokens": -1}, {"x": 1}]),
)  # fmt: skip
#: What vendors may nest anywhere: fields of the names that count, which mean nothing there.
NESTED = st.sampled_from(
    [{}, {"finish_reason": None}, {"finish_reason": "stop"}, {"usage": {"prompt_tokens": 9, "completion_tokens": 9}},
     {"error": {"message": "no"}}, {"choices": []}, {"x_groq": {}}, {"a": [{"finish_reason": None, "usage": None}]}]
)  # fmt: skip
REASONS = st.sampled_from([None, None, None, None, "stop", "length", "tool_calls", "", "eos_token", "network_error"])
CHOICES = st.fixed_dictionaries(
    {"delta": st.fixed_dictionaries({}, optional={"content": TEXTS, "role": st.just("assistant"), "meta": NESTED})},
    optional={
        "index": st.just(0),
        "finish_reason": REASONS,
        "logprobs": st.none(),
        "error": st.none(),
        "extra": NESTED,
    },
)
CHUNKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"choices": st.one_of(st.lists(CHOICES, min_size=1, max_size=1), st.just(list[Any]()))},
    optional={
        "id": TEXTS, "model": st.sampled_from(["m-1", "m-2", "", None]), "usage": USAGES, "error": st.none(),
        "meta": NESTED, "x_groq": st.sampled_from([None, {}, {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}]),
    },
)  # fmt: skip


def _shuffled(chunk: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(chunk.items())).map(dict)


def _event(chunk: dict[str, Any], write: Callable[[Any], bytes], plainly: bool) -> bytes:
    return b"data: " + (_WRITERS[0] if plainly else write)(chunk) + b"\n\n"


_WRITERS: list[Callable[[Any], bytes]] = [
    lambda chunk: json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode(),
    lambda chunk: json.dumps(chunk, separators=(",", ":")).encode(),
    lambda chunk: json.dumps(chunk, ensure_ascii=False).encode(),
    lambda chunk: json.dumps(chunk, separators=(" , ", " : ")).encode(),
]
#: One way of writing for most of a stream, as vendors have one; seldom a mixture.
EVENTS = st.builds(_event, CHUNKS.flatmap(_shuffled), st.sampled_from(_WRITERS), st.integers(0, 3).map(bool))
ODD = st.sampled_from([b": ping\n\n", b"data: [1]\n\n", b"data: {\n\n", b"data: {},{}\n\n", b"data: [1\n\n",
                       b"data: 2]\n\n", b"data: 7\n\n", b"event: x\ndata: {}\n\n", b"data: {}\r\n\r\n"])  # fmt: skip
STREAMS = st.lists(st.one_of(EVENTS, EVENTS, EVENTS, EVENTS, EVENTS, ODD), max_size=7).map(b"".join)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    points = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(points) if end > start]


def lines(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@settings(max_examples=400)
@given(STREAMS, st.lists(st.integers(0, 5000), max_size=5), st.booleans(), st.sampled_from([1, 1, 2]))
def test_any_stream_in_any_pieces_tells_what_decoding_it_tells(
    data: bytes, places: list[int], ends: bool, choices: int
) -> None:
    data += DONE if ends else b""
    want = Told(Plodding(choices=choices), [data])
    for pieces in ([data], cut(data, places), cut(data, range(len(data)))):
        seen = Told(ChatWatcher(choices=choices), pieces)
        assert (seen.error, seen.known) == (want.error, want.known)
        if not want.error:
            # A line end that was cut in two is one, or two of the other kind.
            assert (lines(seen.passed), seen.events) == (lines(want.passed), want.events)


@settings(max_examples=200)
@given(STREAMS, st.lists(st.integers(0, 5000), max_size=5))
def test_usage_is_hidden_alike_however_the_stream_is_cut(data: bytes, places: list[int]) -> None:
    data += DONE
    want = Told(Plodding(hide_usage=True), [event + b"\n\n" for event in data.split(b"\n\n")[:-1]])
    for pieces in ([data], cut(data, places)):
        seen = Told(ChatWatcher(hide_usage=True), pieces)
        assert (seen.error, seen.known) == (want.error, want.known)
        if not want.error:
            assert seen.passed == want.passed


def _named(chunk: dict[str, Any]) -> dict[str, Any]:
    """Return it with the fields that the decoder looks for only where their number changes."""
    return {**chunk, "model": "m-1", "x_groq": None}


@settings(max_examples=200)
@given(
    st.lists(st.builds(_event, CHUNKS.map(_named), st.sampled_from(_WRITERS), st.booleans()), max_size=6).map(b"".join)
)
def test_what_is_whole_is_what_the_dialects_decoder_says(data: bytes) -> None:
    data += DONE
    seen = Told(ChatWatcher(), [data])
    decoder, finish = CHAT.stream_decoder(), None
    try:
        finish = next((item for item in [*decoder.feed(data), *decoder.close()] if isinstance(item, Finish)), None)
    except ProviderError:
        assert seen.error
        return
    assert finish is not None
    if not seen.error:
        assert seen.known[2] == finish.raw and (seen.known[3] or None) == finish.model
        assert (seen.known[0] or Usage(estimated=True)) == finish.usage


# -------------------------------------------------------------------------------------------------------- one by one


def plain(**fields: Any) -> bytes:
    return b"data: " + _WRITERS[0]({"id": "c", "model": "m-1", **fields}) + b"\n\n"


def piece(text: str = "a", **more: Any) -> bytes:
    return plain(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more)


STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}
FEW, MANY = {"prompt_tokens": 1, "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 6}


@pytest.mark.parametrize(
    "data",
    [
        # The end and the counts, after the first chunk and not in it.
        piece() + piece() + plain(choices=[STOP], usage=FEW) + plain(choices=[], usage=MANY) + DONE,
        # Something nested that says that it goes on, in the chunk that ends.
        piece() + plain(choices=[{**STOP, "delta": {"x": {"finish_reason": None}}}], usage=MANY) + DONE,
        # Counts among compact fields, with a space.
        piece() + piece().replace(b"}\n\n", b',"usage": {"prompt_tokens":5,"completion_tokens":6}}\n\n')
        + plain(choices=[STOP]) + DONE,
        # Counts, and then none.
        piece(usage=MANY) + piece(usage={}) + plain(choices=[STOP], usage=None) + DONE,
        # The first chunk names no model.
        piece(model="", usage=MANY) + piece() + plain(choices=[STOP]) + DONE,
    ],
    ids=["order", "nested", "spaced", "emptied", "model"],
)  # fmt: skip
def test_what_was_once_overlooked(data: bytes) -> None:
    for pieces in ([data], cut(data, range(len(data)))):
        told = Told(ChatWatcher(), pieces)
        assert (told.error, told.passed) == ("", data)
        assert told.known[:4] == (Usage(5, 6), None, "stop", "m-1")


def test_usage_is_hidden_wherever_it_stands() -> None:
    counts, end = plain(choices=[], usage=MANY), plain(choices=[STOP])
    nested = piece(usage=MANY, meta={"choices": []})
    for data, left in (
        (counts + piece() + end + DONE, piece() + end + DONE),
        (piece() + end + counts + plain(choices=[], usage=None) + DONE,
         piece() + end + plain(choices=[], usage=None) + DONE),
        (nested + end + DONE, nested + end + DONE),
        # What counts nothing is none of what we asked for.
        (plain(choices=[], usage={"x": 1}) + end + counts + DONE, plain(choices=[], usage={"x": 1}) + end + DONE),
        (piece('"usage":{') + end + counts + DONE, piece('"usage":{') + end + DONE),
    ):  # fmt: skip
        for at in range(len(data)):
            assert Told(ChatWatcher(hide_usage=True), [data[:at], data[at:]]).passed == left


# ------------------------------------------------------------------------------------------------------ whole answers

WHOLE = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {"message": st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS})},
                optional={"index": st.integers(0, 1), "finish_reason": REASONS, "error": st.none(), "meta": NESTED},
            ),
            max_size=2,
        )
    },
    optional={"id": TEXTS, "model": st.sampled_from(["m-1", "", None]), "usage": USAGES, "error": st.none(),
              "meta": NESTED},
)  # fmt: skip


@settings(max_examples=300)
@given(WHOLE, st.sampled_from(_WRITERS))
def test_a_whole_answer_is_read_as_it_is_decoded(answer: dict[str, Any], write: Callable[[Any], bytes]) -> None:
    body = write(answer)
    try:
        finish = CHAT.decode_response(body)
        if finish.reason in ("interrupted", "error"):
            raise StreamInterrupted("as the vendor says")
    except ProviderError as error:
        with pytest.raises(type(error)):
            read_whole(CHAT, body)
        return
    told = read_whole(CHAT, body)
    assert (told.usage or Usage(estimated=True)) == finish.usage
    assert (told.finish_reason or None, told.model or None) == (finish.raw or None, finish.model or None)
    assert told.cost == finish.cost


def test_a_whole_answer_that_is_no_text_is_none() -> None:
    body = _WRITERS[0]({"choices": [{"message": {"content": "é"}, "finish_reason": "stop"}], "usage": MANY})
    assert read_whole(CHAT, body).usage == Usage(5, 6)
    with pytest.raises(WireError):
        read_whole(CHAT, body.replace("é".encode(), b"\xff"))
