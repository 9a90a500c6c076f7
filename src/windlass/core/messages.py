"""Messages and their parts: the one form in which a conversation is kept, sent, recorded and replayed.

The JSON is that of the OpenTelemetry GenAI semantic conventions (`gen_ai.input.messages`): a role and a list of parts,
each with a `type`. What a vendor adds rides in `provider_metadata`, keyed by the dialect that understands it.
A part of an unknown type is kept as an `UnknownPart`, so that what a newer version wrote survives a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

__all__ = [
    "Blob",
    "Message",
    "Metadata",
    "Modality",
    "Part",
    "Prompt",
    "Reasoning",
    "ResponseStatus",
    "Role",
    "Text",
    "ToolCall",
    "ToolResponse",
    "UnknownPart",
    "Uri",
    "as_parts",
    "assistant",
    "decode_message",
    "message_from_data",
    "part_from_data",
    "response_text",
    "system",
    "text_of",
    "user",
]

Role = Literal["system", "user", "assistant", "tool"]
Modality = Literal["image", "audio", "video", "document"]
Metadata: TypeAlias = dict[str, Any]
#: How a tool call ended. `unknown`: it was started, and what became of it cannot be known.
ResponseStatus = Literal["ok", "error", "blocked", "skipped", "cancelled", "timeout", "unknown"]


class Text(Struct, frozen=True, tag_field="type", tag="text", omit_defaults=True):
    """Text, as the model reads or wrote it."""

    content: str
    provider_metadata: Metadata | None = None


class Reasoning(Struct, frozen=True, tag_field="type", tag="reasoning", omit_defaults=True):
    """What the model thought; signatures and encrypted forms ride in `provider_metadata`."""

    content: str = ""
    provider_metadata: Metadata | None = None


class ToolCall(Struct, frozen=True, tag_field="type", tag="tool_call", omit_defaults=True):
    """A call the model asks for.

    `id` is ours; each wire maps it to the vendor's pattern. `arguments` is the decoded object, None when the text was
    not a JSON object; `arguments_text` is the text as received, kept when it differs from the compact form of
    `arguments`, and sent back unchanged where the dialect takes text.
    """

    id: str
    name: str
    arguments: dict[str, Any] | None = None
    arguments_text: str | None = None
    provider_metadata: Metadata | None = None


class Blob(Struct, frozen=True, tag_field="type", tag="blob", omit_defaults=True):
    """Bytes in the message (base64 in JSON): an image, a PDF, a text file, sound."""

    content: bytes
    mime_type: str
    modality: Modality = "image"
    filename: str | None = None
    provider_metadata: Metadata | None = None


class Uri(Struct, frozen=True, tag_field="type", tag="uri", omit_defaults=True):
    """The address of an image or document that the provider fetches itself."""

    uri: str
    mime_type: str | None = None
    modality: Modality = "image"
    filename: str | None = None
    provider_metadata: Metadata | None = None


class ToolResponse(Struct, frozen=True, tag_field="type", tag="tool_call_response", omit_defaults=True):
    """The answer to one tool call: text, or parts when it holds an image or a document."""

    id: str
    response: str | tuple[Text | Blob | Uri, ...] = ""
    status: ResponseStatus = "ok"
    provider_metadata: Metadata | None = None

    @property
    def is_error(self) -> bool:
        """True unless the call ended well."""
        return self.status != "ok"


class UnknownPart(Struct, frozen=True, tag_field="type", tag="unknown"):
    """A part of a type this version does not know, kept as it came in `data` (which holds its own `type`)."""

    data: dict[str, Any]


Part: TypeAlias = Text | Reasoning | ToolCall | ToolResponse | Blob | Uri | UnknownPart


class Message(Struct, frozen=True, omit_defaults=True):
    """One message: who speaks and what is in it. `finish_reason` is why an assistant message ended."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    finish_reason: str | None = None
    provider_metadata: Metadata | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return text_of(self.parts)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in this message, in order."""
        return tuple([part for part in self.parts if type(part) is ToolCall])


#: What `run` takes: text, one part, or several of either (reference C's PromptPart[]).
Prompt: TypeAlias = str | Part | Message | Sequence["str | Part"]


def text_of(parts: Iterable[Part]) -> str:
    """Return the text parts joined without a separator."""
    return "".join([part.content for part in parts if type(part) is Text])


def response_text(response: ToolResponse) -> str:
    """Return a tool response as text; an image or document becomes a short marker (reference C's toolResultToText)."""
    if isinstance(response.response, str):
        return response.response
    out: list[str] = []
    for part in response.response:
        if isinstance(part, Text):
            out.append(part.content)
        elif isinstance(part, Blob):
            out.append(f"[{part.modality}: {part.filename or part.mime_type}, {len(part.content)} bytes]")
        else:
            out.append(f"[{part.modality}: {part.uri}]")
    return "\n".join(out)


def as_parts(prompt: Prompt) -> tuple[Part, ...]:
    """Return a prompt as parts."""
    if isinstance(prompt, str):
        return (Text(prompt),)
    if isinstance(prompt, Message):
        return prompt.parts
    if isinstance(prompt, Struct):
        return (prompt,)
    return tuple([Text(item) if isinstance(item, str) else item for item in prompt])


def system(text: str) -> Message:
    """Make a system message."""
    return Message("system", (Text(text),))


def user(prompt: Prompt) -> Message:
    """Make a user message from text or parts."""
    return Message("user", as_parts(prompt))


def assistant(prompt: Prompt) -> Message:
    """Make an assistant message from text or parts."""
    return Message("assistant", as_parts(prompt))


_decode = msgspec.json.Decoder(Message).decode
_PARTS: dict[str, type[Struct]] = {
    "text": Text,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "tool_call_response": ToolResponse,
    "blob": Blob,
    "uri": Uri,
    "unknown": UnknownPart,
}


def part_from_data(data: Any) -> Part:
    """Build a part from decoded JSON; an unknown type is kept as `UnknownPart`. Raises msgspec.ValidationError."""
    if isinstance(data, dict):
        kind: Any = data.get("type", UNSET)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if not isinstance(kind, UnsetType) and kind not in _PARTS:
            return UnknownPart(data)  # pyright: ignore[reportUnknownArgumentType]
    return msgspec.convert(data, Part)


def message_from_data(data: dict[str, Any]) -> Message:
    """Build a message from decoded JSON, keeping parts of unknown types. Raises msgspec.ValidationError."""
    rest = {key: value for key, value in data.items() if key != "parts"}
    message = msgspec.convert(rest, Message)
    return msgspec.structs.replace(message, parts=tuple([part_from_data(part) for part in data.get("parts", ())]))


def decode_message(data: bytes | str) -> Message:
    """Decode a message from JSON, keeping parts of unknown types. Raises msgspec.DecodeError on anything else."""
    try:
        return _decode(data)
    except msgspec.ValidationError:
        loaded = msgspec.json.decode(data)
        if not isinstance(loaded, dict):
            raise
        return message_from_data(loaded)  # pyright: ignore[reportUnknownArgumentType]
