"""What was said before: a kept session, printed as it was."""

from __future__ import annotations

from windlass.agent.conversation import live
from windlass.agent.session import Session
from windlass.apps.tui.transcript import Transcript
from windlass.core.events import Event, MessageAdded, ToolFinished, ToolStarted

__all__ = ["show_past"]

#: So many of the newest messages and tool calls are shown.
_MOST = 400


async def show_past(transcript: Transcript, session: Session) -> None:
    """Print the newest 400 questions, answers and tool lines, and whether the last run was cut off."""
    events = await session.events() if session.ledger.store is not None else []
    kept = [event for _, event in live(events) if isinstance(event, (MessageAdded, ToolFinished))]
    if not kept:
        return
    if len(kept) > _MOST:
        transcript.note(f"({len(kept) - _MOST} earlier entries: /export writes all of them)")
    for event in kept[-_MOST:]:
        _show(transcript, event)
    transcript.note(f"(session {session.id} goes on here)")
    if session.conversation.run_open is not None:
        transcript.note("Its last answer was cut off. /continue goes on with it.", "warning")


def _show(transcript: Transcript, event: Event) -> None:
    if isinstance(event, ToolFinished):
        transcript.write(transcript.lines.finished(event))
    elif isinstance(event, MessageAdded) and event.message.role == "user":
        if event.source in ("prompt", "steer", "follow_up", "send", "import", "model"):
            transcript.said(event.message.text, "↪ " if event.source == "steer" else "> ")
    elif isinstance(event, MessageAdded) and event.message.role == "assistant":
        if event.message.text:
            transcript.answered(event.message.text)
        for call in event.message.tool_calls:
            started = ToolStarted(call_id=call.id, name=call.name, input=call.arguments or {})
            transcript.write(transcript.lines.started(started))
