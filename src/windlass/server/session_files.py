"""Reference A's session files, `<tenant or global>__<session>.json`: read at a session's first use, written on export.

A keeps `{session_id, tenant_id, summary, updated_at_ms, messages: [{role, content}]}` and puts `_` for every character
of an id but letters, digits, `_`, `-` and `.`: two sessions may so have one file, and the last one written wins. Here
a file counts only for the ids that stand inside it, and what is written is named by A's rule only where no other ids
could give that name; else a `~` and twelve digits of a digest of both ids are added, which A's rule never makes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from windlass.agent.conversation import Conversation, live
from windlass.core import clock
from windlass.core.errors import StoreError
from windlass.core.events import ConfigChanged, Event, MessageAdded, SessionCreated
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Message, Role, Text, ToolResponse, response_text
from windlass.core.private import replace_private
from windlass.core.threads import run_in_thread

__all__ = [
    "MAX_BYTES",
    "events_of_file",
    "file_name",
    "ids_of_file",
    "read_file",
    "read_session",
    "session_json",
    "write_session",
]

#: A's own cap on what it reads.
MAX_BYTES = 8 * 1024 * 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST = 200
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "user"}


def file_name(tenant: str, session: str) -> str:
    """Return the name of a session's file, which no other session has.

    >>> file_name("", "plan"), file_name("acme", "a b")
    ('global__plan.json', 'acme__a_b~1d1fb9b187fe.json')
    """
    plain = _plain_name(tenant, session)
    ids = tenant + session
    if not _UNSAFE.search(ids) and "__" not in ids and not _edges(tenant, session) and len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(f"{len(tenant)}:{tenant}{session}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{plain.removesuffix('.json')[:_LONGEST]}~{digest}.json"


def _edges(tenant: str, session: str) -> bool:
    """Tell whether the underscores between both ids could be read in another place, or the tenant as none."""
    return tenant == "global" or tenant.endswith("_") or session.startswith("_")


def _plain_name(tenant: str, session: str) -> str:
    return f"{_UNSAFE.sub('_', tenant) or 'global'}__{_UNSAFE.sub('_', session) or 'session'}.json"


async def read_session(folder: Path, tenant: str, session: str) -> list[Event]:
    """Return the events of a session's file, [] where there is none. Raises StoreError for one that cannot be read."""
    return await run_in_thread(_read_session, folder, tenant, session)


def _read_session(folder: Path, tenant: str, session: str) -> list[Event]:
    for name in dict.fromkeys((file_name(tenant, session), _plain_name(tenant, session))):
        if len(name) > 255 or not (folder / name).is_file():
            continue
        data = _object(folder / name)
        if ids_of_file(data) == (tenant, session):
            return _events(folder / name, data, session)
    return []


def _object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise StoreError(f"{path} is larger than {MAX_BYTES} bytes.")
    try:
        data: Any = loads(raw)
    except JsonError as error:
        raise StoreError(f"{path} is {error}.") from None
    if not isinstance(data, dict) or not isinstance(data.get("messages", []), list):
        raise StoreError(f"{path} is not a session of the router's.")
    return data  # pyright: ignore[reportUnknownVariableType]


def read_file(path: Path) -> tuple[str, str, list[Event]]:
    """Return (tenant, session, events) of a file that a person names. Raises StoreError."""
    data = _object(path)
    tenant, session = ids_of_file(data)
    if not session:
        raise StoreError(f"{path} names no session_id.")
    return tenant, session, _events(path, data, session)


def _events(path: Path, data: dict[str, Any], session: str) -> list[Event]:
    try:
        return events_of_file(data, session)
    except StoreError as error:
        raise StoreError(f"{path}: {error.message}") from None


def ids_of_file(data: dict[str, Any]) -> tuple[str, str]:
    """Return (tenant, session) as a file names them; A's null tenant is ours without a name."""
    tenant, session = data.get("tenant_id"), data.get("session_id")
    return (tenant if isinstance(tenant, str) else ""), (session if isinstance(session, str) else "")


def events_of_file(data: dict[str, Any], session: str) -> list[Event]:
    """Return the rows of a new session that hold a file's messages. Raises StoreError for one that is none.

    Its leading system messages become the session's system text; a message of the role `tool`, which names no call at
    A, is the user's, as A tells it to Claude.
    """
    system: list[str] = []
    messages: list[Message] = []
    for at, item in enumerate(data.get("messages", [])):
        role = _ROLES.get(str(item.get("role", "")).lower()) if isinstance(item, dict) else None
        if role is None or not isinstance(item.get("content"), str):
            raise StoreError(f"messages[{at}] of session {session} is not {{role, content}}.")
        if role == "system" and not messages:
            system.append(item["content"])
        elif item["content"].strip():
            messages.append(Message(role, (Text(item["content"]),)))
    said = next((message.text for message in messages if message.role == "user"), "")
    about: dict[str, Any] = {"imported": "reference A"}
    if isinstance(summary := data.get("summary"), str) and summary:
        about["summary"] = summary
    title = " ".join(said.split())[:80]
    events: list[Event] = [SessionCreated(session_id=session, title=title, metadata=about)]
    if system:
        events.append(ConfigChanged(key="system", value="\n".join(system)))
    return events + [MessageAdded(message=message, source="import") for message in messages]


def session_json(tenant: str, session: str, events: Sequence[Event]) -> bytes:
    """Return a session as A's JSON: every message that counts, in text; calls and their responses told in words."""
    rows: list[dict[str, str]] = []
    kept = [event for _, event in live(events)]
    texts = [event.value for event in kept if isinstance(event, ConfigChanged) and event.key == "system"]
    if texts:
        rows.append({"role": "system", "content": str(texts[-1])})
    for message in Conversation.fold(events).messages:
        if message.role == "tool":
            responses = [part for part in message.parts if isinstance(part, ToolResponse)]
            rows += [{"role": "tool", "content": response_text(part)} for part in responses]
        else:
            calls = [f"[called {call.name}({dumps(call.arguments or {}).decode()})]" for call in message.tool_calls]
            rows.append({"role": message.role, "content": "\n".join([text for text in (message.text, *calls) if text])})
    created = next((event for event in kept if isinstance(event, SessionCreated)), None)
    updated = max([event.time for event in events], default=0) or clock.now_ns()
    return dumps(
        {
            "session_id": session,
            "tenant_id": tenant or None,
            "summary": str(created.metadata.get("summary", "")) if created is not None else "",
            "updated_at_ms": updated // 1_000_000,
            "messages": [row for row in rows if row["content"].strip()],
        }
    )


def write_session(folder: Path, tenant: str, session: str, events: Sequence[Event]) -> Path:
    """Write a session's file into a folder, whole or not at all, and return its path. Raises StoreError."""
    path = folder / file_name(tenant, session)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_private(path, session_json(tenant, session, events))
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}.") from error
    return path
