"""Google's errors: google.rpc.Status with its details, alone or in an array, and ours in that shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import json_values, wild_text

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    BodyTooLarge,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    SessionBusy,
    WindlassError,
)
from windlass.wire.base import bad_field
from windlass.wire.gemini import DIALECT

TYPE = "type.googleapis.com/google.rpc."


def error(status: int, body: Any, **headers: str) -> ProviderError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return DIALECT.decode_error(status, named, data, provider="gemini", model="m", endpoint="http://e")


def status(code: int, word: str, message: str = "no", *details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": word, **({"details": details} if details else {})}}


BAD_KEY = status(
    400,
    "INVALID_ARGUMENT",
    "API key not valid. Please pass a valid API key.",
    {"@type": f"{TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"},
    {"@type": f"{TYPE}LocalizedMessage", "locale": "en-US", "message": "API key not valid."},
)
QUOTA = status(
    429,
    "RESOURCE_EXHAUSTED",
    "You exceeded your current quota, please check your plan and billing details.",
    {"@type": f"{TYPE}QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
    {"@type": f"{TYPE}Help", "links": []},
    {"@type": f"{TYPE}RetryInfo", "retryDelay": "34.074824224s"},
)
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
GONE = "models/nope is not found for API version v1beta, or is not supported for generateContent."


@pytest.mark.parametrize(
    ("code", "body", "kind", "word"),
    [
        (400, BAD_KEY, AuthError, "API_KEY_INVALID"),
        (400, status(400, "INVALID_ARGUMENT", "Unknown name"), BadRequestError, "INVALID_ARGUMENT"),
        (400, status(400, "INVALID_ARGUMENT", TOO_LONG), ContextExceededError, "INVALID_ARGUMENT"),
        (400, status(400, "FAILED_PRECONDITION", "Location is not supported"), BadRequestError, "FAILED_PRECONDITION"),
        (403, status(403, "PERMISSION_DENIED"), AuthError, "PERMISSION_DENIED"),
        (401, status(401, "UNAUTHENTICATED"), AuthError, "UNAUTHENTICATED"),
        (404, status(404, "NOT_FOUND", GONE), ModelNotFoundError, "NOT_FOUND"),
        (429, QUOTA, RateLimitError, "RESOURCE_EXHAUSTED"),
        (499, status(499, "CANCELLED"), BadRequestError, "CANCELLED"),
        (500, status(500, "INTERNAL"), OverloadedError, "INTERNAL"),
        (503, status(503, "UNAVAILABLE", "The model is overloaded."), OverloadedError, "UNAVAILABLE"),
        (504, status(504, "DEADLINE_EXCEEDED"), ProviderTimeoutError, "DEADLINE_EXCEEDED"),
        (502, b"<html>Bad gateway</html>", OverloadedError, None),
        (400, {"error": "text"}, BadRequestError, None),
        (413, b"", ContextExceededError, None),
    ],
)
def test_kinds(code: int, body: Any, kind: type[ProviderError], word: str | None) -> None:
    for sent in (body, [body]) if isinstance(body, dict) else (body,):
        found = error(code, sent)
        assert type(found) is kind and found.status == code and found.provider_code == word
        assert (found.provider, found.model, found.endpoint) == ("gemini", "m", "http://e")


@pytest.mark.parametrize(
    ("delay", "headers", "expected"),
    [
        ("34.074824224s", {}, 34.074824224),
        ("34s", {"retry_after": "2"}, 34.0),
        ("0s", {}, 0.0),
        (None, {"retry_after": "2"}, 2.0),
        ("soon", {"retry_after": "2"}, 2.0),
        (7, {}, None),
        ("-5s", {}, None),
        ("9" * 20 + "s", {}, None),
    ],
)
def test_r17_the_wait_of_retry_info_wins(delay: Any, headers: dict[str, str], expected: float | None) -> None:
    details = [] if delay is None else [{"@type": f"{TYPE}RetryInfo", "retryDelay": delay}]
    assert error(429, status(429, "RESOURCE_EXHAUSTED", "slow", *details), **headers).retry_after == expected


@pytest.mark.parametrize(
    ("given_error", "code", "word"),
    [
        (RequestRefused(402, "Budget spent.", reason="insufficient_quota"), 402, "INVALID_ARGUMENT"),
        (RequestRefused(500, "Broken."), 500, "INTERNAL"),
        (RequestRefused(429, "Slow down.", retry_after=1.5), 429, "RESOURCE_EXHAUSTED"),
        (AuthError("Unknown key."), 401, "UNAUTHENTICATED"),
        (AuthError("Upstream refused our key.", provider="openai"), 502, "UNAVAILABLE"),
        (bad_field("contents[0].role", "must be user or model"), 400, "INVALID_ARGUMENT"),
        (BodyTooLarge("Too large."), 413, "INVALID_ARGUMENT"),
        (SessionBusy("Busy."), 409, "ABORTED"),
        (WindlassError("?"), 500, "INTERNAL"),
    ],
)
def test_our_errors_in_googles_shape(given_error: WindlassError, code: int, word: str) -> None:
    sent, body = DIALECT.encode_error(given_error)
    fields = json.loads(body)["error"]
    assert (sent, fields["code"], fields["status"]) == (code, code, word) and fields["message"]


def test_details_of_our_errors() -> None:
    def details(given_error: WindlassError) -> list[dict[str, Any]]:
        return json.loads(DIALECT.encode_error(given_error)[1])["error"].get("details", [])

    assert details(RateLimitError("slow", retry_after=2.5)) == [{"@type": f"{TYPE}RetryInfo", "retryDelay": "2.5s"}]
    assert details(OverloadedError("busy", retry_after=-1)) == [{"@type": f"{TYPE}RetryInfo", "retryDelay": "0s"}]
    assert details(OverloadedError("busy")) == []
    (violation,) = details(bad_field("contents[0].role", "must be user or model"))
    assert violation["fieldViolations"][0]["field"] == "contents[0].role"
    refused = RequestRefused(400, "No.", reason="unknown_model", param="model", retry_after=1)
    assert [item["@type"].rpartition(".")[2] for item in details(refused)] == ["ErrorInfo", "BadRequest", "RetryInfo"]
    full = ContextExceededError("The conversation is too long")
    assert type(error(400, json.loads(DIALECT.encode_error(full)[1]))) is ContextExceededError


@given(
    body=st.one_of(st.binary(max_size=60), json_values(wild_text)), code=st.integers(400, 599), wait=st.text(max_size=9)
)
@settings(max_examples=80, deadline=None)
def test_no_body_makes_it_raise(body: Any, code: int, wait: str) -> None:
    shaped = [body] if isinstance(body, bytes) else [body, {"error": body}, {"error": {"details": [body]}}]
    for item in shaped:
        found = error(code, item, retry_after=wait)
        assert isinstance(found, ProviderError) and found.status == code
