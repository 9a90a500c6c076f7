"""A session: one kept conversation, one writer, one mailbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from windlass.agent.conversation import Conversation, legal_cut, live
from windlass.agent.ledger import Ledger, settled
from windlass.agent.plan import RunPlan, RunResult
from windlass.agent.positions import answer_position, events_of, first_words
from windlass.agent.run import Run
from windlass.agent.snapshots import (
    Change,
    Direction,
    EditedTurn,
    FileHistory,
    Virtual,
    keeps_files,
    move_files,
    net_changes,
    record_start,
    restore_files,
)
from windlass.core import clock, registry
from windlass.core.errors import ConfigError, SessionBusy, SessionNotFound, StoreError, UndoError, WindlassError
from windlass.core.events import (
    ConfigChanged,
    ContextCompacted,
    Event,
    FileChanged,
    InputQueued,
    SessionCreated,
    SessionForked,
    SessionRewound,
    TextDelta,
    ToolFinished,
)
from windlass.core.messages import Message, Prompt, as_parts, user
from windlass.core.ports import Store, Workspace

__all__ = ["Session"]

log = logging.getLogger("windlass.agent")
#: The key of the row that takes a queued message back; its value is the position of that message.
WITHDRAWN = "input.withdrawn"


class Runner(Protocol):
    """What a session needs of its agent: a plan for one run, and the loop that turns it."""

    def plan(self, session: Session, prompt: Prompt | None, options: Mapping[str, Any]) -> RunPlan: ...
    def turn(self, run: Run) -> Any: ...


class Session:
    """A conversation that an agent continues, and that a store keeps.

    `store` is an open one, or a name ("memory", "sqlite:PATH") whose store this session then opens and closes itself;
    None keeps the conversation only in this object.

    One run at a time: `run` raises SessionBusy while one is active, `send` waits for its turn, and what it was given
    is kept before it waits. Use as `async with Session(agent, id="…", store="sqlite:…") as session`.

    `workspace` (or `files`, path -> content, for a virtual one) is this session's own; None: its agent's. The files of
    a virtual workspace are kept with the history, and both come back together: give a fresh one when you resume.
    """

    __slots__ = (
        "_holder", "_idle", "_loaded", "_loading", "_mailbox", "_owns_store", "_recorded", "active", "agent",
        "conversation", "id", "ledger", "metadata", "state", "workspace",
    )  # fmt: skip

    def __init__(
        self,
        agent: Runner,
        id: str | None = None,
        store: str | Store | None = None,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        workspace: str | Workspace | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> None:
        if files is not None and workspace is not None:
            raise ConfigError("A session has files or a workspace, not both.", hint="Give the workspace the files.")
        self.agent = agent
        self.id = id or clock.new_id()
        kept: Store | None = registry.make("stores", store)
        self.ledger = Ledger(kept, self.id, tenant=tenant)
        self.conversation = Conversation()
        #: What tools and hooks keep as long as this object lives.
        self.state: dict[str, Any] = {}
        #: What a new session's first row says of it.
        self.metadata = dict(metadata or {})
        self.active: Run | None = None
        #: Where this session's tools act; None: in its agent's workspace.
        self.workspace: Workspace | None = registry.make("workspaces", workspace)
        if files is not None:
            self.workspace = registry.resolve("workspaces", "memory")(files)
        self._recorded = False
        self._owns_store = isinstance(store, str)
        self._loaded = store is None
        self._loading: asyncio.Future[None] | None = None
        #: Whose turn it is, from its call until its run has begun.
        self._holder: asyncio.Future[None] | None = None
        self._mailbox: list[asyncio.Future[None]] = []
        self._idle: list[asyncio.Future[None]] = []

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, prompt: Prompt | None = None, **options: Any) -> Run:
        """Make a run that continues this conversation; without a prompt it resumes. Raises SessionBusy.

        Options are those of `Agent.run`. The run starts when it is awaited, entered or read.
        """
        self._must_be_free()
        if self.workspace is not None:
            options.setdefault("workspace", self.workspace)
        plan = self.agent.plan(self, prompt, options)
        parent: Run | None = plan.parent
        if parent is not None and plan.workspace is parent.workspace:
            self.ledger.files = parent.ledger.files
        return Run(plan, self.agent.turn)

    def _must_be_free(self) -> None:
        if self.active is not None:
            raise SessionBusy(
                f"Session {self.id} already runs {self.active.id}.",
                hint="Await it, use send() to queue, or steer() and follow_up() to talk to it.",
            )

    def started(self, run: Run) -> None:
        """Take the session for a run; called by the run when it starts. Raises SessionBusy."""
        self._must_be_free()
        self.active = run

    def ended(self, run: Run) -> None:
        """Free the session after a run; called by the run."""
        if self.active is run:
            self.active = None
        waiting, self._idle = self._idle, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._next()

    def _next(self) -> None:
        while self.active is None and self._holder is None and self._mailbox:
            future = self._mailbox.pop(0)
            if not future.done():
                self._holder = future
                future.set_result(None)

    async def send(self, prompt: Prompt, on_text: Callable[[str], Any] | None = None, **options: Any) -> RunResult:
        """Run this prompt when its turn comes and return the result; `on_text` gets every piece of text.

        While another run is active the prompt is kept first (`input.queued`), then waits, first come first served; one
        that is cancelled while it waits is taken back. What an earlier program had queued is delivered before.
        """
        await self.load()
        if self.active is not None or self._mailbox or self._holder is not None or self.pending:
            await self._take_turn(user(prompt))
            options.setdefault("prompt_source", "send")
        try:
            run = self.run(prompt, **options).start()
        finally:
            self._holder = None
            self._next()
        if on_text is None:
            return await run
        async with run:
            async for event in run:
                if isinstance(event, TextDelta):
                    answer = on_text(event.text)
                    if isinstance(answer, Awaitable):
                        await answer
        return run.result

    async def _take_turn(self, message: Message) -> None:
        """Queue a message and return when it is its turn; the message is taken back when something comes between."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mailbox.append(future)
        place = self.ledger.pos
        try:
            await self.enqueue([message])
            self._next()
            await future
            await self.deliver()
        except BaseException:
            if future in self._mailbox:
                self._mailbox.remove(future)
            elif self._holder is future:
                self._holder = None
                self._next()
            await self.withdraw(place)
            raise

    @property
    def pending(self) -> list[InputQueued]:
        """What an earlier program had queued and not delivered, in order."""
        return self.conversation.pending_inputs

    async def enqueue(self, messages: Sequence[Message]) -> None:
        """Keep messages that wait for their turn; the first gets the row position that is next at the call."""
        await self.ledger.commit([InputQueued(message=message, mode="send") for message in messages])

    async def withdraw(self, place: int) -> None:
        """Take a queued message back for good: nobody delivers it after a crash."""
        try:
            await settled(self.ledger.commit([ConfigChanged(key=WITHDRAWN, value=place)]))
        except StoreError as error:
            log.warning("session %s: a queued message could not be taken back: %s", self.id, error)

    async def deliver(self) -> list[RunResult]:
        """Run, one after the other, what an earlier program had queued; returns the results of those that ended well.

        Each is on record as delivered before its model is asked, so one that fails is reported and not repeated.
        Raises StoreError.
        """
        await self.load()
        results: list[RunResult] = []
        while self.pending:
            queued = self.pending.pop(0)
            try:
                results.append(await self.run(queued.message, prompt_source=queued.mode))
            except StoreError:
                raise
            except WindlassError as error:
                log.warning("session %s: a message queued before failed: %s", self.id, error)
        return results

    def steer(self, message: str | Message) -> None:
        """Talk to the active run before its next request. Raises WindlassError when none is active."""
        self._current().steer(message)

    def follow_up(self, message: str | Message) -> None:
        """Give the active run something to do when it would rest. Raises WindlassError when none is active."""
        self._current().follow_up(message)

    def abort(self, reason: str = "") -> None:
        """Abort the active run; does nothing when none is."""
        if self.active is not None:
            self.active.abort(reason)

    def _current(self) -> Run:
        if self.active is None:
            raise WindlassError("No run is active.", hint="Start one with run() or send().")
        return self.active

    async def wait_for_idle(self) -> None:
        """Wait until no run is active."""
        while self.active is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    # -- history ---------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as the next request would carry it."""
        return tuple(self.conversation.messages)

    async def load(self) -> Session:
        """Read the kept conversation once; a new id is an empty one. Raises StoreError or SessionVersionError."""
        while not self._loaded:
            # One reading, whoever asks first: a second one would undo what a run has begun meanwhile.
            if self._loading is not None:
                await asyncio.shield(self._loading)
            else:
                await self._load()
        run = self.active
        mine = run is not None and not self._recorded and run.workspace is self._place
        if run is not None and mine and keeps_files(self.ledger, run.workspace):
            await self.create(first_words([Message("user", run.plan.prompt or ())]))
        return self

    @property
    def _place(self) -> Workspace | None:
        return self.workspace if self.workspace is not None else getattr(self.agent, "workspace", None)

    async def _load(self) -> None:
        reading = self._loading = asyncio.get_running_loop().create_future()
        try:
            events = await self.ledger.read()
            self._fold(events)
            self._recorded = await restore_files(self.ledger, self._place, events)
            self._loaded = True
        finally:
            self._loading = None
            reading.set_result(None)

    async def create(self, title: str = "") -> None:
        """Put a new session on record, with the files that its virtual workspace begins with; a run does so by itself.

        Does nothing for one that is on record. Raises StoreError.
        """
        if not self._loaded:
            await self.load()
        if self.ledger.pos == 0:
            await self.ledger.commit([SessionCreated(session_id=self.id, title=title, metadata=self.metadata)])
        if not self._recorded:
            self._recorded, place = True, self._place
            if isinstance(place, Virtual) and keeps_files(self.ledger, place):
                await record_start(self.ledger, place.snapshot())

    def _fold(self, events: Sequence[Event]) -> None:
        folded = Conversation.fold(events)
        target = self.conversation
        self.state.pop("reading", None)  # what the tools gave before may not be in this history
        for name in Conversation.__slots__:
            setattr(target, name, getattr(folded, name))
        for event in events:
            if isinstance(event, ConfigChanged) and event.key == WITHDRAWN and isinstance(event.value, int):
                taken = events[event.value] if event.value < len(events) else None
                target.pending_inputs = [item for item in target.pending_inputs if item is not taken]
        self.ledger.pos = len(events)

    async def events(self) -> list[Event]:
        """Return every durable event of this session."""
        await self.load()
        return await self.ledger.read()

    async def rewind(self, to_pos: int, *, files: bool = False, force: bool = False) -> int:
        """Go on as if the session had ended before row `to_pos`; returns the legal position that was used.

        Never cuts between a call and its response: then the whole answer goes. What came after stays readable.
        `files` also takes back what the tools did to files from there on; both, or neither (see `undo`).
        """
        self._must_rest("rewind")
        events = await self._kept("rewind")
        cut = legal_cut(events, to_pos)
        rows: list[Event] = []
        if files and (turns := FileHistory(events).since(cut)):
            rows.extend(await self._apply(turns, "undone", force))
        await self.ledger.commit([*rows, SessionRewound(to_pos=cut)])
        self._fold(await self.ledger.read())
        return cut

    async def undo(self, turns: int | None = 1, *, force: bool = False) -> list[str]:
        """Take back what the last `turns` turns did to files (None: all of the last run); returns the paths.

        Counted are turns whose tools changed files and that were not undone yet: a second call goes one further back,
        `redo` the other way until the next change. What shell commands did is not known here. Raises UndoError, with
        nothing restored, when a file is not as the agent left it (`force` overwrites it, and keeps what it was), and
        when a write fails in the middle, saying which were restored.
        """
        history = FileHistory(await self._resting("undo"))
        if turns is not None and turns < 1:
            raise ConfigError(f"Cannot undo {turns} turns.", hint="Count from 1; None is the last run.")
        if not any(not turn.undone for turn in history.turns):
            raise UndoError("There is nothing to undo: no tool has changed a file.")
        return await self._move(history.last(turns), "undone", force)

    async def redo(self, turns: int = 1, *, force: bool = False) -> list[str]:
        """Do again what `undo` took back, the earliest first; returns the paths. Raises as `undo`."""
        found = FileHistory(await self._resting("redo")).next_undone(turns)
        if not found:
            raise UndoError("There is nothing to redo.")
        return await self._move(found, "redone", force)

    async def changes(self, turn: int | None = None) -> list[Change]:
        """Return what tools did to files, contents before and after: in answer `turn` (from 1), or since the start.

        What was undone is left out. Raises ConfigError for a turn that is not there, UndoError for contents not kept.
        """
        events = await self._kept("compare")
        turns = [one for one in FileHistory(events).turns if not one.undone]
        if turn is not None:
            pos = answer_position(self.id, live(events), turn)[1]
            turns = [one for one in turns if one.pos == pos]
        return await net_changes(self.ledger, turns)

    async def _resting(self, what: str) -> list[Event]:
        self._must_rest(what)
        return await self._kept(what)

    async def _move(self, turns: Sequence[EditedTurn], status: Direction, force: bool) -> list[str]:
        rows = await self._apply(turns, status, force)
        await self.ledger.commit(rows)
        return sorted([row.path for row in rows if row.before != row.after])

    async def _apply(self, turns: Sequence[EditedTurn], status: Direction, force: bool) -> list[FileChanged]:
        return await move_files(self.ledger, self._place, turns, status, force=force)

    async def fork(self, at: int | None = None, *, id: str | None = None) -> Session:
        """Make a session that shares this one's rows before `at` (None: all) and goes on by itself."""
        self._must_rest("fork")
        events = await self._kept("fork")
        cut = legal_cut(events, len(events) if at is None else at)
        store = self.ledger.store
        if id is not None and store is not None and await store.read(id, 0, 1, tenant=self.ledger.tenant):
            raise ConfigError(f"There is a session {id!r} already.", hint="Give the fork another id.")
        place = self._place
        if isinstance(place, Virtual) and keeps_files(self.ledger, place):
            place = place.blank()  # the child's own: its ledger fills it
        else:
            place = self.workspace
        child = Session(self.agent, id, self.ledger.store, tenant=self.ledger.tenant, workspace=place)
        child.ledger.pos = cut
        await child.ledger.commit([SessionForked(parent=self.id, pos=cut)])
        return await child.load()

    async def turn_position(self, turn: int) -> int:
        """Return the row position right after turn `turn` (1 is the first answer) and its tool responses."""
        kept = live(await self._kept("fork"))
        index, pos, left = answer_position(self.id, kept, turn)
        end = pos + 1
        for later, following in kept[index + 1 :]:
            if not left:
                break
            end = later + 1
            if isinstance(following, ToolFinished):
                left.discard(following.call_id)
        return end

    async def import_messages(self, messages: Sequence[Message]) -> list[str]:
        """Take over a foreign history into an empty session; returns what had to be mended, which is then saved."""
        self._must_rest("import into")
        await self.load()
        if self.ledger.pos:
            raise SessionBusy(f"Session {self.id} is not empty.", hint="Import into a new session.")
        events, notes = events_of(self.id, messages)
        await self.ledger.commit(events)
        self._fold(await self.ledger.read() if self.ledger.store is not None else events)
        return notes

    def reset(self) -> None:
        """Forget the conversation and start a new, empty session; kept rows stay in the store under the old id."""
        self._must_rest("reset")
        self.id = clock.new_id()
        self.ledger = Ledger(self.ledger.store, self.id, tenant=self.ledger.tenant)
        self.conversation.clear()
        self.state.clear()
        self._recorded = False

    def _must_rest(self, what: str) -> None:
        if self.active is not None:
            raise SessionBusy(
                f"Cannot {what} session {self.id} while {self.active.id} runs.", hint="Await or abort it."
            )

    async def _kept(self, what: str) -> list[Event]:
        if self.ledger.store is None:
            raise ConfigError(f"Cannot {what}: this session is not kept.", hint="Give it a store, such as 'memory'.")
        await self.load()
        events = await self.ledger.read()
        if not events:
            raise SessionNotFound(f"Session {self.id} is empty or unknown.")
        return events

    async def compact(
        self, strategy: Literal["tail", "summary"] = "summary", *, keep_turns: int | None = None
    ) -> ContextCompacted | None:
        """Shorten what the next request carries; the ledger keeps all of it. See `agent.context.compact_now`."""
        await self.load()
        target = self.active if self.active is not None else self.agent.plan(self, None, {})
        # By name: few sessions ask for it, and every agent would import it.
        return await registry.load("windlass.agent.context:compact_now")(target, strategy, keep_turns=keep_turns)

    # -- lifetime --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Abort what runs, wait for it, and close the store if this session opened it."""
        self.abort("the session is closed")
        await self.wait_for_idle()
        if self._owns_store and self.ledger.store is not None:
            await self.ledger.store.close()

    async def __aenter__(self) -> Session:
        return await self.load()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def prompt_parts(prompt: Prompt | None, images: Sequence[Any]) -> Any:
    """Return prompt and images as parts, None when there is neither."""
    if prompt is None and not images:
        return None
    return (*(as_parts(prompt) if prompt is not None else ()), *images)
