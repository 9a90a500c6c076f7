"""A conversation as the one prompt that the older text-completion endpoints take."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from windlass.core.errors import UnsupportedInputError, WireError
from windlass.core.items import Finish
from windlass.core.messages import Blob, Message, Part, Text, ToolCall, ToolResponse, UnknownPart, Uri, text_of
from windlass.core.request import Request
from windlass.wire.media import inline_document, marker, text_document

__all__ = ["SinglePrompt", "only_calls", "single_prompt"]

_HINT: Final = "Use the chat endpoint of this provider."


class SinglePrompt(Struct, frozen=True):
    """What can be told: the system prompt ("" for none), the text of the prompt, and its images in order."""

    system: str
    text: str
    images: tuple[Blob, ...]


def single_prompt(request: Request, where: str, *, prefill: bool) -> SinglePrompt:
    """Return the request's messages as one prompt, its pieces joined by an empty line.

    With `prefill` a last assistant message is text that the model goes on from. Raises UnsupportedInputError for what
    one prompt cannot tell: tools, earlier turns, tool results, files that are not text.
    """
    if request.tools and request.tool_choice != "none":
        raise _unsupported(request, where, f"the tool {request.tools[0].name!r}")
    system, pieces, tail = [request.system or ""], list[str](), ""
    images: list[Blob] = []
    last = len(request.messages) - 1
    for at, message in enumerate(request.messages):
        if message.role == "system" and not pieces:
            system.append(message.text)
        elif message.role == "user":
            pieces += _said(message, request, where, images)
        elif message.role == "assistant" and at == last and prefill and not message.tool_calls:
            tail = text_of(message.parts)
        else:
            raise _unsupported(request, where, f"a conversation of several turns (messages[{at}] is {message.role})")
    head = "\n\n".join([text for text in system if text])
    return SinglePrompt(head, "\n\n".join(pieces) + tail, tuple(images))


def _said(message: Message, request: Request, where: str, images: list[Blob]) -> list[str]:
    out: list[str] = []
    for part in message.parts:
        if isinstance(part, Text):
            out.append(part.content)
        elif isinstance(part, Blob) and part.modality == "image":
            images.append(part)
        elif isinstance(part, (Blob, Uri)) and (text := text_document(part)) is not None:
            out.append(inline_document(part, text))
        else:
            raise _unsupported(request, where, _name_of(part))
    return out


def _name_of(part: Part) -> str:
    if isinstance(part, (Blob, Uri)):
        return marker(part)
    if isinstance(part, ToolResponse):
        return f"the response to the tool call {part.id!r}"
    if isinstance(part, ToolCall):
        return f"a call of the tool {part.name!r}"
    kind = str(part.data.get("type"))[:64] if isinstance(part, UnknownPart) else type(part).__name__
    return f"a part of type {kind!r}"


def _unsupported(request: Request, where: str, what: str) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The request holds {what}, but {where} takes one prompt of text.", model=request.model or None, hint=_HINT
    )


def only_calls(finish: Finish, where: str) -> WireError | None:
    """Return the error of an answer that holds tool calls and no text, which these endpoints have no form for."""
    calls = finish.message.tool_calls
    if not calls or finish.message.text:
        return None
    return WireError(
        f"The model answered with a call of the tool {calls[0].name!r} and no text, which {where} cannot express.",
        model=finish.model,
        hint=_HINT,
    )
