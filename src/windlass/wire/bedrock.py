"""The Bedrock Converse dialect.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html and API_runtime_ConverseStream.html.
The model and whether to stream are in the URL, so that a body tells neither. An object in `settings.extra` is merged
into ours: `{"guardrailConfig": {…}}`, `{"additionalModelRequestFields": {…}}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from windlass.core.errors import BadRequestError, ProviderError, UnsupportedInputError, WindlassError
from windlass.core.items import Finish
from windlass.core.json import dumps
from windlass.core.messages import Message, ToolCall, ToolResponse
from windlass.core.models import Capabilities
from windlass.core.request import THINKING_BUDGETS, EncodingCache, Request, Settings, ToolSpec, thinking_budget
from windlass.wire.base import DecodedRequest, as_list
from windlass.wire.bedrock_answer import decode_error, decode_response, encode_error, encode_response, error_headers
from windlass.wire.bedrock_blocks import EMPTY, KEY, Target, encode_messages, family, markable, tool_name
from windlass.wire.bedrock_documents import DocumentNames
from windlass.wire.bedrock_request import decode_request
from windlass.wire.bedrock_stream import BedrockStreamDecoder, BedrockStreamEncoder

__all__ = ["DIALECT", "BedrockConverse", "error_headers"]

_MARK: Final = {"cachePoint": {"type": "default"}}
#: The smallest thinking budget Claude takes, and the answer's own share where nobody chose a limit.
_LEAST: Final = 1024
_ANSWER: Final = 4096
_NOT_THERE = ("seed", "presence_penalty", "frequency_penalty", "repeat_penalty")
_ASSISTANT: Final = b'{"role":"assistant","content":['
#: Stands in for tools that the request does not offer any more, but the conversation used.
_UNLISTED: Final = "No longer offered: do not call it."


class BedrockConverse:
    """The dialect. It has no options: what a model wants differently is in its id and its `Capabilities`."""

    name: ClassVar[str] = KEY

    #: The content type of its streams, whose frames are binary.
    stream_type: ClassVar[str] = "application/vnd.amazon.eventstream"

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:  # noqa: ARG002
        """Return the body: closed turns from `request.encoded`, the rest encoded now, `settings.extra` merged last.

        With `caps.cache_breakpoints` and `request.cache` three prefixes get a cache point: system, tools (Nova takes
        none there), the last user message. Raises UnsupportedInputError for a tool, image or document the model
        cannot take, BadRequestError without messages.
        """
        marks = caps.cache_breakpoints and request.cache
        fields = _settings(request, caps)
        if system := _system(request):
            fields["system"] = [{"text": system}, *([_MARK] if marks else [])]
        if tools := _tool_config(request, caps, marks):
            fields["toolConfig"] = tools
        _merge_extra(fields, request.settings.extra)
        own: Any = fields.pop("messages", None)
        messages = _messages(request, caps, marks) if own is None else dumps(own)[1:-1]
        head = dumps(fields)[1:-1]
        return b"".join([b"{", head, b"," if head else b"", b'"messages":[', messages, b"]}"])

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body; model and `stream` are the URL's. Raises BadRequestError that names the field."""
        return decode_request(body)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        settings, fields = request.settings, _settings(request, caps)
        said = {**fields.get("inferenceConfig", {}), **fields.get("additionalModelRequestFields", {})}
        out = [name for name in _NOT_THERE if getattr(settings, name) is not None]
        for name, field in (("temperature", "temperature"), ("top_p", "topP")):
            out += [name] if getattr(settings, name) is not None and field not in said else []
        if settings.top_k is not None and not said.keys() & {"top_k", "inferenceConfig"}:
            out.append("top_k")
        if settings.parallel_tool_calls is False and request.tools:
            out.append("parallel_tool_calls")
        asked = settings.thinking_budget or settings.thinking not in (None, "off")
        if asked and "thinking" not in said and "effort" not in fields.get("outputConfig", {}):
            out.append("thinking")
        if request.output_schema is not None and not caps.structured_output:
            out.append("output_schema")
        if request.tool_choice == "none" and _used_tools(request.messages):
            out.append("tool_choice")
        return out

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        return decode_response(body)

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:  # noqa: ARG002
        """Return a whole answer; this dialect has no place for model, id and time."""
        return encode_response(finish)

    def stream_decoder(self) -> BedrockStreamDecoder:
        """Make a decoder for one stream."""
        return BedrockStreamDecoder()

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> BedrockStreamEncoder:  # noqa: ARG002
        """Make an encoder for one stream of frames; this dialect has no place for model, id and time."""
        return BedrockStreamEncoder()

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
        """Return the HTTP status and body that tell a client of this error; `error_headers` gives the headers."""
        return encode_error(error)

    def error_headers(self, error: WindlassError) -> dict[str, str]:
        """Return the headers by which AWS's SDKs choose the exception to raise: `x-amzn-errortype`."""
        return error_headers(error)


DIALECT = BedrockConverse()


# --------------------------------------------------------------------------------------------------------- settings


def _settings(request: Request, caps: Capabilities) -> dict[str, Any]:
    """Return `inferenceConfig`, `additionalModelRequestFields` and `outputConfig`, those that say something."""
    settings = request.settings
    more, effort, max_tokens = _thinking(request, caps)
    thinks = "thinking" in more
    config: dict[str, Any] = {}
    if max_tokens is not None:
        config["maxTokens"] = max_tokens
    # Claude refuses what narrows its sampling while it thinks.
    if settings.temperature is not None and not thinks and caps.reasoning != "adaptive":
        config["temperature"] = min(1.0, settings.temperature)
    if settings.top_p is not None and caps.reasoning != "adaptive" and (not thinks or settings.top_p >= 0.95):
        config["topP"] = settings.top_p
    if stop := [text for text in settings.stop if text.strip()]:
        config["stopSequences"] = stop
    if settings.top_k is not None and not thinks and caps.reasoning != "adaptive":
        more |= _top_k(family(request.model), settings.top_k)
    output: dict[str, Any] = {} if effort is None else {"effort": effort}
    if request.output_schema is not None and caps.structured_output:
        schema = {"schema": dumps(request.output_schema).decode(), "name": "answer"}
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    fields = {"inferenceConfig": config, "additionalModelRequestFields": more, "outputConfig": output}
    return {name: value for name, value in fields.items() if value}


def _top_k(maker: str, top_k: int) -> dict[str, Any]:
    if maker in ("anthropic", "mistral"):
        return {"top_k": top_k}
    return {"inferenceConfig": {"topK": top_k}} if maker == "amazon" else {}


def _thinking(request: Request, caps: Capabilities) -> tuple[dict[str, Any], str | None, int | None]:
    """Return (the model's own fields, `effort`, `maxTokens`); only Claude can be told how much to think.

    Its budget has to stay below the limit, which is raised for that; it does not think where a tool is forced.
    """
    settings, limit = request.settings, caps.max_output
    max_tokens = settings.max_tokens
    if limit and max_tokens is not None:
        max_tokens = min(max_tokens, limit)
    budget = thinking_budget(settings)
    if caps.reasoning == "none" or (settings.thinking is None and budget is None) or budget == 0:
        off = budget == 0 and caps.reasoning == "adaptive"
        return ({"thinking": {"type": "disabled"}} if off else {}), None, max_tokens
    forced = bool(request.tools) and request.tool_choice not in ("auto", "none")
    if caps.reasoning in ("adaptive", "effort"):
        think = caps.reasoning == "adaptive" and not forced
        return ({"thinking": {"type": "adaptive"}} if think else {}), _effort(settings, budget), max_tokens
    if caps.reasoning != "budget" or forced or not _may_think(request.messages, request.model):
        return {}, None, max_tokens
    tokens, answer = max(_LEAST, budget or THINKING_BUDGETS["medium"]), max_tokens or _ANSWER
    whole = max_tokens or 0
    if whole <= tokens:
        whole = min(tokens + answer, limit) if limit else tokens + answer
        # Under the model's own limit both shrink; the answer keeps a quarter.
        tokens = min(tokens, max(whole - answer, whole * 3 // 4))
    if not _LEAST <= tokens < whole:
        return {}, None, max_tokens
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}, None, whole


def _effort(settings: Settings, budget: int | None) -> str | None:
    if settings.thinking == "adaptive":
        return None
    if settings.thinking_budget is None and settings.thinking in ("low", "medium", "high"):
        return settings.thinking
    return next((word for word in ("low", "medium") if (budget or 0) <= THINKING_BUDGETS[word]), "high")


def _may_think(messages: Sequence[Message], model: str) -> bool:
    """Tell whether thinking can be on: an answer whose tool results are sent back must begin with its own thinking."""
    for message in reversed(messages):
        if message.role == "assistant" and message.tool_calls:
            blocks = encode_messages([message], Target(model, Capabilities(), DocumentNames()))[0]["content"]
            return "reasoningContent" in blocks[0]
        if message.role in ("assistant", "user"):
            return True
    return True


def _merge_extra(fields: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        known = fields.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            fields[key] = {**known, **value}
            if key == "toolConfig" and "tools" in value:
                # The vendor's own tools stand beside ours.
                fields[key]["tools"] = [*as_list(known.get("tools")), *as_list(value["tools"])]
        else:
            fields[key] = value


# ------------------------------------------------------------------------------------------------------------ tools


def _tool_config(request: Request, caps: Capabilities, marks: bool) -> dict[str, Any]:
    """Return `toolConfig`, {} where none is needed.

    A conversation with calls or results in it needs one, also where the request offers no tools: "The toolConfig field
    must be defined when using toolUse and toolResult content blocks." There is no word for the choice `none`.
    """
    choice = request.tool_choice
    if request.tools and not caps.tools:
        raise UnsupportedInputError(
            f"The request holds the tool {request.tools[0].name!r}, but {request.model} takes no tools.",
            model=request.model,
            hint="Use a model that takes tools, or run without them.",
        )
    specs: Sequence[ToolSpec] = request.tools
    if not specs or choice == "none":
        used = _used_tools(request.messages)
        if not used:
            return {}
        specs = specs or [ToolSpec(name, _UNLISTED) for name in used]
        choice = "auto"
    tools: list[dict[str, Any]] = [{"toolSpec": _tool(spec)} for spec in specs]
    if marks and family(request.model) != "amazon":
        tools.append(_MARK)
    if choice == "auto":
        return {"tools": tools}
    return {
        "tools": tools,
        "toolChoice": {"any": {}} if choice == "required" else {"tool": {"name": tool_name(choice)}},
    }


def _tool(spec: ToolSpec) -> dict[str, Any]:
    out: dict[str, Any] = {"name": tool_name(spec.name)}
    if spec.description.strip():
        out["description"] = spec.description
    schema = spec.input_schema
    out["inputSchema"] = {"json": schema if schema.get("type") == "object" else {"type": "object", **schema}}
    return out


def _used_tools(messages: Sequence[Message]) -> list[str]:
    """Return the names of the tools that a conversation calls; one that stands in where only results are left."""
    names = dict.fromkeys([part.name for message in messages for part in message.parts if isinstance(part, ToolCall)])
    if not names and any(isinstance(part, ToolResponse) for message in messages for part in message.parts):
        return ["unknown"]
    return list(names)


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
    messages = request.messages

    def rows(group: Sequence[Message]) -> list[dict[str, Any]]:
        # System messages in front are part of `system`; only the first group can begin with one.
        names = DocumentNames(itertools.takewhile(lambda message: message is not group[0], messages))
        return encode_messages(group[_leading(group) :], Target(request.model, caps, names))

    def encode(group: Sequence[Message]) -> bytes:
        return b",".join([dumps(row) for row in rows(group)])

    cache = request.encoded if isinstance(request.encoded, EncodingCache) else EncodingCache()
    closed, done = cache.closed((KEY, caps, family(request.model)), messages, encode)
    live = _prefill(rows(messages[done:]))
    if marks and live and live[-1]["role"] == "user" and (at := markable(live[-1]["content"])) is not None:
        live[-1]["content"].insert(at, _MARK)
    chunks = _glued(messages, [*closed, b",".join([dumps(row) for row in live])])
    if not chunks:
        raise BadRequestError(
            "The request has no messages.", model=request.model, status=400, hint="Send at least one user message."
        )
    if chunks[0].startswith(_ASSISTANT):
        # "A conversation must start with a user message."
        chunks.insert(0, dumps({"role": "user", "content": [{"text": EMPTY}]}))
    return b",".join(chunks)


def _glued(messages: Sequence[Message], chunks: Sequence[bytes]) -> list[bytes]:
    """Return the chunks that hold something; roles must alternate, so an answer right after another becomes part of it.

    Every chunk but the first begins with an assistant message.
    """
    starts = [at for at in range(1, len(messages)) if messages[at].role == "assistant"]
    out: list[bytes] = []
    for number, chunk in enumerate(chunks):
        before = messages[starts[number - 1] - 1].role if 0 < number <= len(starts) else ""
        if out and chunk.startswith(_ASSISTANT) and before == "assistant":
            out[-1] = out[-1][: -len(b"]}")] + b"," + chunk[len(_ASSISTANT) :]
        elif chunk:
            out.append(chunk)
    return out


def _prefill(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a last assistant message one that the model can go on from: it must not end in white space or be empty."""
    if not rows or rows[-1]["role"] != "assistant" or "text" not in rows[-1]["content"][-1]:
        return rows
    *before, last = rows[-1]["content"]
    if last["text"] == EMPTY:
        return rows[:-1]
    return [*rows[:-1], {**rows[-1], "content": [*before, {"text": last["text"].rstrip()}]}]
