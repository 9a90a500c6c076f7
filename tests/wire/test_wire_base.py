"""What all dialects share: classification, waits, ids, excerpts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    UnsupportedInputError,
    WireError,
)
from windlass.wire.base import (
    ANTHROPIC_IDS,
    MISTRAL_IDS,
    OPENAI_IDS,
    IdRule,
    bad_field,
    classify,
    excerpt,
    field_of,
    load_object,
    provider_error,
    retry_after_seconds,
    wire_id,
)

NOW = 784_111_777_000_000_000  # Sun, 06 Nov 1994 08:49:37 GMT

FULL = [
    ("openai", "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
    ("openai responses", "Your input exceeds the context window of this model. Please adjust your input."),
    ("anthropic", "prompt is too long: 213462 tokens > 200000 maximum"),
    ("anthropic 2", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
    ("google", "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)"),
    ("xai", "This model's maximum prompt length is 131072 but the request contains 537812 tokens"),
    ("groq", "Please reduce the length of the messages or completion."),
    ("openrouter", "This endpoint's maximum context length is 32768 tokens. However, you requested about 40000 tokens"),
    ("llama.cpp", "the request exceeds the available context size, try increasing it"),
    ("llama.cpp 2", "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it"),
    ("lm studio", "tokens to keep from the initial prompt is greater than the context length"),
    ("ollama", "the input length exceeds the context length"),
    ("ollama 2", "prompt too long; exceeded max context length by 4 tokens"),
    ("vllm", "The decoder prompt (length 9000) is longer than the maximum model length of 4096."),
    ("sglang", "The input (9000 tokens) is longer than the model's context length (4096 tokens)."),
    (
        "mistral",
        "Prompt contains 40960 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    ),
    ("bedrock", "Input is too long for requested model."),
    ("minimax", "invalid params, context window exceeds limit (2013)"),
    ("moonshot", "Your request exceeded model token limit: 262144 (requested: 300000)"),
    ("copilot", "prompt token count of 140000 exceeds the limit of 128000"),
    ("tgi", "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"),
]


@pytest.mark.parametrize(("vendor", "text"), FULL, ids=[case[0] for case in FULL])
def test_a_full_context_is_known_by_its_words(vendor: str, text: str) -> None:
    for status in (400, 413, 422, 500, None, 200):
        assert classify(status, "invalid_request_error", text) is ContextExceededError
        assert classify(status, None, text) is ContextExceededError
    # A refused key, a throttle and a missing model stay what their status says.
    assert classify(401, None, text) is AuthError
    assert classify(403, "invalid_request_error", text) is AuthError
    assert classify(429, None, text) is RateLimitError
    assert classify(404, None, text) is ModelNotFoundError


TABLE: list[tuple[int | None, str | None, str, type[ProviderError]]] = [
    (400, "context_length_exceeded", "x", ContextExceededError),
    (400, "exceed_context_size_error", "x", ContextExceededError),
    (413, None, "", ContextExceededError),
    (413, "request_too_large", "Request exceeds the maximum size", ContextExceededError),
    (413, "rate_limit_exceeded", "Request too large for model: tokens per minute", RateLimitError),
    (401, "rate_limit_exceeded", "invalid model overloaded", AuthError),
    (403, None, "flagged by moderation", AuthError),
    (403, "model_not_found", "Project does not have access to model", ModelNotFoundError),
    (429, "insufficient_quota", "You exceeded your current quota", RateLimitError),
    (429, "engine_overloaded_error", "", OverloadedError),
    (500, None, "", OverloadedError),
    (500, "server_error", "The server had an error", OverloadedError),
    (502, None, "", OverloadedError),
    (503, "unavailable_error", "Loading model", OverloadedError),
    (504, None, "", OverloadedError),
    (529, "overloaded_error", "Overloaded", OverloadedError),
    (498, None, "flex tier capacity", OverloadedError),
    (404, "not_found_error", "model: nope", ModelNotFoundError),
    (404, None, "model 'x' not found", ModelNotFoundError),
    (404, "unknown_url", "Unknown request URL", BadRequestError),
    (408, None, "", ProviderTimeoutError),
    (400, "invalid_request_error", "bad", BadRequestError),
    (400, None, "rate limit of your imagination", BadRequestError),
    (402, None, "Insufficient credits", BadRequestError),
    (422, None, "", BadRequestError),
    (None, "overloaded_error", "Overloaded", OverloadedError),
    (200, "rate_limit_error", "", RateLimitError),
    (None, "invalid_request_error", "bad", BadRequestError),
    (None, None, "what", ProviderError),
    (None, "authentication_error", "", AuthError),
    (None, "timeout_error", "", ProviderTimeoutError),
]


@pytest.mark.parametrize(("status", "code", "text", "kind"), TABLE)
def test_r19_status_and_code_decide(status: int | None, code: str | None, text: str, kind: type[ProviderError]) -> None:
    assert classify(status, code, text) is kind


@given(st.text(max_size=300), st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_401_is_an_auth_error_whatever_it_says(text: str, code: str) -> None:
    assert classify(401, code, text) is AuthError


def test_r15_an_overloaded_event_counts_as_529() -> None:
    error = provider_error(None, "overloaded_error", "Overloaded", provider="x", model="m", partial="so far")
    assert (type(error), error.status, error.partial, error.retryable) == (OverloadedError, 529, "so far", True)
    assert str(error) == "x reported an error for model m: Overloaded."


def test_an_error_text_says_who_what_and_next() -> None:
    error = provider_error(
        401, None, "Incorrect key.\n\x1b[31mred", provider="openai", model="gpt", endpoint="http://h/v1"
    )
    assert (
        str(error)
        == "openai answered 401 for model gpt: Incorrect key. [31mred. Check the API key and what it may use."
    )
    assert error.context() == {"provider": "openai", "model": "gpt", "endpoint": "http://h/v1", "status": 401}


WAITS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after": "7"}, 7.0),
    ({"retry-after": " 1.5 "}, 1.5),
    ({"retry-after-ms": "250"}, 0.25),
    ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    ({"retry-after": "-5"}, 0.0),
    ({"retry-after-ms": "-5"}, 0.0),
    ({"retry-after": "1e9"}, 1e9),
    ({"retry-after": "1000000000"}, 1e9),
    ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT"}, 30.0),
    ({"retry-after": "Sunday, 06-Nov-94 08:50:07 GMT"}, 30.0),
    ({"retry-after": "Sun Nov  6 08:50:07 1994"}, 30.0),
    ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),
    ({}, None),
    ({"retry-after": ""}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "1e999"}, None),
    ({"retry-after": "1_0"}, None),
    ({"retry-after": "Sun, 99 Nov 1994 08:50:07 GMT"}, None),
    ({"retry-after": "Sun, 06 Foo 1994 08:50:07 GMT"}, None),
    ({"retry-after": "Sun, 06 Nov 1994 28:50:07 GMT"}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
def test_r17_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now_ns=NOW) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=40)))
@settings(max_examples=300, deadline=None)
def test_r17_garbage_never_raises(headers: dict[str, str]) -> None:
    seconds = retry_after_seconds(headers, now_ns=NOW)
    assert seconds is None or seconds >= 0


PATTERNS = [
    (ANTHROPIC_IDS, re.compile(r"[a-zA-Z0-9_-]{1,64}")),
    (OPENAI_IDS, re.compile(r"[a-zA-Z0-9_-]{1,40}")),
    (MISTRAL_IDS, re.compile(r"[a-zA-Z0-9]{9}")),
]


@given(st.lists(st.text(max_size=80), max_size=20, unique=True))
@settings(max_examples=200, deadline=None)
def test_r23_wire_ids_fit_and_stay_apart(ids: list[str]) -> None:
    for rule, pattern in PATTERNS:
        mapped = [wire_id(one, rule) for one in ids]
        assert all(pattern.fullmatch(one) for one in mapped)
        assert len(set(mapped)) == len(ids)
        assert [wire_id(one, rule) for one in mapped] == mapped
        assert all(one == same for one, same in zip(ids, mapped, strict=True) if pattern.fullmatch(one))


def test_wire_ids_known_values() -> None:
    assert wire_id("call_1", OPENAI_IDS) == "call_1"
    assert wire_id("toolu:1/ü", IdRule(40)).startswith("toolu_1___")
    assert len(wire_id("x" * 300, OPENAI_IDS)) == 40
    assert wire_id("\ud800", MISTRAL_IDS) != wire_id("\udfff", MISTRAL_IDS)


def test_r16_a_web_page_is_named_and_shown() -> None:
    with pytest.raises(WireError, match=r"web page, not JSON: '<html> Sign in.*captive portal"):
        load_object(b"\n <html>\n<b>Sign in</b>".replace(b"<b>", b"").replace(b"</b>", b""))
    with pytest.raises(WireError, match="is empty"):
        load_object(b" \n")
    with pytest.raises(WireError, match=r"not an object: '\[1\]'"):
        load_object(b"[1]")
    with pytest.raises(WireError, match="nested deeper"):
        load_object(b'{"a":' * 200 + b"1" + b"}" * 200)


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_excerpts_are_one_short_printable_line(data: bytes) -> None:
    line = excerpt(data)
    assert len(line) <= 200
    assert line.isprintable()


def test_a_bad_field_carries_its_path() -> None:
    assert (
        field_of(bad_field("messages[3].content[0].image_url", "must be an object"))
        == "messages[3].content[0].image_url"
    )
    assert field_of(BadRequestError("openai answered 400: temperature: too hot.")) is None
    assert field_of(UnsupportedInputError("Model m cannot take tools.")) is None
    assert field_of(WireError("a: b")) is None
