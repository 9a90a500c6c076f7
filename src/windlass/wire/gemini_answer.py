"""What Google's generateContent answers: reasons, usage, whole answers and errors, both ways.

Source: ai.google.dev/api/generate-content; errors are google.rpc.Status (cloud.google.com/apis/design/errors).
`promptTokenCount` holds the cached tokens; thoughts are counted beside `candidatesTokenCount` there and in
`output_tokens` here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from windlass.core.clock import now_ns
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    BodyTooLarge,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    PermissionRefused,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    SessionBusy,
    SessionNotFound,
    TransportError,
    TransportTimeout,
    WindlassError,
)
from windlass.core.items import Finish, FinishReason
from windlass.core.json import JsonError, dumps, loads
from windlass.core.usage import Usage
from windlass.wire.base import (
    as_dict,
    as_int,
    as_list,
    as_str,
    excerpt,
    field_of,
    pick_code,
    provider_error,
    retry_after_seconds,
)
from windlass.wire.gemini_parts import answer_part, own_fields

__all__ = [
    "decode_error",
    "decode_usage",
    "encode_error",
    "encode_response",
    "encode_usage",
    "error_data",
    "error_of",
    "finish_reason",
    "response_data",
    "wire_reason",
]

_FILTERED = (
    "SAFETY RECITATION LANGUAGE BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY IMAGE_PROHIBITED_CONTENT "
    "IMAGE_RECITATION MODEL_ARMOR ESCALATION PUP_LIMITED_DISABLED JAILBREAK"
)
_REASONS: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(_FILTERED.split(), "content_filter"),
}
_WIRE_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "STOP",
    "tool_call": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "refusal": "SAFETY",
    "interrupted": "OTHER",
    "error": "OTHER",
}


def finish_reason(raw: str, *, calls: bool, blocked: bool = False) -> FinishReason:
    """Map `finishReason` (or, `blocked`, `promptFeedback.blockReason`) to our word.

    STOP is the only good end: what is neither listed nor new to us (OTHER, MALFORMED_FUNCTION_CALL,
    UNEXPECTED_TOOL_CALL, MISSING_THOUGHT_SIGNATURE, …) says that the answer broke off, hence `error`.
    """
    if blocked:
        return "content_filter"
    reason = _REASONS.get(raw, "error")
    return "tool_call" if reason == "stop" and calls else reason


def wire_reason(finish: Finish) -> str:
    """Return the vendor's word for why it stopped: the one it used itself where that says the same."""
    if finish.raw and finish.raw.isupper() and _REASONS.get(finish.raw, "error") == finish.reason:
        return finish.raw
    return _WIRE_REASONS[finish.reason]


def decode_usage(data: Any) -> Usage | None:
    """Read `usageMetadata`; None when it holds no count. Tool-use prompts are input, thoughts are output."""
    usage = as_dict(data)
    if "promptTokenCount" not in usage and "candidatesTokenCount" not in usage and "totalTokenCount" not in usage:
        return None
    prompt = as_int(usage.get("promptTokenCount")) + as_int(usage.get("toolUsePromptTokenCount"))
    output, thoughts = as_int(usage.get("candidatesTokenCount")), as_int(usage.get("thoughtsTokenCount"))
    # Some compatible servers count thoughts among the candidates' tokens: then the total says so.
    inside = thoughts and thoughts <= output and as_int(usage.get("totalTokenCount")) == prompt + output
    return Usage(
        prompt,
        output if inside else output + thoughts,
        as_int(usage.get("cachedContentTokenCount")),
        0,
        thoughts,
    )


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Return `usageMetadata`; tokens written to a cache have no field there."""
    out: dict[str, Any] = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": max(0, usage.output_tokens - usage.reasoning_tokens),
        "totalTokenCount": usage.total_tokens,
    }
    if usage.cache_read_tokens:
        out["cachedContentTokenCount"] = usage.cache_read_tokens
    if usage.reasoning_tokens:
        out["thoughtsTokenCount"] = usage.reasoning_tokens
    return out


# ------------------------------------------------------------------------------------------------- whole answers


def response_data(finish: Finish, parts: list[dict[str, Any]], *, model: str, response_id: str) -> dict[str, Any]:
    """Return the answer object, which is the last chunk of a stream as well, with these parts.

    What `provider_metadata["gemini"]` kept of a vendor's answer goes out again; a blocked prompt has no candidates.
    """
    kept = own_fields(finish.provider_metadata)
    out: dict[str, Any] = {}
    feedback = as_dict(kept.get("promptFeedback"))
    if not (feedback.get("blockReason") and not parts):
        content = {"parts": parts or [{"text": ""}], "role": "model"}
        out["candidates"] = [
            {**as_dict(kept.get("candidate")), "content": content, "finishReason": wire_reason(finish), "index": 0}
        ]
    top = {key: value for key, value in kept.items() if key != "candidate"}
    return {**top, **out, "usageMetadata": encode_usage(finish.usage), "modelVersion": model, "responseId": response_id}


def encode_response(finish: Finish, *, model: str, response_id: str) -> bytes:
    """Return a whole answer."""
    parts = [made for part in finish.message.parts if (made := answer_part(part)) is not None]
    return dumps(response_data(finish, parts, model=model, response_id=response_id))


# --------------------------------------------------------------------------------------------------------- errors

_DELAY = re.compile(r"(\d{1,12}(?:\.\d{0,12})?)s")
_TYPE: Final = "type.googleapis.com/google.rpc."


def _detail(error: Mapping[str, Any], name: str) -> dict[str, Any]:
    details = [as_dict(item) for item in as_list(error.get("details"))]
    return next((item for item in details if as_str(item.get("@type")).endswith(f"google.rpc.{name}")), {})


def _retry_delay(error: Mapping[str, Any]) -> float | None:
    """Return `RetryInfo.retryDelay` (a google.protobuf.Duration, "13.5s") in seconds."""
    found = _DELAY.fullmatch(as_str(_detail(error, "RetryInfo").get("retryDelay")).strip())
    return float(found[1]) if found else None


def error_of(
    data: Any,
    status: int | None = None,
    *,
    provider: str | None = None,
    model: str | None = None,
    endpoint: str | None = None,
    retry_after: float | None = None,
    partial: str = "",
) -> ProviderError:
    """Return the classified error of `{"error": {code, message, status, details}}`, alone or in an array.

    A stream that fails before its first chunk answers with the array. `RetryInfo` wins over the header's wait.
    """
    if isinstance(data, list) and data:
        data = data[0]
    error = as_dict(data).get("error")
    fields = as_dict(error)
    code = fields.get("code")
    if status is None and isinstance(code, int) and 400 <= code < 600:
        status = code
    wait = _retry_delay(fields)
    return provider_error(
        status,
        pick_code(fields.get("status"), _detail(fields, "ErrorInfo").get("reason")),
        as_str(fields.get("message")) or as_str(error),
        provider=provider,
        model=model,
        endpoint=endpoint,
        retry_after=retry_after if wait is None else wait,
        partial=partial,
    )


def decode_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    provider: str | None,
    model: str | None,
    endpoint: str | None,
) -> ProviderError:
    """Return the typed error of an answer that is not 2xx. Never raises."""
    try:
        data: Any = loads(body)
    except JsonError:
        data = None
    first = data[0] if isinstance(data, list) and data else data
    if "error" not in as_dict(first):
        data = {"error": excerpt(body)}
    wait = retry_after_seconds(headers, now_ns=now_ns())
    return error_of(data, status, provider=provider, model=model, endpoint=endpoint, retry_after=wait)


#: First match wins.
_STATUS: tuple[tuple[type[WindlassError], int], ...] = (
    (ContextExceededError, 400),
    (BodyTooLarge, 413),
    (PermissionRefused, 403),
    (ModelNotFoundError, 404),
    (SessionNotFound, 404),
    (SessionBusy, 409),
    (BadRequestError, 400),
    (RateLimitError, 429),
    (OverloadedError, 503),
    (ProviderTimeoutError, 504),
    (TransportTimeout, 504),
    (ProviderError, 502),
    (TransportError, 502),
)
#: google.rpc.Code by HTTP status.
_WORDS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_data(error: WindlassError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and `{"error": {code, message, status, details}}` that tell a client of this error.

    A credential that the *upstream* refused is our fault, not the client's: 502.
    """
    message, param = str(error), field_of(error)
    if isinstance(error, RequestRefused):
        status, param = error.status, error.param
    elif isinstance(error, AuthError):
        status = 401 if error.provider is None else 502
    else:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, ContextExceededError) and "input token count" not in message:
        message = f"The input token count exceeds the maximum number of tokens allowed: {message}"
    fields: dict[str, Any] = {"code": status, "message": message}
    fields["status"] = _WORDS.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    if details := _details(error, message, param):
        fields["details"] = details
    return status, {"error": fields}


def _details(error: WindlassError, message: str, param: str | None) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if isinstance(error, RequestRefused) and error.reason:
        out.append({"@type": f"{_TYPE}ErrorInfo", "reason": error.reason, "domain": "windlass"})
    if param:
        violation = {"field": param, "description": message}
        out.append({"@type": f"{_TYPE}BadRequest", "fieldViolations": [violation]})
    wait = error.retry_after if isinstance(error, (ProviderError, RequestRefused)) else None
    if wait is not None and math.isfinite(wait):
        out.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{max(0.0, wait):.9f}".rstrip("0").rstrip(".") + "s"})
    return out


def encode_error(error: WindlassError) -> tuple[int, bytes]:
    """Return the HTTP status and body that tell a client of this error."""
    status, data = error_data(error)
    return status, dumps(data)
