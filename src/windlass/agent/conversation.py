"""The conversation that a model sees: the fold of a session's events.

The pair rule lives here. A tool call and its response are one unit: the responses of one assistant message become one
tool message, in the order of the calls, and a conversation that is handed to a provider has no call without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from windlass.agent.ledger import output_bytes
from windlass.core.events import (
    ContextCompacted,
    Event,
    InputQueued,
    MessageAdded,
    RunFinished,
    RunStarted,
    SessionRewound,
    ToolFinished,
    ToolStarted,
)
from windlass.core.messages import Message, Part, Text, ToolCall, ToolResponse, user
from windlass.core.request import EncodingCache
from windlass.core.usage import Usage

__all__ = [
    "NOT_STARTED",
    "UNKNOWN_OUTCOME",
    "Conversation",
    "OpenCall",
    "elidable",
    "legal_cut",
    "live",
    "repair",
    "turn_start",
]

UNKNOWN_OUTCOME = (
    "Outcome unknown: the program ended while this call was running, so it may or may not have taken effect. "
    "Check the state before you repeat it."
)
NOT_STARTED = "Not started: the program ended before this call ran. Ask again if it is still needed."
#: What takes the place of long tool output in a compacted view. Old ledgers rely on these two to give the same view.
_ELIDED = "[Left out to save context: "
_SHORT = 240


class OpenCall(Struct, frozen=True):
    """A call without a response; `started` tells whether it may have taken effect."""

    call: ToolCall
    started: bool


class Conversation:
    """Messages in order, the calls still open, and what they used so far."""

    __slots__ = (
        "_calls", "_ids", "_responses", "_started", "cost", "dropped", "encoded", "gauge", "messages",
        "pending_inputs", "prefix", "rewritten", "run_open", "turns", "usage",
    )  # fmt: skip

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.messages: list[Message] = list(messages)
        self.encoded = EncodingCache()
        self.usage = Usage()
        self.cost: int | None = 0
        self.turns = 0
        #: The `run.started` that has no `run.finished`: the run of a program that died.
        self.run_open: RunStarted | None = None
        self.pending_inputs: list[InputQueued] = []
        #: How many messages compaction took out of the view, how often it was rewritten, and who measures it.
        self.dropped = self.rewritten = 0
        self.gauge: Any = None
        #: What the last request began with, for whoever watches the provider's prompt cache.
        self.prefix: Any = None
        self._calls: tuple[ToolCall, ...] = ()
        self._responses: dict[str, ToolResponse] = {}
        self._started: set[str] = set()
        self._ids: set[str] = set()

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()

    def add(self, message: Message, *, started: bool = False) -> None:
        """Append a message; calls still open must have been answered before."""
        if self._calls:
            raise AssertionError("a message was added while a tool call was open")
        self.messages.append(message)
        if message.role == "assistant":
            self._calls = message.tool_calls
            if self._calls:
                ids = [call.id for call in self._calls]
                self._ids.update(ids)
                self._started = set(ids) if started else set()

    def rekeyed(self, message: Message) -> Message:
        """Return the message with ids that this conversation has not used yet: every pair stays unmistakable."""
        taken = self._ids
        if not any(call.id in taken for call in message.tool_calls):
            return message
        parts: list[Part] = []
        fresh = {call.id for call in message.tool_calls}
        for part in message.parts:
            if isinstance(part, ToolCall) and part.id in taken:
                # Grows with every call, also where the view is cut short: the first guess is nearly always free.
                number = len(taken)
                while (name := f"{part.id}_{number}") in taken or name in fresh:
                    number += 1
                fresh.add(name)
                part = replace(part, id=name)
            parts.append(part)
        return replace(message, parts=tuple(parts))

    def start(self, call_id: str) -> None:
        """Note that a call may have taken effect from now on."""
        self._started.add(call_id)

    def respond(self, response: ToolResponse) -> bool:
        """Take the response of an open call; a second one for the same call is ignored. True when it was taken."""
        if response.id in self._responses or not any(call.id == response.id for call in self._calls):
            return False
        self._responses[response.id] = response
        if len(self._responses) == len(self._calls):
            self.messages.append(Message("tool", tuple([self._responses[call.id] for call in self._calls])))
            self._calls, self._responses = (), {}
        return True

    def count(self, usage: Usage | None, cost: int | None) -> None:
        """Count an answer and what it used; a cost that is not known makes the sum unknown."""
        self.turns += 1
        if usage is not None:
            self.usage = self.usage + usage
            self.cost = None if cost is None or self.cost is None else self.cost + cost

    @property
    def one_call(self) -> bool:
        """True while the last answer made exactly one call, so that a response needs no id to find it."""
        return len(self._calls) == 1

    @property
    def open_calls(self) -> list[OpenCall]:
        """The calls that have no response yet."""
        return [OpenCall(call, call.id in self._started) for call in self._calls if call.id not in self._responses]

    def apply(self, event: Event) -> list[ToolFinished]:
        """Take one event of the ledger; returns the responses that had to be made up to keep pairs whole."""
        mended: list[ToolFinished] = []
        if isinstance(event, MessageAdded):
            mended = self.close()
            if event.message.role == "tool":
                return mended
            self.add(event.message, started=not event.deferred)
            if event.message.role == "assistant":
                self.count(event.usage, event.cost)
            if event.source in ("steer", "follow_up", "send"):
                waiting = (item for item in self.pending_inputs if item.message == event.message)
                if (found := next(waiting, None)) is not None:
                    self.pending_inputs.remove(found)
        elif isinstance(event, ToolStarted):
            self.start(event.call_id)
        elif isinstance(event, ToolFinished):
            self.respond(ToolResponse(event.call_id, event.response, event.status))
        elif isinstance(event, RunStarted):
            self.run_open = event
        elif isinstance(event, RunFinished):
            self.run_open = None
        elif isinstance(event, InputQueued):
            self.pending_inputs.append(event)
        elif isinstance(event, ContextCompacted):
            self.compact(event)
        return mended

    def compact(self, event: ContextCompacted) -> None:
        """Shorten the view as the event says; a call and its responses stay together."""
        upto = turn_start(self.messages, event.upto)
        if self._calls:
            last = max(at for at, message in enumerate(self.messages) if message.role == "assistant")
            upto = min(upto, last)
        if event.strategy == "tail" and not event.summary:
            self.messages = [*[_elided(message) for message in self.messages[:upto]], *self.messages[upto:]]
        else:
            kept = self.messages[upto:]
            self.dropped += upto - bool(event.summary)
            self.messages = [user(event.summary), *kept] if event.summary else kept
        if event.usage is not None:
            self.usage = self.usage + event.usage
            self.cost = None if event.cost is None or self.cost is None else self.cost + event.cost
        self.rewritten += 1
        self.encoded.clear()

    def close(self, printed: Callable[[str], str] | None = None) -> list[ToolFinished]:
        """Answer every open call as *not started* or *outcome unknown*; returns the responses made.

        `printed` gives the end of what a call had printed, which is attached to an unknown outcome.
        """
        made = [
            ToolFinished(
                call_id=item.call.id,
                name=item.call.name,
                response=_unknown(item.call.id, printed) if item.started else NOT_STARTED,
                status="unknown" if item.started else "skipped",
            )
            for item in self.open_calls
        ]
        for event in made:
            self.respond(ToolResponse(event.call_id, event.response, event.status))
        return made

    @classmethod
    def fold(cls, events: Sequence[Event]) -> Conversation:
        """Build the conversation from a session's events (positions are their indices)."""
        conversation = cls()
        for _, event in live(events):
            conversation.apply(event)
        return conversation


def _unknown(call_id: str, printed: Callable[[str], str] | None) -> str:
    tail = printed(call_id) if printed is not None else ""
    return f"{UNKNOWN_OUTCOME}\nIts output so far ended with:\n{tail}" if tail else UNKNOWN_OUTCOME


def turn_start(messages: Sequence[Message], at: int) -> int:
    """Return the highest index <= `at` that is not inside a call and its responses."""
    at = max(0, min(at, len(messages)))
    while 0 < at < len(messages) and messages[at].role == "tool":
        at -= 1
    return at


def elidable(response: ToolResponse) -> bool:
    """Tell whether a tool response is long enough to be left out of a compacted view."""
    content = response.response
    if isinstance(content, str):
        return len(content) > _SHORT and not content.startswith(_ELIDED)
    return any(not isinstance(part, Text) for part in content) or output_bytes(content) > _SHORT


def _elided(message: Message) -> Message:
    if message.role != "tool":
        return message
    parts = tuple(
        [_note(part) if isinstance(part, ToolResponse) and elidable(part) else part for part in message.parts]
    )
    return replace(message, parts=parts) if parts != message.parts else message


def _note(response: ToolResponse) -> ToolResponse:
    size = output_bytes(response.response)
    text = f"{_ELIDED}{size} bytes of older tool output. If you need it, call the tool again.]"
    return ToolResponse(response.id, text, response.status)


def live(events: Sequence[Event]) -> list[tuple[int, Event]]:
    """Return (position, event) of the events that still count after every rewind."""
    kept: list[tuple[int, Event]] = []
    for pos, event in enumerate(events):
        if isinstance(event, SessionRewound):
            while kept and kept[-1][0] >= event.to_pos:
                kept.pop()
        kept.append((pos, event))
    return kept


def legal_cut(events: Sequence[Event], pos: int) -> int:
    """Return the highest position <= `pos` at which the session can be cut: never inside a call and its response."""
    pos = max(0, min(pos, len(events)))
    open_ids: set[str] = set()
    legal = 0
    for at, event in live(events[:pos]):
        if not open_ids:
            legal = at
        if isinstance(event, MessageAdded):
            open_ids = {call.id for call in event.message.tool_calls}
        elif isinstance(event, ToolFinished):
            open_ids.discard(event.call_id)
    return legal if open_ids else pos


def repair(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Make a foreign history valid for every provider; returns it with a note for each thing that was mended.

    Calls without a response get one, responses without a call are dropped, so are second responses and empty messages;
    responses are put right after their call, in its order.
    """
    notes: list[str] = []
    answers: dict[str, list[ToolResponse]] = {}
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolResponse):
                answers.setdefault(part.id, []).append(part)
    out: list[Message] = []
    used: set[str] = set()
    for at, message in enumerate(messages):
        parts = tuple([part for part in message.parts if not isinstance(part, ToolResponse)])
        parts = tuple([part for part in parts if not (isinstance(part, Text) and not part.content)])
        if message.role != "assistant" and any(isinstance(part, ToolCall) for part in parts):
            notes.append(f"message {at}: a {message.role} message cannot call tools; the calls were dropped")
            parts = tuple([part for part in parts if not isinstance(part, ToolCall)])
        if not parts:
            if not message.parts or (message.role != "tool" and len(message.parts) > len(parts)):
                notes.append(f"message {at}: empty {message.role} message dropped")
            continue
        role = "user" if message.role == "tool" else message.role
        mended, responses = _pairs(at, parts, answers, used, notes)
        out.append(replace(message, role=role, parts=mended))
        if responses:
            out.append(Message("tool", tuple(responses)))
    for call_id, left in answers.items():
        if left:
            notes.append(f"{len(left)} response(s) to {call_id!r} without an open call dropped")
    return out, notes


def _pairs(
    at: int, parts: tuple[Part, ...], answers: dict[str, list[ToolResponse]], used: set[str], notes: list[str]
) -> tuple[tuple[Part, ...], list[ToolResponse]]:
    mended: list[Part] = []
    responses: list[ToolResponse] = []
    for part in parts:
        if not isinstance(part, ToolCall):
            mended.append(part)
            continue
        waiting = answers.get(part.id) or []
        if waiting:
            response = waiting.pop(0)
        else:
            response = ToolResponse(part.id, UNKNOWN_OUTCOME, "unknown")
            notes.append(f"message {at}: the call {part.id!r} had no response; one that says so was added")
        new_id = part.id or "call"
        while new_id in used:
            new_id += "_"
        if new_id != part.id:
            notes.append(f"message {at}: the id {part.id!r} was used before; it is {new_id!r} now")
        used.add(new_id)
        mended.append(replace(part, id=new_id))
        responses.append(replace(response, id=new_id))
    return tuple(mended), responses
