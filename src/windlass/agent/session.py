"""A session: one kept conversation, one writer, one mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from windlass.agent.conversation import Conversation, legal_cut, live, repair
from windlass.agent.ledger import Ledger
from windlass.agent.plan import RunPlan, RunResult
from windlass.agent.run import Run
from windlass.core import clock, registry
from windlass.core.errors import ConfigError, SessionBusy, SessionNotFound, WindlassError
from windlass.core.events import (
    Event,
    InputQueued,
    MessageAdded,
    SessionCreated,
    SessionForked,
    SessionRewound,
    TextDelta,
    ToolFinished,
)
from windlass.core.messages import Message, Prompt, ToolResponse, as_parts, user
from windlass.core.ports import Store

__all__ = ["Session"]


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
    """

    __slots__ = (
        "_idle",
        "_loaded",
        "_mailbox",
        "_owns_store",
        "active",
        "agent",
        "conversation",
        "id",
        "ledger",
        "metadata",
        "state",
    )

    def __init__(
        self,
        agent: Runner,
        id: str | None = None,
        store: str | Store | None = None,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
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
        self._owns_store = isinstance(store, str)
        self._loaded = store is None
        self._mailbox: list[asyncio.Future[None]] = []
        self._idle: list[asyncio.Future[None]] = []

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, prompt: Prompt | None = None, **options: Any) -> Run:
        """Make a run that continues this conversation; without a prompt it resumes. Raises SessionBusy.

        Options are those of `Agent.run`. The run starts when it is awaited, entered or read.
        """
        self._must_be_free()
        return Run(self.agent.plan(self, prompt, options), self.agent.turn)

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
        while self.active is None and self._mailbox:
            future = self._mailbox.pop(0)
            if not future.done():
                future.set_result(None)
                return

    async def send(self, prompt: Prompt, on_text: Callable[[str], Any] | None = None, **options: Any) -> RunResult:
        """Run this prompt when its turn comes and return the result; `on_text` gets every piece of text.

        While another run is active the prompt is kept first (`input.queued`), then waits, first come first served.
        """
        if self.active is not None or self._mailbox:
            await self.load()
            message = user(prompt)
            await self.ledger.commit([InputQueued(message=message, mode="send")])
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._mailbox.append(future)
            try:
                await future
            except BaseException:
                if future.done() and not future.cancelled():
                    self._next()
                raise
            options.setdefault("prompt_source", "send")
        run = self.run(prompt, **options)
        if on_text is None:
            return await run
        async with run:
            async for event in run:
                if isinstance(event, TextDelta):
                    answer = on_text(event.text)
                    if isinstance(answer, Awaitable):
                        await answer
        return run.result

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
        if not self._loaded:
            self._fold(await self.ledger.read())
            self._loaded = True
        return self

    def _fold(self, events: Sequence[Event]) -> None:
        folded = Conversation.fold(events)
        target = self.conversation
        for name in Conversation.__slots__:
            setattr(target, name, getattr(folded, name))
        self.ledger.pos = len(events)

    async def events(self) -> list[Event]:
        """Return every durable event of this session."""
        await self.load()
        return await self.ledger.read()

    async def rewind(self, to_pos: int) -> int:
        """Go on as if the session had ended before row `to_pos`; returns the legal position that was used.

        Never cuts between a call and its response: then the whole answer goes. What came after stays readable.
        """
        self._must_rest("rewind")
        events = await self._kept("rewind")
        cut = legal_cut(events, to_pos)
        await self.ledger.commit([SessionRewound(to_pos=cut)])
        self._fold(await self.ledger.read())
        return cut

    async def fork(self, at: int | None = None, *, id: str | None = None) -> Session:
        """Make a session that shares this one's rows before `at` (None: all) and goes on by itself."""
        self._must_rest("fork")
        events = await self._kept("fork")
        cut = legal_cut(events, len(events) if at is None else at)
        store = self.ledger.store
        if id is not None and store is not None and await store.read(id, 0, 1, tenant=self.ledger.tenant):
            raise ConfigError(f"There is a session {id!r} already.", hint="Give the fork another id.")
        child = Session(self.agent, id, self.ledger.store, tenant=self.ledger.tenant)
        child.ledger.pos = cut
        await child.ledger.commit([SessionForked(parent=self.id, pos=cut)])
        return await child.load()

    async def turn_position(self, turn: int) -> int:
        """Return the row position right after turn `turn` (1 is the first answer) and its tool responses."""
        events = await self._kept("fork")
        seen = 0
        kept = live(events)
        for index, (pos, event) in enumerate(kept):
            if isinstance(event, MessageAdded) and event.message.role == "assistant":
                seen += 1
                if seen == turn:
                    left = {call.id for call in event.message.tool_calls}
                    end = pos + 1
                    for later, following in kept[index + 1 :]:
                        if not left:
                            break
                        end = later + 1
                        if isinstance(following, ToolFinished):
                            left.discard(following.call_id)
                    return end
        raise ConfigError(f"Session {self.id} has {seen} turns, not {turn}.", hint="Turns count from 1.")

    async def import_messages(self, messages: Sequence[Message]) -> list[str]:
        """Take over a foreign history into an empty session; returns what had to be mended, which is then saved."""
        self._must_rest("import into")
        await self.load()
        if self.ledger.pos:
            raise SessionBusy(f"Session {self.id} is not empty.", hint="Import into a new session.")
        mended, notes = repair(messages)
        events: list[Event] = [SessionCreated(session_id=self.id, title=_first_words(mended))]
        for message in mended:
            if message.role == "tool":
                for part in message.parts:
                    assert isinstance(part, ToolResponse)
                    events.append(ToolFinished(call_id=part.id, response=part.response, status=part.status))
            else:
                events.append(MessageAdded(message=message, source="import"))
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


def _first_words(messages: Sequence[Message]) -> str:
    first = next((message.text for message in messages if message.role == "user"), "")
    return " ".join(first.split())[:80]


def prompt_parts(prompt: Prompt | None, images: Sequence[Any]) -> Any:
    """Return prompt and images as parts, None when there is neither."""
    if prompt is None and not images:
        return None
    return (*(as_parts(prompt) if prompt is not None else ()), *images)
