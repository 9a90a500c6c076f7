"""The agent's side of the protocol: requests of a client, each for one of its sessions.

Source: https://agentclientprotocol.com, version 1; the wire is the official SDK's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from acp import PROTOCOL_VERSION
from acp.helpers import update_current_mode
from acp.interfaces import Client
from acp.schema import (
    AgentCapabilities,
    ClientCapabilities,
    CloseSessionResponse,
    ConfigOptionUpdate,
    Implementation,
    InitializeResponse,
    ListSessionsResponse,
    LoadSessionResponse,
    McpCapabilities,
    NewSessionResponse,
    PromptCapabilities,
    PromptResponse,
    ResumeSessionResponse,
    SessionCapabilities,
    SessionCloseCapabilities,
    SessionInfo,
    SessionListCapabilities,
    SessionResumeCapabilities,
    SetSessionConfigOptionResponse,
    SetSessionModeResponse,
)

from windlass.agent.session import Session
from windlass.apps.acp.approver import ClientApprover
from windlass.apps.acp.build import Built, Options, Server, build, config_for
from windlass.apps.acp.failures import bad, busy, failure, unknown
from windlass.apps.acp.files import ClientFiles
from windlass.apps.acp.options import modes
from windlass.apps.acp.prompts import Block
from windlass.apps.acp.talk import Talk
from windlass.apps.acp.updates import View
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import WindlassError
from windlass.core.ports import Approver, Store, Workspace
from windlass.core.version import __version__

__all__ = ["AcpAgent", "Builder"]

log = logging.getLogger("windlass.acp")
#: How many sessions a list holds.
_LISTED = 200
Builder = Callable[[Options, Config, str, Sequence[Server], Approver, Callable[[Workspace], Workspace]], Built]


class AcpAgent:
    """Serves one client: any number of sessions at once, each with an agent of its own, all kept in `store`.

    `builder` makes an agent (see `build`), which is the one place to put another. Use it with the SDK's
    `AgentSideConnection`; `close` ends every session.
    """

    def __init__(
        self, options: Options, store: Store, *, environ: Mapping[str, str] | None = None, builder: Builder = build
    ) -> None:
        self._options, self._store, self._builder = options, store, builder
        self._environ: Mapping[str, str] = os.environ if environ is None else environ
        self._client: Client | None = None
        self._offers = ClientCapabilities()
        self._talks: dict[str, Talk] = {}
        self._opening: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_connect(self, conn: Client) -> None:
        """Take the connection; the SDK calls this."""
        self._client = conn

    # -- the protocol's methods; what a request's _meta holds comes as further keywords ----------------------------

    async def initialize(
        self, protocol_version: int, client_capabilities: ClientCapabilities | None = None, **_meta: Any
    ) -> InitializeResponse:
        """Say who we are and what we can; we speak one version, whatever is asked for."""
        del protocol_version
        self._offers = client_capabilities or ClientCapabilities()
        return InitializeResponse(
            protocol_version=PROTOCOL_VERSION,
            agent_capabilities=AgentCapabilities(
                load_session=True,
                prompt_capabilities=PromptCapabilities(image=True, audio=False, embedded_context=True),
                mcp_capabilities=McpCapabilities(http=True, sse=True),
                session_capabilities=SessionCapabilities(
                    list=SessionListCapabilities(),
                    resume=SessionResumeCapabilities(),
                    close=SessionCloseCapabilities(),
                ),
            ),
            agent_info=Implementation(name="windlass", title="Windlass", version=__version__),
            auth_methods=[],
        )

    async def new_session(
        self,
        cwd: str,
        mcp_servers: Sequence[Server] | None = None,
        additional_directories: Sequence[str] | None = None,
        **_meta: Any,
    ) -> NewSessionResponse:
        """Begin a session in a folder."""
        talk = await self._open(clock.new_id(), cwd, mcp_servers or (), additional_directories or ())
        self._later(talk.announce())
        return NewSessionResponse(session_id=talk.id, modes=modes(talk.built), config_options=talk.options())

    async def load_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: Sequence[Server] | None = None,
        additional_directories: Sequence[str] | None = None,
        **_meta: Any,
    ) -> LoadSessionResponse:
        """Go on with a kept session, telling all that was said in it."""
        talk = await self._again(session_id, cwd, mcp_servers or (), additional_directories or ())
        await _ours(talk.replay())
        self._later(talk.announce())
        return LoadSessionResponse(modes=modes(talk.built), config_options=talk.options())

    async def resume_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: Sequence[Server] | None = None,
        additional_directories: Sequence[str] | None = None,
        **_meta: Any,
    ) -> ResumeSessionResponse:
        """Go on with a kept session, telling nothing of it."""
        talk = await self._again(session_id, cwd, mcp_servers or (), additional_directories or ())
        await _ours(talk.replay(tell=False))
        self._later(talk.announce())
        return ResumeSessionResponse(modes=modes(talk.built), config_options=talk.options())

    async def list_sessions(
        self, cwd: str | None = None, cursor: str | None = None, **_meta: Any
    ) -> ListSessionsResponse:
        """List kept sessions, the latest first, of one folder or of all; there is one page."""
        del cursor
        rows: list[SessionInfo] = []
        for info in await _ours(self._store.list(limit=_LISTED)):
            first = await _ours(self._store.read(info.id, 0, 1))
            folder = msgspec.json.decode(first[0].data).get("metadata", {}).get("folder") if first else None
            if isinstance(folder, str) and (cwd is None or os.path.realpath(cwd) == os.path.realpath(folder)):
                changed = datetime.fromtimestamp(info.updated / 1e9, UTC).isoformat()
                rows.append(SessionInfo(session_id=info.id, cwd=folder, title=info.title or None, updated_at=changed))
        return ListSessionsResponse(sessions=rows)

    async def close_session(self, session_id: str, **_meta: Any) -> CloseSessionResponse:
        """End a session; it is kept."""
        talk = self._talk(session_id)
        del self._talks[session_id]
        await _ours(talk.close())
        return CloseSessionResponse()

    async def prompt(self, session_id: str, prompt: Sequence[Block], **_meta: Any) -> PromptResponse:
        """Answer a prompt."""
        return await self._talk(session_id).prompt(prompt)

    async def cancel(self, session_id: str, **_meta: Any) -> None:
        """End the prompt that is being answered; it is answered as cancelled."""
        if (talk := self._talks.get(session_id)) is not None:
            talk.cancel()

    async def set_session_mode(self, session_id: str, mode_id: str, **_meta: Any) -> SetSessionModeResponse:
        """Change the permission mode, also while a prompt is being answered."""
        talk = self._talk(session_id)
        await _ours(talk.choose_mode(mode_id))
        self._later(self._tell_options(talk))
        return SetSessionModeResponse()

    async def set_config_option(
        self, config_id: str, session_id: str, value: str | bool, **_meta: Any
    ) -> SetSessionConfigOptionResponse:
        """Change the mode, the model or the reasoning."""
        talk = self._talk(session_id)
        before = talk.built.permissions.mode
        await _ours(talk.choose(config_id, str(value)))
        if talk.built.permissions.mode != before:
            self._later(self._tell_mode(talk))
        return SetSessionConfigOptionResponse(config_options=talk.options())

    # -- sessions --------------------------------------------------------------------------------------------------

    def _talk(self, session_id: str) -> Talk:
        talk = self._talks.get(session_id)
        if talk is None:
            raise unknown(f"There is no open session {session_id!r}: begin one with session/new or session/load.")
        return talk

    async def _again(self, session_id: str, cwd: str, servers: Sequence[Server], more: Sequence[str]) -> Talk:
        if not await _ours(self._store.read(session_id, 0, 1)):
            raise unknown(f"There is no kept session {session_id!r}.")
        if (talk := self._talks.get(session_id)) is not None:
            if talk.turn is not None:
                raise busy("This session is answering a prompt: wait for it, or cancel it.")
            del self._talks[session_id]
            await _ours(talk.close())
        return await self._open(session_id, cwd, servers, more)

    async def _open(self, session_id: str, cwd: str, servers: Sequence[Server], more: Sequence[str]) -> Talk:
        client = self._client
        if client is None:
            raise busy("There is no connection.")
        if not os.path.isabs(cwd) or not Path(cwd).is_dir():  # noqa: PTH117 - the protocol's word: an absolute path
            raise bad(f"cwd must be the absolute path of a folder that is there, not {cwd!r}.")
        if more:
            raise bad("Additional directories are not offered: an agent works in one folder.")
        if session_id in self._opening:
            raise busy("This session is being opened already.")
        self._opening.add(session_id)
        try:
            talk = self._make(client, session_id, cwd, servers)
            await talk.session.load()
        except WindlassError as error:
            raise failure(error) from error
        finally:
            self._opening.discard(session_id)
        self._talks[session_id] = talk
        for notice in talk.built.notices:
            log.warning("%s: %s", cwd, notice)
        return talk

    def _make(self, client: Client, session_id: str, cwd: str, servers: Sequence[Server]) -> Talk:
        view = View(cwd)
        talks: list[Talk] = []
        wrapped: list[ClientFiles] = []

        def lost() -> None:
            for talk in talks:
                talk.cancel()

        def wrap(inner: Workspace) -> Workspace:
            wrapped.append(self._files(client, session_id, cwd, inner))
            return wrapped[0]

        approver = ClientApprover(client, session_id, view, lost)
        config = config_for(self._options, cwd, self._environ)
        built = self._builder(self._options, config, cwd, servers, approver, wrap)
        session = Session(built.agent, session_id, self._store, metadata={"folder": os.path.realpath(cwd)})
        talk = Talk(client, session, built, approver, wrapped[0], view)
        talks.append(talk)
        return talk

    def _files(self, client: Client, session_id: str, cwd: str, inner: Workspace) -> ClientFiles:
        offers = self._offers.fs if self._options.client_files else None

        async def read_text(path: str) -> str:
            return (await client.read_text_file(session_id=session_id, path=path)).content

        async def write_text(path: str, content: str) -> None:
            await client.write_text_file(session_id=session_id, path=path, content=content)

        reads, writes = bool(offers and offers.read_text_file), bool(offers and offers.write_text_file)
        return ClientFiles(inner, cwd, read_text if reads else None, write_text if writes else None)

    # -- what is told by itself ------------------------------------------------------------------------------------

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this after the answer to the request at hand is written: the client does not know the session before."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_mode(self, talk: Talk) -> None:
        await self._update(talk, update_current_mode(talk.built.permissions.mode))

    async def _tell_options(self, talk: Talk) -> None:
        await self._update(
            talk, ConfigOptionUpdate(session_update="config_option_update", config_options=talk.options())
        )

    async def _update(self, talk: Talk, update: Any) -> None:
        try:
            await talk.client.session_update(session_id=talk.id, update=update)
        except ConnectionError:
            log.debug("The client is gone.")

    async def close(self) -> None:
        """End what runs, keep it, and let go of every session; calling it again does nothing."""
        talks = list(self._talks.values())
        self._talks.clear()
        for task in list(self._tasks):
            task.cancel()
        for outcome in await asyncio.gather(*[talk.close() for talk in talks], return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.warning("A session could not be closed: %s", outcome)


async def _ours(work: Awaitable[Any]) -> Any:
    """Wait for our own work. Raises RequestError in place of our errors."""
    try:
        return await work
    except WindlassError as error:
        raise failure(error) from error
