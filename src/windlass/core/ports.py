"""The ports: the few shapes that make parts interchangeable. Read this page second.

A port is a Protocol: any object of that shape fits, nothing has to be inherited. `windlass.testing` has a conformance
kit for each that third parties implement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct

from windlass.core.events import Event, FileChanged
from windlass.core.items import Item
from windlass.core.messages import Blob, ResponseStatus, Text, Uri
from windlass.core.request import Request, ToolSpec
from windlass.core.usage import Usage

__all__ = [
    "Approver",
    "Blobs",
    "Capability",
    "CapabilityHost",
    "Embedder",
    "Embeddings",
    "ExecResult",
    "FileInfo",
    "PermissionOption",
    "Preview",
    "Provider",
    "Row",
    "SessionInfo",
    "Sink",
    "Store",
    "Tool",
    "ToolContext",
    "ToolOutput",
    "ToolResult",
    "TurnView",
    "Workspace",
]


@runtime_checkable
class Provider(Protocol):
    """Answers requests.

    `stream` is a plain `def` that returns an async iterator of items: any number of deltas, usages and notices, then
    exactly one `Finish`. Closing the iterator early frees the connection at once. It raises ProviderError kinds only.
    `name` is the `gen_ai.provider.name`.
    """

    @property
    def name(self) -> str: ...

    def stream(self, request: Request, /) -> AsyncIterator[Item]: ...


class Embeddings(Struct, frozen=True):
    """The vectors of some texts, in their order, each a tuple of floats of the same length; `model` made them."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: Usage = Usage(estimated=True)


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors; `dimensions` asks for shorter ones where that is known. Raises ProviderError kinds."""

    @property
    def name(self) -> str: ...

    async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings: ...


class ToolResult(Struct, frozen=True):
    """What a tool gives back when a string is not enough: parts, or a status other than ok."""

    content: str | tuple[Text | Blob | Uri, ...] = ""
    status: ResponseStatus = "ok"


#: What a tool may return: text, parts, a ToolResult; anything else is encoded as JSON; None is empty text.
ToolOutput: TypeAlias = Any


class Preview(Struct, frozen=True):
    """What a call would do to one file: its content before and after, None where there is no file."""

    path: str
    before: bytes | None
    after: bytes | None


class ToolContext(Protocol):
    """What a tool is given besides its arguments.

    `deadline` is in seconds of the monotonic clock (None: none). `state` lives as long as the session.
    """

    @property
    def call_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def workspace(self) -> Workspace | None: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def state(self) -> dict[str, Any]: ...
    @property
    def expected(self) -> Mapping[str, str]:
        """SHA-256 of each file as a person saw it when they allowed this call ('' where there was none)."""
        ...

    def progress(self, text: str = "", data: Any = None) -> None:
        """Report progress: becomes a `tool.progress` event."""

    async def emit(self, event: Event) -> None:
        """Make a fact known; a durable one is kept before this returns."""

    async def keep(self, path: str, before: bytes | None, after: bytes | None) -> FileChanged:
        """Put a change of a file on record, with both contents, before it is made; None: there is no file.

        `emit` what this returns once the change is made, or with `status="failed"` when it was not.
        """
        ...

    async def run_child(self, **spec: Any) -> Any:
        """Run a sub-agent whose events bubble and whose usage counts here."""

    async def fire(self, hook: str, /, **values: Any) -> Any:
        """Ask the agent's hooks of that name; returns their shared context, with what they changed."""

    async def ask(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        """Ask the person for something that the policy does not know of; without one it is `reject_once`."""
        ...


@runtime_checkable
class Tool(Protocol):
    """Something a model may do.

    `spec` is what the model is told. `call` gets arguments that were coerced and checked against
    `spec.input_schema`; raise ToolError to tell the model what went wrong. `timeout` is in seconds, None: the agent's.
    One that changes files may have `async preview(args, ctx) -> Sequence[Preview]`, which changes nothing: a person who
    is asked sees it first.
    """

    @property
    def spec(self) -> ToolSpec: ...
    @property
    def timeout(self) -> float | None: ...

    def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Awaitable[ToolOutput]: ...


class CapabilityHost(Protocol):
    """What a capability is opened with: its agent's workspace, configuration, hooks and listeners."""

    @property
    def workspace(self) -> Workspace | None: ...
    @property
    def config(self) -> Any: ...
    @property
    def approver(self) -> Approver | None: ...

    async def fire(self, hook: str, /, **values: Any) -> Any:
        """Ask the agent's hooks of that name; returns their shared context, with what they changed."""

    def emit(self, event: Event) -> None:
        """Tell whoever listens to the agent, or to the run that opens it."""


class TurnView(Struct, frozen=True, kw_only=True):
    """What a capability sees of the turn that is being prepared.

    `state` lives as long as the session; several sessions may share one capability, so what belongs to a conversation
    is kept there. `aliases` maps a tool's own name to the one the model sees. `disclosure` and `tool_search` are the
    behavior's.
    """

    run_id: str
    session_id: str
    turn: int
    state: dict[str, Any]
    workspace: Workspace | None = None
    aliases: Mapping[str, str] = {}
    disclosure: Literal["eager", "lazy"] = "eager"
    tool_search: Mapping[str, Any] = {}


@runtime_checkable
class Capability(Protocol):
    """Something that brings tools, prompt text and hooks, and has a lifetime: MCP, skills, memory.

    `open` is awaited before the first run, `close` when the agent is destroyed. `tools` and `instructions` are asked
    anew for each turn and must be quick; a tool whose name the agent has already is left out. `hooks` are asked once.
    """

    async def open(self, host: CapabilityHost, /) -> None: ...
    async def close(self) -> None: ...
    def tools(self, turn: TurnView, /) -> Sequence[Tool]: ...
    def instructions(self, turn: TurnView, /) -> str: ...
    def hooks(self) -> Mapping[str, Callable[..., Any]]: ...


class FileInfo(Struct, frozen=True, omit_defaults=True):
    """One entry of a folder; `path` is relative to the workspace with forward slashes, `mtime_ns` 0 where unknown."""

    path: str
    kind: Literal["file", "dir", "symlink", "other"] = "file"
    size: int = 0
    mtime_ns: int = 0


class ExecResult(Struct, frozen=True):
    """How a command ended. `output` is stdout and stderr as they came, bounded; `total_bytes` counts all of it.

    `exit_code` is None when it was killed; then `killed` says why (timeout, cancelled, output, memory). `spool` is a
    file with the full output, where it was kept.
    """

    exit_code: int | None
    output: bytes
    total_bytes: int
    killed: str | None = None
    spool: str | None = None


@runtime_checkable
class Workspace(Protocol):
    """Where tools act. Paths are relative to its root, with forward slashes; a path that leaves it raises PathEscape.

    `capabilities` holds any of: shell, filesystem, network. A missing file raises WorkspaceError, FileNotFoundError as
    its cause. `write` is atomic, makes parents, keeps the mode of what it replaces, and refuses with WorkspaceError
    when `expected_sha256` is given and the file there is another ('' means: there must be none).
    """

    @property
    def capabilities(self) -> frozenset[str]: ...

    @property
    def root(self) -> str:
        """A name for people: a folder, or `memory`."""
        ...

    async def read(self, path: str, *, limit: int | None = None) -> bytes: ...
    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None: ...
    async def delete(self, path: str) -> None: ...
    async def stat(self, path: str) -> FileInfo | None: ...
    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> list[FileInfo]: ...

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult: ...

    async def close(self) -> None: ...


class Row(Struct, frozen=True):
    """One durable event as a store keeps it.

    `pos` is its place in the session, dense from 0. `run` is the position of its run's `run.started` row, -1 outside a
    run. `time` is UTC nanoseconds. `data` is the event's JSON without the ids and the time, which are columns.
    """

    pos: int
    kind: str
    run: int
    time: int
    data: bytes
    version: int = 1


class SessionInfo(Struct, frozen=True, omit_defaults=True):
    """What a store lists of a session. Times are UTC nanoseconds; `rows` is its next position."""

    id: str
    rows: int
    created: int
    updated: int
    title: str = ""
    parent: str | None = None
    parent_pos: int | None = None


class Blobs(Protocol):
    """Keeps contents of files that a session changed, each once, as long as the session is kept.

    `put` returns the SHA-256 in hex, once the content is as durable as a row; it raises SessionNotFound for a session
    that has no row yet. `get` is None for what this session does not have. A fork has what its parent had.
    """

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str: ...
    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None: ...


@runtime_checkable
class Store(Protocol):
    """Keeps ledgers: append, read, list, delete.

    `append` keeps all rows or none, durably, before it returns; their positions must go on from `expected_pos`, which
    must be the session's length, else StoreConflict. A first row of kind `session.forked` makes the new session share
    its parent's rows. `read` gives rows of positions [start, end). `delete` is False when there was nothing; forks of
    a deleted session keep the rows they share. Appends of one session are applied in the order of the calls. A store
    whose `append` never waits may say so with an attribute `immediate = True`; one that can keep what a running call
    has printed, so that a crash does not lose it, has an attribute `running` (`append`, `take`, `drop`); one that keeps
    contents of files, which undo needs, has an attribute `blobs` (`Blobs`).
    """

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None: ...
    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]: ...
    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]: ...
    async def delete(self, session: str, *, tenant: str = "") -> bool: ...
    async def close(self) -> None: ...


#: A sink is called with every event, in order, and must not block: what is slow copies and returns.
Sink: TypeAlias = Callable[[Event], None]

PermissionOption = Literal["allow_once", "allow_always", "reject_once", "reject_always"]


@runtime_checkable
class Approver(Protocol):
    """Asks a person (or a program in their place) whether a call may run.

    One that can show differences has `async approve_changes(name, input, reason, previews)`, which is asked in place of
    `approve` where there are previews; it returns an option, or path -> content where only a part was accepted.
    """

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption: ...
