"""How answers of a Responses server fail, before the stream, inside it and by its end."""

from __future__ import annotations

from typing import Any

import pytest
from openai_responses_kit import event, item_events, message, read, response, stream

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
    WireError,
)
from windlass.core.json import dumps
from windlass.wire.openai_responses import CODEX, DIALECT

PLAIN = stream(message("Helło 🦜"))
HELLO = item_events(0, message("so far"))
BEGUN = stream(end=b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        BEGUN,
        BEGUN + HELLO,
        BEGUN + HELLO + b"data: [DONE]\n\n",
        BEGUN + HELLO + event("response.completed", response=response())[:-30],
        BEGUN + HELLO + b": ping\n\n",
    ],
)
def test_r10_an_end_without_terminal_event_is_interrupted(data: bytes) -> None:
    for step in (None, 1):
        with pytest.raises(StreamInterrupted) as caught:
            read(data, step)
        assert caught.value.partial == ("so far" if HELLO in data else "")


def test_the_last_blank_line_may_be_missing() -> None:
    assert read(PLAIN.removesuffix(b"\n\n")) == read(PLAIN)


def test_r14_a_broken_event_shows_itself_and_keeps_the_text() -> None:
    with pytest.raises(WireError, match=r"not valid JSON.*'\{\"type\":bad'") as caught:
        read(BEGUN + HELLO + b'data: {"type":bad\n\n')
    assert caught.value.partial == "so far"


def test_r16_a_web_page_in_place_of_a_stream() -> None:
    with pytest.raises(WireError, match=r"web page, not JSON.*captive portal"):
        DIALECT.stream_decoder().feed(b"\n<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(WireError, match="web page"):
        DIALECT.decode_response(b"<html></html>")


ERRORS: list[tuple[dict[str, Any], type[ProviderError], str | None]] = [
    ({"code": "server_error", "message": "Sorry"}, OverloadedError, "server_error"),
    ({"code": "server_is_overloaded", "message": "x"}, OverloadedError, "server_is_overloaded"),
    ({"code": "rate_limit_exceeded", "message": "Slow down"}, RateLimitError, "rate_limit_exceeded"),
    ({"code": "insufficient_quota", "message": "Pay"}, RateLimitError, "insufficient_quota"),
    ({"type": "usage_limit_reached", "message": "The usage limit has been reached"}, RateLimitError,
     "usage_limit_reached"),
    ({"code": "context_length_exceeded", "message": "x"}, ContextExceededError, "context_length_exceeded"),
    ({"code": "invalid_prompt", "message": "no"}, BadRequestError, "invalid_prompt"),
    ({"code": "invalid_prompt", "message": "Your input exceeds the context window"}, ContextExceededError,
     "invalid_prompt"),
    ({"code": "invalid_image_url", "message": "no"}, BadRequestError, "invalid_image_url"),
    ({"code": "invalid_api_key", "message": "no"}, AuthError, "invalid_api_key"),
    ({"code": "brand_new", "message": "what"}, ProviderError, "brand_new"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "code"), ERRORS)
def test_r15_an_error_inside_a_stream(error: dict[str, Any], kind: type[ProviderError], code: str | None) -> None:
    failed = response(status="failed", error=error)
    frames = [
        event("error", **{**error, "type": "error"}) if "type" not in error else b"",
        event("error", error=error, sequence_number=3),
        event("response.failed", response=failed),
        b"event: error\ndata: " + dumps({"error": error}) + b"\n\n",
        b"data: " + dumps({"error": error}) + b"\n\n",
    ]
    for frame in frames:
        for step in (None, 1):
            if frame:
                with pytest.raises(ProviderError) as caught:
                    read(BEGUN + HELLO + frame, step)
                assert (type(caught.value), caught.value.provider_code) == (kind, code)
                assert caught.value.partial == "so far"
    with pytest.raises(ProviderError) as caught:
        DIALECT.decode_response(dumps(failed))
    assert type(caught.value) is kind


@pytest.mark.parametrize("event_data", [{}, {"message": ""}, {"error": "down"}, {"error": {}}])
def test_an_error_that_says_little_is_still_one(event_data: dict[str, Any]) -> None:
    for kind in ("error", "response.failed"):
        with pytest.raises(ProviderError):
            read(BEGUN + event(kind, **event_data))


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        ({"code": "rate_limit_exceeded", "message": "Limit reached. Please try again in 11.054s. Visit"}, 11.054),
        ({"code": "rate_limit_exceeded", "message": "Please try again in 28ms."}, 0.028),
        ({"type": "usage_limit_reached", "message": "x", "resets_in_seconds": 13872}, 13872.0),
        ({"code": "rate_limit_exceeded", "message": "later"}, None),
        ({"code": "rate_limit_exceeded", "message": "later", "resets_in_seconds": "soon"}, None),
    ],
)
def test_r17_waits_inside_errors(error: dict[str, Any], wait: float | None) -> None:
    with pytest.raises(RateLimitError) as caught:
        read(event("response.failed", response=response(status="failed", error=error)))
    assert caught.value.retry_after == wait
    where: dict[str, Any] = {"provider": "codex", "model": "m", "endpoint": None}
    found = DIALECT.decode_error(429, {}, dumps({"error": error}), **where)
    assert (type(found), found.retry_after, found.provider) == (RateLimitError, wait, "codex")
    assert CODEX.decode_error(429, {"retry-after": "7"}, dumps({"error": error}), **where).retry_after == 7.0


def test_errors_before_the_stream() -> None:
    where: dict[str, Any] = {"provider": "codex", "model": "m", "endpoint": None}
    found = DIALECT.decode_error(400, {}, b'{"detail":"Store must be set to false"}', **where)
    assert type(found) is BadRequestError and "Store must be set" in str(found)
    assert type(DIALECT.decode_error(429, {}, b"<html>", **where)) is RateLimitError
    assert type(DIALECT.decode_error(400, {}, b"", **where)) is BadRequestError
    long = b'{"error":{"message":"Your input exceeds the context window of this model.","code":"invalid_prompt"}}'
    assert type(DIALECT.decode_error(400, {}, long, **where)) is ContextExceededError
