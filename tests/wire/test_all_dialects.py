"""What holds for every dialect: it reads what it wrote, it writes what its vendor takes, and all of them mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bedrock_kit import check_bedrock
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from openai_responses_kit import check_responses
from wire_strategies import clean_text, conversations, images, names, wild_text

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    WindlassError,
)
from windlass.core.items import Finish, FinishReason, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, UnknownPart, user
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, ToolSpec
from windlass.core.usage import Usage
from windlass.testing.validity import check_anthropic, check_gemini, check_ollama, check_openai
from windlass.wire import (
    anthropic,
    bedrock,
    gemini,
    ollama,
    ollama_generate,
    openai_chat,
    openai_completions,
    openai_responses,
)
from windlass.wire.base import Dialect

CAPS = Capabilities(image_in_tool_result=True, cache_breakpoints=True, reasoning="effort")
Check = Callable[[dict[str, Any]], list[str]]
ALL: list[tuple[Dialect, Check]] = [
    (anthropic.DIALECT, check_anthropic),
    (ollama.DIALECT, check_ollama),
    (openai_chat.DIALECT, check_openai),
    (openai_chat.OPENROUTER, check_openai),
    (openai_chat.MISTRAL, check_openai),
    (openai_responses.DIALECT, check_responses),
    (openai_responses.CODEX, check_responses),
    (gemini.DIALECT, check_gemini),
    (bedrock.DIALECT, check_bedrock),
]
NAMES = ["anthropic", "ollama", "openai", "openrouter", "mistral", "responses", "codex", "gemini", "bedrock"]
#: The variants of a dialect differ in requests only.
PAIRED = {
    name: ALL[NAMES.index(name)][0] for name in ("anthropic", "ollama", "openai", "responses", "gemini", "bedrock")
}
every_dialect = pytest.mark.parametrize(("dialect", "check"), ALL, ids=NAMES)
#: Those of one prompt, which cannot tell a conversation.
PROMPTS: list[Dialect] = [openai_completions.DIALECT, ollama_generate.DIALECT]
every_wire = pytest.mark.parametrize(
    "dialect", [*[dialect for dialect, _ in ALL], *PROMPTS], ids=[*NAMES, "completions", "generate"]
)
every_pair = pytest.mark.parametrize(
    ("source", "target"),
    [(a, b) for a in PAIRED.values() for b in PAIRED.values()],
    ids=[f"{a}-{b}" for a in PAIRED for b in PAIRED],
)


def body_of(dialect: Dialect, messages: list[Message], *, encoded: EncodingCache | None = None) -> bytes:
    request = Request(model="m", messages=messages, system="s", tools=(ToolSpec("look"),), encoded=encoded)
    return dialect.encode_request(request, CAPS, stream=True)


def carried(value: Any) -> Any:
    """Return a value as JSON can carry it: no lone surrogates, no integers past 64 bits."""
    if isinstance(value, str):
        return "".join(["\ufffd" if "\ud800" <= character <= "\udfff" else character for character in value])
    if isinstance(value, bool) or not isinstance(value, (int, list, dict)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, list):
        return [carried(item) for item in value]
    return {carried(key): carried(item) for key, item in value.items()}


def essence(messages: list[Message]) -> list[Any]:
    """Return what every dialect carries, in order: calls and responses by the order of the calls, not by their ids."""
    out: list[Any] = []
    numbers: dict[str, int] = {}
    for message in messages:
        for part in sorted(message.parts, key=lambda part: isinstance(part, Blob)):
            if isinstance(part, Text):
                out.append((message.role, carried(part.content)))
            elif isinstance(part, Blob):
                out.append((message.role, part.content, part.mime_type))
            elif isinstance(part, ToolCall):
                numbers[part.id] = len(numbers)
                out.append((numbers[part.id], carried(part.name), carried(part.arguments)))
            elif isinstance(part, ToolResponse):
                out.append((numbers[part.id], carried(part.response)))
    return out


SERVER_CALL = {"type": "server_tool_use", "id": "s", "name": "w", "input": {}}
foreign = st.sampled_from(
    [
        Reasoning("plain"),
        Reasoning("signed", {"anthropic": {"signature": "s"}}),
        Reasoning("", {"anthropic": {"redacted_data": "z"}}),
        Reasoning("other", {"openai": {"reasoning_details": [{"type": "reasoning.text", "text": "x"}]}}),
        UnknownPart({"type": "anthropic.server_tool_use", "block": SERVER_CALL}),
        UnknownPart({"type": "hologram"}),
    ]
)  # fmt: skip


@every_dialect
@given(messages=conversations(text=wild_text, media=images, reasoning=foreign, big=True))
@settings(max_examples=30, deadline=None)
def test_r55_each_reads_the_conversation_it_wrote(dialect: Dialect, check: Check, messages: list[Message]) -> None:
    body = body_of(dialect, messages)
    assert check(json.loads(body)) == []
    got = dialect.decode_request(body)
    # Google and Amazon say in the URL whether an answer is streamed.
    assert got.stream is (dialect.name not in ("gemini", "bedrock"))
    assert got.request.system == "s"
    assert essence(list(got.request.messages)) == essence(messages)


@every_dialect
@given(messages=conversations(reasoning=foreign), at=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_prefix_from_one_cache_is_valid(dialect: Dialect, check: Check, messages: list[Message], at: int) -> None:
    cache = EncodingCache()
    for end in range(1, len(messages) + 1):
        if messages[end - 1].role == "assistant":
            continue
        body = body_of(dialect, messages[:end], encoded=cache)
        assert check(json.loads(body)) == []
        assert body == body_of(dialect, messages[:end])


@every_dialect
@pytest.mark.parametrize(
    "ids", [("call:1/ü", "call:1/ö"), ("x" * 80 + "a", "x" * 80 + "b"), ("\ud800", "\udfff"), (" ", "a b")]
)
def test_r23_strange_ids_stay_paired(dialect: Dialect, check: Check, ids: tuple[str, str]) -> None:
    calls = [ToolCall(call_id, "look", {"n": n}) for n, call_id in enumerate(ids)]
    responses = [ToolResponse(call_id, f"r{n}") for n, call_id in enumerate(ids)]
    messages = [user("x"), Message("assistant", tuple(calls)), Message("tool", tuple(responses))]
    body = body_of(dialect, messages)
    assert check(json.loads(body)) == []
    assert essence(list(dialect.decode_request(body).request.messages)) == essence(messages)


@every_dialect
def test_r24_arguments_that_never_were_an_object(dialect: Dialect, check: Check) -> None:
    call = ToolCall("c", "look", None, '{"cut')
    messages = [
        user("x"),
        Message("assistant", (call,)),
        Message("tool", (ToolResponse("c", "Bad arguments.", "error"),)),
    ]
    assert check(json.loads(body_of(dialect, messages))) == []


@every_dialect
@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_r27_blank_messages_stay_valid(dialect: Dialect, check: Check, text: str) -> None:
    call = ToolCall("c", "look", {})
    messages = [
        user(text),
        Message("assistant", (Text(text),)),
        user("x"),
        Message("assistant"),
        user("y"),
        Message("assistant", (Text(text), call)),
        Message("tool", (ToolResponse("c", text, "error"),)),
    ]
    for end in (1, 3, 5, 7):
        assert check(json.loads(body_of(dialect, messages[:end]))) == []


# ----------------------------------------------------------------------------------------------------- answers mixed


def stream_of(dialect: Dialect, items: list[Item]) -> bytes:
    encoder = dialect.stream_encoder(model="m", response_id="r", created=0)
    return b"".join([encoder.encode(item) for item in items])


def items_of(dialect: Dialect, data: bytes) -> list[Item]:
    decoder = dialect.stream_decoder()
    return [*decoder.feed(data), *decoder.close()]


ENDS: tuple[FinishReason, ...] = ("stop", "length")


@st.composite
def answers(draw: st.DrawFn) -> list[Item]:
    """Return an answer as items: reasoning, text, then calls piece by piece."""
    items: list[Item] = []
    parts: list[Part] = []
    if thought := draw(st.one_of(st.none(), clean_text)):
        items.append(ReasoningItem(thought))
        parts.append(Reasoning(thought))
    if text := draw(st.one_of(st.none(), clean_text)):
        items += [TextItem(piece) for piece in (text[:3], text[3:]) if piece]
        parts.append(Text(text))
    for index in range(draw(st.integers(0, 3))):
        arguments = draw(st.dictionaries(names, clean_text, max_size=2))
        name = draw(names)
        encoded = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
        cut = draw(st.integers(0, len(encoded)))
        items.append(ToolCallItem(index, f"id_{index}", name))
        items += [ToolCallItem(index, arguments=piece) for piece in (encoded[:cut], encoded[cut:])]
        parts.append(ToolCall(f"id_{index}", name, arguments))
    calls = any(isinstance(part, ToolCall) for part in parts)
    reason: FinishReason = "tool_call" if calls else draw(st.sampled_from(ENDS))
    items.append(Finish(Message("assistant", tuple(parts), finish_reason=reason), Usage(9, 4), reason))
    return items


@every_pair
@given(items=answers())
@settings(max_examples=25, deadline=None)
def test_every_answer_streams_through_every_pair(source: Dialect, target: Dialect, items: list[Item]) -> None:
    """A provider's bytes of one dialect become a client's bytes of another: the answer stays the same."""
    sent = items[-1]
    assert isinstance(sent, Finish)
    between = items_of(source, stream_of(source, items))
    got = items_of(target, stream_of(target, between))[-1]
    assert isinstance(got, Finish)
    assert got.message == sent.message
    assert (got.reason, got.usage) == (sent.reason, sent.usage)
    whole = target.decode_response(target.encode_response(sent, model="m", response_id="r", created=0))
    assert (whole.message, whole.reason, whole.usage) == (sent.message, sent.reason, sent.usage)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["completions", "generate"])
@pytest.mark.parametrize("chat", PAIRED.values(), ids=list(PAIRED))
@given(texts=st.lists(clean_text, min_size=1, max_size=3), reason=st.sampled_from(ENDS))
@settings(max_examples=10, deadline=None)
def test_every_text_streams_between_prompts_and_chats(
    chat: Dialect, prompt: Dialect, texts: list[str], reason: FinishReason
) -> None:
    message = Message("assistant", (Text("".join(texts)),), finish_reason=reason)
    sent = Finish(message, Usage(9, 4), reason)
    for source, target in ((chat, prompt), (prompt, chat)):
        between = items_of(source, stream_of(source, [*[TextItem(text) for text in texts], sent]))
        got = items_of(target, stream_of(target, between))[-1]
        assert isinstance(got, Finish)
        assert (got.message, got.reason, got.usage) == (message, reason, sent.usage)


KINDS = [
    BadRequestError,
    AuthError,
    ModelNotFoundError,
    RateLimitError,
    OverloadedError,
    ContextExceededError,
    ProviderTimeoutError,
]


@every_wire
@pytest.mark.parametrize("kind", KINDS)
def test_errors_keep_their_kind(dialect: Dialect, kind: type[ProviderError]) -> None:
    text = "maximum context length is 5 tokens" if kind is ContextExceededError else "no"
    status, body = dialect.encode_error(kind(text))
    back = dialect.decode_error(status, {}, body, provider=None, model=None, endpoint=None)
    # Only Anthropic has a word for a timeout; elsewhere 504 is a failure of the server like any other.
    assert type(back) is kind or (kind is ProviderTimeoutError and type(back) is OverloadedError)


@every_wire
def test_r10_a_stream_without_its_end_is_noticed(dialect: Dialect) -> None:
    data = stream_of(dialect, [TextItem("par")])
    with pytest.raises(ProviderError) as caught:
        items_of(dialect, data)
    assert caught.value.partial == "par"
    encoder = dialect.stream_encoder(model="m", response_id="r", created=0)
    with pytest.raises(ProviderError, match="upstream died"):
        items_of(dialect, encoder.encode(TextItem("par")) + encoder.error(OverloadedError("upstream died")))


@every_wire
@given(data=st.binary(max_size=60))
@settings(max_examples=30, deadline=None)
def test_any_bytes_raise_only_our_errors(dialect: Dialect, data: bytes) -> None:
    def stream() -> list[Item]:
        return items_of(dialect, data)

    for read in (lambda: dialect.decode_request(data), lambda: dialect.decode_response(data), stream):
        try:
            read()
        except WindlassError:
            pass
    error = dialect.decode_error(
        500, {"retry-after": data.decode("latin-1")}, data, provider=None, model=None, endpoint=None
    )
    assert isinstance(error, ProviderError)


# --------------------------------------------------------------------------------------------------- the checks check

TALK = [
    user("x"),
    Message("assistant", (ToolCall("c1", "look", {}), ToolCall("c2", "look", {}))),
    Message("tool", (ToolResponse("c1", "1"), ToolResponse("c2", "2"))),
    Message("assistant", (Text("done"),)),
    user("y"),
]


@every_dialect
@pytest.mark.parametrize(
    "broken",
    [
        [TALK[0], TALK[1], *TALK[3:]],
        [TALK[0], TALK[1], replace(TALK[2], parts=TALK[2].parts[:1]), *TALK[3:]],
        [TALK[0], TALK[1], replace(TALK[2], parts=(*TALK[2].parts, ToolResponse("c9", "3"))), *TALK[3:]],
        [*TALK[:4], TALK[2]],
        TALK[:2],
        [*TALK, *TALK[1:3]],
        [TALK[0], replace(TALK[1], parts=(TALK[1].parts[0],) * 2), TALK[2]],
    ],
    ids=["no results", "one missing", "one too many", "twice", "open end", "ids again", "ids within"],
)
def test_the_checks_find_broken_pairs(dialect: Dialect, check: Check, broken: list[Message]) -> None:
    assert check(json.loads(body_of(dialect, TALK))) == []
    assert check(json.loads(body_of(dialect, broken))) != []


def test_the_checks_find_results_that_do_not_come_first() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]}
    blocks = [{"type": "tool_result", "tool_use_id": "c", "content": "r"}, {"type": "text", "text": "y"}]
    for ordered, problems in ((blocks, []), (blocks[::-1], ["messages[2]: tool results must come first"])):
        messages = [{"role": "user", "content": "x"}, call, {"role": "user", "content": ordered}]
        assert check_anthropic({"max_tokens": 1, "messages": messages}) == problems


@pytest.mark.parametrize(
    ("check", "row"),
    [
        (check_openai, {"role": "king", "content": "x"}),
        (check_openai, {"role": "user", "content": None}),
        (check_openai, {"role": "assistant", "content": None}),
        (check_openai, {"role": "assistant", "content": "", "tool_calls": []}),
        (check_anthropic, {"role": "user", "content": []}),
        (check_anthropic, {"role": "user", "content": [{"type": "text", "text": " "}]}),
        (check_anthropic, {"role": "tool", "content": "x"}),
        (check_anthropic, {"role": "assistant", "content": "x "}),
        (check_anthropic, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}]}),
        (
            check_anthropic,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "y"}]},
        ),
        (check_anthropic, {"role": "user", "content": [{"type": "text", "text": "y", "cache_control": {}}] * 5}),
        (check_ollama, {"role": "king", "content": "x"}),
        (check_ollama, {"role": "user"}),
        (check_ollama, {"role": "user", "content": "", "tool_calls": [{"function": {"name": "x", "arguments": "{}"}}]}),
    ],
)
def test_the_checks_find_bad_rows(check: Check, row: dict[str, Any]) -> None:
    good = {"role": "user", "content": "x"}
    assert check({"max_tokens": 1, "messages": [good]}) == []
    assert check({"max_tokens": 1, "messages": [good, row]}) != []
    assert check({"max_tokens": 1, "messages": ["x"]}) != [] or check is check_ollama
