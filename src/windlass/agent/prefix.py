"""The beginning of requests, which a provider keeps in its prompt cache: noticing what makes it new.

A history that only grows keeps its prefix, and nothing is walked to see that. Only where a hook put other messages in
place of the history are two lists compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from windlass.agent.run import Run
from windlass.core.events import Log
from windlass.core.messages import Message
from windlass.core.request import ToolSpec

__all__ = ["Prefix", "watch_prefix"]


class Prefix(Struct):
    """What a request began with: `sent` is None where it was the history's own first `count` messages.

    `told` are the causes that were logged in this session already.
    """

    model: str
    system: str
    tools: tuple[ToolSpec, ...]
    count: int
    rewritten: int
    sent: Sequence[Message] | None
    told: tuple[str, ...] = ()


def changes(before: Prefix, now: Prefix, history: Sequence[Message]) -> list[str]:
    """Return what changed between two requests that a cache would notice, in the order of a request."""
    if before.model != now.model:
        # Another model has a cache of its own.
        return []
    causes: list[str] = []
    if before.tools is not now.tools and before.tools != now.tools:
        causes.append("tools")
    if before.system != now.system:
        causes.append("system")
    if before.rewritten != now.rewritten:
        causes.append("compaction")
    elif before.sent is not None or now.sent is not None:
        old = before.sent if before.sent is not None else history[: before.count]
        new = now.sent if now.sent is not None else history
        if list(new[: len(old)]) != list(old):
            causes.append("messages")
    return causes


_WHY = {
    "tools": "the tools are others than before",
    "system": "the system text is another than before",
    "compaction": "the history was compacted",
    "messages": "earlier messages are others than before",
}


async def watch_prefix(
    run: Run, system: str, tools: tuple[ToolSpec, ...], messages: Sequence[Message], turn: int
) -> None:
    """Compare a request with the one before; tell hooks each time, and the log once per cause and session."""
    conversation = run.conversation
    history = conversation.messages
    before: Prefix | None = conversation.prefix
    sent = None if messages is history else messages
    if (
        before is not None
        and before.system is system
        and before.tools is tools
        and before.sent is sent is None
        and before.rewritten == conversation.rewritten
        and before.model == run.plan.model
    ):
        # Every turn of an undecorated agent ends here.
        before.count = len(history)
        return
    told = () if before is None else before.told
    now = Prefix(run.plan.model, system, tools, len(history), conversation.rewritten, sent, told)
    conversation.prefix = now
    if before is None:
        return
    for cause in changes(before, now, history):
        reason = f"{cause}: {_WHY[cause]}"
        if cause not in now.told:
            now.told = (*now.told, cause)
            run.emit(Log(message=f"The prompt cache is of no use for this request: {reason}.", level="warning"))
        if run.hooks.wants("cache:bust"):
            await run.hooks.fire("cache:bust", turn=turn, reason=reason)
