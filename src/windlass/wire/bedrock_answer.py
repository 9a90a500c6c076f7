"""What Bedrock answers to Converse: whole answers, usage and errors, both ways.

Source: docs.aws.amazon.com/bedrock, API_runtime_Converse ("Errors") and API_runtime_TokenUsage. `inputTokens` leaves
cached tokens out there; ours counts them in.
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
from windlass.wire.anthropic_answer import unique_calls
from windlass.wire.base import (
    as_dict,
    as_int,
    as_str,
    excerpt,
    load_object,
    provider_error,
    retry_after_seconds,
)
from windlass.wire.bedrock_blocks import KEY, citations_of, decode_block, foreign_block, reasoning_block, tool_use

__all__ = [
    "answer_block",
    "build_finish",
    "decode_error",
    "decode_response",
    "decode_usage",
    "encode_error",
    "encode_response",
    "encode_usage",
    "error_body",
    "error_headers",
    "error_of",
    "error_word",
    "extras_of",
    "stop_reason",
]

_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_call",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "refusal": "refusal",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
}
_WIRE_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_call": "tool_use",
    "content_filter": "content_filtered",
    "refusal": "content_filtered",
    # Clients know no word for a cut answer but this one.
    "interrupted": "max_tokens",
    "error": "malformed_model_output",
}
#: What an answer may hold besides its message, kept in `Finish.provider_metadata` and given back.
_EXTRAS = ("metrics", "trace", "additionalModelResponseFields", "performanceConfig", "serviceTier")


def decode_usage(data: Any) -> Usage | None:
    """Read `usage`; None when it holds no count."""
    usage = as_dict(data)
    if "inputTokens" not in usage and "outputTokens" not in usage:
        return None
    read, made = as_int(usage.get("cacheReadInputTokens")), as_int(usage.get("cacheWriteInputTokens"))
    return Usage(as_int(usage.get("inputTokens")) + read + made, as_int(usage.get("outputTokens")), read, made)


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Return `usage` as Bedrock writes it: without the cached tokens in `inputTokens`."""
    return {
        "inputTokens": max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_creation_tokens),
        "outputTokens": usage.output_tokens,
        "totalTokens": usage.total_tokens,
        "cacheReadInputTokens": usage.cache_read_tokens,
        "cacheWriteInputTokens": usage.cache_creation_tokens,
    }


def stop_reason(finish: Finish) -> str:
    """Return the vendor's word for why it stopped: the one it used itself where that says the same."""
    if finish.raw is not None and finish.raw != "refusal" and _REASONS.get(finish.raw) == finish.reason:
        return finish.raw
    return _WIRE_REASONS[finish.reason]


def extras_of(finish: Finish) -> dict[str, Any]:
    """Return what else the vendor said with an answer: metrics, trace and the like."""
    own = as_dict((finish.provider_metadata or {}).get(KEY))
    return {key: own[key] for key in _EXTRAS if key in own}


# ------------------------------------------------------------------------------------------------- whole answers


def build_finish(parts: Iterable[Part], head: Mapping[str, Any], *, whole: bool = False) -> Finish:
    """Return the end of an answer from its parts and the other fields of the answer.

    A call that the token limit cut keeps its text and loses its arguments, so that it is answered and never run. In a
    `whole` answer the vendor has already closed such JSON: there any last call counts as cut.
    """
    said = unique_calls([part for part in parts if not isinstance(part, Text) or part.content])
    raw = as_str(head.get("stopReason")) or None
    reason = _REASONS.get(raw or "", "stop")
    if reason in ("stop", "tool_call"):
        reason = "tool_call" if any(isinstance(part, ToolCall) for part in said) else "stop"
    last = said[-1] if said else None
    if reason == "length" and isinstance(last, ToolCall) and (whole or not last.arguments):
        text = last.arguments_text or (dumps(last.arguments).decode() if last.arguments else "")
        said = (*said[:-1], replace(last, arguments=None, arguments_text=text))
    rest = {key: head[key] for key in _EXTRAS if head.get(key) is not None}
    return Finish(
        Message("assistant", said, finish_reason=reason),
        usage=decode_usage(head.get("usage")) or Usage(estimated=True),
        reason=reason,
        raw=raw,
        provider_metadata={KEY: rest} if rest else None,
    )


def decode_response(body: bytes) -> Finish:
    """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
    data = load_object(body)
    content = as_dict(as_dict(data.get("output")).get("message")).get("content")
    if not isinstance(content, list):
        if as_str(data.get("message")) or as_str(data.get("Message")) or "__type" in data:
            raise error_of(None, as_str(data.get("__type")), data)
        raise WireError(f"The answer has no content: {excerpt(body)!r}.")
    try:
        parts = [decode_block(block, f"content[{number}]") for number, block in enumerate(content)]
    except BadRequestError as error:
        raise WireError(f"The answer does not follow the dialect: {error.message}.") from None
    return build_finish([part for part in parts if part is not None], data, whole=True)


def answer_block(part: Part) -> dict[str, Any] | None:
    """Return the block of an answer for a part; reasoning that nobody signed is shown without a signature."""
    if isinstance(part, Text):
        return (citations_of(part) or {"text": part.content}) if part.content else None
    if isinstance(part, Reasoning):
        block = reasoning_block(part, "")
        return block or ({"reasoningContent": {"reasoningText": {"text": part.content}}} if part.content else None)
    if isinstance(part, ToolCall):
        return tool_use(part)
    return foreign_block(part) if isinstance(part, UnknownPart) else None


def encode_response(finish: Finish) -> bytes:
    """Return a whole answer; `metrics.latencyMs` is the provider's, 0 where it told none."""
    blocks = [block for part in finish.message.parts if (block := answer_block(part)) is not None]
    return dumps(
        {
            "output": {"message": {"role": "assistant", "content": blocks}},
            "stopReason": stop_reason(finish),
            "usage": encode_usage(finish.usage),
            "metrics": {"latencyMs": 0},
            **extras_of(finish),
        }
    )


# --------------------------------------------------------------------------------------------------------- errors

#: Words in which Bedrock tells of a model that it does not have, with a plain ValidationException.
_NO_MODEL = ("model identifier is invalid", "model id is invalid")


def error_of(
    status: int | None,
    kind: str,
    data: Mapping[str, Any],
    *,
    fallback: str = "",
    partial: str = "",
    retry_after: float | None = None,
    provider: str | None = None,
    model: str | None = None,
    endpoint: str | None = None,
) -> ProviderError:
    """Return the classified error of an exception: its kind ("ns#ThrottlingException:http://…" too) and its body."""
    word = kind.partition(":")[0].rpartition("#")[2]
    message = as_str(data.get("message")) or as_str(data.get("Message")) or fallback
    message = as_str(data.get("originalMessage")) or message
    code = "model_not_found" if any(text in message.lower() for text in _NO_MODEL) else word or None
    error = provider_error(
        status, code, message, provider=provider, model=model, endpoint=endpoint, retry_after=retry_after,
        partial=partial,
    )  # fmt: skip
    error.provider_code = word or None
    return error


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
    kind = headers.get("x-amzn-errortype") or as_str(data.get("__type")) or as_str(data.get("code"))
    return error_of(
        status,
        kind,
        data,
        fallback=excerpt(body),
        retry_after=retry_after_seconds(headers, now_ns=now_ns()),
        provider=provider,
        model=model,
        endpoint=endpoint,
    )


_ERRORS: tuple[tuple[type[WindlassError], int, str], ...] = (
    (ContextExceededError, 400, "ValidationException"),
    (BodyTooLarge, 413, "ValidationException"),
    (ModelNotFoundError, 404, "ResourceNotFoundException"),
    (SessionNotFound, 404, "ResourceNotFoundException"),
    (SessionBusy, 409, "ConflictException"),
    (PermissionRefused, 403, "AccessDeniedException"),
    (BadRequestError, 400, "ValidationException"),
    (RateLimitError, 429, "ThrottlingException"),
    (OverloadedError, 503, "ServiceUnavailableException"),
    (ProviderTimeoutError, 408, "ModelTimeoutException"),
    (TransportTimeout, 408, "ModelTimeoutException"),
    (ProviderError, 502, "InternalServerException"),
    (TransportError, 502, "InternalServerException"),
)
_REFUSED = {
    401: "AccessDeniedException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    409: "ConflictException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def error_word(error: WindlassError) -> tuple[int, str]:
    """Return the HTTP status and the name of the exception that tell a client of this error."""
    if isinstance(error, RequestRefused):
        kind = "InternalServerException" if error.status >= 500 else "ValidationException"
        return error.status, _REFUSED.get(error.status, kind)
    if isinstance(error, AuthError):
        # A provider that refuses *our* key is no fault of the client's key.
        return (403, "AccessDeniedException") if error.provider is None else (502, "InternalServerException")
    found = next(((status, kind) for of, status, kind in _ERRORS if isinstance(error, of)), None)
    return found or (500, "InternalServerException")


def error_body(error: WindlassError) -> dict[str, Any]:
    """Return the body of an exception."""
    message = str(error)
    if isinstance(error, ContextExceededError) and "input is too long" not in message.lower():
        # The words by which this vendor's clients know that they must compact.
        message = f"Input is too long for requested model. {message}"
    return {"message": message}


def encode_error(error: WindlassError) -> tuple[int, bytes]:
    """Return the HTTP status and body that tell a client of this error; `__type` is for clients that read no header."""
    status, kind = error_word(error)
    return status, dumps({**error_body(error), "__type": kind})


def error_headers(error: WindlassError) -> dict[str, str]:
    """Return the headers that belong to `encode_error`: AWS's SDKs choose the exception by `x-amzn-errortype`."""
    return {"x-amzn-errortype": error_word(error)[1]}
