"""What of a conversation is sent: what was resent is not said twice, and what does not fit is left out by whole turns.

A turn begins with the user's messages and goes to the next ones; a call and its responses are never in two turns. All
functions are pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from windlass.core.errors import RequestRefused
from windlass.core.estimate import estimate_tokens
from windlass.core.messages import Blob, Message, Part, Text, ToolCall, ToolResponse, Uri, text_of
from windlass.core.request import Request
from windlass.wire.base import OPENAI_IDS, wire_id

__all__ = ["fit", "new_from", "recent", "turn_starts"]


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Return where turns begin: the history may be cut there, and nowhere else. Empty for no messages."""
    if not messages:
        return []
    answered = {part.id for message in messages for part in message.parts if isinstance(part, ToolResponse)}
    starts, pending, before = [0], set[str](), messages[0].role
    for at, message in enumerate(messages):
        begins = message.role == "user" and before != "user" and not pending
        pending |= {call.id for call in message.tool_calls if call.id in answered}
        pending -= {part.id for part in message.parts if isinstance(part, ToolResponse)}
        if at and begins and not any(isinstance(part, ToolResponse) for part in message.parts):
            starts.append(at)
        before = before if message.role == "system" else message.role
    return starts


def recent(messages: Sequence[Message], stored: int, most: int) -> list[Message]:
    """Return the messages without the oldest turns of the `stored` ones in front, so that at most `most` of those stay.

    The last turn always stays whole, whatever its length.
    """
    if stored <= most:
        return list(messages)
    starts = turn_starts(messages)
    return list(messages[next((at for at in starts if at >= stored - most), starts[-1]) :])


def fit(request: Request, most: int, keep: int | None = None) -> Request:
    """Return the request without its oldest turns, so that it has at most `most` tokens (estimated).

    What stays in any case: the system text and system messages, the last turn, and the turn that holds the message
    number `keep`. Raises RequestRefused 400 `context_length_exceeded` when that alone is too much.
    """
    total = estimate_tokens(request)
    if total <= most:
        return request
    messages = request.messages
    starts = turn_starts(messages)
    kept: list[Message] = []
    for start, end in zip(starts, [*starts[1:], len(messages)], strict=True):
        turn = messages[start:end]
        if total > most and end < len(messages) and not (keep is not None and start <= keep < end):
            rest = [message for message in turn if message.role == "system"]
            total -= _tokens(turn) - _tokens(rest)
            turn = rest
        kept += turn
    if total > most:
        raise RequestRefused(
            400,
            f"The request has about {total} tokens without its older turns; max_context_tokens is {most}.",
            reason="context_length_exceeded",
            param="max_context_tokens",
            hint="Shorten the last message or the system text, or allow more.",
        )
    return replace(request, messages=kept, encoded=None)


def _tokens(messages: Sequence[Message]) -> int:
    return estimate_tokens(Request(model="", messages=messages))


def new_from(stored: Sequence[Message], incoming: Sequence[Message]) -> int:
    """Return from which incoming message on a request says something that the stored conversation does not hold yet.

    Clients may send only what is new, the whole history before it, or the last part of it. So what counts as resent is
    the longest start of `incoming` with which the stored conversation ends, or else the longest start that both share.
    A request that says nothing new repeats its last turn. System messages are not compared: the server adds its own.
    """
    old, new = _keys(stored), _keys(incoming)
    known = [key for key, _ in old]
    said = [key for key, _ in new]
    resent = _overlap(known, said)
    if not resent:
        pairs = zip(known, said, strict=False)
        resent = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(known), len(said)))
    if not resent:
        return 0
    if resent < len(new):
        # What stands between the last resent message and the next one is new as well.
        return new[resent - 1][1] + 1 if new[resent][1] != new[resent - 1][1] else new[resent][1]
    users = [at for at, message in enumerate(incoming) if message.role == "user"]
    return users[-1] if users else 0


def _overlap(known: list[Any], said: list[Any]) -> int:
    """Return the length of the longest end of `known` that is a start of `said`."""
    for size in range(min(len(known), len(said)), 0, -1):
        # Both ends first: copying every candidate would cost the square of a long conversation.
        if known[-1] == said[size - 1] and known[-size] == said[0] and known[-size:] == said[:size]:
            return size
    return 0


def _keys(messages: Sequence[Message]) -> list[tuple[Any, int]]:
    """Return what is compared of each message, and its place; a message of several responses gives several rows."""
    out: list[tuple[Any, int]] = []
    for at, message in enumerate(messages):
        if message.role == "tool":
            out += [(_response(part), at) for part in message.parts if isinstance(part, ToolResponse)]
        elif message.role == "assistant":
            calls = [(wire_id(call.id, OPENAI_IDS), call.name) for call in message.tool_calls]
            out.append((("assistant", text_of(message.parts).strip(), calls), at))
        elif message.role == "user":
            media = [_medium(part) for part in message.parts if not isinstance(part, Text)]
            out.append((("user", text_of(message.parts).strip(), media), at))
    return out


def _response(part: ToolResponse) -> tuple[Any, ...]:
    content = part.response
    told = content if isinstance(content, str) else [_medium(item) for item in content]
    return ("tool", wire_id(part.id, OPENAI_IDS), told)


def _medium(part: Part) -> Any:
    if isinstance(part, Blob):
        return hashlib.sha256(part.content).digest()
    if isinstance(part, Uri):
        return part.uri
    return part.content if isinstance(part, Text) else (part.id if isinstance(part, ToolCall) else repr(part))
