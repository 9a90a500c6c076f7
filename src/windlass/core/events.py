"""The facts of a run: at most thirty frozen kinds, read alike by hooks, screens, SSE, recordings and metrics.

Every event carries the run it belongs to, its place in it (`seq`, counted without gaps, deltas included), its time
(UTC nanoseconds) and, in a child run, the parent's id. The durable kinds are the ledger: a store keeps them, and a
session is their fold. Sinks read events and change nothing; only hooks may change what happens.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from windlass.core.messages import Blob, Message, ResponseStatus, Text, Uri, message_from_data
from windlass.core.usage import Usage

__all__ = [
    "DURABLE",
    "EVENT_SCHEMA",
    "KINDS",
    "BudgetExceeded",
    "CheckpointSaved",
    "ConfigChanged",
    "ContextCompacted",
    "Event",
    "FileChanged",
    "InputQueued",
    "Log",
    "MessageAdded",
    "PermissionRequested",
    "PermissionResolved",
    "ProviderSwitched",
    "ReasoningDelta",
    "Retry",
    "RunFinished",
    "RunStarted",
    "SessionCreated",
    "SessionForked",
    "SessionRewound",
    "StopReason",
    "TextDelta",
    "ToolCallDelta",
    "ToolFinished",
    "ToolProgress",
    "ToolStarted",
    "TurnFinished",
    "TurnStarted",
    "UnknownEvent",
    "decode_event",
    "encode_event",
    "event_from_data",
]

#: The version of the NDJSON form and of the ledger's rows. Readers accept lower ones and refuse higher ones.
EVENT_SCHEMA = 1

StopReason = Literal["end_turn", "max_tokens", "max_turns", "refusal", "cancelled", "error", "budget", "loop"]


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="event"):
    """What every kind carries."""

    run_id: str = ""
    seq: int = 0
    time: int = 0
    parent_run_id: str | None = None


class RunStarted(Event, frozen=True, tag="run.started"):
    """A prompt was accepted (or a resume without one)."""

    session_id: str
    model: str
    prompt: str = ""
    agent: str | None = None


class RunFinished(Event, frozen=True, tag="run.finished"):
    """The agent rests. `error` is the error's data when `stop_reason` is error; `cost` in nano-dollars, None: unknown.

    `usage` and `cost` count this run and its children.
    """

    stop_reason: StopReason
    usage: Usage = Usage()
    cost: int | None = None
    turns: int = 0
    error: dict[str, Any] | None = None
    output: Any = None


class TurnStarted(Event, frozen=True, tag="turn.started"):
    """A model request is about to be sent; `turn` counts from 1 within the run."""

    turn: int
    model: str = ""


class TurnFinished(Event, frozen=True, tag="turn.finished"):
    """A model request and its tool calls are done. `first_token_ns` is the wait for the first item."""

    turn: int
    usage: Usage = Usage()
    cost: int | None = None
    model: str = ""
    finish_reason: str | None = None
    first_token_ns: int | None = None
    duration_ns: int = 0


class MessageAdded(Event, frozen=True, tag="message.added"):
    """A message became part of the conversation.

    An assistant message carries what it used. Its tool calls are started in the same commit, unless `deferred`: then
    each start is a `tool.started` row of its own, and a call without one was never run.
    `source` tells a person's words from the program's own: prompt, steer, follow_up, model, loop, notice, repair.
    """

    message: Message
    usage: Usage | None = None
    cost: int | None = None
    model: str | None = None
    response_id: str | None = None
    deferred: bool = False
    source: str = "model"


class TextDelta(Event, frozen=True, tag="text.delta"):
    """A piece of the answer's text."""

    text: str


class ReasoningDelta(Event, frozen=True, tag="reasoning.delta"):
    """A piece of the model's reasoning."""

    text: str


class ToolCallDelta(Event, frozen=True, tag="tool_call.delta"):
    """A piece of a tool call while the model writes it."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ToolStarted(Event, frozen=True, tag="tool.started"):
    """A tool is about to run with these checked arguments; `coercions` names the fields that were converted."""

    call_id: str
    name: str
    input: dict[str, Any] = {}
    coercions: tuple[str, ...] = ()


class ToolProgress(Event, frozen=True, tag="tool.progress"):
    """A tool reports on itself: a piece of output, or `data`."""

    call_id: str
    text: str = ""
    data: Any = None


class ToolFinished(Event, frozen=True, tag="tool.finished"):
    """A tool call has its response; this event is the response's one record.

    `output_bytes` counts what the model reads, `duration_ns` the tool's own time. A row leaves out the name, and the
    id where the message made one call only; reading a ledger puts both back.
    """

    call_id: str = ""
    name: str = ""
    response: str | tuple[Text | Blob | Uri, ...] = ""
    status: ResponseStatus = "ok"
    output_bytes: int = 0
    duration_ns: int = 0


class PermissionRequested(Event, frozen=True, tag="permission.requested"):
    """A person is asked whether a call may run."""

    call_id: str
    name: str
    input: dict[str, Any] = {}
    reason: str = ""


class PermissionResolved(Event, frozen=True, tag="permission.resolved"):
    """The answer: allow_once, allow_always, reject_once or reject_always (ACP), and who gave it."""

    call_id: str
    outcome: Literal["allow_once", "allow_always", "reject_once", "reject_always"]
    by: str = ""


class Retry(Event, frozen=True, tag="retry"):
    """A request is sent again after `delay` seconds."""

    message: str
    attempt: int = 0
    delay: float = 0.0
    provider: str | None = None


class ProviderSwitched(Event, frozen=True, tag="provider.switched"):
    """Another provider or model answers than the one asked for."""

    message: str
    provider: str | None = None
    model: str | None = None


class ContextCompacted(Event, frozen=True, tag="context.compacted"):
    """The model's view of the history was shortened; the ledger keeps all of it.

    `upto` counts the messages of the view, as it was before, that this is about. `tail`: long tool output in them is
    replaced by a note; `summary` and `cut`: `summary` stands in their place. `usage` and `cost` (nano-dollars) are what
    the model used that wrote it.
    """

    strategy: str
    before_tokens: int = 0
    after_tokens: int = 0
    upto: int = 0
    summary: str = ""
    usage: Usage | None = None
    cost: int | None = None


class BudgetExceeded(Event, frozen=True, tag="budget.exceeded"):
    """A bound was reached: `what` names it (turns, tokens, cost, output_bytes, tool:NAME, loop)."""

    what: str
    used: int = 0
    limit: int = 0
    mode: str = ""


class SkillActivated(Event, frozen=True, tag="skill.activated"):
    """A skill's body was read into the conversation."""

    name: str


class McpConnected(Event, frozen=True, tag="mcp.connected"):
    """An MCP server answered, or failed to."""

    name: str
    transport: str = ""
    ok: bool = True
    tools: int = 0
    duration_ns: int = 0
    error: str | None = None


class StepStarted(Event, frozen=True, tag="step.started"):
    """A workflow step, or an iteration of a loop mode, begins."""

    name: str
    index: int = 0
    total: int | None = None


class StepFinished(Event, frozen=True, tag="step.finished"):
    """A workflow step or iteration is done."""

    name: str
    index: int = 0
    status: str = "ok"
    detail: str = ""


class CheckpointSaved(Event, frozen=True, tag="checkpoint.saved"):
    """State that can be resumed from is on disk."""

    path: str
    step: int = 0


class TrainStep(Event, frozen=True, tag="train.step"):
    """One optimiser step, with its measured figures."""

    step: int
    metrics: dict[str, float] = {}


class Log(Event, frozen=True, tag="log"):
    """A line for a person: debug, info, warning or error."""

    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"
    data: dict[str, Any] | None = None


class SessionCreated(Event, frozen=True, tag="session.created"):
    """The first row of a session."""

    session_id: str
    title: str = ""
    metadata: dict[str, Any] = {}


class SessionForked(Event, frozen=True, tag="session.forked"):
    """This session goes on from row `pos` (not included) of `parent`; the rows before are shared."""

    parent: str
    pos: int


class SessionRewound(Event, frozen=True, tag="session.rewound"):
    """The conversation goes on as if it had ended before row `to_pos`; what came after stays readable."""

    to_pos: int


class InputQueued(Event, frozen=True, tag="input.queued"):
    """A message waits for the running run: `mode` is steer, follow_up or send."""

    message: Message
    mode: Literal["steer", "follow_up", "send"]


class FileChanged(Event, frozen=True, tag="file.changed"):
    """A tool wrote a file. `before` and `after` are SHA-256 of the content, None where there is no file.

    The row is kept before the file is written, listeners are told after. `status`: done; failed (what the row before
    announced did not happen); initial (a file that a session's own virtual workspace began with); undone and redone
    (`turn` is the row position of the first turn that was undone, or of the last one that was redone).
    """

    path: str
    call_id: str = ""
    before: str | None = None
    after: str | None = None
    status: Literal["done", "failed", "initial", "undone", "redone"] = "done"
    turn: int | None = None


class ConfigChanged(Event, frozen=True, tag="config.changed"):
    """A session's model or setting was changed while it lived."""

    key: str
    value: Any = None


KINDS: dict[str, type[Event]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        RunStarted, RunFinished, TurnStarted, TurnFinished, MessageAdded, TextDelta, ReasoningDelta, ToolCallDelta,
        ToolStarted, ToolProgress, ToolFinished, PermissionRequested, PermissionResolved, Retry, ProviderSwitched,
        ContextCompacted, BudgetExceeded, SkillActivated, McpConnected, StepStarted, StepFinished, CheckpointSaved,
        TrainStep, Log, SessionCreated, SessionForked, SessionRewound, InputQueued, FileChanged, ConfigChanged,
    )
}  # fmt: skip

#: The kinds that a store keeps. Turns are not among them: a turn is its assistant message (which carries the usage) and
#: its tool rows, so a reader rebuilds `turn.*` from those. See docs/decisions/0003.
DURABLE: frozenset[type[Event]] = frozenset(
    {
        RunStarted, RunFinished, MessageAdded, ToolStarted, ToolFinished, PermissionRequested, PermissionResolved,
        ProviderSwitched, ContextCompacted, BudgetExceeded, SkillActivated, StepFinished, CheckpointSaved,
        SessionCreated, SessionForked, SessionRewound, InputQueued, FileChanged, ConfigChanged,
    }
)  # fmt: skip


class UnknownEvent(Event, frozen=True, tag="unknown"):
    """An event of a kind that this version does not know, kept as it was read."""

    data: dict[str, Any]


AnyEvent: TypeAlias = Event
_encode = msgspec.json.Encoder().encode


def event_from_data(data: dict[str, Any]) -> Event:
    """Build an event from decoded JSON; an unknown kind becomes `UnknownEvent`. Raises msgspec.ValidationError."""
    kind = KINDS.get(data.get("kind", ""))
    if kind is None:
        head = {name: data[name] for name in ("run_id", "seq", "time", "parent_run_id") if name in data}
        return UnknownEvent(data=data, **head)
    if kind is MessageAdded or kind is InputQueued:
        # The message may hold parts of kinds we do not know: build it with the tolerant reader.
        rest = {**data, "message": {"role": "user"}}
        event = msgspec.convert(rest, kind)
        return msgspec.structs.replace(event, message=message_from_data(data["message"]))
    return msgspec.convert(data, kind)


def encode_event(event: Event) -> bytes:
    """Encode an event as one line of NDJSON without its newline, with the schema version in `v`."""
    body = _encode(event.data if isinstance(event, UnknownEvent) else event)
    return b'{"v":%d,' % EVENT_SCHEMA + body[1:]


def decode_event(line: bytes | str) -> Event:
    """Decode one line of NDJSON. Raises msgspec.DecodeError, or ValueError for a newer schema."""
    data = msgspec.json.decode(line, type=dict[str, Any])
    version = data.pop("v", EVENT_SCHEMA)
    if not isinstance(version, int) or version > EVENT_SCHEMA:
        raise ValueError(f"events of schema {version}; this version reads up to {EVENT_SCHEMA}: upgrade windlass")
    return event_from_data(data)
