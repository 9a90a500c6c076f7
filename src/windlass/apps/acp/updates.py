"""Events of a run as updates of the protocol: one table, kind by kind; what it must remember is in a View.

`View.take(event)` folds an event in; the functions of the table only read. Source: Agent Client Protocol v1,
https://agentclientprotocol.com/protocol/prompt-turn and /protocol/tool-calls.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from acp.helpers import (
    image_block,
    plan_entry,
    resource_link_block,
    start_tool_call,
    tool_content,
    update_agent_message_text,
    update_agent_thought_text,
    update_plan,
    update_tool_call,
    update_user_message,
    update_user_message_text,
)
from acp.schema import (
    AgentMessageChunk,
    AgentPlanUpdate,
    AgentThoughtChunk,
    ContentToolCallContent,
    Cost,
    FileEditToolCallContent,
    TerminalToolCallContent,
    ToolCallLocation,
    ToolCallProgress,
    ToolCallStart,
    UsageUpdate,
    UserMessageChunk,
)
from msgspec import Struct, field

from windlass.apps.acp.looks import (
    absolute,
    clean,
    diff,
    fenced,
    first_line,
    kind_of,
    locations,
    plain_input,
    said,
    shown_input,
    title_of,
)
from windlass.core.events import (
    BudgetExceeded,
    ContextCompacted,
    Event,
    FileChanged,
    Log,
    McpConnected,
    MessageAdded,
    PermissionRequested,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    SkillActivated,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TurnFinished,
)
from windlass.core.messages import Blob, Message, Reasoning, Text, Uri
from windlass.core.request import ToolAnnotations
from windlass.core.text import HeadTail, strip_escapes
from windlass.core.usage import NANO, Usage

__all__ = ["LIVE", "PAST", "Table", "Update", "View", "call_key", "plan_of", "translate"]

Update: TypeAlias = (
    AgentMessageChunk
    | AgentThoughtChunk
    | UserMessageChunk
    | ToolCallStart
    | ToolCallProgress
    | AgentPlanUpdate
    | UsageUpdate
)
_Content: TypeAlias = ContentToolCallContent | FileEditToolCallContent | TerminalToolCallContent
Table: TypeAlias = Mapping[type[Event], Callable[..., list[Update]]]
#: Bytes of a running command's output in one update, and how far apart in time (ns) two of them are.
LIVE_BYTES, LIVE_EVERY = 8192, 100_000_000
_PEOPLE = ("prompt", "steer", "follow_up", "send", "import")


class Call(Struct):
    """What is known of one call: its name and input, what it printed, what it did to files."""

    name: str
    input: dict[str, Any]
    output: HeadTail = field(default_factory=lambda: HeadTail(LIVE_BYTES))
    #: path -> SHA-256 before and after.
    files: dict[str, tuple[str | None, str | None]] = {}
    #: When output was last sent, and whether it is to be sent now.
    sent: int = 0
    due: bool = False


class View:
    """What the translation must know beside an event.

    `cwd` is the session's folder; `notes` the annotations of tools by name; `contents` holds contents of files by their
    SHA-256, put there by whoever can get them; `window` is the model's context in tokens, 0 where it is not known.
    """

    def __init__(self, cwd: str, notes: Mapping[str, ToolAnnotations] | None = None, window: int = 0) -> None:
        self.cwd, self.notes, self.window = cwd, dict(notes or {}), window
        self.contents: dict[str, bytes] = {}
        self.calls: dict[str, Call] = {}
        self.used = 0
        self.cost: int | None = 0

    def take(self, event: Event) -> None:
        """Fold an event in."""
        if isinstance(event, MessageAdded):
            for call in event.message.tool_calls:
                self.calls[call_key(event, call.id)] = Call(call.name, call.arguments or {})
            if event.message.role == "assistant" and event.usage is not None:
                self._count(event, event.usage, event.cost)
        elif isinstance(event, (ToolStarted, ToolProgress, ToolFinished, FileChanged)):
            self._take_call(event, self.calls.setdefault(call_key(event, event.call_id), Call("", {})))

    def _count(self, event: Event, usage: Usage, cost: int | None) -> None:
        if event.parent_run_id is None:
            self.used = usage.total_tokens
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    def _take_call(self, event: ToolStarted | ToolProgress | ToolFinished | FileChanged, call: Call) -> None:
        if isinstance(event, ToolStarted):
            call.name, call.input = event.name or call.name, event.input or call.input
        elif isinstance(event, ToolProgress) and event.text:
            call.output.feed(event.text.encode("utf-8", "replace"))
            call.due = event.time - call.sent >= LIVE_EVERY or not call.sent
            call.sent = event.time if call.due else call.sent
        elif isinstance(event, FileChanged) and event.status == "failed":
            call.files = {path: change for path, change in call.files.items() if path != event.path}
        elif isinstance(event, FileChanged) and event.status == "done":
            first = call.files.get(event.path, (event.before, None))[0]
            call.files = {**call.files, event.path: (first, event.after)}

    def call(self, event: Any) -> Call:
        """Return the call that an event is about."""
        return self.calls.get(call_key(event, event.call_id)) or Call(getattr(event, "name", ""), {})

    def missing(self, event: Event) -> dict[str, str]:
        """Return the contents that telling of this event takes and that are not here: SHA-256 -> path."""
        if not isinstance(event, (FileChanged, ToolFinished)):
            return {}
        files = self.call(event).files.items()
        return {sha: path for path, pair in files for sha in pair if sha is not None and sha not in self.contents}

    def forget(self, event: ToolFinished) -> None:
        """Let go of a call that has its response."""
        call = self.calls.pop(call_key(event, event.call_id), None)
        for pair in () if call is None else call.files.values():
            for sha256 in pair:
                self.contents.pop(sha256 or "", None)

    def content(self, sha256: str | None) -> bytes | None:
        """Return a content. Raises KeyError where it was not kept."""
        return None if sha256 is None else self.contents[sha256]


def call_key(event: Event, call_id: str) -> str:
    """Return the id of a call as the client sees it: a sub-agent's calls may have its parent's ids."""
    return clean(call_id if event.parent_run_id is None else f"{event.run_id}:{call_id}")


def translate(view: View, event: Event, table: Table) -> list[Update]:
    """Return what the client is to be told of an event that the view has taken."""
    tell = table.get(type(event))
    return [] if tell is None else tell(view, event)


# -- what is said ------------------------------------------------------------------------------------------------------


def _text(_view: View, event: TextDelta) -> list[Update]:
    return [update_agent_message_text(clean(event.text))] if event.text and event.parent_run_id is None else []


def _thought(_view: View, event: ReasoningDelta) -> list[Update]:
    return [update_agent_thought_text(clean(event.text))] if event.text and event.parent_run_id is None else []


def _calls(view: View, event: MessageAdded) -> list[Update]:
    return [_announced(view, call_key(event, call.id), call.name, call.arguments or {})
            for call in event.message.tool_calls]  # fmt: skip


def _announced(view: View, key: str, name: str, args: dict[str, Any]) -> Update:
    return start_tool_call(
        key,
        title_of(name, args),
        kind=kind_of(name, args, view.notes.get(name)),
        status="pending",
        locations=locations(view.cwd, args),
        raw_input=plain_input(args),
    )


def _past(view: View, event: MessageAdded) -> list[Update]:
    """Tell a kept message: what a person said, or the model's answer with its calls and plan."""
    message = event.message
    if message.role == "user":
        return _past_prompt(message) if event.source in _PEOPLE else []
    if message.role != "assistant" or event.parent_run_id is not None:
        return []
    out: list[Update] = []
    for part in message.parts:
        if isinstance(part, Reasoning) and part.content:
            out.append(update_agent_thought_text(clean(part.content)))
        elif isinstance(part, Text) and part.content:
            out.append(update_agent_message_text(clean(part.content)))
    out += _calls(view, event)
    for call in message.tool_calls:
        if call.name == "todo_write" and (plan := plan_of((call.arguments or {}).get("todos"))) is not None:
            out.append(plan)
    return out


def _past_prompt(message: Message) -> list[Update]:
    out: list[Update] = []
    for part in message.parts:
        if isinstance(part, Text) and part.content:
            out.append(update_user_message_text(clean(part.content)))
        elif isinstance(part, Blob) and part.modality == "image":
            out.append(update_user_message(image_block(base64.b64encode(part.content).decode(), part.mime_type)))
        elif isinstance(part, Blob):
            out.append(update_user_message_text(f"[{part.modality}: {part.filename or part.mime_type}]"))
        elif isinstance(part, Uri):
            name = part.filename or part.uri
            out.append(update_user_message(resource_link_block(name, part.uri, mime_type=part.mime_type)))
    return out


# -- tool calls --------------------------------------------------------------------------------------------------------


def _started(view: View, event: ToolStarted) -> list[Update]:
    call, key = view.call(event), call_key(event, event.call_id)
    # A row of the ledger leaves out what the message before it says.
    if not event.input:
        return [update_tool_call(key, status="in_progress")]
    return [
        update_tool_call(
            key,
            title=title_of(call.name, call.input),
            status="in_progress",
            locations=locations(view.cwd, call.input),
            raw_input=plain_input(call.input),
        )
    ]


def _progress(view: View, event: ToolProgress) -> list[Update]:
    data: Any = event.data
    if isinstance(data, dict) and (plan := plan_of(data.get("plan"))) is not None:  # pyright: ignore[reportUnknownMemberType]
        return [plan]
    call = view.call(event)
    if not event.text or not call.due:
        return []
    text = strip_escapes(call.output.result().decode("utf-8", "replace"))
    return [update_tool_call(call_key(event, event.call_id), content=[*_diffs(view, call), said(fenced(text))])]


def _changed(view: View, event: FileChanged) -> list[Update]:
    call = view.call(event)
    if not event.call_id or event.status not in ("done", "failed") or not call.files:
        return []
    return [update_tool_call(call_key(event, event.call_id), content=_diffs(view, call), locations=_places(view, call))]


def _asked(_view: View, event: PermissionRequested) -> list[Update]:
    content = shown_input(event.name, event.input, event.reason)
    return [update_tool_call(call_key(event, event.call_id), status="pending", content=content)]


def _finished(view: View, event: ToolFinished) -> list[Update]:
    call, ok = view.call(event), event.status == "ok"
    content: list[_Content] = [*_diffs(view, call)]
    if not ok or not content:
        content += _response(call, event.response)
    places = _places(view, call) or None
    status = "completed" if ok else "failed"
    return [update_tool_call(call_key(event, event.call_id), status=status, content=content, locations=places)]


def _response(call: Call, response: str | Sequence[Text | Blob | Uri]) -> list[_Content]:
    language = "console" if kind_of(call.name, call.input) == "execute" else ""
    if isinstance(response, str):
        return [said(fenced(strip_escapes(response), language))] if response else []
    out: list[_Content] = []
    for part in response:
        if isinstance(part, Text):
            out.append(said(fenced(strip_escapes(part.content))))
        elif isinstance(part, Uri):
            out.append(tool_content(resource_link_block(part.filename or part.uri, part.uri, mime_type=part.mime_type)))
        elif part.modality == "image":
            out.append(tool_content(image_block(base64.b64encode(part.content).decode(), part.mime_type)))
        else:
            out.append(said(f"[{part.modality}: {part.filename or part.mime_type}, {len(part.content)} bytes]"))
    return out


def _diffs(view: View, call: Call) -> list[_Content]:
    out: list[_Content] = []
    for path, (before, after) in call.files.items():
        try:
            shown = diff(view.cwd, path, view.content(before), view.content(after))
        except KeyError:
            shown = None
        if shown is not None:
            out.append(shown)
        else:
            out.append(said(f"{path} was changed (not text, too large to show, or not kept)."))
    return out


def _places(view: View, call: Call) -> list[ToolCallLocation]:
    out: list[ToolCallLocation] = []
    for path, (before, after) in call.files.items():
        try:
            line = first_line(view.content(before), view.content(after))
        except KeyError:
            line = None
        out.append(ToolCallLocation(path=clean(absolute(view.cwd, path)), line=line))
    return out


def plan_of(todos: Any) -> AgentPlanUpdate | None:
    """Return the plan that a list of `content` and `status` stands for, None for anything else."""
    if not isinstance(todos, list):
        return None
    try:
        rows = msgspec.convert(todos, list[_Todo])
    except msgspec.ValidationError:
        return None
    return update_plan([plan_entry(clean(row.content), status=row.status) for row in rows])


class _Todo(Struct):
    """A row of the todo tool's list."""

    content: str
    status: Literal["pending", "in_progress", "completed"] = "pending"


# -- everything else ---------------------------------------------------------------------------------------------------


def _usage(view: View, event: TurnFinished) -> list[Update]:
    if not view.window or event.parent_run_id is not None:
        return []
    cost = None if view.cost is None else Cost(amount=view.cost / NANO, currency="USD")
    return [UsageUpdate(session_update="usage_update", used=view.used, size=view.window, cost=cost)]


def _aside(make: Callable[[Any], str]) -> Callable[[View, Any], list[Update]]:
    """Tell what has no place in the protocol as a thought: it is seen, and is not taken for the answer."""

    def tell(_view: View, event: Any) -> list[Update]:
        text = make(event)
        return [update_agent_thought_text(f"\n\n[{clean(strip_escapes(text))}]\n\n")] if text else []

    return tell


def _compacted(event: ContextCompacted) -> str:
    return f"The conversation was shortened for the model: {event.before_tokens} to {event.after_tokens} tokens."


def _budget(event: BudgetExceeded) -> str:
    return f"A limit was reached: {event.what} {event.used} of {event.limit}."


#: What a running prompt's events become.
LIVE: Table = {
    TextDelta: _text,
    ReasoningDelta: _thought,
    MessageAdded: _calls,
    ToolStarted: _started,
    ToolProgress: _progress,
    FileChanged: _changed,
    PermissionRequested: _asked,
    ToolFinished: _finished,
    TurnFinished: _usage,
    Retry: _aside(lambda event: event.message),
    ProviderSwitched: _aside(lambda event: event.message),
    ContextCompacted: _aside(_compacted),
    BudgetExceeded: _aside(_budget),
    SkillActivated: _aside(lambda event: f"Skill in use: {event.name}"),
    McpConnected: _aside(lambda event: "" if event.ok else f"MCP server {event.name} failed: {event.error}"),
    Log: _aside(lambda event: event.message if event.level in ("warning", "error") else ""),
}
#: What the rows of a kept session become when it is loaded.
PAST: Table = {
    MessageAdded: _past,
    ToolStarted: _started,
    ToolFinished: _finished,
    ContextCompacted: _aside(_compacted),
}
