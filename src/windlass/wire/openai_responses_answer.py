"""What an OpenAI Responses server answers, in our words: usage, status, the response object, its items and errors.

Source: platform.openai.com/docs/api-reference/responses. An output item that has no word of ours is kept as an
`UnknownPart` whose data is `{"type": "openai_responses.<its type>", "item": <the item>}`; a reasoning item rides whole
in `provider_metadata["openai_responses"]["items"]`, because the vendor wants it back as it was.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from windlass.core.errors import (
    BadRequestError,
    ContextExceededError,
    ProviderError,
    RateLimitError,
    RequestRefused,
    WindlassError,
)
from windlass.core.items import Finish, FinishReason
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Metadata, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import NANO, Usage
from windlass.wire.base import IdRule, as_dict, as_int, as_list, as_str, wire_id
from windlass.wire.openai_chat_answer import call_data, decode_error, encode_error, error_in

__all__ = [
    "CUSTOM",
    "IDS",
    "KEY",
    "call_item",
    "custom_input",
    "custom_names",
    "decode_failure",
    "decode_usage",
    "echo_fields",
    "encode_response",
    "encode_usage",
    "failure_code",
    "finish_status",
    "item_id",
    "message_item",
    "own_fields",
    "own_item",
    "read_error",
    "reasoning_item",
    "reasoning_text",
    "response_object",
    "unseal",
]

#: The key of this dialect in `provider_metadata`, and the first word of its own parts' types.
KEY: Final = "openai_responses"
#: At most 64 characters (the error text of `input[].call_id`).
IDS: Final = IdRule(64)
#: The mark of a call, in `provider_metadata`, of a tool that takes text instead of JSON.
CUSTOM: Final = "custom_tool_call"

_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs", CUSTOM: "ctc"}


def item_id(kind: str, response_id: str, index: int) -> str:
    """Return an item's id, a pure function of the response's id and the item's place in its output."""
    return wire_id(f"{_PREFIXES.get(kind, 'item')}_{response_id.removeprefix('resp_')}_{index}", IDS)


def own_fields(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what this dialect keeps in a `provider_metadata`."""
    return as_dict(metadata.get(KEY)) if metadata else {}


def own_item(part: UnknownPart) -> dict[str, Any] | None:
    """Return the dialect's own item that an unknown part holds, None when it is another's."""
    ours = as_str(part.data.get("type")).startswith(f"{KEY}.")
    return as_dict(part.data.get("item")) or None if ours else None


# ------------------------------------------------------------------------------------------------------------ usage


def decode_usage(data: Any) -> Usage | None:
    """Read `usage`; None when it holds no counts."""
    usage = as_dict(data)
    if "input_tokens" not in usage and "output_tokens" not in usage:
        return None
    ins, outs = as_dict(usage.get("input_tokens_details")), as_dict(usage.get("output_tokens_details"))
    return Usage(
        as_int(usage.get("input_tokens")),
        as_int(usage.get("output_tokens")),
        as_int(ins.get("cached_tokens")),
        as_int(ins.get("cache_write_tokens")),
        as_int(outs.get("reasoning_tokens")),
    )


def encode_usage(usage: Usage, cost: int | None = None) -> dict[str, Any]:
    """Return `usage` with all its details, which the official SDK requires, and `cost` in dollars when it is known."""
    out: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_creation_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
    if cost is not None:
        out["cost"] = cost / NANO
    return out


# ------------------------------------------------------------------------------------------------------ output items


def message_item(identity: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """Return an assistant's message item."""
    return {"id": identity, "type": "message", "status": status, "role": "assistant", "content": content}


def custom_names(echo: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the client's tools that take text instead of JSON."""
    tools = [as_dict(tool) for tool in as_list(echo.get("tools"))]
    return frozenset([as_str(tool.get("name")) for tool in tools if tool.get("type") == "custom"])


def custom_input(arguments: Mapping[str, Any] | None, text: str) -> str:
    """Return the text for a tool that takes text: the argument `input`, or all of it where there is none such."""
    given = (arguments or {}).get("input")
    return given if isinstance(given, str) else text


def call_item(call: ToolCall, *, custom: bool = False, valid_only: bool = False) -> dict[str, Any]:
    """Return a call as an item without its own id; its argument text goes as it was received."""
    text: str = call_data(call, valid_only=valid_only)["function"]["arguments"]
    kept = own_fields(call.provider_metadata)
    rest = {key: value for key, value in kept.items() if key != "type"}
    head: dict[str, Any] = {"type": "function_call", "call_id": wire_id(call.id, IDS), "name": call.name}
    if custom or kept.get("type") == CUSTOM:
        return {**rest, **head, "type": CUSTOM, "input": custom_input(call.arguments, text)}
    return {**rest, **head, "arguments": text}


_SEAL = "windlass1."


def _sealed(metadata: Metadata | None) -> str | None:
    """Return another vendor's signature over its reasoning in the form of `encrypted_content`.

    Clients send that back unread, so that the vendor can be shown its own reasoning again.
    """
    foreign = {key: value for key, value in (metadata or {}).items() if key != KEY}
    return _SEAL + base64.urlsafe_b64encode(dumps(foreign)).decode() if foreign else None


def unseal(text: str) -> Metadata | None:
    """Return the metadata that an answer of ours carried as `encrypted_content`, None for any other text."""
    if not text.startswith(_SEAL):
        return None
    try:
        return as_dict(loads(base64.urlsafe_b64decode(text[len(_SEAL) :].encode("ascii", "replace")))) or None
    except (binascii.Error, JsonError):
        return None


def reasoning_item(identity: str, text: str, metadata: Metadata | None = None) -> dict[str, Any]:
    """Return a reasoning item that is told as a summary."""
    out: dict[str, Any] = {
        "id": identity,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}] if text else [],
    }
    sealed = _sealed(metadata)
    return {**out, "encrypted_content": sealed} if sealed else out


def reasoning_text(item: Mapping[str, Any]) -> str:
    """Return what a reasoning item says: its summary, else its text."""
    rows = as_list(item.get("summary")) or as_list(item.get("content"))
    return "\n\n".join([text for row in rows if (text := as_str(as_dict(row).get("text")))])


def _output(finish: Finish, response_id: str, custom: frozenset[str]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []

    def name(kind: str) -> str:
        return item_id(kind, response_id, len(out))

    for part in finish.message.parts:
        if isinstance(part, Text):
            out.append(_text_item(part, name("message"), refused=finish.reason == "refusal"))
        elif isinstance(part, Reasoning):
            items = as_list(own_fields(part.provider_metadata).get("items"))
            at = len(out)
            out += [{"id": item_id("reasoning", response_id, n), **as_dict(item)} for n, item in enumerate(items, at)]
            if not items and (part.content or part.provider_metadata):
                out.append(reasoning_item(name("reasoning"), part.content, part.provider_metadata))
        elif isinstance(part, ToolCall):
            item = call_item(part, custom=part.name in custom)
            out.append({"id": name(item["type"]), **item, "status": "completed"})
        elif isinstance(part, UnknownPart):
            foreign = own_item(part)
            out += [] if foreign is None else [foreign]
    return out


def _text_item(part: Text, identity: str, *, refused: bool) -> dict[str, Any]:
    kept = own_fields(part.provider_metadata)
    content: dict[str, Any] = {"type": "output_text", "text": part.content, "annotations": [], "logprobs": []}
    content.update({key: kept[key] for key in ("annotations", "logprobs") if key in kept})
    if refused:
        content = {"type": "refusal", "refusal": part.content}
    item = message_item(identity, [content])
    return {**item, "phase": kept["phase"]} if "phase" in kept else item


# ------------------------------------------------------------------------------------------------ the whole response

#: What a response repeats of its request, and what stands there where the request says nothing.
_ECHO: Final[dict[str, Any]] = {
    "background": False, "conversation": None, "instructions": None, "max_output_tokens": None, "max_tool_calls": None,
    "metadata": {}, "parallel_tool_calls": True, "previous_response_id": None, "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None}, "safety_identifier": None, "service_tier": None, "store": False,
    "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": None,
    "top_p": None, "truncation": "disabled", "user": None,
}  # fmt: skip


def echo_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a response repeats of its request's body; for the `echo` of the encoders."""
    out = {key: value for key, value in body.items() if key in _ECHO and value is not None}
    if isinstance(out.get("conversation"), str):
        out["conversation"] = {"id": out["conversation"]}
    return out


def response_object(
    *,
    model: str,
    response_id: str,
    created: int,
    status: str,
    output: list[dict[str, Any]],
    echo: Mapping[str, Any],
    **fields: Any,
) -> dict[str, Any]:
    """Return the `response` object; `fields` are those of its end: usage, error, incomplete_details."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": output,
        "usage": None,
        **_ECHO,
        **echo,
        **fields,
    }


_INCOMPLETE: dict[FinishReason, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    # Clients know no other word for an answer that was cut.
    "interrupted": "max_output_tokens",
    "error": "max_output_tokens",
}


def finish_status(reason: FinishReason, *, refusal_told: bool) -> tuple[str, dict[str, str] | None]:
    """Return (status, incomplete_details) for our reason; a refusal that no part tells of is a filter's."""
    word = "content_filter" if reason == "refusal" and not refusal_told else _INCOMPLETE.get(reason)
    return ("incomplete", {"reason": word}) if word else ("completed", None)


def encode_response(
    finish: Finish, *, model: str, response_id: str, created: int, echo: Mapping[str, Any] | None = None
) -> bytes:
    """Return a whole answer; `echo` is what it repeats of the request (`echo_fields`)."""
    status, details = finish_status(finish.reason, refusal_told=bool(finish.message.text))
    given = {**(echo or {}), **own_fields(finish.provider_metadata)}
    output = _output(finish, response_id, custom_names(given))
    if details is not None and output and output[-1].get("type") in ("message", "function_call"):
        output[-1]["status"] = "incomplete"
    return dumps(
        response_object(
            model=model,
            response_id=response_id,
            created=created,
            status=status,
            output=output,
            echo=given,
            incomplete_details=details,
            usage=encode_usage(finish.usage, finish.cost),
        )
    )


# ----------------------------------------------------------------------------------------------------------- errors

#: The vendor's words that `classify` does not know, and the ones it knows that mean the same.
_SAME: dict[str, str] = {
    **dict.fromkeys(
        ("invalid_prompt", "bio_policy", "cyber_policy", "data_residency_mismatch", "misalignment_policy_violation",
         "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url", "image_too_large",
         "image_too_small", "image_parse_error", "image_content_policy_violation", "invalid_image_mode",
         "image_file_too_large", "unsupported_image_media_type", "empty_image_file", "failed_to_download_image",
         "image_file_not_found", "unsupported_value", "unsupported_parameter", "invalid_encrypted_content"),
        "invalid_request_error",
    ),
    "server_is_overloaded": "overloaded",
    "slow_down": "overloaded",
    "vector_store_timeout": "timeout",
    "usage_limit_reached": "insufficient_quota",
    "usage_not_included": "insufficient_quota",
}  # fmt: skip
_TRY_AGAIN = re.compile(r"try again in (\d{1,6}(?:\.\d{1,6})?) ?(ms|s)", re.IGNORECASE)


def decode_failure(error: Any) -> ProviderError:
    """Return the classified error of an `error` event, of `response.error`, or of the fields of either."""
    fields = {key: value for key, value in as_dict(error).items() if not (key == "type" and value == "error")}
    said = as_str(fields.get("code")) or as_str(fields.get("type"))
    if said in _SAME:
        fields["code"] = _SAME[said]
    found = error_in({"error": fields} if fields else {"error": error if isinstance(error, str) else ""})
    if said:
        found.provider_code = said
    if isinstance(found, RateLimitError):
        found.retry_after = _wait(fields)
    return found


def _wait(fields: Mapping[str, Any]) -> float | None:
    """Return the seconds that an error asks to wait: ChatGPT's `resets_in_seconds`, or what the text says."""
    seconds = fields.get("resets_in_seconds")
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds < 1e9:
        return float(seconds)
    found = _TRY_AGAIN.search(as_str(fields.get("message"))[:2000])
    return None if found is None else float(found[1]) / (1000 if found[2].lower() == "ms" else 1)


def read_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    provider: str | None,
    model: str | None,
    endpoint: str | None,
) -> ProviderError:
    """Return the typed error of an answer that is not 2xx. Never raises."""
    found = decode_error(status, headers, body, provider=provider, model=model, endpoint=endpoint)
    if isinstance(found, RateLimitError) and found.retry_after is None:
        try:
            found.retry_after = _wait(as_dict(as_dict(loads(body)).get("error")))
        except JsonError:
            return found
    return found


def failure_code(error: WindlassError) -> str:
    """Return the `code` of `response.error`, as official clients know it."""
    status = encode_error(error)[0]
    if isinstance(error, ContextExceededError):
        return "context_length_exceeded"
    if isinstance(error, RateLimitError) or status == 429:
        return "rate_limit_exceeded"
    refused = isinstance(error, BadRequestError) or (isinstance(error, RequestRefused) and status < 500)
    return "invalid_prompt" if refused else "server_error"
