"""The dialect of Google's Generative Language API: generateContent and streamGenerateContent, v1beta.

Source: ai.google.dev/api/generate-content, /gemini-api/docs/function-calling, /thinking, /thought-signatures and
/structured-output; Vertex AI takes the same bodies. The model stands in the URL, and so does streaming. An object in
`settings.extra` is merged into ours ({"generationConfig": {"candidateCount": 1}}), its `tools` stand beside ours.

Schemas go as JSON Schema (`parametersJsonSchema`, `responseJsonSchema`), not as Google's `Schema`: that one knows no
`$ref`, `const` or `oneOf` and refuses every keyword that it does not know with 400, so that a conversion would lose
what a tool demands of its arguments, where here the API reads what it can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from windlass.core.errors import BadRequestError, ProviderError, UnsupportedInputError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.core.messages import Message
from windlass.core.models import Capabilities
from windlass.core.request import EncodingCache, Request, ToolSpec, thinking_budget
from windlass.wire.base import DecodedRequest, as_list
from windlass.wire.gemini_answer import decode_error, encode_error, encode_response
from windlass.wire.gemini_parts import EMPTY, KEY, Target, encode_contents
from windlass.wire.gemini_request import FIELDS, decode_request
from windlass.wire.gemini_stream import GeminiStreamDecoder, GeminiStreamEncoder, decode_response

__all__ = ["DIALECT", "Gemini", "dropped_settings", "generation"]

_VERSION = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?(?!\d)")
#: Tokens of thought that a model of the 2.5 family takes: (beginning of its name, least, most, may be turned off).
_BUDGETS: Final = (
    ("gemini-2.5-pro", 128, 32768, False),
    ("gemini-2.5-flash-lite", 512, 24576, True),
    ("gemini-2.5", 1, 24576, True),
)


def generation(model: str) -> float | None:
    """Return the generation that a model's name tells (2.5, 3.0), None where it tells none ("gemini-flash-latest")."""
    found = _VERSION.search(model)
    return float(f"{found[1]}.{found[2] or 0}") if found else None


class Gemini:
    """The dialect. It has no options: what a model wants differently is in its name and its `Capabilities`.

    `caps.reasoning` "budget" (or "switch") asks for `thinkingBudget`, "effort" (or "adaptive") for `thinkingLevel`.
    """

    name: ClassVar[str] = KEY

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:  # noqa: ARG002
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        Raises UnsupportedInputError for a tool, image or document the model cannot take, BadRequestError without
        messages.
        """
        fields: dict[str, Any] = {}
        if system := _system(request):
            fields["systemInstruction"] = {"parts": [{"text": system}]}
        if request.tools:
            fields.update(_tools(request, caps))
        if config := _config(request, caps):
            fields["generationConfig"] = config
        _merge_extra(fields, request.settings.extra)
        own: Any = fields.pop("contents", None)
        contents = _contents(request, caps) if own is None else dumps(own)[1:-1]
        rest = dumps(fields)[1:]
        return b"".join([b'{"contents":[', contents, b"]," if len(rest) > 1 else b"]", rest])

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body; model and streaming stand in the URL. Raises BadRequestError that names the field."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        settings = request.settings
        out = ["repeat_penalty"] if settings.repeat_penalty is not None else []
        if settings.parallel_tool_calls is False and request.tools:
            out.append("parallel_tool_calls")
        thinking = _thinking(request, caps)
        off = thinking_budget(settings) == 0
        if thinking is None and not off and (settings.thinking or settings.thinking_budget):
            out.append("thinking")
        elif thinking is not None and off and thinking.get("thinkingBudget") != 0:
            # The least that this model thinks is sent.
            out.append("thinking")
        if request.output_schema is not None and not _takes_schema(request, caps):
            out.append("output_schema")
        return out

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:  # noqa: ARG002
        """Return a whole answer; this dialect has no place for `created`."""
        return encode_response(finish, model=model, response_id=response_id)

    def stream_decoder(self) -> GeminiStreamDecoder:
        """Make a decoder for one stream."""
        return GeminiStreamDecoder()

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> GeminiStreamEncoder:  # noqa: ARG002
        """Make an encoder for one stream; this dialect has no place for `created`."""
        return GeminiStreamEncoder(model=model, response_id=response_id)

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


DIALECT = Gemini()
dropped_settings = DIALECT.dropped_settings


# --------------------------------------------------------------------------------------------------------- settings


def _config(request: Request, caps: Capabilities) -> dict[str, Any]:
    settings = request.settings
    out: dict[str, Any] = {}
    for theirs, ours in FIELDS:
        value = getattr(settings, ours)
        if value is not None:
            out[theirs] = value
    if settings.stop:
        out["stopSequences"] = list(settings.stop)
    if (thinking := _thinking(request, caps)) is not None:
        out["thinkingConfig"] = thinking
    if _takes_schema(request, caps):
        out["responseMimeType"] = "application/json"
        out["responseJsonSchema"] = request.output_schema
    return out


def _takes_schema(request: Request, caps: Capabilities) -> bool:
    """Tell whether a schema is asked for and can be told.

    Before Gemini 3 tools rule it out: "Function calling with a response mime type: 'application/json' is unsupported".
    """
    if request.output_schema is None or not caps.structured_output:
        return False
    return not request.tools or (generation(request.model) or 3) >= 3


def _thinking(request: Request, caps: Capabilities) -> dict[str, Any] | None:
    """Return `thinkingConfig`, None where nothing was asked for or the model does not think."""
    settings, budget = request.settings, thinking_budget(request.settings)
    if caps.reasoning == "none" or (settings.thinking is None and budget is None):
        return None
    if caps.reasoning in ("budget", "switch"):
        rows = (row for row in _BUDGETS if request.model.removeprefix("models/").startswith(row[0]))
        _, least, most, may_be_off = next(rows, _BUDGETS[-1])
        if budget == 0:
            return {"thinkingBudget": 0 if may_be_off else least}
        tokens = -1 if budget is None else min(max(budget, least), most)
        return {"thinkingBudget": tokens, "includeThoughts": True}
    level = _level(request.model, settings.thinking if settings.thinking_budget is None else None, budget)
    if budget == 0:
        return {"thinkingLevel": level}
    return {"includeThoughts": True} if level is None else {"thinkingLevel": level, "includeThoughts": True}


def _level(model: str, asked: str | None, budget: int | None) -> str | None:
    """Return `thinkingLevel`, None to leave it to the model: Pro knows no MINIMAL, its first version no MEDIUM."""
    if asked is None or asked == "off":
        steps = ((1024, "minimal"), (4096, "low"), (10240, "medium"))
        asked = next((name for limit, name in steps if (budget or 0) <= limit), "high")
    if asked == "adaptive":
        return None
    if "-pro" in model and asked == "minimal":
        asked = "low"
    if "gemini-3-pro" in model and asked == "medium":
        asked = "high"
    return asked.upper()


def _merge_extra(fields: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        known = fields.get(key)
        if key == "tools" and known is not None:
            # The vendor's own tools stand beside ours.
            fields[key] = [*known, *as_list(value)]
        elif isinstance(known, dict) and isinstance(value, dict):
            fields[key] = {**known, **value}
        else:
            fields[key] = value


def _tools(request: Request, caps: Capabilities) -> dict[str, Any]:
    if not caps.tools:
        raise UnsupportedInputError(
            f"The request holds the tool {request.tools[0].name!r}, but {request.model} takes no tools.",
            model=request.model,
            hint="Use a model that takes tools, or run without them.",
        )
    out: dict[str, Any] = {"tools": [{"functionDeclarations": [_tool(spec) for spec in request.tools]}]}
    choice = request.tool_choice
    if choice != "auto":
        calling: dict[str, Any] = {"mode": "NONE" if choice == "none" else "ANY"}
        if choice not in ("none", "required"):
            calling["allowedFunctionNames"] = [choice]
        out["toolConfig"] = {"functionCallingConfig": calling}
    return out


def _tool(spec: ToolSpec) -> dict[str, Any]:
    out: dict[str, Any] = {"name": spec.name}
    if spec.description:
        out["description"] = spec.description
    # A function without parameters has no schema there; an empty object was refused for long.
    if spec.input_schema != {"type": "object", "properties": {}}:
        out["parametersJsonSchema"] = spec.input_schema
    return out


# --------------------------------------------------------------------------------------------------------- contents


def _leading(messages: Sequence[Message]) -> int:
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return count


def _system(request: Request) -> str:
    texts = [request.system or "", *[message.text for message in request.messages[: _leading(request.messages)]]]
    return "\n\n".join([text for text in texts if text.strip()])


def _signs(model: str) -> bool:
    """Tell whether calls of other models get a signature: known older models never ask for one."""
    return "gemma" not in model and (generation(model) or 3) >= 3


def _contents(request: Request, caps: Capabilities) -> bytes:
    to = Target(request.model, caps, _signs(request.model))
    messages = request.messages
    lead = _leading(messages)

    def encode(group: Sequence[Message]) -> bytes:
        # System messages in front are the system instruction; only the first group can begin with one.
        return b",".join([dumps(row) for row in encode_contents(group[_leading(group) :], to)])

    cache = request.encoded if isinstance(request.encoded, EncodingCache) else EncodingCache()
    closed, start = cache.closed((KEY, caps, to.sign), messages, encode)
    chunks = [chunk for chunk in (*closed, encode(messages[start:])) if chunk]
    if not chunks:
        raise BadRequestError(
            "The request has no messages.", model=request.model, status=400, hint="Send at least one user message."
        )
    if messages[lead].role == "assistant":
        # "Function call turn comes immediately after a user turn": a conversation begins with the user.
        chunks.insert(0, dumps({"role": "user", "parts": [{"text": EMPTY}]}))
    return b",".join(chunks)
