"""Errors of an Anthropic server, read and written."""

from __future__ import annotations

import json

import pytest

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    RateLimitError,
    TransportTimeout,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.wire.anthropic import DIALECT


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "invalid_request_error", "bad", BadRequestError),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", ContextExceededError),
        (401, "authentication_error", "invalid x-api-key", AuthError),
        (403, "permission_error", "no", AuthError),
        (404, "not_found_error", "model: x", ModelNotFoundError),
        (413, "request_too_large", "big", ContextExceededError),
        (429, "rate_limit_error", "slow", RateLimitError),
        (500, "api_error", "oops", OverloadedError),
        (529, "overloaded_error", "Overloaded", OverloadedError),
    ],
)
def test_errors_are_classified(status: int, kind: str, message: str, expected: type[ProviderError]) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    error = DIALECT.decode_error(
        status, {"retry-after": "7"}, body, provider="anthropic", model="m", endpoint="https://api.test/v1/messages"
    )
    assert type(error) is expected
    assert (error.status, error.provider_code, error.retry_after, error.provider) == (status, kind, 7.0, "anthropic")
    assert message.rstrip(".") in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"[]", b'{"error":"text"}', b'{"message":"only"}', b"\xff"])
def test_odd_error_bodies(body: bytes) -> None:
    error = DIALECT.decode_error(502, {}, body, provider=None, model=None, endpoint=None)
    assert type(error) is OverloadedError


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequestError("x"), 400, "invalid_request_error"),
        (UnsupportedInputError("x"), 400, "invalid_request_error"),
        (AuthError("x"), 401, "authentication_error"),
        (AuthError("x", provider="up"), 502, "api_error"),
        (ModelNotFoundError("x"), 404, "not_found_error"),
        (RateLimitError("x"), 429, "rate_limit_error"),
        (OverloadedError("x"), 529, "overloaded_error"),
        (TransportTimeout("x", phase="idle"), 504, "timeout_error"),
        (WireError("x"), 502, "api_error"),
        (WindlassError("x"), 500, "api_error"),
    ],
)
def test_errors_for_clients(error: WindlassError, status: int, kind: str) -> None:
    assert DIALECT.encode_error(error) == (
        status,
        json.dumps({"type": "error", "error": {"type": kind, "message": "x"}}, separators=(",", ":")).encode(),
    )


def test_full_context_is_told_in_the_words_that_clients_know() -> None:
    status, body = DIALECT.encode_error(ContextExceededError("The model is full."))
    assert status == 400
    back = DIALECT.decode_error(status, {}, body, provider=None, model=None, endpoint=None)
    assert type(back) is ContextExceededError
