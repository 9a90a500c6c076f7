"""The OpenAI Responses dialect; what a variant of it wants differently is data in `OpenAIResponses`.

Source: platform.openai.com/docs/api-reference/responses; the variant for ChatGPT accounts: github.com/openai/codex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from msgspec import Struct

from windlass.core.errors import ProviderError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.core.messages import Message
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, Settings, thinking_budget
from windlass.wire.base import DecodedRequest, as_dict, as_list, wire_id
from windlass.wire.openai_chat import is_strict
from windlass.wire.openai_chat_answer import encode_error
from windlass.wire.openai_chat_parts import unsupported
from windlass.wire.openai_responses_answer import IDS, echo_fields, encode_response, read_error
from windlass.wire.openai_responses_encode import ResponsesStreamEncoder
from windlass.wire.openai_responses_items import Target, encode_items
from windlass.wire.openai_responses_request import decode_request
from windlass.wire.openai_responses_stream import ResponsesStreamDecoder, decode_response

__all__ = ["CODEX", "DIALECT", "OpenAIResponses", "dropped_settings", "echo_fields"]

_ENCRYPTED: Final = "reasoning.encrypted_content"
#: The API refuses a smaller `max_output_tokens`.
_FEWEST_TOKENS: Final = 16
_SAMPLING: Final = ("temperature", "top_p")


class OpenAIResponses(Struct, frozen=True):
    """The dialect and how one vendor wants it; hashable, part of the encoding cache's key.

    `refused` names the fields of the body that the vendor refuses: they are never sent. `forced` are fields that have
    one value whatever was asked. `instructions` stands where the request has no system prompt. `summary` is how much
    the model is asked to tell of its reasoning ("" for nothing: OpenAI refuses the question from organisations that it
    has not verified). `reasons` says that every model behind the address reasons. `effort_off` is the effort that turns
    thinking off, where there is one. `valid_arguments` sends `{}` for arguments that are no JSON object.
    """

    name: ClassVar[str] = "openai_responses"

    refused: tuple[str, ...] = ()
    forced: tuple[tuple[str, Any], ...] = ()
    instructions: str = ""
    summary: str = ""
    reasons: bool = False
    effort_off: str | None = None
    valid_arguments: bool = False

    # ----------------------------------------------------------------------------------------------- requests

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        Nothing is stored at the vendor unless `extra` says so. Of `text`, `reasoning` and `include` the fields are
        merged one by one. A `max_tokens` below 16, which the API refuses, is sent as 16. Raises UnsupportedInputError
        for a tool, image or document the model cannot take.
        """
        fields = self._settings(request, caps, stream)
        if request.tools:
            fields.update(_tools(request, caps))
        _merge(fields, request.settings.extra)
        for name in self.refused:
            fields.pop(name, None)
        fields.update(self.forced)
        model: Any = fields.pop("model", request.model)
        own: Any = fields.pop("input", None)
        rest = dumps(fields)[1:]
        head = b'{"model":' + dumps(model) + b',"input":'
        tail = b"" if rest == b"}" else b","
        if own is not None:
            return head + dumps(own) + tail + rest
        pieces = self._input(request, caps, stored=fields.get("store") is True) or [b""]
        # One join: of a long conversation, every further copy would be felt.
        pieces[0] = head + b"[" + pieces[0]
        pieces[-1] += b"]" + tail + rest
        return b",".join(pieces)

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body. Raises BadRequestError that names the field, RequestRefused for what is not served."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        settings = request.settings
        names = ("top_k", "seed", "presence_penalty", "frequency_penalty", "repeat_penalty")
        refused = [name for name in _SAMPLING if name in self.refused]
        out = [name for name in (*refused, *names) if getattr(settings, name) is not None]
        if settings.max_tokens is not None and "max_output_tokens" in self.refused:
            out.append("max_tokens")
        if settings.stop:
            out.append("stop")
        asked = settings.thinking_budget or (settings.thinking not in (None, "off") and settings.thinking)
        if asked and self._effort(settings, caps) is None:
            out.append("thinking")
        if settings.parallel_tool_calls is not None and request.tools and not caps.parallel_tool_calls:
            out.append("parallel_tool_calls")
        if request.output_schema is not None and not caps.structured_output:
            out.append("output_schema")
        return out

    def _settings(self, request: Request, caps: Capabilities, stream: bool) -> dict[str, Any]:
        settings = request.settings
        out: dict[str, Any] = {}
        if system := request.system or self.instructions:
            out["instructions"] = system
        if stream:
            out["stream"] = True
        if settings.max_tokens is not None:
            out["max_output_tokens"] = max(settings.max_tokens, _FEWEST_TOKENS)
        for name in _SAMPLING:
            if (value := getattr(settings, name)) is not None:
                out[name] = value
        reasoning: dict[str, Any] = {}
        if (effort := self._effort(settings, caps)) is not None:
            reasoning["effort"] = effort
        if self._reasons(caps):
            if self.summary and effort != self.effort_off:
                reasoning["summary"] = self.summary
            # Models that do not reason refuse it ("Encrypted content is not supported with this model").
            out["include"] = [_ENCRYPTED]
        if reasoning:
            out["reasoning"] = reasoning
        schema = request.output_schema
        if schema is not None and caps.structured_output:
            form: dict[str, Any] = {"type": "json_schema", "name": "answer", "schema": schema}
            # `strict` refuses schemas with optional properties: ask for it only where it holds.
            if is_strict(schema):
                form["strict"] = True
            out["text"] = {"format": form}
        out["store"] = False
        if request.cache and request.session_id:
            out["prompt_cache_key"] = wire_id(request.session_id, IDS)
        return out

    def _reasons(self, caps: Capabilities) -> bool:
        return self.reasons or caps.reasoning != "none"

    def _effort(self, settings: Settings, caps: Capabilities) -> str | None:
        level = settings.thinking
        if not self._reasons(caps) or (level is None and settings.thinking_budget is None):
            return None
        if settings.thinking_budget is not None:
            budget = thinking_budget(settings) or 0
            steps = ((0, "off"), (1024, "minimal"), (4096, "low"), (10240, "medium"))
            level = next((name for limit, name in steps if budget <= limit), "high")
        if level == "off":
            return self.effort_off
        return None if level == "adaptive" else level

    def _input(self, request: Request, caps: Capabilities, *, stored: bool) -> list[bytes]:
        to = Target(request.model, caps, stored, self.valid_arguments)

        def encode(group: Sequence[Message]) -> bytes:
            return b",".join([dumps(item) for item in encode_items(group, to)])

        pieces: list[bytes] = []
        start = 0
        if isinstance(request.encoded, EncodingCache):
            closed, start = request.encoded.closed((self, caps, stored), request.messages, encode)
            # A group may hold nothing that this vendor can be told.
            pieces = [piece for piece in closed if piece]
        return pieces + [dumps(item) for item in encode_items(request.messages[start:], to)]

    # ------------------------------------------------------------------------------------------------ answers

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(
        self, finish: Finish, *, model: str, response_id: str, created: int, echo: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return a whole answer; `created` is in Unix seconds, `echo` what it repeats of the request."""
        return encode_response(finish, model=model, response_id=response_id, created=created, echo=echo)

    def stream_decoder(self) -> ResponsesStreamDecoder:
        """Make a decoder for one stream."""
        return ResponsesStreamDecoder()

    def stream_encoder(
        self, *, model: str, response_id: str, created: int, echo: Mapping[str, Any] | None = None
    ) -> ResponsesStreamEncoder:
        """Make an encoder for one stream; `echo` is what the response repeats of the request (`echo_fields`)."""
        return ResponsesStreamEncoder(model=model, response_id=response_id, created=created, echo=echo)

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
        return read_error(status, headers, body, provider=provider, model=model, endpoint=endpoint)

    def encode_error(self, error: WindlassError) -> tuple[int, bytes]:
        """Return the HTTP status and body that tell a client of this error."""
        return encode_error(error)


DIALECT = OpenAIResponses()
dropped_settings = DIALECT.dropped_settings
#: What the ChatGPT account behind the Codex CLI takes; it answers other fields with "Unsupported parameter".
CODEX = OpenAIResponses(
    refused=(
        "max_output_tokens", "max_tool_calls", "metadata", "previous_response_id", "prompt_cache_retention",
        "safety_identifier", "temperature", "top_logprobs", "top_p", "truncation", "user",
    ),
    forced=(("store", False), ("stream", True)),
    instructions="You are a helpful assistant.",
    summary="auto",
    reasons=True,
)  # fmt: skip


def _merge(fields: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put the user's fields over ours; what they say of `text` or `reasoning` leaves the rest of it alone."""
    for key, value in extra.items():
        if key in ("text", "reasoning") and isinstance(value, dict):
            fields[key] = {**as_dict(fields.get(key)), **value}
        elif key == "include" and isinstance(value, list):
            fields[key] = [*value, *[word for word in as_list(fields.get(key)) if word not in value]]
        else:
            fields[key] = value


def _tools(request: Request, caps: Capabilities) -> dict[str, Any]:
    if not caps.tools:
        raise unsupported(request.model, f"tools (it was given {request.tools[0].name!r})")
    tools: list[dict[str, Any]] = []
    for spec in request.tools:
        # Not said, `strict` is true here: schemas with optional properties would be changed on the way.
        tool: dict[str, Any] = {"type": "function", "name": spec.name, "parameters": spec.input_schema, "strict": False}
        if spec.description:
            tool["description"] = spec.description
        tools.append(tool)
    out: dict[str, Any] = {"tools": tools}
    choice = request.tool_choice
    if choice in ("none", "required"):
        out["tool_choice"] = choice
    elif choice != "auto":
        out["tool_choice"] = {"type": "function", "name": choice}
    if request.settings.parallel_tool_calls is not None and caps.parallel_tool_calls:
        out["parallel_tool_calls"] = request.settings.parallel_tool_calls
    return out
