"""The Anthropic messages dialect.

Source: docs.anthropic.com/en/api/messages, /en/docs/build-with-claude/extended-thinking, /prompt-caching and
/structured-outputs, /context-editing. The `anthropic-beta` names of `settings.extra["betas"]` (or `extra_betas`) travel
in a header, so that the body leaves them out; the provider sends them. `extra["context_management"]` lets the server
clear old tool output; which edits it made is in the answer's `provider_metadata`. An object in `extra` is merged into
ours: `{"thinking": {"display": "summarized"}}`.
Bodies hold to what both API versions take, 2023-06-01 and 2026-10-21; only the first knows sampling settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from windlass.core.errors import BadRequestError, ProviderError, UnsupportedInputError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.core.messages import Message
from windlass.core.models import Capabilities
from windlass.core.request import THINKING_BUDGETS, EncodingCache, Request, Settings, ToolSpec, thinking_budget
from windlass.wire.anthropic_answer import decode_error, decode_response, encode_error, encode_response
from windlass.wire.anthropic_blocks import EMPTY, KEY, Target, encode_messages, markable
from windlass.wire.anthropic_request import decode_request
from windlass.wire.anthropic_stream import AnthropicStreamDecoder, AnthropicStreamEncoder
from windlass.wire.base import DecodedRequest, as_list

__all__ = ["DEFAULT_MAX_TOKENS", "DIALECT", "AnthropicMessages", "dropped_settings"]

#: `max_tokens` is required there; this is sent when nobody chose one.
DEFAULT_MAX_TOKENS: Final = 16384
_MARK: Final = {"type": "ephemeral"}
#: The smallest `budget_tokens` the API takes.
_LEAST: Final = 1024
_NOT_THERE = ("seed", "presence_penalty", "frequency_penalty", "repeat_penalty")
_HEADER_FIELDS = ("betas", "extra_betas")


class AnthropicMessages:
    """The dialect. It has no options: what a vendor or model wants differently is in its `Capabilities`."""

    name: ClassVar[str] = KEY

    #: Fields of `settings.extra` that travel as a header, joined by commas.
    header_fields: ClassVar[dict[str, str]] = dict.fromkeys(_HEADER_FIELDS, "anthropic-beta")

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        With `caps.cache_breakpoints` and `request.cache` three prefixes are marked for caching: system, the last tool,
        the final block; marks that parts carry themselves are then left out (the API takes four), and else sent.
        Raises UnsupportedInputError for a tool, image or document the model cannot take, BadRequestError without
        messages.
        """
        marks = caps.cache_breakpoints and request.cache
        fields = _settings(request, caps)
        if stream:
            fields["stream"] = True
        if system := _system(request):
            fields["system"] = [{"type": "text", "text": system} | ({"cache_control": _MARK} if marks else {})]
        if request.tools:
            fields.update(_tools(request, caps, marks))
        _merge_extra(fields, request.settings.extra)
        own: Any = fields.pop("messages", None)
        messages = _messages(request, caps, marks) if own is None else dumps(own)[1:-1]
        return b"".join([dumps(fields)[:-1], b',"messages":[', messages, b"]}"])

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body. Raises BadRequestError that names the field."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        settings = request.settings
        out = [name for name in _NOT_THERE if getattr(settings, name) is not None]
        fields = _settings(request, caps)
        out += [name for name in ("temperature", "top_p", "top_k") if getattr(settings, name) is not None]
        out = [name for name in out if name not in fields]
        asked = settings.thinking_budget or settings.thinking not in (None, "off")
        if asked and "thinking" not in fields and "effort" not in fields.get("output_config", {}):
            out.append("thinking")
        if request.output_schema is not None and not caps.structured_output:
            out.append("output_schema")
        return out

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:  # noqa: ARG002
        """Return a whole answer; this dialect has no place for `created`."""
        return encode_response(finish, model=model, response_id=response_id)

    def stream_decoder(self) -> AnthropicStreamDecoder:
        """Make a decoder for one stream."""
        return AnthropicStreamDecoder()

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> AnthropicStreamEncoder:  # noqa: ARG002
        """Make an encoder for one stream; this dialect has no place for `created`."""
        return AnthropicStreamEncoder(model=model, response_id=response_id)

    def decode_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        provider: str | None,
        model: str | None,
        endpoint: str | None,
    ) -> ProviderError:
        """Return the typed error of an answer that is not 2xx. Never raises."""
        return decode_error(status, headers, body, provider=provider, model=model, endpoint=endpoint)

    def encode_error(self, error: WindlassError) -> tuple[int, bytes]:
        """Return the HTTP status and body that tell a client of this error."""
        return encode_error(error)


DIALECT = AnthropicMessages()
dropped_settings = DIALECT.dropped_settings


# --------------------------------------------------------------------------------------------------------- settings


def _settings(request: Request, caps: Capabilities) -> dict[str, Any]:
    settings = request.settings
    thinking, effort, max_tokens = _thinking(request, caps)
    out: dict[str, Any] = {"model": request.model, "max_tokens": max_tokens}
    out.update(_sampling(settings, caps, thinks=thinking is not None and thinking["type"] != "disabled"))
    if stop := [text for text in settings.stop if text.strip()]:
        out["stop_sequences"] = stop
    if thinking is not None:
        out["thinking"] = thinking
    config: dict[str, Any] = {} if effort is None else {"effort": effort}
    if request.output_schema is not None and caps.structured_output:
        config["format"] = {"type": "json_schema", "schema": _closed(request.output_schema)}
    if config:
        out["output_config"] = config
    user = request.metadata.get("user_id")
    if isinstance(user, str) and user:
        out["metadata"] = {"user_id": user}
    return out


def _sampling(settings: Settings, caps: Capabilities, *, thinks: bool) -> dict[str, Any]:
    """Return what may be said of sampling: nothing to models that think adaptively, which refuse all of it.

    While others think, they take only the default temperature, no top_k, and top_p from 0.95.
    """
    out: dict[str, Any] = {}
    if caps.reasoning == "adaptive":
        return out
    if settings.temperature is not None and not thinks:
        out["temperature"] = min(1.0, settings.temperature)
    if settings.top_p is not None and (not thinks or settings.top_p >= 0.95):
        out["top_p"] = settings.top_p
    if settings.top_k is not None and not thinks:
        out["top_k"] = settings.top_k
    return out


def _thinking(request: Request, caps: Capabilities) -> tuple[dict[str, Any] | None, str | None, int]:
    """Return (`thinking`, `effort`, `max_tokens`): the limit is raised above the budget, which it has to exceed."""
    settings, limit = request.settings, caps.max_output
    max_tokens = settings.max_tokens or DEFAULT_MAX_TOKENS
    max_tokens = min(max_tokens, limit) if limit else max_tokens
    budget = thinking_budget(settings)
    if caps.reasoning == "none" or (settings.thinking is None and budget is None):
        return None, None, max_tokens
    if budget == 0:
        return ({"type": "disabled"} if caps.reasoning == "adaptive" else None), None, max_tokens
    # The API refuses to think where a tool is forced.
    forced = bool(request.tools) and request.tool_choice not in ("auto", "none")
    if caps.reasoning in ("adaptive", "effort"):
        if settings.thinking == "adaptive" and budget:
            max_tokens = min(max_tokens, budget)
        think = caps.reasoning == "adaptive" and not forced
        return ({"type": "adaptive"} if think else None), _effort(settings, budget), max_tokens
    if forced or not _may_think(request.messages):
        return None, None, max_tokens
    tokens = max(_LEAST, budget or THINKING_BUDGETS["medium"])
    answer = max_tokens
    if max_tokens <= tokens:
        max_tokens = min(tokens + answer, limit) if limit else tokens + answer
        # Under the model's own limit both shrink; the answer keeps a quarter.
        tokens = min(tokens, max(max_tokens - answer, max_tokens * 3 // 4))
    if not _LEAST <= tokens < max_tokens:
        return None, None, answer
    return {"type": "enabled", "budget_tokens": tokens}, None, max_tokens


def _effort(settings: Settings, budget: int | None) -> str | None:
    if settings.thinking == "adaptive":
        return None
    if settings.thinking_budget is None and settings.thinking in ("low", "medium", "high"):
        return settings.thinking
    return next((word for word in ("low", "medium") if (budget or 0) <= THINKING_BUDGETS[word]), "high")


def _may_think(messages: Sequence[Message]) -> bool:
    """Tell whether thinking can be on: an answer whose tool results are sent back must begin with its own thinking.

    It does not when another vendor gave it, or when thinking was off then: "Expected `thinking`, but found `tool_use`".
    """
    for message in reversed(messages):
        if message.role == "assistant":
            if not message.tool_calls:
                return True
            blocks = encode_messages([message], Target("", Capabilities()))[0]["content"]
            return blocks[0]["type"] in ("thinking", "redacted_thinking")
        if message.role == "user":
            return True
    return True


def _closed(schema: Any) -> Any:
    """Return a schema whose objects allow no further properties: the API demands that it is said."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value if key in ("enum", "const", "default") else _closed(value) for key, value in schema.items()}
    if out.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return out


def _merge_extra(fields: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        known = fields.get(key)
        if key in _HEADER_FIELDS:
            continue
        if key == "tools" and known is not None:
            # The vendor's own tools stand beside ours.
            fields[key] = [*known, *as_list(value)]
        elif isinstance(known, dict) and isinstance(value, dict):
            fields[key] = {**known, **value}
        else:
            fields[key] = value


def _tools(request: Request, caps: Capabilities, marks: bool) -> dict[str, Any]:
    if not caps.tools:
        raise UnsupportedInputError(
            f"The request holds the tool {request.tools[0].name!r}, but {request.model} takes no tools.",
            model=request.model,
            hint="Use a model that takes tools, or run without them.",
        )
    tools = [_tool(spec) for spec in request.tools]
    if marks:
        tools[-1]["cache_control"] = _MARK
    choice = request.tool_choice
    alone = request.settings.parallel_tool_calls is False
    kinds = {"auto": "auto", "none": "none", "required": "any"}
    chosen: dict[str, Any] = {"type": kinds[choice]} if choice in kinds else {"type": "tool", "name": choice}
    if alone and choice != "none":
        chosen["disable_parallel_tool_use"] = True
    return {"tools": tools} if chosen == {"type": "auto"} else {"tools": tools, "tool_choice": chosen}


def _tool(spec: ToolSpec) -> dict[str, Any]:
    out: dict[str, Any] = {"name": spec.name}
    if spec.description:
        out["description"] = spec.description
    schema = spec.input_schema
    out["input_schema"] = schema if schema.get("type") == "object" else {"type": "object", **schema}
    return out


# --------------------------------------------------------------------------------------------------------- messages


def _leading(messages: Sequence[Message]) -> int:
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return count


def _system(request: Request) -> str:
    texts = [request.system or "", *[message.text for message in request.messages[: _leading(request.messages)]]]
    return "\n\n".join([text for text in texts if text.strip()])


def _messages(request: Request, caps: Capabilities, marks: bool) -> bytes:
    to = Target(request.model, caps, marks=caps.cache_breakpoints and not marks)
    messages = request.messages
    lead = _leading(messages)

    def rows(group: Sequence[Message]) -> list[dict[str, Any]]:
        # System messages in front are part of `system`; only the first group can begin with one.
        return encode_messages(group[_leading(group) :], to)

    def encode(group: Sequence[Message]) -> bytes:
        return b",".join([dumps(row) for row in rows(group)])

    cache = request.encoded if isinstance(request.encoded, EncodingCache) else EncodingCache()
    closed, start = cache.closed((KEY, caps, to.marks), messages, encode)
    live = _prefill(rows(messages[start:]))
    if marks and live and (last := markable(live[-1]["content"])) is not None:
        last["cache_control"] = _MARK
    chunks = [chunk for chunk in (*closed, *[dumps(row) for row in live]) if chunk]
    if not chunks:
        raise BadRequestError(
            "The request has no messages.", model=request.model, status=400, hint="Send at least one user message."
        )
    if messages[lead : lead + 1] and messages[lead].role == "assistant":
        chunks.insert(0, dumps({"role": "user", "content": [{"type": "text", "text": EMPTY}]}))
    return b",".join(chunks)


def _prefill(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a last assistant message one that the model can go on from: it must not end in white space or be empty."""
    if not rows or rows[-1]["role"] != "assistant":
        return rows
    blocks: list[dict[str, Any]] = rows[-1]["content"]
    last = blocks[-1]
    if last["type"] != "text":
        return rows
    if last["text"] == EMPTY:
        return rows[:-1]
    return [*rows[:-1], {**rows[-1], "content": [*blocks[:-1], {**last, "text": last["text"].rstrip()}]}]
