"""Google's contents and parts, both ways (ai.google.dev/api/caching#Content).

A part that has no word of ours is kept as an `UnknownPart` whose data is `{"type": "gemini.<its field>", "part": <the
part>}`: this dialect sends it back unchanged, the others can tell that it is not theirs. Fields beside a known part,
`thoughtSignature` first of all, ride in its own `provider_metadata["gemini"]` and go back with it.

Signatures: ai.google.dev/gemini-api/docs/thought-signatures. A signed part is never joined with another.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from windlass.core.errors import UnsupportedInputError
from windlass.core.json import dumps
from windlass.core.messages import (
    Blob,
    Message,
    Metadata,
    Modality,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResponse,
    UnknownPart,
    Uri,
)
from windlass.core.models import Capabilities
from windlass.wire.base import IdRule, as_dict, as_list, as_str, bad_field, wire_id
from windlass.wire.media import inline_document, marker, text_document

__all__ = [
    "EMPTY",
    "KEY",
    "SIGNATURE",
    "UNSIGNED",
    "Target",
    "answer_part",
    "camel",
    "decode_contents",
    "decode_part",
    "encode_contents",
    "own_fields",
]

#: The dialect's name and its key in `provider_metadata`.
KEY: Final = "gemini"
SIGNATURE: Final = "thoughtSignature"
#: Documented for calls that another model made: "skip_thought_signature_validator" is taken by the Gemini API and by
#: Vertex AI alike. Without any signature Gemini 3 refuses the first call of a step with 400.
UNSIGNED: Final = "skip_thought_signature_validator"
#: Stands where a content would have no parts: the API refuses it.
EMPTY: Final = "(empty)"
#: No pattern is stated; ids have to stay apart and survive UTF-8.
IDS: Final = IdRule(64)
#: What we keep about a part that is no field of it.
_OURS = frozenset(("id", "response"))
_SNAKE = re.compile(r"_([a-z0-9])")


class Target(Struct, frozen=True):
    """Whom contents are encoded for; `sign` marks calls of other models, which newer models demand."""

    model: str
    caps: Capabilities
    sign: bool = True


def own_fields(metadata: Metadata | None) -> dict[str, Any]:
    """Return what this vendor added to a part, {} when nothing."""
    return as_dict((metadata or {}).get(KEY))


def camel(value: Any, path: str) -> dict[str, Any]:
    """Return an object with its own keys in camel case: the API takes `inline_data` for `inlineData` (proto3 JSON)."""
    if not isinstance(value, dict):
        raise bad_field(path, "must be an object")
    return {_SNAKE.sub(lambda found: found[1].upper(), str(key)): item for key, item in value.items()}


# --------------------------------------------------------------------------------------------------- to the vendor


class _Group:
    """What stands between two answers: responses in the order of their calls, then what the user said."""

    def __init__(self) -> None:
        self.calls: dict[str, ToolCall] = {}
        self.results: list[tuple[int, dict[str, Any]]] = []
        self.said: list[dict[str, Any]] = []
        self.waiting = False

    def take(self, message: Message, to: Target) -> None:
        self.waiting = True
        for part in message.parts:
            if isinstance(part, ToolResponse):
                order = list(self.calls)
                at = order.index(part.id) if part.id in self.calls else len(order)
                self.results.append((at, _tool_response(part, self.calls.get(part.id), to, self.said)))
            elif message.role == "system" and isinstance(part, Text):
                # Only a request's head has a place for system text.
                self.said += [{"text": f"<system>\n{part.content}\n</system>"}] if part.content.strip() else []
            else:
                self.said += _user_parts(part, to)

    def contents(self) -> list[dict[str, Any]]:
        if not self.waiting:
            return []
        out: list[dict[str, Any]] = []
        if self.results:
            # Without ids the API pairs calls and responses by their order. Nothing else may stand between them.
            ordered = sorted(self.results, key=lambda pair: pair[0])
            out.append({"role": "user", "parts": [result for _, result in ordered]})
        if self.said or not self.results:
            out.append({"role": "user", "parts": self.said or [{"text": EMPTY}]})
        return out


def encode_contents(messages: Iterable[Message], to: Target) -> list[dict[str, Any]]:
    """Return messages as contents: function responses stand alone right after their calls, no content is empty.

    Raises UnsupportedInputError for a part that the model cannot take.
    """
    out: list[dict[str, Any]] = []
    group = _Group()
    for message in messages:
        if message.role != "assistant":
            group.take(message, to)
            continue
        out += group.contents()
        group = _Group()
        group.calls = {call.id: call for call in message.tool_calls}
        out.append({"role": "model", "parts": _model_parts(message, to) or [{"text": EMPTY}]})
    return out + group.contents()


def _with_own(part: dict[str, Any], metadata: Metadata | None) -> dict[str, Any]:
    for key, value in own_fields(metadata).items():
        if key not in part and key not in _OURS:
            part[key] = value
    return part


def _wire_id(call: ToolCall) -> str:
    """Return the id that the vendor knows a call by, "" when it gave it none."""
    known = own_fields(call.provider_metadata).get("id")
    return "" if known == "" else wire_id(call.id, IDS)


def _call_part(call: ToolCall) -> dict[str, Any]:
    data: dict[str, Any] = {"name": call.name, "args": call.arguments or {}}
    if call_id := _wire_id(call):
        data["id"] = call_id
    return _with_own({"functionCall": data}, call.provider_metadata)


def _model_parts(message: Message, to: Target) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    calls = 0
    for part in message.parts:
        if isinstance(part, ToolCall):
            if not to.caps.tools:
                raise _unsupported(f"a call of the tool {part.name!r}", "takes no tools", to)
            made = _call_part(part)
            if to.sign and not calls:
                # Of parallel calls only the first is signed, and only its signature is demanded.
                made.setdefault(SIGNATURE, UNSIGNED)
            parts.append(made)
            calls += 1
        elif isinstance(part, Reasoning):
            # Unsigned thoughts are summaries for people; another vendor's are not for this one.
            if own_fields(part.provider_metadata).get(SIGNATURE):
                parts.append(_with_own({"text": part.content, "thought": True}, part.provider_metadata))
        elif isinstance(part, Text):
            made = _with_own({"text": part.content}, part.provider_metadata)
            parts += [made] if part.content or SIGNATURE in made else []
        elif isinstance(part, UnknownPart):
            own = _foreign(part)
            parts += [own] if own is not None else []
        elif isinstance(part, ToolResponse):
            raise _unsupported("a tool response in an assistant message", "takes those from the user", to)
        else:
            made = _media(part, to)
            parts.append({"text": marker(part)} if isinstance(made, str) else made)
    return parts


def _foreign(part: UnknownPart) -> dict[str, Any] | None:
    """Return the vendor's own part that an unknown part holds, None when it is another vendor's."""
    if not as_str(part.data.get("type")).startswith(f"{KEY}."):
        return None
    return as_dict(part.data.get("part")) or None


def _user_parts(part: Part, to: Target) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [_with_own({"text": part.content}, part.provider_metadata)] if part.content else []
    if isinstance(part, UnknownPart):
        own = _foreign(part)
        if own is None:
            kind = as_str(part.data.get("type"))[:64]
            raise _unsupported(f"a part of type {kind!r}", "does not know it", to)
        return [own]
    if isinstance(part, (Blob, Uri)):
        made = _media(part, to)
        if isinstance(made, str):
            raise _unsupported(marker(part), made, to)
        return [made]
    if isinstance(part, ToolCall):
        raise _unsupported(f"a call of {part.name!r} outside an assistant message", "takes those from itself only", to)
    return []


def _tool_response(
    part: ToolResponse, call: ToolCall | None, to: Target, beside: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the response; media that may not stand in it are appended to `beside`.

    "output" and "error" are the keys that the API reference names.
    """
    if not to.caps.tools:
        raise _unsupported(f"the response to the tool call {part.id!r}", "takes no tools", to)
    # A name is required; a response whose call is not there is refused by the server either way.
    out: dict[str, Any] = {"name": call.name if call is not None else "unknown"}
    if call_id := _wire_id(call) if call is not None else wire_id(part.id, IDS):
        out["id"] = call_id
    pieces: list[str] = []
    inside: list[dict[str, Any]] = []
    for piece in (Text(part.response),) if isinstance(part.response, str) else part.response:
        made = {"text": piece.content} if isinstance(piece, Text) else _media(piece, to)
        if isinstance(made, str):
            # What a tool found must not end the conversation: the model reads that it was there.
            assert not isinstance(piece, Text)
            pieces.append(marker(piece))
        elif "text" in made:
            pieces.append(made["text"])
        elif to.caps.image_in_tool_result and "inlineData" in made:
            inside.append({"inlineData": made["inlineData"]})
        else:
            assert not isinstance(piece, Text)
            pieces.append(f"{marker(piece)} (shown below)")
            beside.append(made)
    text = "\n".join(pieces)
    as_it_came = own_fields(part.provider_metadata).get("response")
    if isinstance(as_it_came, dict):
        out["response"] = as_it_came
    elif part.is_error:
        out["response"] = {"error": text or f"({part.status})"}
    else:
        out["response"] = {"output": text}
    if inside:
        out["parts"] = inside
    return _with_own({"functionResponse": out}, part.provider_metadata)


def _media(part: Blob | Uri, to: Target) -> dict[str, Any] | str:
    """Return the part of an image, sound, film or document, or why the model cannot take it."""
    text = text_document(part)
    if text is not None:
        # As a file only some kinds of text are taken ("Unsupported MIME type: application/json").
        return {"text": inline_document(part, text)}
    if part.modality in ("image", "video") and not to.caps.vision:
        return f"takes no {part.modality}s"
    if part.modality == "document" and not to.caps.documents:
        return "takes no documents"
    return _media_part(part)


def _media_part(part: Blob | Uri) -> dict[str, Any]:
    if isinstance(part, Blob):
        data: dict[str, Any] = {"mimeType": part.mime_type, "data": base64.b64encode(part.content).decode()}
        return _with_own({"inlineData": data}, part.provider_metadata)
    kind = part.mime_type or mimetypes.guess_type(part.uri.partition("?")[0])[0]
    file: dict[str, Any] = {"fileUri": part.uri}
    if kind:
        file["mimeType"] = kind
    return _with_own({"fileData": file}, part.provider_metadata)


def _unsupported(what: str, why: str, to: Target) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The request holds {what}, but {to.model or 'the model'} {why}.",
        model=to.model or None,
        hint="Use a model that takes it, or leave it out.",
    )


def answer_part(part: Part) -> dict[str, Any] | None:
    """Return the part of an answer that we give ourselves; reasoning is shown whoever made it."""
    if isinstance(part, Text):
        made = _with_own({"text": part.content}, part.provider_metadata)
        return made if part.content or SIGNATURE in made else None
    if isinstance(part, Reasoning):
        made = _with_own({"text": part.content, "thought": True}, part.provider_metadata)
        return made if part.content or SIGNATURE in made else None
    if isinstance(part, ToolCall):
        return _call_part(part)
    if isinstance(part, (Blob, Uri)):
        return _media_part(part)
    return _foreign(part) if isinstance(part, UnknownPart) else None


# ------------------------------------------------------------------------------------------------- from the vendor


class _Open:
    """The calls that wait for their responses, and the ids given out: this dialect does not demand any."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._taken: set[str] = set()

    def new_id(self, wanted: str) -> str:
        number = len(self._taken)
        while not wanted or wanted in self._taken:
            wanted = f"call_{number}"
            number += 1
        self._taken.add(wanted)
        return wanted

    def answer(self, call_id: str, name: str) -> str:
        """Return our id of the call that a response is for: by its id, else the first of its name that waits."""
        found = next((call for call in self.calls if call_id and call.id == call_id), None)
        if found is None and not call_id:
            found = next((call for call in self.calls if call.name == name), None)
        if found is None:
            return call_id or self.new_id("")
        self.calls.remove(found)
        return found.id


def decode_contents(rows: Sequence[Any], path: str = "contents") -> list[Message]:
    """Read contents; a user content with function responses becomes a tool message and, if more is in it, a user one.

    Raises BadRequestError that names the field.
    """
    out: list[Message] = []
    waiting = _Open()
    for at, row in enumerate(rows):
        where = f"{path}[{at}]"
        fields = camel(row, where)
        role = fields.get("role") or "user"
        if role not in ("user", "model", "function"):
            raise bad_field(f"{where}.role", "must be user or model")
        items = fields.get("parts")
        if not isinstance(items, list) or not items:
            raise bad_field(f"{where}.parts", "must be an array of at least one part")
        parts = [_placed(item, f"{where}.parts[{number}]", role, waiting) for number, item in enumerate(items)]
        if role == "model":
            waiting.calls = [part for part in parts if isinstance(part, ToolCall)]
            out.append(Message("assistant", tuple(parts)))
            continue
        results = tuple([part for part in parts if isinstance(part, ToolResponse)])
        rest = tuple([part for part in parts if not isinstance(part, ToolResponse)])
        out += [Message("tool", results)] if results else []
        out += [Message("user", rest)] if rest or not results else []
    return out


def _placed(item: Any, path: str, role: str, waiting: _Open) -> Part:
    fields = camel(item, path)
    if "functionResponse" in fields:
        if role == "model":
            raise bad_field(f"{path}.functionResponse", "may not stand in a content of the role model")
        return _read_response(fields, path, waiting)
    if "functionCall" in fields:
        if role != "model":
            raise bad_field(f"{path}.functionCall", f"may not stand in a content of the role {role}")
        return _read_call(fields, path, waiting)
    return decode_part(fields, path)


def decode_part(fields: dict[str, Any], path: str) -> Part:
    """Read one part that is neither a call nor a response. Raises BadRequestError that names the field."""
    if "text" in fields:
        text = _string(fields, "text", path)
        if fields.get("thought") is True:
            return Reasoning(text, _rest(fields, "text", "thought"))
        return Text(text, _rest(fields, "text", "thought"))
    if "inlineData" in fields and fields.get("thought") is not True:
        data = camel(fields["inlineData"], f"{path}.inlineData")
        kind = _string(data, "mimeType", f"{path}.inlineData")
        content = _bytes(_string(data, "data", f"{path}.inlineData"), f"{path}.inlineData.data")
        return Blob(content, kind, _modality(kind), None, _rest(fields, "inlineData"))
    if "fileData" in fields and fields.get("thought") is not True:
        data = camel(fields["fileData"], f"{path}.fileData")
        kind = as_str(data.get("mimeType"))
        uri = _string(data, "fileUri", f"{path}.fileData")
        return Uri(uri, kind or None, _modality(kind) if kind else "image", None, _rest(fields, "fileData"))
    if fields.keys() == {SIGNATURE}:
        return Text("", _rest(fields))
    kind = next((key for key in fields if key not in (SIGNATURE, "thought", "partMetadata")), "thought")
    return UnknownPart({"type": f"{KEY}.{kind}", "part": dict(fields)})


def _string(fields: Mapping[str, Any], key: str, path: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise bad_field(f"{path}.{key}", "must be a string")
    return value


def _bytes(data: str, path: str) -> bytes:
    # proto3 JSON takes both alphabets, with and without padding.
    plain = data.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad_field(path, "must be base64") from None


def _modality(kind: str) -> Modality:
    head = kind.partition("/")[0]
    return "image" if head == "image" else "audio" if head == "audio" else "video" if head == "video" else "document"


def _rest(fields: Mapping[str, Any], *known: str) -> Metadata | None:
    rest = {key: value for key, value in fields.items() if key not in known and value is not None}
    return {KEY: rest} if rest else None


def _read_call(fields: dict[str, Any], path: str, waiting: _Open) -> ToolCall:
    data = camel(fields["functionCall"], f"{path}.functionCall")
    name = _string(data, "name", f"{path}.functionCall")
    given = data.get("args")
    if given is not None and not isinstance(given, dict):
        raise bad_field(f"{path}.functionCall.args", "must be an object")
    call_id = as_str(data.get("id"))
    more = {} if call_id else {"id": ""}
    metadata = own_fields(_rest(fields, "functionCall")) | more
    return ToolCall(waiting.new_id(call_id), name, given or {}, None, {KEY: metadata} if metadata else None)


def _read_response(fields: dict[str, Any], path: str, waiting: _Open) -> ToolResponse:
    at = f"{path}.functionResponse"
    data = camel(fields["functionResponse"], at)
    call_id = waiting.answer(as_str(data.get("id")), _string(data, "name", at))
    response = data.get("response")
    if response is not None and not isinstance(response, dict):
        raise bad_field(f"{at}.response", "must be an object")
    metadata = own_fields(_rest(fields, "functionResponse"))
    failed = isinstance(response, dict) and "error" in response and "output" not in response
    said: Any = as_dict(response).get("error" if failed else "output", "")
    if response and not (len(response) == 1 and isinstance(said, str) and response.keys() <= {"output", "error"}):
        metadata["response"], said = response, dumps(response).decode()
    media: list[Text | Blob | Uri] = []
    for number, item in enumerate(as_list(data.get("parts"))):
        part = decode_part(camel(item, f"{at}.parts[{number}]"), f"{at}.parts[{number}]")
        media += [part] if isinstance(part, (Text, Blob, Uri)) else []
    content = (*([Text(said)] if said else []), *media) if media else said
    return ToolResponse(call_id, content, "error" if failed else "ok", {KEY: metadata} if metadata else None)
