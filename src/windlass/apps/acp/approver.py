"""Ask the client's person: session/request_permission, with what the call would do.

Source: https://agentclientprotocol.com/protocol/tool-calls#requesting-permission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from acp.helpers import start_tool_call, update_tool_call
from acp.interfaces import Client
from acp.schema import (
    AllowedOutcome,
    FileEditToolCallContent,
    ToolCallLocation,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
)
from acp.schema import PermissionOption as Option
from msgspec import Struct, field

from windlass.apps.acp.looks import absolute, clean, diff, first_line, kind_of, locations, plain_input, said, title_of
from windlass.apps.acp.looks import shown_input as shown
from windlass.apps.acp.updates import View, call_key
from windlass.core import clock
from windlass.core.events import Event, PermissionRequested
from windlass.core.ports import PermissionOption, Preview

__all__ = ["OPTIONS", "ClientApprover"]

#: What is remembered is one exact call, for as long as the session is open.
OPTIONS = [
    Option(option_id="allow_once", name="Allow", kind="allow_once"),
    Option(option_id="allow_always", name="Always allow this exact call", kind="allow_always"),
    Option(option_id="reject_once", name="Reject", kind="reject_once"),
    Option(option_id="reject_always", name="Always reject this exact call", kind="reject_always"),
]


class _Announced(Struct, eq=False):
    """A question that the run has put on record, and whether the client has been told of its call."""

    event: PermissionRequested
    told: asyncio.Event = field(default_factory=asyncio.Event)


class ClientApprover:
    """Asks the client of one session; `lost` is called when it is gone.

    It waits as long as the client does: cancelling the prompt ends the question. The client hears of a call before it
    is asked about it: `heard` takes the run's events as they come, `told` those that the client has been told.
    """

    def __init__(self, client: Client, session_id: str, view: View, lost: Callable[[], None]) -> None:
        self._client, self._session_id, self._view, self._lost = client, session_id, view, lost
        self._announced: list[_Announced] = []

    def heard(self, event: Event) -> None:
        """Take an event of the run, before anybody is asked."""
        if isinstance(event, PermissionRequested) and not any(each.event is event for each in self._announced):
            self._announced.append(_Announced(event))

    def told(self, event: Event) -> None:
        """Take note that the client has been told of everything up to this event."""
        for each in self._announced:
            if each.event is event:
                each.told.set()

    def begin(self) -> None:
        """Forget questions of an earlier prompt."""
        self._announced.clear()

    async def approve(self, name: str, input: dict[str, Any], reason: str, /) -> PermissionOption:
        """Ask about a call. Raises RequestError or ConnectionError when the client cannot be asked."""
        return await self._ask(name, input, reason, ())

    async def approve_changes(
        self, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview], /
    ) -> PermissionOption:
        """Ask about a call, showing what it would change."""
        return await self._ask(name, input, reason, previews)

    async def _ask(
        self, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview]
    ) -> PermissionOption:
        fits = (each for each in self._announced if each.event.name == name and each.event.input == input)
        found = next(fits, None)
        if found is not None:
            await found.told.wait()
            self._announced.remove(found)
            key = call_key(found.event, found.event.call_id)
        else:
            # No call of the run is behind it (an MCP server asks): the client must hear of something to ask about.
            key = clock.new_id()
            await self._tell(start_tool_call(key, title_of(name, input), kind="other", status="pending"))
        try:
            response = await self._client.request_permission(
                session_id=self._session_id,
                tool_call=self._question(key, name, input, reason, previews),
                options=OPTIONS,
            )
        except ConnectionError:
            self._lost()
            raise
        outcome = response.outcome
        chosen = outcome.option_id if isinstance(outcome, AllowedOutcome) else ""
        answers: list[PermissionOption] = [option.kind for option in OPTIONS if option.option_id == chosen]
        answer = answers[0] if answers else "reject_once"
        if found is None:
            await self._tell(update_tool_call(key, status="completed" if answer.startswith("allow") else "failed"))
        return answer

    async def _tell(self, update: ToolCallStart | ToolCallProgress) -> None:
        await self._client.session_update(session_id=self._session_id, update=update)

    def _question(
        self, key: str, name: str, input: dict[str, Any], reason: str, previews: Sequence[Preview]
    ) -> ToolCallUpdate:
        view = self._view
        diffs = [self._difference(each) for each in previews]
        # The difference says all of a file tool's arguments.
        body = shown(name, {} if diffs else input, reason)
        places = [
            ToolCallLocation(path=clean(absolute(view.cwd, each.path)), line=first_line(each.before, each.after))
            for each in previews
        ]
        return ToolCallUpdate(
            tool_call_id=key,
            title=title_of(name, input),
            kind=kind_of(name, input, view.notes.get(name)),
            status="pending",
            content=[*diffs, *body],
            locations=places or locations(view.cwd, input),
            raw_input=plain_input(input),
        )

    def _difference(self, preview: Preview) -> Any:
        found: FileEditToolCallContent | None = diff(self._view.cwd, preview.path, preview.before, preview.after)
        if found is not None:
            return found
        size = "is removed" if preview.after is None else f"gets {len(preview.after)} bytes"
        return said(f"{preview.path} {size} (not text, or too large to show).")
