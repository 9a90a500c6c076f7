"""The resume picker: kept sessions as rows that people recognise."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from windlass.apps.tui.paint import one_line
from windlass.core import clock
from windlass.core.ports import SessionInfo, Store

__all__ = ["ago", "kept_sessions", "rows"]

_MOST = 200
_AGES = ((86400 * 365, "y"), (86400 * 30, "mo"), (86400 * 7, "w"), (86400, "d"), (3600, "h"), (60, "min"))


async def kept_sessions(store: Store, folder: str | None, *, but: str = "") -> list[SessionInfo]:
    """Return the sessions of a folder (None: of every folder), newest first, without the one called `but`."""
    found: list[SessionInfo] = []
    for info in await store.list(limit=_MOST):
        if info.id == but:
            continue
        if folder is not None:
            first = await store.read(info.id, 0, 1)
            if not first or _folder(first[0].data) not in (folder, ""):
                continue
        found.append(info)
    return sorted(found, key=lambda info: info.updated, reverse=True)


def _folder(data: bytes) -> str:
    """Return the folder that a session was started in, '' for one that does not say (a fork, an import)."""
    return str(msgspec.json.decode(data).get("metadata", {}).get("folder", ""))


def rows(infos: Sequence[SessionInfo]) -> list[str]:
    """Return a line for each session: when, what it began with, how long it is, its id."""
    now = clock.now_ns()
    return [
        f"{ago(now - info.updated):>6}  {one_line(info.title)[:70] or '(no prompt)'}  ({info.rows} rows, {info.id})"
        for info in infos
    ]


def ago(nanoseconds: int) -> str:
    """Return an age in its largest unit.

    >>> ago(90 * 10**9), ago(5 * 10**9), ago(26 * 3600 * 10**9)
    ('1 min', 'now', '1 d')
    """
    seconds = nanoseconds // 1_000_000_000
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "now"
