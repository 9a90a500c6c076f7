"""What an Anthropic messages server answers: whole answers, usage and errors, both ways.

Source: docs.anthropic.com/en/api/messages and /en/api/errors. `usage.input_tokens` leaves cached tokens out there; ours
counts them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

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
    WireError,
)
from windlass.core.items import Finish, FinishReason
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.anthropic_blocks import KEY, decode_block, foreign_block, own_fields, reasoning_block
from windlass.wire.base import (
    ANTHROPIC_IDS,
    as_dict,
    as_int,
    as_list,
    as_str,
    excerpt,
    load_object,
    provider_error,
    retry_after_seconds,
    wire_id,
)

__all__ = [
    "answer_block",
    "answer_head",
    "applied_edits",
    "build_finish",
    "decode_error",
    "decode_response",
    "decode_usage",
    "encode_error",
    "encode_response",
    "encode_usage",
    "error_data",
    "error_of",
    "response_from_data",
    "stop_reason",
    "unique_calls",
]

_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    # The server paused a long turn of its own tools; sending the message back continues it. `Finish.raw` tells.
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_call",
    "refusal": "refusal",
}
_WIRE_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_call": "tool_use",
    "refusal": "refusal",
    "content_filter": "refusal",
    # Clients know no word for a cut answer but this one.
    "interrupted": "max_tokens",
    "error": "max_tokens",
}
_TOP = frozenset(("id", "type", "role", "model", "content", "stop_reason", "usage"))


def decode_usage(data: Any) -> Usage | None:
    """Read `usage`; None when it holds no count."""
    usage = as_dict(data)
    if "input_tokens" not in usage and "output_tokens" not in usage:
        return None
    read, made = as_int(usage.get("cache_read_input_tokens")), as_int(usage.get("cache_creation_input_tokens"))
    details = as_dict(usage.get("output_tokens_details"))
    return Usage(
        as_int(usage.get("input_tokens")) + read + made,
        as_int(usage.get("output_tokens")),
        read,
        made,
        as_int(details.get("thinking_tokens")),
    )


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Return `usage` as Anthropic writes it: without the cached tokens in `input_tokens`."""
    out: dict[str, Any] = {
        "input_tokens": max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_creation_tokens),
        "cache_creation_input_tokens": usage.cache_creation_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        out["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return out


def stop_reason(finish: Finish) -> str:
    """Return the vendor's word for why it stopped: the one it used itself where that says the same."""
    if finish.raw is not None and _REASONS.get(finish.raw) == finish.reason:
        return finish.raw
    return _WIRE_REASONS[finish.reason]


# ------------------------------------------------------------------------------------------------- whole answers


def unique_calls(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return the parts with an id for every call that no other call has, so that each can be answered exactly once."""
    taken: set[str] = set()
    out: list[Part] = []
    for part in parts:
        if isinstance(part, ToolCall):
            call_id, number = part.id, len(taken)
            while not call_id or call_id in taken:
                call_id = f"call_{number}"
                number += 1
            taken.add(call_id)
            part = part if call_id == part.id else replace(part, id=call_id)
        out.append(part)
    return tuple(out)


def build_finish(parts: Iterable[Part], head: Mapping[str, Any], *, whole: bool = False) -> Finish:
    """Return the end of an answer from its parts and the other fields of the message object.

    A call that the token limit cut keeps its text and loses its arguments, so that it is answered and never run. In a
    `whole` answer the vendor has already closed such JSON: there any last call counts as cut.
    """
    said = unique_calls([part for part in parts if not isinstance(part, Text) or part.content])
    raw = as_str(head.get("stop_reason")) or None
    reason = _REASONS.get(raw or "", "stop")
    calls = any(isinstance(part, ToolCall) for part in said)
    if reason in ("stop", "tool_call"):
        reason = "tool_call" if calls else "stop"
    last = said[-1] if said else None
    if reason == "length" and isinstance(last, ToolCall) and (whole or not last.arguments):
        text = last.arguments_text or (dumps(last.arguments).decode() if last.arguments else "")
        said = (*said[:-1], replace(last, arguments=None, arguments_text=text))
    rest = {key: value for key, value in head.items() if key not in _TOP and value is not None}
    return Finish(
        Message("assistant", said, finish_reason=reason),
        usage=decode_usage(head.get("usage")) or Usage(estimated=True),
        reason=reason,
        model=as_str(head.get("model")) or None,
        response_id=as_str(head.get("id")) or None,
        raw=raw,
        provider_metadata={KEY: rest} if rest else None,
    )


def decode_response(body: bytes) -> Finish:
    """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
    return response_from_data(load_object(body))


def response_from_data(data: dict[str, Any]) -> Finish:
    """Read a decoded answer, as `decode_response`."""
    if data.get("type") == "error" or "error" in data:
        raise error_of(data)
    content = data.get("content")
    if not isinstance(content, list):
        raise WireError(f"The answer has no content: {excerpt(dumps(data))!r}.")
    try:
        parts = [decode_block(block, f"content[{number}]") for number, block in enumerate(as_list(content))]
    except BadRequestError as error:
        raise WireError(f"The answer does not follow the dialect: {error.message}.") from None
    return build_finish(parts, data, whole=True)


def answer_block(part: Part) -> dict[str, Any] | None:
    """Return the block of an answer for a part; reasoning of other vendors is shown without a signature."""
    if isinstance(part, Text):
        if not part.content:
            return None
        citations = own_fields(part.provider_metadata).get("citations")
        return {"type": "text", "text": part.content, "citations": citations if isinstance(citations, list) else None}
    if isinstance(part, Reasoning):
        block = reasoning_block(part)
        if block is None and part.content:
            block = {"type": "thinking", "thinking": part.content, "signature": ""}
        return block
    if isinstance(part, ToolCall):
        call_id = wire_id(part.id, ANTHROPIC_IDS)
        return {"type": "tool_use", "id": call_id, "name": part.name, "input": part.arguments or {}}
    return foreign_block(part) if isinstance(part, UnknownPart) else None


def answer_head(finish: Finish) -> dict[str, Any]:
    """Return `stop_reason`, `stop_sequence` and, for a refusal, `stop_details`."""
    own = own_fields(finish.provider_metadata)
    head = {"stop_reason": stop_reason(finish), "stop_sequence": own.get("stop_sequence")}
    if own.get("stop_details") is not None:
        head["stop_details"] = own["stop_details"]
    return head


def applied_edits(finish: Finish) -> dict[str, Any]:
    """Return `context_management` as the server reported it: what it cleared before the model read the request."""
    edits = own_fields(finish.provider_metadata).get("context_management")
    return {"context_management": edits} if isinstance(edits, dict) else {}


def encode_response(finish: Finish, *, model: str, response_id: str) -> bytes:
    """Return a whole answer."""
    blocks = [block for part in finish.message.parts if (block := answer_block(part)) is not None]
    return dumps(
        {
            "id": response_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": blocks,
            **answer_head(finish),
            **applied_edits(finish),
            "usage": encode_usage(finish.usage),
        }
    )


# --------------------------------------------------------------------------------------------------------- errors


def error_of(data: Mapping[str, Any], *, partial: str = "") -> ProviderError:
    """Return the classified error of `{"type": "error", "error": {"type", "message"}}` inside an answer."""
    error = data.get("error")
    fields = as_dict(error)
    message = as_str(fields.get("message")) or as_str(error) or "no details were given"
    return provider_error(None, as_str(fields.get("type")) or None, message, partial=partial)


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
        data = as_dict(loads(body))
    except JsonError:
        data = {}
    error = data.get("error")
    fields = as_dict(error)
    message = as_str(fields.get("message")) or as_str(error) or as_str(data.get("message")) or excerpt(body)
    return provider_error(
        status,
        as_str(fields.get("type")) or None,
        message,
        provider=provider,
        model=model,
        endpoint=endpoint,
        retry_after=retry_after_seconds(headers, now_ns=now_ns()),
    )


_ERRORS: tuple[tuple[type[WindlassError], int, str], ...] = (
    (ContextExceededError, 400, "invalid_request_error"),
    (BodyTooLarge, 413, "request_too_large"),
    (ModelNotFoundError, 404, "not_found_error"),
    (SessionNotFound, 404, "not_found_error"),
    (SessionBusy, 409, "invalid_request_error"),
    (PermissionRefused, 403, "permission_error"),
    (BadRequestError, 400, "invalid_request_error"),
    (RateLimitError, 429, "rate_limit_error"),
    (OverloadedError, 529, "overloaded_error"),
    (ProviderTimeoutError, 504, "timeout_error"),
    (TransportTimeout, 504, "timeout_error"),
    (ProviderError, 502, "api_error"),
    (TransportError, 502, "api_error"),
)


#: platform.claude.com/docs/en/api/errors
_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_data(error: WindlassError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the error object that tell a client of this error."""
    if isinstance(error, RequestRefused):
        kind = _KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return error.status, {"type": "error", "error": {"type": kind, "message": str(error)}}
    status, kind = next(((status, kind) for of, status, kind in _ERRORS if isinstance(error, of)), (500, "api_error"))
    if isinstance(error, AuthError):
        # A provider that refuses *our* key is no fault of the client's key.
        status, kind = (401, "authentication_error") if error.provider is None else (502, "api_error")
    message = str(error)
    if isinstance(error, ContextExceededError) and "prompt is too long" not in message:
        # The words by which this vendor's clients know that they must compact.
        message = f"prompt is too long: {message}"
    return status, {"type": "error", "error": {"type": kind, "message": message}}


def encode_error(error: WindlassError) -> tuple[int, bytes]:
    """Return the HTTP status and body that tell a client of this error."""
    status, data = error_data(error)
    return status, dumps(data)
