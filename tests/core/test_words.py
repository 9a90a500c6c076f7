"""The words everybody uses: messages, items, events, errors, ids, money, JSON, the registry."""

from __future__ import annotations

import doctest
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core import clock, json, registry
from windlass.core.attachments import blob
from windlass.core.config import Config
from windlass.core.error_context import ErrorContext
from windlass.core.errors import (
    AgentContextExceededError,
    ConfigError,
    ContextExceededError,
    ProviderError,
    RateLimitError,
    UnknownNameError,
    UnsupportedInputError,
)
from windlass.core.events import (
    EVENT_SCHEMA,
    KINDS,
    Log,
    MessageAdded,
    ProviderSwitched,
    Retry,
    TextDelta,
    UnknownEvent,
    decode_event,
    encode_event,
)
from windlass.core.items import Assembler, Item, ReasoningItem, TextItem, ToolCallItem, parse_arguments
from windlass.core.messages import (
    Blob,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
    as_parts,
    decode_message,
    response_text,
    user,
)
from windlass.core.models import ModelFacts, Prices, cost_of, facts_of, override
from windlass.core.request import Budget, EncodingCache, Settings, thinking_budget
from windlass.core.usage import Usage, format_cost
from windlass.testing.clock import FakeClock


@pytest.mark.parametrize("module", ["usage", "clock", "error_context"])
def test_the_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"windlass.core.{module}"))
    assert result.failed == 0 and result.attempted > 0


# -- ids and time ------------------------------------------------------------------------------------------------------


def test_ids_sort_by_time_of_making_also_when_the_clock_goes_back() -> None:
    fake = FakeClock()
    with clock.use(fake):
        ids = [clock.new_id() for _ in range(500)]
        fake.jump(-3600)
        ids += [clock.new_id() for _ in range(500)]
        fake.jump(7200 * 365)
        ids.append(clock.new_id())
    assert ids == sorted(ids) and len(set(ids)) == len(ids)
    assert all(len(one) == 26 for one in ids)
    with clock.use(FakeClock()):
        assert clock.new_id() == ids[0]


def test_r52_times_before_the_epoch_and_absurd_ones_do_not_crash() -> None:
    assert clock.rfc3339(-1_000_000_000) == "1969-12-31T23:59:59.000000Z"
    assert clock.rfc3339(-(10**30)).startswith("0001-") and clock.rfc3339(10**30).startswith("9999-")


# -- JSON --------------------------------------------------------------------------------------------------------------

_any_text = st.text(st.characters(exclude_categories=[]), max_size=6)
_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _any_text
_wild = st.recursive(
    _leaves | st.sampled_from(["\ud800", "\x00", "\ue0f5i5", "\ue0f5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_text, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(_wild)
def test_r55_what_is_stored_comes_back_as_it_was(value: Any) -> None:
    stored = json.dumps_stored(value)
    assert json.loads_stored(stored) == value
    assert b"\\u0000" not in stored
    stored.decode("utf-8")
    json.dumps(value).decode("utf-8")


@pytest.mark.parametrize(
    "hostile",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 200 + b"]" * 200,
        b"\xff\xfe",
        b"NaN",
        b"1e999x",
        b"{",
        b'"\\ud8"',
        b"",
    ],
)
def test_s76_hostile_json_is_a_typed_error(hostile: bytes) -> None:
    begun = time.perf_counter()
    with pytest.raises(json.JsonError):
        json.loads(hostile)
    assert time.perf_counter() - begun < 5


def test_s76_marks_long_numbers_and_many_keys() -> None:
    assert json.loads(b'\xef\xbb\xbf{"a":1}') == {"a": 1}
    assert json.loads(b'{"a":1,"a":2}') == {"a": 2}
    assert len(json.loads(b"{" + b",".join([b'"k%d":1' % n for n in range(100_000)]) + b"}")) == 100_000
    assert json.loads("9" * 400) is not None


def test_r55_half_a_surrogate_pair_in_a_stream_is_no_failure() -> None:
    assert json.loads(b'{"a":"x\\ud83d"}') == {"a": "x\ud83d"} and json.loads(b'["\\ude00"]') == ["\ude00"]
    assert json.loads(b'["\\ud83d\\ude00"]') == ["\U0001f600"]
    collected = Assembler()
    for piece in ("a\ud83d", "\ude00b"):
        collected.add(TextItem(piece))
    assert collected.message().text == "a\U0001f600b"


# -- messages ----------------------------------------------------------------------------------------------------------


def test_messages_are_opentelemetry_json() -> None:
    message = Message(
        "assistant", (Text("hi"), Reasoning("hm"), ToolCall("c1", "t", {"q": 1}), Blob(b"\x00", "image/png"))
    )
    data = msgspec.json.decode(msgspec.json.encode(message))
    assert data == {
        "role": "assistant",
        "parts": [
            {"type": "text", "content": "hi"},
            {"type": "reasoning", "content": "hm"},
            {"type": "tool_call", "id": "c1", "name": "t", "arguments": {"q": 1}},
            {"type": "blob", "content": "AA==", "mime_type": "image/png"},
        ],
    }
    assert decode_message(msgspec.json.encode(message)) == message


def test_unknown_parts_and_kinds_survive() -> None:
    message = decode_message('{"role":"user","parts":[{"type":"hologram","x":1},{"type":"text","content":"a"}]}')
    assert message.parts == (UnknownPart({"type": "hologram", "x": 1}), Text("a"))
    event = decode_event('{"v":1,"kind":"dream.dreamt","run_id":"r","seq":4,"of":"sheep"}')
    assert isinstance(event, UnknownEvent) and (event.run_id, event.seq, event.data["of"]) == ("r", 4, "sheep")
    assert decode_event(encode_event(event)) == event
    kept = decode_event(encode_event(MessageAdded(message=message, run_id="r", seq=1, time=2)))
    assert isinstance(kept, MessageAdded) and kept.message.parts[1] == Text("a")
    with pytest.raises(ValueError, match="upgrade"):
        decode_event(f'{{"v":{EVENT_SCHEMA + 1},"kind":"text.delta","text":"x"}}')


def test_every_event_kind_round_trips() -> None:
    samples: dict[str, Any] = {
        "session_id": "s", "model": "m", "text": "t", "message": user("x"), "call_id": "c", "stop_reason": "end_turn",
        "turn": 1, "name": "n", "outcome": "allow_once", "what": "w", "index": 0, "strategy": "tail", "path": "p",
        "step": 1, "parent": "p", "pos": 1, "to_pos": 1, "mode": "steer", "key": "k", "metrics": {"loss": 1.0},
    }  # fmt: skip
    for kind in KINDS.values():
        given_fields = {f.name: samples[f.name] for f in msgspec.structs.fields(kind) if f.required}
        if kind in (Log, Retry, ProviderSwitched):
            given_fields["message"] = "words"
        event = kind(**given_fields, run_id="r", seq=1)
        assert decode_event(encode_event(event)) == event


def test_prompts_of_every_shape() -> None:
    assert as_parts("a") == as_parts(Text("a")) == as_parts(user("a")) == as_parts(["a"]) == (Text("a"),)
    shown = response_text(
        ToolResponse("c", (Text("see"), Blob(b"123", "image/png", filename="a.png"), Uri("http://x")))
    )
    assert shown == "see\n[image: a.png, 3 bytes]\n[image: http://x]"


def test_attachments_are_known_by_their_bytes() -> None:
    png = b"\x89PNG\r\n\x1a\n123"
    assert blob(png).mime_type == "image/png" and blob(png, filename="x.jpg").mime_type == "image/png"
    assert (blob(b"%PDF-1.7", filename="a").modality, blob("é".encode(), filename="a.md").mime_type) == (
        "document",
        "text/markdown",
    )
    for data, name, words in [
        (b"", "a.png", "empty"),
        (b"not one", "a.png", "first bytes"),
        (b"\xff\x00", None, "UTF-8 text"),
        (b"\xff\x00", "a.bin", "UTF-8 text"),
    ]:
        with pytest.raises(UnsupportedInputError, match=words):
            blob(data, filename=name)


# -- items -------------------------------------------------------------------------------------------------------------


def test_r22_calls_split_interleaved_empty_and_broken_are_assembled_by_index() -> None:
    collected = Assembler()
    items: list[Item] = [
        ReasoningItem("think"),
        ReasoningItem("", {"anthropic": {"signature": "a"}}),
        ReasoningItem("", {"anthropic": {"signature": "b"}}),
        TextItem("I "), TextItem("look."),
        ToolCallItem(1, "b", "second", '{"x"'), ToolCallItem(0, "a", "first"), ToolCallItem(1, None, None, ":1}"),
        ToolCallItem(2, "c", "third", "{broken"),
    ]  # fmt: skip
    for item in items:
        collected.add(item)
    message = collected.message()
    assert message.parts[:2] == (Reasoning("think", {"anthropic": {"signature": "ab"}}), Text("I look."))
    assert [(c.id, c.name, c.arguments) for c in message.tool_calls] == [
        ("a", "first", {}),
        ("b", "second", {"x": 1}),
        ("c", "third", None),
    ]
    assert collected.parts(calls=False)[1] == Text("I look.")


def test_r23_missing_and_duplicate_ids_are_made_unique() -> None:
    collected = Assembler()
    for index, call_id in enumerate([None, "x", "x", "call_0"]):
        collected.add(ToolCallItem(index, call_id, "t"))
    ids = [call.id for call in collected.message().tool_calls]
    assert len(set(ids)) == 4 and ids[1] == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ({}, None)), ("", ({}, None)), ('{"a":1}', ({"a": 1}, None)), ('{"a": 1}', ({"a": 1}, '{"a": 1}')),
        ("null", ({}, "null")), ("[1]", (None, "[1]")), ("{", (None, "{")),
    ],
)  # fmt: skip
def test_r24_argument_texts(text: str | None, expected: Any) -> None:
    assert parse_arguments(text) == expected


# -- requests ----------------------------------------------------------------------------------------------------------


def test_closed_turns_are_encoded_once() -> None:
    cache, encoded = EncodingCache(), 0

    def encode(group: Any) -> bytes:
        nonlocal encoded
        encoded += len(group)
        return b"%d" % len(group)

    messages = [user("go")]
    for turn in range(1, 200):
        messages += [Message("assistant", (Text("x"),)), Message("tool")]
        chunks, rest = cache.closed(("d",), messages, encode)
        assert len(chunks) == turn and rest == len(messages) - 2
    assert encoded == len(messages) - 2
    cache.clear()
    assert len(cache.closed(("d",), messages, encode)[0]) == 199


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"temperature": 2.5},
        {"top_p": -1.0},
        {"max_tokens": 0},
        {"thinking_budget": -1},
        {"temperature": float("nan")},
    ):
        with pytest.raises(ConfigError):
            Settings(**wrong)  # pyright: ignore[reportArgumentType]
    assert [thinking_budget(Settings(thinking=level)) for level in ("off", "minimal", "low", "medium", "high")] == [
        0,
        1024,
        4096,
        10240,
        32768,
    ]
    assert (
        thinking_budget(Settings(thinking="low", thinking_budget=7)) == 7
        and thinking_budget(Settings(thinking="adaptive")) is None
    )


def test_budget_counts_attempts_and_time() -> None:
    fake = FakeClock()
    with clock.use(fake):
        budget = Budget(10.0, 2)
        assert budget.take_attempt() and budget.remaining() == 10.0
        fake.elapsed += 20
        assert budget.remaining() == 0.0 and not budget.take_attempt()


# -- money -------------------------------------------------------------------------------------------------------------


def test_cost_is_exact_and_unknown_is_never_zero() -> None:
    usage = Usage(1_000_000, 1_000_000, cache_read_tokens=400_000, cache_creation_tokens=100_000)
    assert cost_of(usage, Prices(3, 15, 0.3, 3.75)) == round((0.5 * 3 + 0.4 * 0.3 + 0.1 * 3.75 + 15) * 1e9)
    assert cost_of(usage, Prices(3, None)) is None and cost_of(Usage(), Prices(0, 0)) == 0
    assert format_cost(cost_of(Usage(1, 0), Prices(0.1, 0.4))) == "$0.0000001"


def test_facts_by_exact_dated_and_overridden_names() -> None:
    assert facts_of("openai", "gpt-4.1-mini-2025-04-14").prices.input == 0.4
    assert facts_of("openai", "gpt-4.1-2025-04-14").prices.input == 2
    assert facts_of("openrouter", "anthropic/claude-sonnet-4-5").context == 200_000
    assert facts_of("openai", "nobody-knows") == ModelFacts()
    assert facts_of("ollama", "anything").prices == Prices(0.0, 0.0)
    try:
        override({"gpt-4.1": {"prices": {"input": 1.0, "output": 2.0}}, "mine:x": {"context": 5}})
        assert facts_of("openai", "gpt-4.1").prices.input == 1.0 and facts_of("mine", "x").context == 5
        with pytest.raises(ConfigError, match="gpt"):
            override({"gpt": {"context": "big"}})
    finally:
        from windlass.core import models

        models._overrides.clear()  # pyright: ignore[reportPrivateUsage]
        facts_of.cache_clear()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_the_four_factories_and_their_line_with_every_known_field() -> None:
    error = RateLimitError(
        "slow down", provider="openai", model="gpt-4", endpoint="/v1", status=429, attempt=2, max_attempts=3
    )
    assert str(ErrorContext.api_error("Timeout", "openai", "/v1/chat", 500, "gpt-4")) == (
        "AgentError: Timeout during API request [backend=openai] [model=gpt-4] [endpoint=/v1/chat] [http_status=500]"
    )
    assert (
        str(ErrorContext.config_error(ConfigError("x"), "no key"))
        == "AgentError: ConfigError during configuration - no key"
    )
    assert (
        str(ErrorContext.generation_error("Empty", "echo", "m"))
        == "AgentError: Empty during generation [backend=echo] [model=m]"
    )
    assert str(ErrorContext.retry_error("Timeout", "openai", 2, 3, "again")) == (
        "AgentError: Timeout during retry [backend=openai] [attempt=2/3] - again"
    )
    assert str(ErrorContext.from_error(error)) == (
        "AgentError: RateLimitError during API request [backend=openai] [model=gpt-4] [endpoint=/v1] [http_status=429] "
        "[attempt=2/3] - slow down"
    )
    data = error.to_dict()
    assert data["code"] == "rate_limited" and data["recovery_strategy"] == "retry_with_backoff"
    assert data["context"] == {
        "provider": "openai",
        "model": "gpt-4",
        "endpoint": "/v1",
        "status": 429,
        "attempt": 2,
        "max_attempts": 3,
    }
    assert AgentContextExceededError is ContextExceededError and issubclass(ContextExceededError, ProviderError)


def test_unknown_names_suggest_the_nearest() -> None:
    assert "Did you mean 'anthropic'?" in str(UnknownNameError("provider", "antropic", ["openai", "anthropic"]))
    assert "Known: a, b." in str(UnknownNameError("thing", "zzzzzz", ["b", "a"]))


# -- the registry ------------------------------------------------------------------------------------------------------


def test_names_entry_points_and_dotted_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_parts.py").write_text(
        "def make(name, config):\n    return Mine()\nclass Mine:\n    name = 'mine'\n    def stream(self, r): ...\n"
    )
    info = tmp_path / "their_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[windlass.providers]\nmine = their_parts:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert "mine" in registry.names("providers")
    provider, model, full = registry.model("mine:big", Config.from_environment({}))
    assert (provider.name, model, full) == ("mine", "big", "mine:big")
    assert registry.resolve("providers", "windlass.providers.own:make") is not None
    with pytest.raises(ConfigError, match="has no nothing"):
        registry.load("windlass.core.clock:nothing")
    with pytest.raises(ConfigError, match="Cannot import"):
        registry.load("no.such.module:x")
    sys.modules.pop("their_parts", None)


def test_models_from_objects_defaults_and_wrong_types() -> None:
    class Own:
        name = "own"

        def stream(self, request: Any) -> Any: ...

    own = Own()
    assert registry.model(own)[0] is own
    assert registry.model(None, Config.from_environment({"WINDLASS_MODEL": "echo"}))[2] == "echo"
    assert registry.model(None, Config.from_environment({}))[2].startswith("local")
    with pytest.raises(ConfigError, match="provider object"):
        registry.model(3)
    made = registry.make("stores", "memory")
    assert type(made).__name__ == "MemoryStore" and registry.make("stores", made) is made


def test_a_delta_costs_one_small_object() -> None:
    assert sys.getsizeof(TextDelta(text="x")) <= 96
