"""The routes of sessions: list them (for administrators), read one, delete one.

A session of another tenant is answered exactly as one that is not there.
"""

from __future__ import annotations

from typing import Any

import msgspec

from windlass.agent.conversation import Conversation, live
from windlass.agent.ledger import Ledger
from windlass.core import clock
from windlass.core.errors import RequestRefused
from windlass.core.events import ConfigChanged, Event, SessionCreated
from windlass.core.json import dumps
from windlass.core.ports import SessionInfo
from windlass.server.endpoints import Endpoint
from windlass.server.extras import checked_id
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.models import query_of, whole_of
from windlass.server.sessions import busy, tenant_of

__all__ = ["ENDPOINTS"]

_MOST = 1000


def _tenant(gateway: Gateway, call: Call) -> str:
    asked = checked_id("tenant_id", query_of(call).get("tenant_id", "").strip())
    return tenant_of(call.identity, asked, gateway.accounts.claims(asked))


def _unknown(session: str) -> RequestRefused:
    return RequestRefused(404, f"There is no session {session[:256]!r}.", reason="session_not_found")


async def sessions(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/sessions`: those of the tenant `tenant_id`, the newest first, at most `limit` (100)."""
    limit = whole_of(query_of(call), "limit", 100)
    if not 1 <= limit <= _MOST:
        raise RequestRefused(400, f"limit must be from 1 to {_MOST}.", reason="invalid_limit", param="limit")
    tenant = _tenant(gateway, call)
    found = await gateway.sessions.store.list(tenant=tenant, limit=limit)
    rows = [_row(info, tenant) for info in found]
    call.respond(200, dumps({"object": "list", "data": rows}), [("x-request-id", call.id)])


def _row(info: SessionInfo, tenant: str) -> dict[str, Any]:
    return {
        "id": info.id,
        "object": "session",
        "tenant_id": tenant or None,
        "title": info.title,
        "created": clock.rfc3339(info.created),
        "updated": clock.rfc3339(info.updated),
        "rows": info.rows,
    }


async def session(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/sessions/{session}`: its messages in our own form, its system text, and how it is.

    `status` is running, interrupted (its last request was never answered to its end) or idle.
    """
    tenant, name = _tenant(gateway, call), call.params["session"]
    ledger = Ledger(gateway.sessions.store, name, tenant=tenant)
    events = await ledger.read()
    if not events:
        raise _unknown(name)
    call.respond(200, dumps(_session(gateway, tenant, name, events)), [("x-request-id", call.id)])


def _session(gateway: Gateway, tenant: str, name: str, events: list[Event]) -> dict[str, Any]:
    talk = Conversation.fold(events)
    kept = [event for _, event in live(events)]
    system = [event.value for event in kept if isinstance(event, ConfigChanged) and event.key == "system"]
    title = next((event.title for event in kept if isinstance(event, SessionCreated)), "")
    status = "idle"
    if gateway.sessions.working(tenant, name):
        status = "running"
    elif talk.run_open is not None or (talk.messages and talk.messages[-1].finish_reason == "interrupted"):
        status = "interrupted"
    return {
        "id": name,
        "object": "session",
        "tenant_id": tenant or None,
        "title": title,
        "created": clock.rfc3339(events[0].time),
        "updated": clock.rfc3339(events[-1].time),
        "rows": len(events),
        "status": status,
        "system": system[-1] if system else None,
        "messages": [msgspec.to_builtins(message) for message in talk.messages],
        "usage": {"input_tokens": talk.usage.input_tokens, "output_tokens": talk.usage.output_tokens},
    }


async def delete(gateway: Gateway, call: Call) -> None:
    """Answer `DELETE /v1/sessions/{session}`: it is gone for good; one that is busy stays, with 409."""
    tenant, name = _tenant(gateway, call), call.params["session"]
    if gateway.sessions.working(tenant, name):
        raise busy(name)
    turn = await gateway.sessions.enter(tenant, name, None)
    try:
        gone = await gateway.sessions.store.delete(name, tenant=tenant)
    finally:
        turn.leave()
    if not gone:
        raise _unknown(name)
    told = {"id": name, "object": "session.deleted", "deleted": True}
    call.respond(200, dumps(told), [("x-request-id", call.id)])


ENDPOINTS = (
    Endpoint("GET", "/v1/sessions", sessions, access="admin", summary="List kept conversations.", feature="agents"),
    Endpoint("GET", "/v1/sessions/{session}", session, summary="Read a kept conversation.", feature="agents"),
    Endpoint("DELETE", "/v1/sessions/{session}", delete, summary="Delete a kept conversation.", feature="agents"),
)
