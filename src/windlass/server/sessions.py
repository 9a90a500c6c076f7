"""Sessions over HTTP: a `session_id` continues a conversation that the same ledger keeps as for everybody else.

A request's turn is one run in the ledger. `run.started` is on record before the model is asked: a server that dies
leaves a run without its end, which says that the request was in flight, and nothing of half a turn. What the client
said and what was answered come in one commit when the answer is complete, before its last bytes go out. An answer that
broke off is kept as far as the client has it, marked interrupted; a request that failed leaves only its run.

One request at a time works on a session; a few more wait in order, the rest are told 409. Among several gateways on one
database the ledger decides: who appends second reads again, once, and goes on behind the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from windlass.accounts.keys import Identity
from windlass.agent.conversation import Conversation, live, repair
from windlass.agent.ledger import Ledger
from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.config_files import data_home
from windlass.core.errors import RequestRefused, StoreConflict, StoreError
from windlass.core.events import (
    ConfigChanged,
    Event,
    MessageAdded,
    RunFinished,
    RunStarted,
    SessionCreated,
    SessionRewound,
    StopReason,
    ToolFinished,
)
from windlass.core.items import Finish
from windlass.core.messages import Message, Part, Text, ToolCall, ToolResponse, text_of
from windlass.core.ports import Store
from windlass.core.request import Request
from windlass.server.history import new_from, recent
from windlass.server.session_files import read_session
from windlass.server.settings import ServerSettings
from windlass.wire.base import OPENAI_IDS, wire_id

__all__ = ["Sessions", "Turn", "busy", "stored_events", "tenant_of"]

log = logging.getLogger("windlass.server")
#: What stands for the response to a call when the client goes on without giving one.
NO_RESULT = "No result was given for this call."
_STOPS: dict[str, StopReason] = {"length": "max_tokens", "content_filter": "refusal", "refusal": "refusal"}


def busy(session: str) -> RequestRefused:
    """Return the error for a session that others are working on."""
    text = f"Session {session} is busy with other requests."
    return RequestRefused(409, text, reason="session_busy", param="session_id", retry_after=1.0, retry=True)


def tenant_of(identity: Identity, asked: str, claimed: bool) -> str:
    """Return the tenant of a session.

    A key of a tenant stays there, whatever a request says. Without one, a request may name a tenant, unless keys were
    made for it (`claimed`), which only an administrator may. Raises RequestRefused 403.
    """
    own = identity.tenant
    if not asked or asked == own:
        return own
    if not own and (identity.role == "admin" or not claimed):
        return asked
    raise RequestRefused(403, "This key may not use another tenant's sessions.", kind="permission_error",
                         reason="tenant_not_allowed", param="tenant_id")  # fmt: skip


class Sessions:
    """The sessions of one gateway. The store is opened at first use and closed by `close`."""

    def __init__(self, config: Config, settings: ServerSettings) -> None:
        self._config, self.settings = config, settings
        self._store: Store | None = None
        #: Who waits for a session that somebody works on; no entry: nobody does.
        self._lines: dict[tuple[str, str], deque[asyncio.Future[None]]] = {}

    @property
    def store(self) -> Store:
        """Where sessions are kept: `[server] session_store`, else the setting `store`, else the user's database.

        Raises StoreError or ConfigError.
        """
        if self._store is None:
            where = self.settings.session_store or self._config.get("store")
            if not where:
                home = data_home(self._config.environ)
                try:
                    home.mkdir(mode=0o700, parents=True, exist_ok=True)
                except OSError as error:
                    raise StoreError(f"Cannot make the folder {home}: {error.strerror}.") from error
                where = f"sqlite:{home / 'sessions.db'}"
            self._store = registry.make("stores", where)
        assert self._store is not None
        return self._store

    @property
    def folder(self) -> Path | None:
        """Where reference A's session files lie, None where none were named."""
        return Path(self.settings.session_path).expanduser() if self.settings.session_path else None

    async def close(self) -> None:
        """Close the store, if it was opened."""
        if self._store is not None:
            await self._store.close()

    def working(self, tenant: str, session: str) -> bool:
        """Tell whether a request of this gateway works on a session now."""
        return (tenant, session) in self._lines

    async def enter(self, tenant: str, session: str, seconds: float | None) -> Turn:
        """Wait for a session, at most `seconds`, first come first served; `Turn.leave` ends the hold on it.

        Raises RequestRefused 409 when too many wait already, or when the time is over.
        """
        key = (tenant, session)
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            return Turn(self, tenant, session)
        if len(line) >= self.settings.session_queue:
            raise busy(session)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(place)
        try:
            async with clock.deadline(seconds):
                await place
        except TimeoutError:
            self._give_up(key, place)
            raise busy(session) from None
        except BaseException:
            self._give_up(key, place)
            raise
        return Turn(self, tenant, session)

    def _give_up(self, key: tuple[str, str], place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self.leave(*key)  # it was this one's turn already
        else:
            place.cancel()

    def leave(self, tenant: str, session: str) -> None:
        """Let the next one in."""
        line = self._lines.get((tenant, session))
        while line:
            place = line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._lines.pop((tenant, session), None)


class Turn:
    """One request's hold on a session, from its place in the line to the rows that end it.

    `load`, then `begin`, then one of `complete`, `interrupted` and `failed`; `leave` in any case.
    """

    def __init__(self, sessions: Sessions, tenant: str, session: str) -> None:
        self._sessions, self.tenant, self.id = sessions, tenant, session
        self.ledger = Ledger(sessions.store, session, tenant=tenant)
        self.conversation = Conversation()
        #: What this request adds, to be kept with its answer.
        self.fresh: list[Event] = []
        self.begun = self.ended = False
        #: How many messages were kept before this request.
        self.stored = 0
        self._run = ""
        self._start = 0
        self._incoming: Request | None = None
        self._notes: list[Message] = []

    # -- the request -----------------------------------------------------------------------------------------------

    async def load(self, incoming: Request, notes: Sequence[Message] = ()) -> Request:
        """Return the request with the conversation so far before what is new in it.

        `notes` are messages of the server's own behind it. At most `retention_messages` of what was stored are sent.
        Raises StoreError or SessionVersionError.
        """
        self._incoming, self._notes = incoming, list(notes)
        events = await self._read()
        talk = self.conversation = Conversation.fold(events)
        system, self.fresh = _system(events), []
        if incoming.system and incoming.system != system:
            system = incoming.system
            self.fresh.append(ConfigChanged(key="system", value=system))
        self.stored = len(talk.messages)
        new = list(incoming.messages)[new_from(talk.messages, incoming.messages) :]
        self.fresh += stored_events(talk, new, "import")
        self.fresh += stored_events(talk, notes, "notice")
        messages = recent(talk.messages, self.stored, self._sessions.settings.retention_messages)
        # Some models begin to count their calls anew with every answer: no vendor takes an id twice.
        messages, _ = repair(messages)
        return replace(incoming, system=system, messages=messages, session_id=self.id)

    async def _read(self) -> list[Event]:
        ledger = self.ledger = Ledger(self._sessions.store, self.id, tenant=self.tenant)
        events = await ledger.read()
        folder = self._sessions.folder
        if not events and folder is not None:
            try:
                found = await read_session(folder, self.tenant, self.id)
            except StoreError as error:
                log.warning("session %r: %s", self.id, error)
                found = []
            if found:
                await ledger.commit(found)
                events = list(found)
        ledger.pos = len(events)
        return events

    async def begin(self, model: str) -> Request | None:
        """Put on record that the model is about to be asked.

        Returns None, or the request anew when others have added to the session meanwhile. Raises RequestRefused 409
        when they do so again.
        """
        self._run = clock.new_id()
        started = RunStarted(session_id=self.id, model=model, agent="gateway", run_id=self._run)

        async def put() -> None:
            events = [*self._created(), started]
            self.ledger.run_pos = self.ledger.pos + len(events) - 1
            await self.ledger.commit(events)

        request = await self._twice(put)
        self.begun = True
        return request

    async def put_down(self) -> None:
        """Keep what the client said before a loop, whose run keeps its own rows. Raises RequestRefused 409."""

        async def put() -> None:
            created = self._created()
            self._start = self.ledger.pos + len(created)
            await self.ledger.commit([*created, *self.fresh])

        await self._twice(put)

    async def _twice(self, put: Callable[[], Awaitable[None]]) -> Request | None:
        """Put rows down; where others were first, read again what they added and try once more."""
        try:
            await put()
        except StoreConflict:
            assert self._incoming is not None
            request = await self.load(self._incoming, self._notes)
            try:
                await put()
            except StoreConflict:
                raise busy(self.id) from None
            return request
        return None

    def _created(self) -> list[Event]:
        """Return the first row of a session that is not kept yet, none for one that is."""
        if self.ledger.pos:
            return []
        said = next((message.text for message in self.conversation.messages if message.role == "user"), "")
        return [SessionCreated(session_id=self.id, title=" ".join(said.split())[:80])]

    # -- the answer ------------------------------------------------------------------------------------------------

    async def complete(self, finish: Finish, text: str, cost: int | None) -> None:
        """Keep the turn; `text` is what the client was told in all. Raises StoreError, or RequestRefused 409."""
        message = _as_told(finish.message, text)
        answer = MessageAdded(
            message=message, usage=finish.usage, cost=cost, model=finish.model, response_id=finish.response_id
        )
        stop = _STOPS.get(finish.reason, "end_turn")
        done = RunFinished(stop_reason=stop, usage=finish.usage, cost=cost, turns=1)
        await self._end([*self.fresh, answer, done])

    async def interrupted(self, text: str, why: str) -> None:
        """Keep an answer that broke off as far as the client has it."""
        message = Message("assistant", (Text(text),), finish_reason="interrupted")
        error = {"code": "interrupted", "message": why}
        done = RunFinished(stop_reason="cancelled", turns=1, error=error)
        await self._end([*self.fresh, MessageAdded(message=message), done])

    async def failed(self, why: str) -> None:
        """Keep that the request came to nothing."""
        await self._end([RunFinished(stop_reason="error", error={"code": why, "message": why})])

    async def take_back(self, text: str, *, told: bool) -> None:
        """Settle what a loop that did not come to its end has kept.

        Where the client was `told` of some of it that stays, with the `text` of the turn that broke off; else the
        session goes on as if it had not been asked.
        """
        ledger = Ledger(self._sessions.store, self.id, tenant=self.tenant)
        events = await ledger.read()
        ledger.pos = len(events)
        if not told:
            await ledger.commit([SessionRewound(to_pos=self._start)])
        elif text:
            message = Message("assistant", (Text(text),), finish_reason="interrupted")
            await ledger.commit([MessageAdded(message=message)])

    async def _end(self, events: list[Event]) -> None:
        self.ended = True
        try:
            await self.ledger.commit(events)
            return
        except StoreConflict:
            pass
        # Another gateway added a turn of its own: ours goes behind it, whole.
        mine, ledger = self.ledger.run_pos, Ledger(self._sessions.store, self.id, tenant=self.tenant)
        kept = await ledger.read()
        ours = len(kept) > mine and isinstance(started := kept[mine], RunStarted) and started.run_id == self._run
        ledger.pos, ledger.run_pos = len(kept), mine
        if not ours:
            raise RequestRefused(409, f"Session {self.id} was deleted meanwhile.", reason="session_deleted",
                                 param="session_id")  # fmt: skip
        try:
            await ledger.commit(events)
        except StoreConflict:
            raise busy(self.id) from None

    def leave(self) -> None:
        """Let the next request in."""
        self._sessions.leave(self.tenant, self.id)


def stored_events(conversation: Conversation, messages: Sequence[Message], source: str) -> list[Event]:
    """Add messages to a conversation and return the rows that do the same: every call has exactly one response.

    A response without an open call is left out, and a call that is not answered gets a response that says so.
    """
    events: list[Event] = []
    for message in messages:
        responses = [part for part in message.parts if isinstance(part, ToolResponse)]
        for part in responses:
            opened = next((item for item in conversation.open_calls if _wired(item.call.id) == _wired(part.id)), None)
            if opened is not None:
                events.append(_answered(conversation, opened.call, part.response, part.status))
        rest = tuple([part for part in message.parts if not isinstance(part, ToolResponse)])
        if not rest:
            continue
        events += [_answered(conversation, item.call, NO_RESULT, "skipped") for item in conversation.open_calls]
        message = replace(message, role="user" if message.role == "tool" else message.role, parts=rest)
        conversation.add(message, started=True)
        events.append(MessageAdded(message=message, source="prompt" if message.role == "user" else source))
    return events


def _answered(conversation: Conversation, call: ToolCall, content: Any, status: Any) -> ToolFinished:
    conversation.respond(ToolResponse(call.id, content, status))
    return ToolFinished(call_id=call.id, name=call.name, response=content, status=status)


def _wired(call_id: str) -> str:
    return wire_id(call_id, OPENAI_IDS)


def _as_told(message: Message, text: str) -> Message:
    """Return the answer as the client has it: its text in all, and its calls by the ids that it was told."""
    parts: list[Part] = [replace(p, id=_wired(p.id)) if isinstance(p, ToolCall) else p for p in message.parts]
    if text != text_of(message.parts):
        # The stream was begun by one model and ended by another.
        parts = [Text(text), *[part for part in parts if not isinstance(part, Text)]]
    return replace(message, parts=tuple([p for p in parts if not (isinstance(p, Text) and not p.content)]))


def _system(events: Sequence[Event]) -> str | None:
    """Return the system text that was last set."""
    set_by = [e for _, e in live(events) if isinstance(e, ConfigChanged) and e.key == "system"]
    return str(set_by[-1].value) if set_by else None
