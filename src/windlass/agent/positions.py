"""Places in a session's events, and the events of a history that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from windlass.agent.conversation import repair
from windlass.core.errors import ConfigError
from windlass.core.events import Event, MessageAdded, SessionCreated, ToolFinished
from windlass.core.messages import Message, ToolResponse

__all__ = ["answer_position", "events_of", "first_words"]


def answer_position(session: str, kept: Sequence[tuple[int, Event]], turn: int) -> tuple[int, int, set[str]]:
    """Return where answer `turn` (from 1) is in `kept`, its row position and the ids of its calls.

    Raises ConfigError for a turn that is not there.
    """
    seen = 0
    for index, (pos, event) in enumerate(kept):
        if isinstance(event, MessageAdded) and event.message.role == "assistant":
            seen += 1
            if seen == turn:
                return index, pos, {call.id for call in event.message.tool_calls}
    raise ConfigError(f"Session {session} has {seen} turns, not {turn}.", hint="Turns count from 1.")


def first_words(messages: Sequence[Message]) -> str:
    """Return the beginning of what a user said first: a session's title."""
    first = next((message.text for message in messages if message.role == "user"), "")
    return " ".join(first.split())[:80]


def events_of(session: str, messages: Sequence[Message]) -> tuple[list[Event], list[str]]:
    """Return the rows of a new session that hold a foreign history, mended, and what had to be mended."""
    mended, notes = repair(messages)
    events: list[Event] = [SessionCreated(session_id=session, title=first_words(mended))]
    for message in mended:
        if message.role == "tool":
            for part in message.parts:
                assert isinstance(part, ToolResponse)
                events.append(ToolFinished(call_id=part.id, response=part.response, status=part.status))
        else:
            events.append(MessageAdded(message=message, source="import"))
    return events, notes
