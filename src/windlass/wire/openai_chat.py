"""The OpenAI chat-completions dialect, which most vendors speak; what they want differently is data in `OpenAIChat`.

Source: platform.openai.com/docs/api-reference/chat/create, openrouter.ai/docs, docs.mistral.ai, api-docs.deepseek.com.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from msgspec import Struct

from windlass.core.errors import ProviderError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.core.messages import Message, Reasoning, ToolCall, ToolResponse, text_of
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, thinking_budget
from windlass.wire.base import MISTRAL_IDS, OPENAI_IDS, DecodedRequest, IdRule, wire_id
from windlass.wire.openai_chat_answer import (
    call_data,
    decode_error,
    encode_chat_error,
    encode_response,
    reasoning_details,
    vendor_fields,
)
from windlass.wire.openai_chat_parts import (
    CACHE_MARK,
    assistant_text,
    marked,
    named,
    result_content,
    unsupported,
    user_content,
)
from windlass.wire.openai_chat_request import decode_request
from windlass.wire.openai_chat_stream import ChatStreamDecoder, ChatStreamEncoder, decode_response

__all__ = ["DIALECT", "MISTRAL", "OPENROUTER", "TGI", "OpenAIChat", "dropped_settings", "is_strict"]

_FIELDS = (
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("seed", "seed"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
)


class OpenAIChat(Struct, frozen=True):
    """The dialect and how one vendor wants it; hashable, part of the encoding cache's key.

    `echo` names the vendor's own fields that it wants back in the history: `reasoning_details` (OpenRouter),
    `reasoning_content` (DeepSeek with tools, Moonshot), `extra_content` in tool calls (Google); all others are
    stripped, because vendors refuse what they do not know. `fields` maps our settings to the vendor's names; a setting
    that is not in it is dropped. `effort_off` is the `reasoning_effort` that turns thinking off, where there is one.
    `valid_arguments` sends `{}` for arguments that are no JSON object (vLLM, llama.cpp, Ollama and Mistral parse them).
    `schema_form` "value" asks for JSON as TGI does, which takes no schema beside tools; `choice_by_name` forces a tool
    by its bare name; `calls_alone` leaves out text beside calls; `top_p_below` is what `top_p` has to be less than.
    """

    name: ClassVar[str] = "openai_chat"

    echo: tuple[str, ...] = ()
    call_ids: IdRule = OPENAI_IDS
    fields: tuple[tuple[str, str], ...] = _FIELDS
    effort_off: str | None = None
    valid_arguments: bool = False
    schema_form: Literal["json_schema", "value"] = "json_schema"
    choice_by_name: bool = False
    calls_alone: bool = False
    top_p_below: float | None = None

    # ----------------------------------------------------------------------------------------------- requests

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        Raises UnsupportedInputError for a tool, image or document the model cannot take.
        """
        marks = caps.cache_breakpoints and request.cache
        fields = self._settings(request, caps, stream)
        if request.tools:
            fields.update(self._tools(request, caps, marks))
        fields.update(_extra(request.settings.extra, fields, stream))
        model: Any = fields.pop("model", request.model)
        own: Any = fields.pop("messages", None)
        pieces = self._messages(request, caps, marks) if own is None else [dumps(own)[1:-1]]
        pieces = pieces or [b""]
        rest = dumps(fields)[1:]
        # One join: of a long conversation, every further copy would be felt.
        pieces[0] = b'{"model":' + dumps(model) + b',"messages":[' + pieces[0]
        pieces[-1] += (b"]," if len(rest) > 1 else b"]") + rest
        return b",".join(pieces)

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body. Raises BadRequestError that names the field."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        settings, known = request.settings, {name for name, _ in self.fields}
        names = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "repeat_penalty")
        out = [name for name in names if name not in known and getattr(settings, name) is not None]
        asked = settings.thinking_budget or (settings.thinking not in (None, "off") and settings.thinking)
        if asked and self._effort(settings, caps) is None:
            out.append("thinking")
        if settings.parallel_tool_calls is not None and request.tools and not caps.parallel_tool_calls:
            out.append("parallel_tool_calls")
        if request.output_schema is not None and not self._takes_schema(request, caps):
            out.append("output_schema")
        return out

    def _takes_schema(self, request: Request, caps: Capabilities) -> bool:
        return caps.structured_output and not (request.tools and self.schema_form == "value")

    def _settings(self, request: Request, caps: Capabilities, stream: bool) -> dict[str, Any]:
        settings = request.settings
        out: dict[str, Any] = {}
        if stream:
            out["stream"] = True
            if caps.stream_usage:
                out["stream_options"] = {"include_usage": True}
        if settings.max_tokens is not None:
            out[caps.max_tokens_field] = settings.max_tokens
        for ours, theirs in self.fields:
            value = getattr(settings, ours)
            if value is not None and not (ours == "top_p" and self.top_p_below and value >= self.top_p_below):
                out[theirs] = value
        if settings.stop:
            out["stop"] = list(settings.stop)
        effort = self._effort(settings, caps)
        if effort is not None:
            out["reasoning_effort"] = effort
        schema = request.output_schema
        if schema is not None and self._takes_schema(request, caps) and self.schema_form == "value":
            out["response_format"] = {"type": "json", "value": schema}
        elif schema is not None and caps.structured_output and self.schema_form == "json_schema":
            form: dict[str, Any] = {"name": "answer", "schema": schema}
            # `strict` refuses schemas with optional properties: ask for it only where it holds.
            if is_strict(schema):
                form["strict"] = True
            out["response_format"] = {"type": "json_schema", "json_schema": form}
        return out

    def _effort(self, settings: Settings, caps: Capabilities) -> str | None:
        level = settings.thinking
        if caps.reasoning != "effort" or (level is None and settings.thinking_budget is None):
            return None
        if settings.thinking_budget is not None:
            budget = thinking_budget(settings) or 0
            steps = ((0, "off"), (1024, "minimal"), (4096, "low"), (10240, "medium"))
            level = next((name for limit, name in steps if budget <= limit), "high")
        if level == "off":
            return self.effort_off
        return None if level == "adaptive" else level

    def _tools(self, request: Request, caps: Capabilities, marks: bool) -> dict[str, Any]:
        if not caps.tools:
            raise unsupported(request.model, f"tools (it was given {request.tools[0].name!r})")
        tools: list[dict[str, Any]] = []
        for spec in request.tools:
            function: dict[str, Any] = {"name": spec.name, "parameters": spec.input_schema}
            if spec.description:
                function["description"] = spec.description
            tools.append({"type": "function", "function": function})
        if marks:
            tools[-1]["cache_control"] = CACHE_MARK
        out: dict[str, Any] = {"tools": tools}
        choice = request.tool_choice
        if choice in ("none", "required"):
            out["tool_choice"] = choice
        elif choice != "auto":
            named_choice = {"type": "function", "function": {"name": choice}}
            out["tool_choice"] = choice if self.choice_by_name else named_choice
        if request.settings.parallel_tool_calls is not None and caps.parallel_tool_calls:
            out["parallel_tool_calls"] = request.settings.parallel_tool_calls
        return out

    # ----------------------------------------------------------------------------------------------- messages

    def _messages(self, request: Request, caps: Capabilities, marks: bool) -> list[bytes]:
        def encode(group: Sequence[Message]) -> bytes:
            # A group without content (an empty tool message) still needs bytes that can be joined.
            data = self._group(group, request.model, caps) or [{"role": "user", "content": ""}]
            return b",".join([dumps(message) for message in data])

        pieces: list[bytes] = []
        if request.system:
            head: dict[str, Any] = {"role": "system", "content": request.system}
            pieces.append(dumps(marked(head) if marks else head))
        start = 0
        if isinstance(request.encoded, EncodingCache):
            closed, start = request.encoded.closed((self, caps), request.messages, encode)
            pieces += closed
        live = self._group(request.messages[start:], request.model, caps)
        if live and marks:
            live[-1] = marked(live[-1])
        return pieces + [dumps(message) for message in live]

    def _group(self, messages: Sequence[Message], model: str, caps: Capabilities) -> list[dict[str, Any]]:
        """Encode messages in order; images of tool results follow the last tool message, as the API demands."""
        out: list[dict[str, Any]] = []
        later: list[dict[str, Any]] = []
        for message in messages:
            rest = message.parts
            if message.role in ("user", "tool"):
                responses = [part for part in rest if isinstance(part, ToolResponse)]
                rest = tuple([part for part in rest if not isinstance(part, ToolResponse)])
                out += [self._response(part, model, caps, later) for part in responses]
                if not rest and (responses or message.role == "tool"):
                    continue
            if later:
                out.append({"role": "user", "content": later})
                later = []
            if message.role == "assistant":
                out.append(self._assistant(message, model, caps))
            elif message.role == "system":
                out.append({"role": "system", "content": text_of(rest)})
            else:
                out.append(named(message, {"role": "user", "content": user_content(rest, model, caps)}))
        if later:
            out.append({"role": "user", "content": later})
        return out

    def _assistant(self, message: Message, model: str, caps: Capabilities) -> dict[str, Any]:
        calls = message.tool_calls
        if calls and not caps.tools:
            raise unsupported(model, f"tools (the history holds a call of {calls[0].name!r})")
        text = "".join([assistant_text(part) for part in message.parts])
        if calls and self.calls_alone:
            text = ""
        # A call without text has null content; a message with neither is empty, not null.
        out = named(message, {"role": "assistant", "content": text if text or not calls else None})
        thoughts = [part for part in message.parts if isinstance(part, Reasoning)] if self.echo else []
        if "reasoning_details" in self.echo:
            details = [item for part in thoughts for item in reasoning_details(part)]
            if details:
                out["reasoning_details"] = details
        for name in ("reasoning_content", "reasoning"):
            if name in self.echo and (thought := "".join([part.content for part in thoughts])):
                out[name] = thought
        if calls:
            out["tool_calls"] = [self._call(call) for call in calls]
        return out

    def _call(self, call: ToolCall) -> dict[str, Any]:
        out = call_data(call, self.call_ids, valid_only=self.valid_arguments)
        if self.echo:
            kept = vendor_fields(call.provider_metadata)
            out.update({name: kept[name] for name in self.echo if name in kept})
        return out

    def _response(
        self, part: ToolResponse, model: str, caps: Capabilities, later: list[dict[str, Any]]
    ) -> dict[str, Any]:
        if not caps.tools:
            raise unsupported(model, f"tools (the history holds the response to {part.id!r})")
        content: Any = part.response
        if not isinstance(content, str):
            content = result_content(part, content, model, caps, later)
        return {"role": "tool", "tool_call_id": wire_id(part.id, self.call_ids), "content": content}

    # ------------------------------------------------------------------------------------------------ answers

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:
        """Return a whole answer; `created` is in Unix seconds."""
        return encode_response(finish, model=model, response_id=response_id, created=created)

    def stream_decoder(self) -> ChatStreamDecoder:
        """Make a decoder for one stream."""
        return ChatStreamDecoder()

    def stream_encoder(
        self, *, model: str, response_id: str, created: int, include_usage: bool = True, begun: bool = False
    ) -> ChatStreamEncoder:
        """Make an encoder for one stream; `include_usage` is the client's `stream_options.include_usage`.

        `begun` goes on with a stream of which the client has the beginning.
        """
        return ChatStreamEncoder(
            model=model, response_id=response_id, created=created, include_usage=include_usage, begun=begun
        )

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
        return encode_chat_error(error)


#: OpenAI itself, and every vendor that differs in nothing.
DIALECT = OpenAIChat()
dropped_settings = DIALECT.dropped_settings
OPENROUTER = OpenAIChat(
    echo=("reasoning_details",),
    fields=(*_FIELDS, ("top_k", "top_k"), ("repeat_penalty", "repetition_penalty")),
    effort_off="none",
)
#: Hugging Face's Text Generation Inference (github.com/huggingface/text-generation-inference, router/src). Its messages
#: hold content or calls, content winning: a call beside text would be lost, and its response stand alone. A bare name
#: as tool_choice is read by every version, OpenAI's object by those from 2.4.
TGI = OpenAIChat(valid_arguments=True, schema_form="value", choice_by_name=True, calls_alone=True, top_p_below=1.0)
MISTRAL = OpenAIChat(
    call_ids=MISTRAL_IDS,
    fields=tuple([(ours, "random_seed" if ours == "seed" else theirs) for ours, theirs in _FIELDS]),
    valid_arguments=True,
)


def _extra(extra: Mapping[str, Any], fields: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    """Return the user's fields; their `stream_options` may not turn off the usage we count on."""
    out = dict(extra)
    options = out.pop("stream_options", None)
    if stream and isinstance(options, dict):
        out["stream_options"] = {**options, **fields.get("stream_options", {})}
    return out


def is_strict(schema: Any) -> bool:
    """True when every object in a schema lists all its properties as required and allows no others."""
    if isinstance(schema, list):
        return all(is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        wanted = schema.get("required")
        names = list(properties) if isinstance(properties, dict) else []
        wanted = wanted if isinstance(wanted, list) else []
        if schema.get("additionalProperties") is not False or any(name not in wanted for name in names):
            return False
    return all(is_strict(value) for value in schema.values())
