"""One session of a client: its agent, its prompts one at a time, and what the client is told of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from acp.helpers import (
    update_agent_message_text,
    update_agent_thought_text,
    update_available_commands,
    update_tool_call,
)
from acp.interfaces import Client
from acp.schema import PromptResponse, SessionInfoUpdate, StopReason, Usage
from msgspec import Struct

from windlass.agent.conversation import live
from windlass.agent.policy import MODES
from windlass.agent.session import Session
from windlass.apps.acp.approver import ClientApprover
from windlass.apps.acp.build import Built
from windlass.apps.acp.commands import COMMANDS, CONTINUE, found, offered
from windlass.apps.acp.failures import bad, busy, failure
from windlass.apps.acp.files import ClientFiles
from windlass.apps.acp.looks import clean, said
from windlass.apps.acp.options import THINKING, config_options
from windlass.apps.acp.prompts import Block, parts_of, words_of
from windlass.apps.acp.updates import LIVE, PAST, Table, View, translate
from windlass.core import registry
from windlass.core.errors import AbortedError, UndoError, UnknownNameError, WindlassError
from windlass.core.events import Event, MessageAdded, ToolFinished, TurnFinished
from windlass.core.messages import Part, Text
from windlass.core.models import facts_of
from windlass.core.usage import Usage as Used
from windlass.tools.skills import Skills, expand

__all__ = ["Talk"]

log = logging.getLogger("windlass.acp")
T_ = TypeVar("T_")
#: Why the agent rests, as the protocol has it; its word for a limit is that for too many requests.
_STOPS: dict[str, StopReason] = {
    "end_turn": "end_turn", "max_tokens": "max_tokens", "max_turns": "max_turn_requests", "refusal": "refusal",
    "cancelled": "cancelled", "budget": "max_turn_requests", "loop": "max_turn_requests",
}  # fmt: skip
_CUT_OFF = "\n\n[The last answer was cut off by the end of the program. /continue goes on with it.]\n\n"
_UNKNOWN = "Outcome unknown: the program ended while this ran."


class Turn(Struct, eq=False):
    """A prompt that is being answered. `stop` ends what it waits for now."""

    cancelled: bool = False
    stop: Callable[[], Any] | None = None

    def cancel(self) -> None:
        """End it; what was asked for before it could begin is not begun."""
        self.cancelled = True
        if self.stop is not None:
            self.stop()


class Talk:
    """A session as a client drives it. Make it with `built`, whose agent asks `approver` and works in `files`."""

    def __init__(
        self, client: Client, session: Session, built: Built, approver: ClientApprover, files: ClientFiles, view: View
    ) -> None:
        self.client, self.session, self.built = client, session, built
        self.approver, self.files, self.view = approver, files, view
        self.turn: Turn | None = None
        self.model: str | None = None
        self.thinking: str | None = None
        view.notes = {name: bound.spec.annotations for name, bound in built.agent.tools.items()}
        self._measure()

    @property
    def id(self) -> str:
        """The session's id, ours and the client's."""
        return self.session.id

    # -- prompts ---------------------------------------------------------------------------------------------------

    async def prompt(self, blocks: Sequence[Block]) -> PromptResponse:
        """Answer a prompt. Raises RequestError while another is being answered, and for what goes wrong."""
        if self.turn is not None:
            raise busy("This session is answering a prompt: wait for it, or cancel it.")
        # Before anything is awaited: a cancel that comes right behind the prompt must find it.
        turn = self.turn = Turn()
        try:
            return await self._answer(blocks, turn)
        except (AbortedError, ConnectionError):
            return PromptResponse(stop_reason="cancelled")
        except WindlassError as error:
            if turn.cancelled:
                return PromptResponse(stop_reason="cancelled")
            raise failure(error) from error
        finally:
            self.turn = None

    def cancel(self) -> None:
        """End the prompt that is being answered, if any."""
        if self.turn is not None:
            self.turn.cancel()

    async def _answer(self, blocks: Sequence[Block], turn: Turn) -> PromptResponse:
        command = found(words_of(blocks))
        if command is None:
            parts = await self._stoppable(turn, self._with_skills(parts_of(blocks, self.view.cwd)))
            return await self._run(parts, turn)
        name, argument = command
        if name == CONTINUE:
            if self.session.conversation.run_open is None:
                raise bad("The last answer of this session is whole: write what to do next.")
            return await self._run(None, turn)
        try:
            text = await self._stoppable(turn, COMMANDS[name].run(self, argument))
        except AbortedError:
            raise
        except WindlassError as error:
            text = str(error)  # a person reads it, as they read what a command says
        await self._send(update_agent_message_text(clean(text)))
        return PromptResponse(stop_reason="end_turn")

    async def _stoppable(self, turn: Turn, work: Awaitable[T_]) -> T_:
        """Wait for something that a cancel ends. Raises AbortedError then."""
        task = asyncio.ensure_future(work)
        turn.stop = task.cancel
        try:
            done = await task
        except asyncio.CancelledError:
            if turn.cancelled:
                raise AbortedError("cancelled by the client") from None
            task.cancel()
            raise
        if turn.cancelled:
            raise AbortedError("cancelled by the client")
        return done

    async def _with_skills(self, parts: list[Part]) -> list[Part]:
        """Put the instructions of skills that the prompt names in its place."""
        skills = self._skills()
        first = next((at for at, part in enumerate(parts) if isinstance(part, Text)), None)
        if skills is None or first is None:
            return parts
        await self.built.agent.warmup()
        text = await expand(cast(Text, parts[first]).content, skills, self.session.state)
        return [*parts[:first], Text(text), *parts[first + 1 :]]

    def _skills(self) -> Skills | None:
        return next((each for each in self.built.agent.capabilities if isinstance(each, Skills)), None)

    async def _run(self, parts: list[Part] | None, turn: Turn) -> PromptResponse:
        self.approver.begin()
        fresh = not self.session.messages
        given = {"model": self.model, "thinking": self.thinking}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        run = self.session.run(parts, sinks=[self._heard], **chosen)
        turn.stop = lambda: run.abort("cancelled by the client")
        async with run:
            async for event in run:
                await self._tell(event, LIVE)
        result = run.result
        if fresh:
            await self._tell_title()
        used = result.stats.usage
        return PromptResponse(stop_reason=_STOPS.get(result.stop_reason, "end_turn"), usage=_usage(used))

    def _heard(self, event: Event) -> None:
        """Take an event as soon as it is there: the client is told of it later, in order."""
        if isinstance(event, MessageAdded):
            self.files.expect(event.message.tool_calls)
        self.approver.heard(event)

    async def _tell(self, event: Event, table: Table) -> None:
        view = self.view
        view.take(event)
        for sha256, path in view.missing(event).items():
            try:
                data = await self._kept(sha256, path)
            except UndoError:
                continue
            view.contents[sha256] = data
        for update in translate(view, event, table):
            await self._send(update)
        self.approver.told(event)
        if isinstance(event, ToolFinished):
            view.forget(event)

    async def _kept(self, sha256: str, path: str) -> bytes:
        """Return the content of a file as it was at a change. Raises UndoError where it was not kept."""
        ledger = self.session.ledger
        data = None
        if (blobs := getattr(ledger.store, "blobs", None)) is not None:
            data = await blobs.get(ledger.session_id, sha256, tenant=ledger.tenant)
        if data is None:
            raise UndoError(f"The content of {path} was not kept.", paths=[path])
        return data

    async def _send(self, update: Any) -> None:
        await self.client.session_update(session_id=self.id, update=update)

    # -- what was said before --------------------------------------------------------------------------------------

    async def replay(self, *, tell: bool = True) -> None:
        """Tell the client the kept conversation, or only take it in. Raises StoreError."""
        kept = [event for _, event in live(await self.session.events())]
        for event in kept:
            if tell:
                await self._tell(event, PAST)
            else:
                self.view.take(event)
        for item in self.session.conversation.open_calls:
            if tell:
                await self._send(update_tool_call(clean(item.call.id), status="failed", content=[said(_UNKNOWN)]))
        self.view.calls.clear()
        if tell and self.view.used:
            for update in translate(self.view, TurnFinished(turn=0), LIVE):
                await self._send(update)
        if tell and self.session.conversation.run_open is not None:
            await self._send(update_agent_thought_text(_CUT_OFF))

    async def announce(self) -> None:
        """Tell what commands there are; the skills follow when they were looked for."""
        try:
            await self._send(update_available_commands(offered({})))
            await self.built.agent.warmup()
            if (skills := self._skills()) is not None and skills.skills:
                told = {name: skill.description for name, skill in skills.skills.items()}
                await self._send(update_available_commands(offered(told)))
        except (WindlassError, ConnectionError) as error:
            # Not this request's fault: the next prompt meets the same error, and says it.
            log.warning("session %s: %s", self.id, error)

    async def _tell_title(self) -> None:
        title = " ".join(self.session.messages[0].text.split())[:80] if self.session.messages else ""
        if title:
            await self._send(SessionInfoUpdate(session_update="session_info_update", title=clean(title)))

    # -- choices ---------------------------------------------------------------------------------------------------

    def model_name(self) -> str:
        """Return the model that answers."""
        return self.model or self.built.agent.model_name

    async def choose_mode(self, mode: str) -> None:
        """Change the permission mode. Raises UnknownNameError."""
        if mode not in MODES[:-1]:
            raise UnknownNameError("mode", mode, MODES[:-1])
        for name in MODES[:-1]:
            if name == mode:
                self.built.permissions.mode = name

    async def choose_model(self, model: str) -> None:
        """Change the model of the prompts to come. Raises ConfigError for one that cannot be had."""
        registry.model(model, self.built.config)
        self.model = model
        self._measure()

    async def choose(self, option: str, value: str) -> None:
        """Change one of `config_options`. Raises ConfigError."""
        if option == "mode":
            await self.choose_mode(value)
        elif option == "model":
            await self.choose_model(value)
        elif option == "thinking":
            if value not in THINKING:
                raise UnknownNameError("thinking", value, THINKING)
            self.thinking = None if value == "default" else value
        else:
            raise UnknownNameError("option", option, ("mode", "model", "thinking"))

    def options(self) -> list[Any]:
        """Return what can be chosen, with what is chosen now."""
        return config_options(self.built, self.model_name(), self.thinking)

    def _measure(self) -> None:
        provider, _, model = self.model_name().partition(":")
        self.view.window = facts_of(provider, model).context or 0

    async def close(self) -> None:
        """End what runs, keep it, and let go of the agent."""
        self.cancel()
        await self.session.close()
        await self.built.agent.destroy()


def _usage(used: Used) -> Usage:
    return Usage(
        total_tokens=used.total_tokens,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        thought_tokens=used.reasoning_tokens,
        cached_read_tokens=used.cache_read_tokens,
        cached_write_tokens=used.cache_creation_tokens,
    )
