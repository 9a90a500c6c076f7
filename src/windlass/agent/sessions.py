"""Many conversations in one process: an actor for each that has something to do, found by its id (reference D).

Each active session is one task with a mailbox: it reads its ledger, takes messages in order, one run at a time, and
leaves memory when nothing came for a while; then only its id is left. A message that has to wait is on record before
anybody waits for it. An actor that fails is started again from its ledger, with its mailbox; the others do not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from windlass.agent.agent import Agent
from windlass.agent.ledger import event_of
from windlass.agent.plan import RunResult
from windlass.agent.run import Run
from windlass.agent.session import Session
from windlass.agent.snapshots import Virtual
from windlass.core import clock, registry
from windlass.core.errors import AbortedError, ConfigError, MailboxFull, SessionError, SessionNotFound, StoreError
from windlass.core.events import InputQueued, SessionCreated, TextDelta
from windlass.core.messages import Message, Prompt, user
from windlass.core.ports import Capability, Store, Workspace

__all__ = ["SessionStatus", "Sessions", "send_message", "start_session", "stream_message"]

log = logging.getLogger("windlass.agent")
#: Where a session's first row keeps what `start` was given.
OPTIONS = "sessions"
#: How often in a row an actor is started again before those who wait are told.
MAX_RESTARTS = 3
OnText = Callable[[str], Any]


class SessionStatus(Struct, frozen=True):
    """How a session is: idle (only its id is in memory), resting (ready), starting or running; who waits."""

    id: str
    state: Literal["idle", "starting", "resting", "running"]
    queued: int = 0
    restarts: int = 0


class _Letter:
    """A message and who waits for its result; without a future it is one that an earlier program had queued."""

    __slots__ = ("future", "message", "on_text", "options", "place", "source")

    def __init__(
        self,
        message: Message,
        future: asyncio.Future[RunResult] | None,
        on_text: OnText | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.message, self.future, self.on_text, self.options = message, future, on_text, dict(options or {})
        #: Its row, once it is queued on record; -1 for an earlier program's.
        self.place: int | None = None
        self.source = "prompt"

    def answer(self, result: RunResult) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if self.future is None:
            log.warning("A message that was queued before failed: %s", error)
        elif not self.future.done():
            self.future.set_exception(error)


class _Actor:
    """One active session: its task, its mailbox, and what it holds while it lives."""

    __slots__ = ("current", "ending", "id", "leaving", "letters", "restarts", "run", "session", "task", "total", "wake")

    def __init__(self, id: str) -> None:
        self.id = id
        self.letters: deque[_Letter] = deque()
        self.task: asyncio.Task[None] | None = None
        self.session: Session | None = None
        self.current: _Letter | None = None
        self.run: Run | None = None
        self.wake = asyncio.Event()
        self.leaving = self.ending = False
        #: Failures since the last message that was handled, and all of them.
        self.restarts = self.total = 0

    def status(self) -> SessionStatus:
        state: Any = "running" if self.current is not None else "starting" if self.session is None else "resting"
        return SessionStatus(self.id, state, len(self.letters), self.total)


class Sessions:
    """Keep conversations of one agent by id, each an actor of its own: `start`, `send`, `stream`, `stop`, `list`.

    `store` is an open one or a name, which is then opened and closed here; None: the agent's, else memory. A session
    that nobody wrote to for `idle_seconds` leaves memory; at most `max_active` are in memory at once (one at rest makes
    room, else a message waits); `max_waiting` bounds each mailbox (MailboxFull). Where the agent has a virtual
    workspace, every session begins with a copy of its files and keeps its own.

    Belongs to one event loop, and to one process: two that serve the same id end in StoreConflict. Use as
    `async with Sessions(agent, "sqlite:sessions.db") as sessions`.
    """

    def __init__(
        self,
        agent: Agent,
        store: str | Store | None = None,
        *,
        idle_seconds: float | None = 300.0,
        max_active: int = 1000,
        max_waiting: int = 100,
        tenant: str = "",
    ) -> None:
        if max_active < 1 or max_waiting < 1:
            raise ConfigError("max_active and max_waiting are at least 1.")
        self.agent, self.tenant = agent, tenant
        self.idle_seconds, self.max_active, self.max_waiting = idle_seconds, max_active, max_waiting
        given = store if store is not None else agent.store or "memory"
        self.store: Store = registry.make("stores", given)
        self._owns_store = isinstance(given, str)
        self._ids: dict[str, None] = {}
        self._actors: dict[str, _Actor] = {}
        self._rest: OrderedDict[str, _Actor] = OrderedDict()
        self._room = asyncio.Semaphore(max_active)
        self._agents: dict[tuple[str, ...], Agent] = {}
        self._made: list[Capability] = []
        self._closed = False
        #: How many wait until another session leaves memory.
        self._crowd = 0

    # -- the registry ----------------------------------------------------------------------------------------------

    async def start(
        self,
        id: str | None = None,
        *,
        files: Mapping[str, str | bytes] | None = None,
        model: str | None = None,
        max_turns: int | None = None,
        skills_dirs: Iterable[str] = (),
        title: str = "",
    ) -> str:
        """Put a session on record and return its id; one that the store has already goes on as it was left.

        `files` (path -> content) give it a virtual workspace of its own; `model`, `max_turns` and `skills_dirs` hold
        for all its runs, in later programs too. What an earlier program had queued is delivered now. Raises ConfigError
        for an id that is started already, SessionError and StoreError.
        """
        self._check_open()
        id = clock.new_id() if id is None else id
        if id in self._ids:
            raise ConfigError(f"Session {id!r} is started already.", hint="Send to it, or choose another id.")
        self._ids[id] = None
        try:
            if await self._known(id):
                await self._take_up(id)
                return id
            kept: dict[str, Any] = {"virtual": files is not None or isinstance(self.agent.workspace, Virtual)}
            given = {"model": model, "max_turns": max_turns, "skills_dirs": [str(path) for path in skills_dirs] or None}
            kept.update({name: value for name, value in given.items() if value is not None})
            agent = await self._agent_for(kept)
            session = self._session(agent, id, self._workspace(kept, files), {OPTIONS: kept})
            await session.create(title)
        except BaseException:
            self._ids.pop(id, None)
            raise
        return id

    async def _take_up(self, id: str) -> None:
        rows = await self.store.read(id, tenant=self.tenant)
        if any(row.kind == "input.queued" for row in rows):
            # Its actor sees which of them were delivered.
            self._wake(self._actor(id))

    async def stop(self, id: str) -> None:
        """Abort what a session runs, let it go, and forget its id; the store keeps it.

        Those who wait get AbortedError; what they had queued is delivered when it is started again.
        """
        self._check_known(id)
        self._ids.pop(id, None)
        actor = self._actors.get(id)
        if actor is not None:
            await self._end(actor, AbortedError(f"Session {id} was stopped."))

    def list(self) -> list[SessionStatus]:
        """Return every session that was started here, and how it is."""
        return [self.get(id) for id in self._ids]

    def get(self, id: str) -> SessionStatus:
        """Return how a session is. Raises SessionNotFound for one that was not started here."""
        self._check_known(id)
        actor = self._actors.get(id)
        return SessionStatus(id, "idle") if actor is None else actor.status()

    async def close(self) -> None:
        """Stop everything, and close the store if it was opened here."""
        self._closed = True
        error = AbortedError("The sessions are closed.")
        await asyncio.gather(*[self._end(actor, error) for actor in list(self._actors.values())])
        self._ids.clear()
        for capability in self._made:
            await capability.close()
        if self._owns_store:
            await self.store.close()

    async def __aenter__(self) -> Sessions:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("These sessions are closed.")

    def _check_known(self, id: str) -> None:
        if id not in self._ids:
            raise SessionNotFound(f"Session {id!r} was not started here.", hint="start() it; its history is kept.")

    async def _known(self, id: str) -> bool:
        return bool(await self.store.read(id, 0, 1, tenant=self.tenant))

    # -- messages --------------------------------------------------------------------------------------------------

    async def send(self, id: str, prompt: Prompt, on_text: OnText | None = None, **options: Any) -> RunResult:
        """Run a prompt when its turn comes; returns text, files and stop_reason (`max_turns` too: it can go on).

        `on_text` gets every piece of text of every turn, in the session's own task. An id that only the store knows is
        started. Cancelled while it waits, the message is taken back; cancelled later, its run is aborted; either way
        the next ones go on. Raises what ended the run, MailboxFull, and SessionNotFound for an unknown id.
        """
        self._check_open()
        if id not in self._ids:
            if not await self._known(id):
                raise SessionNotFound(f"There is no session {id!r}.", hint="start() it first.")
            self._ids[id] = None
        while (actor := self._actor(id)).ending and actor.task is not None:
            await asyncio.wait([actor.task])
        if len(actor.letters) >= self.max_waiting:
            raise MailboxFull(f"Session {id!r} has {len(actor.letters)} messages waiting.", hint="Wait for answers.")
        letter = _Letter(user(prompt), asyncio.get_running_loop().create_future(), on_text, options)
        busy = actor.current is not None or len(actor.letters) > 0
        actor.letters.append(letter)
        self._wake(actor)
        assert letter.future is not None
        try:
            if busy and actor.session is not None:
                await self._put_down(actor, actor.session, [letter])
            return await letter.future
        except BaseException as error:
            await self._withdraw(actor, letter, error)
            raise

    async def stream(self, id: str, prompt: Prompt, on_chunk: OnText, **options: Any) -> RunResult:
        """Send, and give every piece of text to `on_chunk` as it comes."""
        return await self.send(id, prompt, on_chunk, **options)

    async def _put_down(self, actor: _Actor, session: Session, letters: Sequence[_Letter]) -> None:
        """Put messages that wait on record."""
        place = session.ledger.pos
        for at, letter in enumerate(letters):
            letter.place, letter.source = place + at, "send"
        try:
            await session.enqueue([letter.message for letter in letters])
        except StoreError:
            for letter in letters:
                letter.place = None
            if actor.task is not None and session is actor.session and actor.current is None:
                actor.task.cancel()  # a ledger that failed takes no more: read it again
            raise

    async def _withdraw(self, actor: _Actor, letter: _Letter, error: BaseException) -> None:
        if letter in actor.letters:
            actor.letters.remove(letter)
            if letter.place is not None and actor.session is not None:
                await actor.session.withdraw(letter.place)
        elif actor.current is letter and actor.run is not None and isinstance(error, asyncio.CancelledError):
            actor.run.abort("its sender was cancelled")

    # -- actors ----------------------------------------------------------------------------------------------------

    def _actor(self, id: str) -> _Actor:
        found = self._actors.get(id)
        if found is None:
            found = self._actors[id] = _Actor(id)
        return found

    def _wake(self, actor: _Actor) -> None:
        self._rest.pop(actor.id, None)
        actor.leaving = False
        actor.wake.set()
        if actor.task is None:
            actor.task = asyncio.get_running_loop().create_task(self._live(actor), name=f"session {actor.id}")
            actor.task.add_done_callback(lambda task: self._ended(actor, task))

    def _ended(self, actor: _Actor, task: asyncio.Task[None]) -> None:
        """Supervise: a task that failed is started again, one that left makes room."""
        self._rest.pop(actor.id, None)
        actor.task = actor.session = actor.run = None
        letter, actor.current = actor.current, None
        error: BaseException | None = None
        if task.cancelled():
            error = AbortedError(f"The task of session {actor.id} was ended from outside.")
        elif (error := task.exception()) is not None:
            log.warning("session %s failed: %s: %s", actor.id, type(error).__name__, error)
        if letter is not None:
            letter.fail(error or AbortedError(f"Session {actor.id} left."))
        if error is not None:
            actor.restarts += 1
            actor.total += 1
            if actor.restarts > MAX_RESTARTS:
                while actor.letters:
                    actor.letters.popleft().fail(error)
        if actor.letters and not self._closed and actor.id in self._ids:
            self._wake(actor)
        elif self._actors.get(actor.id) is actor:
            del self._actors[actor.id]

    async def _end(self, actor: _Actor, error: AbortedError) -> None:
        letters = [*actor.letters]
        actor.letters.clear()
        if actor.current is not None:
            letters.insert(0, actor.current)
        for letter in letters:
            letter.fail(error)
        if actor.run is not None:
            actor.run.abort(error.message)
        task, actor.ending = actor.task, True
        if task is not None:
            actor.leaving = True
            actor.wake.set()
            if actor.run is None:
                task.cancel()
            await asyncio.wait([task])

    async def _live(self, actor: _Actor) -> None:
        await self._take_room()
        try:
            session, options = await self._open(actor)
            actor.session = session
            waiting = [letter for letter in list(actor.letters)[1:] if letter.place is None]
            if waiting:
                await self._put_down(actor, session, waiting)
            while not actor.leaving:
                if not actor.letters:
                    if not await self._nap(actor):
                        return
                    continue
                await self._handle(actor, session, actor.letters.popleft(), options)
        finally:
            self._room.release()

    async def _take_room(self) -> None:
        if self._room.locked() and self._rest:
            # The one that has rested longest makes room.
            _, other = self._rest.popitem(last=False)
            other.leaving = True
            other.wake.set()
        self._crowd += 1
        try:
            await self._room.acquire()
        finally:
            self._crowd -= 1

    async def _nap(self, actor: _Actor) -> bool:
        """Wait for a message; False when it is time to leave."""
        actor.wake.clear()
        self._rest[actor.id] = actor
        if self._crowd:
            return False  # somebody waits for room
        try:
            async with clock.deadline(self.idle_seconds):
                await actor.wake.wait()
        except TimeoutError:
            return bool(actor.letters)
        finally:
            self._rest.pop(actor.id, None)
        return bool(actor.letters) or not actor.leaving

    async def _handle(self, actor: _Actor, session: Session, letter: _Letter, options: Mapping[str, Any]) -> None:
        """Run one message. Raises what makes the session's state unusable; all else is its sender's."""
        actor.current = letter
        try:
            run = session.run(letter.message, **{**options, **letter.options}, prompt_source=letter.source)
            actor.run = run
            letter.answer(await _read(run, letter.on_text))
        except SessionError as error:
            # The ledger is not what this object believes: read it again before anything else is put there.
            actor.session = None
            letter.fail(error)
            raise
        except Exception as error:
            letter.fail(error)
        actor.current = actor.run = None
        actor.restarts = 0

    # -- from the ledger -------------------------------------------------------------------------------------------

    async def _open(self, actor: _Actor) -> tuple[Session, dict[str, Any]]:
        first = await self.store.read(actor.id, 0, 1, tenant=self.tenant)
        if not first:
            raise SessionNotFound(f"There is no session {actor.id!r} any more: somebody deleted it.")
        created = event_of(first[0])
        kept: dict[str, Any] = created.metadata.get(OPTIONS, {}) if isinstance(created, SessionCreated) else {}
        session = self._session(await self._agent_for(kept), actor.id, self._workspace(kept, None))
        await session.load()
        left = list(session.pending)
        session.pending.clear()
        for letter in actor.letters:
            if letter.place is not None:
                # This one's sender is here: it is no leftover of an earlier program.
                mine = next((item for item in left if item.message == letter.message), None)
                if mine is not None:
                    left.remove(mine)
        actor.letters.extendleft(reversed([_leftover(item) for item in left]))
        return session, {name: kept[name] for name in ("model", "max_turns") if name in kept}

    def _session(
        self, agent: Agent, id: str, workspace: Workspace | None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        return Session(agent, id, self.store, tenant=self.tenant, workspace=workspace, metadata=metadata)

    def _workspace(self, kept: Mapping[str, Any], files: Mapping[str, str | bytes] | None) -> Workspace | None:
        """Return a workspace of the session's own, None where it works in its agent's."""
        template = self.agent.workspace
        if files is not None or (kept.get("virtual") and not isinstance(template, Virtual)):
            return registry.resolve("workspaces", "memory")(files)
        if not isinstance(template, Virtual):
            return None
        own: Any = template.blank()
        begun = template.snapshot()
        own.restore(begun, begun)
        return own

    async def _agent_for(self, kept: Mapping[str, Any]) -> Agent:
        folders: tuple[str, ...] = tuple(kept.get("skills_dirs", ()))
        if not folders:
            return self.agent
        if folders not in self._agents:
            await self.agent.warmup()
            skills: Capability = registry.resolve("capabilities", "skills")([*folders])
            self._made.append(skills)
            self._agents[folders] = self.agent.extended(skills)
        return self._agents[folders]


def _leftover(item: InputQueued) -> _Letter:
    letter = _Letter(item.message, None)
    letter.source, letter.place = item.mode, -1
    return letter


async def _read(run: Run, on_text: OnText | None) -> RunResult:
    if on_text is None:
        return await run
    async with run:
        async for event in run:
            if isinstance(event, TextDelta):
                answer = on_text(event.text)
                if isinstance(answer, Awaitable):
                    await answer
    return run.result


# -- reference D's names -----------------------------------------------------------------------------------------------


async def start_session(sessions: Sessions, id: str | None = None, **options: Any) -> str:
    """Start a session: `Sessions.start`."""
    return await sessions.start(id, **options)


async def send_message(sessions: Sessions, id: str, text: Prompt) -> tuple[Literal["ok"], str, dict[str, Any]]:
    """Send and return ("ok", reply, files); what goes wrong is raised."""
    result = await sessions.send(id, text)
    return "ok", result.text, result.files


async def stream_message(
    sessions: Sessions, id: str, text: Prompt, on_chunk: OnText
) -> tuple[Literal["ok"], str, dict[str, Any]]:
    """Send, with every piece of text to `on_chunk`, and return as `send_message`."""
    result = await sessions.stream(id, text, on_chunk)
    return "ok", result.text, result.files
