"""What the model has read in this session: an unchanged file is not given twice, and what was not read not changed.

Kept in the session's state under `reading`. The two switches stand there under `discipline`: `dedup_reads` (default
on) and `require_read_before_edit` (default off).
"""

from __future__ import annotations

from typing import Any

from windlass.core.ports import ToolContext
from windlass.tools.access import Refusal, digest

__all__ = ["check_read", "forget_reads", "note_change", "note_read", "shown_before"]

_DEFAULTS = {"dedup_reads": True, "require_read_before_edit": False}
#: Files and ranges remembered; the oldest gives way.
MAX_KEPT = 10_000


def _switch(ctx: ToolContext, name: str) -> bool:
    return bool(ctx.state.get("discipline", {}).get(name, _DEFAULTS[name]))


def _kept(state: dict[str, Any], part: str) -> dict[str, str]:
    return state.setdefault("reading", {}).setdefault(part, {})


def _put(kept: dict[str, str], key: str, value: str) -> None:
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > MAX_KEPT:
        del kept[next(iter(kept))]


def forget_reads(state: dict[str, Any]) -> None:
    """Forget what was read in a session: after a compaction or a rewind the model may not see it any more."""
    state.pop("reading", None)


def _range(path: str, offset: int, limit: int) -> str:
    return f"{path}\n{offset}\n{limit}"


def shown_before(ctx: ToolContext, path: str, offset: int, limit: int, data: bytes) -> bool:
    """Tell whether this range of this content was given in this session, and need not be given again."""
    if not _switch(ctx, "dedup_reads"):
        return False
    return _kept(ctx.state, "shown").get(_range(path, offset, limit)) == digest(data)


def note_read(ctx: ToolContext, path: str, offset: int, limit: int, data: bytes) -> None:
    """Remember that a range of a file with this content was given."""
    now = digest(data)
    _put(_kept(ctx.state, "shown"), _range(path, offset, limit), now)
    _put(_kept(ctx.state, "seen"), path, now)


def note_change(ctx: ToolContext, path: str, after: bytes | None) -> None:
    """Remember that a tool gave a file this content (None: removed it): it may be read and changed again."""
    shown = _kept(ctx.state, "shown")
    for key in [key for key in shown if key.startswith(f"{path}\n")]:
        del shown[key]
    if after is None:
        _kept(ctx.state, "seen").pop(path, None)
    else:
        _put(_kept(ctx.state, "seen"), path, digest(after))


def check_read(ctx: ToolContext, path: str, content: bytes) -> None:
    """Refuse to change a file that the model has not read, or that is another since; only where that is asked for.

    Raises Refusal that says what to do.
    """
    if not _switch(ctx, "require_read_before_edit"):
        return
    seen = _kept(ctx.state, "seen").get(path)
    if seen is None:
        raise Refusal(f"{path} was not read in this session. Read it with read_file first, then change it.")
    if seen != digest(content):
        raise Refusal(f"{path} has changed since it was read. Read it again with read_file, then change it.")
