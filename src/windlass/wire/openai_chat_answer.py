"""What an OpenAI chat-completions server answers, in our words: reasons, usage, cost, calls and errors, both ways.

Source: platform.openai.com/docs/api-reference/chat; what OpenRouter, DeepSeek, Mistral, Groq, xAI and llama.cpp do
differently is named where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from windlass.core.clock import now_ns
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    BodyTooLarge,
    ConfigError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    PermissionRefused,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    SessionBusy,
    SessionNotFound,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, FinishReason
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Reasoning, ToolCall, text_of
from windlass.core.usage import NANO, Usage
from windlass.wire.base import (
    OPENAI_IDS,
    IdRule,
    as_dict,
    as_int,
    as_list,
    excerpt,
    field_of,
    pick_code,
    provider_error,
    retry_after_seconds,
    wire_id,
)

__all__ = [
    "KEY",
    "call_data",
    "decode_cost",
    "decode_error",
    "decode_usage",
    "encode_chat_error",
    "encode_error",
    "encode_response",
    "encode_usage",
    "error_in",
    "finish_reason",
    "reasoning_details",
    "told_finish_reason",
    "vendor_fields",
    "wire_finish_reason",
]

#: The key of this dialect in `provider_metadata`.
KEY: Final = "openai"

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "eos_token": "stop",  # TGI
    "stop_sequence": "stop",  # TGI
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "content_filter": "content_filter",
    "sensitive": "content_filter",  # Z.ai
    "refusal": "refusal",
    "error": "error",  # OpenRouter
    "network_error": "interrupted",  # Z.ai
    "insufficient_system_resource": "interrupted",  # DeepSeek
}
_WIRE_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_call": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    # Clients know no other word for an answer that was cut.
    "interrupted": "length",
    "error": "length",
}


def finish_reason(raw: str | None, *, calls: bool, refused: bool = False) -> FinishReason:
    """Map the vendor's word to ours; `stop` (or none, or an unknown word) with tool calls is `tool_call`."""
    reason = _REASONS.get((raw or "").lower(), "stop")
    if reason in ("stop", "tool_call"):
        return "tool_call" if calls else "refusal" if refused else "stop"
    return reason


def wire_finish_reason(reason: FinishReason) -> str:
    """Map our word to one the official SDKs know."""
    return _WIRE_REASONS[reason]


def told_finish_reason(finish: Finish) -> str:
    """Return the reason that a client reads.

    The server's own word (reference A's `tool` and `tool_fallback`) where the answer carries one in
    `provider_metadata["windlass"]`, else OpenAI's.
    """
    own = as_dict(finish.provider_metadata.get("windlass")) if finish.provider_metadata else {}
    word = own.get("finish_reason")
    return word if isinstance(word, str) else _WIRE_REASONS[finish.reason]


# --------------------------------------------------------------------------------------------------- usage and cost


def decode_usage(data: Any) -> Usage | None:
    """Read `usage`; None when it holds no counts.

    OpenAI's details, DeepSeek's `prompt_cache_hit_tokens` and OpenRouter's `cache_write_tokens` are parts of the
    totals. xAI counts reasoning beside `completion_tokens`: where the total says so, it is added.
    """
    usage = as_dict(data)
    if "prompt_tokens" not in usage and "completion_tokens" not in usage:
        return None
    prompt, completion = as_int(usage.get("prompt_tokens")), as_int(usage.get("completion_tokens"))
    ins, outs = as_dict(usage.get("prompt_tokens_details")), as_dict(usage.get("completion_tokens_details"))
    reasoning = as_int(outs.get("reasoning_tokens"))
    if reasoning and as_int(usage.get("total_tokens")) == prompt + completion + reasoning:
        completion += reasoning
    return Usage(
        prompt,
        completion,
        as_int(ins.get("cached_tokens")) or as_int(usage.get("prompt_cache_hit_tokens")),
        as_int(ins.get("cache_write_tokens")),
        reasoning,
    )


def decode_cost(usage: Any) -> int | None:
    """Read OpenRouter's `usage.cost` (dollars) as nano-dollars; None when the vendor does not say."""
    cost = as_dict(usage).get("cost")
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < 1e9 or math.isnan(cost):
        return None
    return round(cost * NANO)


def encode_usage(usage: Usage, cost: int | None = None) -> dict[str, Any]:
    """Return `usage` as OpenAI writes it, with OpenRouter's `cost` in dollars when it is known."""
    out: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cache_read_tokens or usage.cache_creation_tokens:
        out["prompt_tokens_details"] = {"cached_tokens": usage.cache_read_tokens}
    if usage.cache_creation_tokens:
        out["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_creation_tokens
    if usage.reasoning_tokens:
        out["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if cost is not None:
        out["cost"] = cost / NANO
    return out


# -------------------------------------------------------------------------------------------------- whole answers


def vendor_fields(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what this dialect keeps in a `provider_metadata`."""
    return as_dict(metadata.get(KEY)) if metadata else {}


def reasoning_details(part: Reasoning) -> list[Any]:
    """Return OpenRouter's `reasoning_details` of a part."""
    return as_list(vendor_fields(part.provider_metadata).get("reasoning_details"))


def call_data(call: ToolCall, rule: IdRule = OPENAI_IDS, *, valid_only: bool = False) -> dict[str, Any]:
    """Return a call as an entry of `tool_calls`; its argument text goes as it was received.

    With `valid_only` a text that is no JSON object becomes `{}`: some servers parse it and refuse the request.
    """
    text = call.arguments_text
    if text is None or (valid_only and call.arguments is None):
        text = dumps(call.arguments or {}).decode()
    return {
        "id": wire_id(call.id, rule),
        "type": "function",
        "function": {"name": call.name, "arguments": text},
    }


def encode_response(finish: Finish, *, model: str, response_id: str, created: int) -> bytes:
    """Return a whole answer; what `provider_metadata["openai"]` kept of a vendor's answer goes out again."""
    kept = vendor_fields(finish.provider_metadata)
    text = text_of(finish.message.parts)
    calls = finish.message.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    raw = told_finish_reason(finish)
    if finish.reason == "refusal" and text:
        message["content"], message["refusal"], raw = None, text, "stop"
    parts = [part for part in finish.message.parts if isinstance(part, Reasoning)]
    if thought := "".join([part.content for part in parts]):
        message["reasoning_content"] = thought
    if details := [item for part in parts for item in reasoning_details(part)]:
        message["reasoning_details"] = details
    if calls:
        message["tool_calls"] = [{**call_data(call), **vendor_fields(call.provider_metadata)} for call in calls]
    choice = {"index": 0, "message": {**as_dict(kept.get("message")), **message}, "finish_reason": raw}
    answer = {
        "id": response_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"logprobs": None, **as_dict(kept.get("choice")), **choice}, *as_list(kept.get("choices"))],
        "usage": encode_usage(finish.usage, finish.cost),
    }
    top = {key: value for key, value in kept.items() if key not in ("message", "choice", "choices")}
    return dumps({**top, **answer})


# ---------------------------------------------------------------------------------------------------------- errors


def error_in(
    data: Any,
    status: int | None = None,
    *,
    provider: str | None = None,
    model: str | None = None,
    endpoint: str | None = None,
    retry_after: float | None = None,
    partial: str = "",
) -> ProviderError:
    """Return the classified error in a decoded body or event, whatever its shape.

    Known shapes: `{"error": {message, type, code}}`, `{"error": "text"}`, the same in an array (Google), the fields at
    the top (Mistral, older vLLM), `{"detail": ...}` (FastAPI), OpenRouter's `error.metadata.raw`, TGI's `error_type`.
    """
    if isinstance(data, list) and data:
        data = data[0]
    body = as_dict(data)
    error: Any = body.get("error") or body
    fields = as_dict(error)
    said: Any = error if isinstance(error, str) else fields.get("message") or fields.get("detail") or ""
    message = said if isinstance(said, str) else dumps(said).decode()
    raw = as_dict(fields.get("metadata")).get("raw")
    if raw:
        message = f"{message}: {raw if isinstance(raw, str) else dumps(raw).decode()}"
    code = fields.get("code")
    # llama.cpp, vLLM and OpenRouter put the HTTP status there.
    if status is None and isinstance(code, int) and 400 <= code < 600:
        status = code
    return provider_error(
        status,
        pick_code(code, fields.get("type"), fields.get("status"), body.get("error_type"), _tgi_type(fields, message)),
        message,
        provider=provider,
        model=model,
        endpoint=endpoint,
        retry_after=retry_after,
        partial=partial,
    )


_TGI_TYPES = (
    ("Request failed during generation", "generation"),
    ("Model is overloaded", "overloaded"),
    ("Input validation error", "validation"),
    ("Incomplete generation", "incomplete_generation"),
    ("Template error", "template_error"),
    ("Tool error", "tool_error"),
)


def _tgi_type(error: Mapping[str, Any], message: str) -> str | None:
    """Return the `error_type` of an error inside TGI's stream, which says 422 there whatever happened."""
    if "http_status_code" not in error:
        return None
    return next((kind for start, kind in _TGI_TYPES if message.startswith(start)), None)


def decode_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    provider: str | None = None,
    model: str | None = None,
    endpoint: str | None = None,
) -> ProviderError:
    """Return the typed error of an answer that is not 2xx. Never raises."""
    try:
        data: Any = loads(body) if body.strip() else {}
    except JsonError:
        data = {"error": excerpt(body)}
    if isinstance(data, str):
        data = {"error": data}
    wait = retry_after_seconds(headers, now_ns=now_ns())
    return error_in(data, status, provider=provider, model=model, endpoint=endpoint, retry_after=wait)


#: First match wins: (error, HTTP status, OpenAI's `type`).
_STATUS: tuple[tuple[type[WindlassError], int, str], ...] = (
    (ContextExceededError, 400, "invalid_request_error"),
    (BadRequestError, 400, "invalid_request_error"),
    (AuthError, 401, "authentication_error"),
    (PermissionRefused, 403, "permission_error"),
    (ModelNotFoundError, 404, "invalid_request_error"),
    (SessionNotFound, 404, "invalid_request_error"),
    (SessionBusy, 409, "invalid_request_error"),
    (BodyTooLarge, 413, "invalid_request_error"),
    (RateLimitError, 429, "rate_limit_error"),
    (OverloadedError, 503, "server_error"),
    (ProviderTimeoutError, 504, "server_error"),
    (TransportTimeout, 504, "server_error"),
    (ProviderError, 502, "server_error"),
    (TransportError, 502, "server_error"),
)


def encode_error(error: WindlassError) -> tuple[int, bytes]:
    """Return (HTTP status, `{"error": {message, type, param, code}}`).

    A credential that the *upstream* refused is our fault, not the client's: 502.
    """
    if isinstance(error, RequestRefused):
        data = {"message": str(error), "type": error.kind, "param": error.param, "code": error.reason}
        return error.status, dumps({"error": data})
    status, kind = next(((status, kind) for known, status, kind in _STATUS if isinstance(error, known)), (500, ""))
    if isinstance(error, AuthError) and error.provider is not None:
        status, kind = 502, "server_error"
    body = {"message": str(error), "type": kind or "server_error", "param": field_of(error), "code": error.code}
    return status, dumps({"error": body})


#: What reference A calls a provider's failure; the first match wins: (error, HTTP status, code).
_FAILURES: tuple[tuple[type[WindlassError], int, str], ...] = (
    (RateLimitError, 429, "provider_rate_limited"),
    (OverloadedError, 503, "provider_upstream_error"),
    (ProviderTimeoutError, 504, "provider_timeout"),
    (TransportTimeout, 504, "provider_timeout"),
    (AuthError, 502, "provider_auth_failed"),
    (ModelNotFoundError, 404, "provider_not_found"),
    (BadRequestError, 400, "provider_rejected_request"),
    (ProviderConnectionError, 502, "provider_transport_error"),
    (StreamInterrupted, 502, "provider_transport_error"),
    (WireError, 502, "provider_invalid_response"),
    (ProviderError, 502, "provider_error"),
    (TransportError, 502, "provider_transport_error"),
    (ConfigError, 500, "provider_not_configured"),
)


def encode_chat_error(error: WindlassError) -> tuple[int, bytes]:
    """Return (HTTP status, `{"error": {message, type, param, code}}`) in reference A's words.

    A provider's failure has type `provider_error` and one of ten codes, by the kind of the error and never by its
    text: A's own server reads the text, and takes a 401 that says "invalid" for a bad payload. What is wrong with the
    client's request keeps `invalid_request_error`, with `invalid_<field>` where a field is to blame.

    The statuses are those that the official SDKs understand, not A's: A answers 503 for an upstream's 429 and 502 for
    every 4xx. An SDK waits for `Retry-After` on 429 and raises RateLimitError, raises BadRequestError on 400 (a full
    context is found by its code there) and NotFoundError on 404, and asks again after any 5xx: told 502, it would
    repeat a request that can never be taken. A credential of ours that the upstream refuses stays 502: the client's
    was good.
    """
    own = isinstance(error, ProviderError) and error.provider is None
    if isinstance(error, BadRequestError) and own:
        return _bad_request(error)
    if (
        isinstance(error, (RequestRefused, BodyTooLarge, ContextExceededError, UnsupportedInputError))
        or (own and isinstance(error, (AuthError, ModelNotFoundError)))
        or (found := next((row for row in _FAILURES if isinstance(error, row[0])), None)) is None
    ):
        return encode_error(error)
    _, status, code = found
    return status, dumps({"error": {"message": str(error), "type": "provider_error", "param": None, "code": code}})


def _bad_request(error: BadRequestError) -> tuple[int, bytes]:
    """Tell what is wrong with the client's own request: A's code for it is `invalid_` and the top-level field."""
    path = field_of(error)
    code = error.provider_code or error.code
    if path is not None:
        code = f"invalid_{path.partition('.')[0].partition('[')[0]}"
    return 400, dumps({"error": {"message": str(error), "type": "invalid_request_error", "param": path, "code": code}})
