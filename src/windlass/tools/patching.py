"""Change several files by one patch, all or none."""

from __future__ import annotations

from typing import Any

from windlass.core.ports import ToolContext
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal, not_found, workspace_of
from windlass.tools.builtin import Change, Plan, changing, path_of
from windlass.tools.patch import Section, apply_hunks, parse_patch
from windlass.tools.reading import check_read
from windlass.tools.text import decode_text, is_binary

__all__ = ["apply_patch"]

MAX_PATCH = 4 * 1024 * 1024
MAX_FILE = 16 * 1024 * 1024
_LARGE = 256 * 1024


@changing()
async def apply_patch(ctx: ToolContext, patch: str) -> Any:
    """Add, update, move and delete files by one patch, all or none.

    Args:
        patch: `*** Begin Patch`, then per file `*** Add File: p` with `+` lines, `*** Delete File: p`, or
            `*** Update File: p` (then perhaps `*** Move to: q`) with hunks: an `@@` line, perhaps with a line of the
            file to look behind, then lines that begin with a space (stay), `-` or `+`. Last `*** End Patch`.
    """
    if len(patch) > MAX_PATCH:
        raise Refusal(f"The patch has {len(patch)} characters; at most {MAX_PATCH} are taken.")
    _encoded(patch)
    files = _Files(ctx)
    said = [await files.take(section) for section in parse_patch(patch)]
    changes = files.changes()
    if not changes:
        raise Refusal("No change: the patch leaves every file as it is.")
    return Plan(changes, "\n".join(said))


class _Files:
    """The files of one patch as they will be: a later section sees what an earlier one made."""

    def __init__(self, ctx: ToolContext) -> None:
        self._ctx = ctx
        self._before: dict[str, bytes | None] = {}
        self._now: dict[str, bytes | None] = {}

    async def take(self, section: Section) -> str:
        """Apply a section here, and return what it does in words. Raises Refusal."""
        path = await self._load(section.path)
        now = self._now[path]
        if section.kind == "Add":
            if now is not None:
                raise Refusal(f"{section.path} exists already. Update it, or delete it first. Nothing was changed.")
            self._now[path] = _encoded("".join([f"{line}\n" for line in section.added]))
            return f"Created {path}"
        if now is None:
            raise Refusal(f"{(await not_found(self._ctx, section.path)).message}\nNothing was changed.")
        if section.kind == "Delete":
            self._now[path] = None
            return f"Deleted {path}"
        return await self._update(section, path, now)

    async def _update(self, section: Section, path: str, now: bytes) -> str:
        after = now
        if section.hunks:
            if is_binary(now):
                raise Refusal(f"[Binary file: {path}, {len(now)} bytes] It cannot be patched. Nothing was changed.")
            after = (
                await run_in_thread(_patched, now, section, path) if len(now) > _LARGE else _patched(now, section, path)
            )
        count = f"{len(section.hunks)} hunk{'s' if len(section.hunks) > 1 else ''}"
        if not section.move_to:
            self._now[path] = after
            return f"Updated {path}: {count}"
        target = await self._load(section.move_to)
        if self._now[target] is not None and target != path:
            raise Refusal(f"{section.move_to} exists already: {path} cannot be moved there. Nothing was changed.")
        self._now[path] = None
        self._now[target] = after
        return f"Moved {path} to {target}" + (f": {count}" if section.hunks else "")

    async def _load(self, path: str) -> str:
        """Read a file into here, once, and return its one name. Raises Refusal for a folder or what may not change."""
        workspace = workspace_of(self._ctx)
        info = await workspace.stat(path)
        name = path_of(path, info)
        if name in self._before:
            return name
        data: bytes | None = None
        if info is not None:
            if info.kind == "dir":
                raise Refusal(f"Not a file: {path} is a folder. Nothing was changed.")
            data = await workspace.read(path, limit=MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise Refusal(f"{path} is too large to change here: {info.size} bytes, at most {MAX_FILE}.")
            check_read(self._ctx, name, data)
        self._before[name] = self._now[name] = data
        return name

    def changes(self) -> tuple[Change, ...]:
        """Return what is to be done: what is written first, what is removed last."""
        found = [Change(path, self._before[path], now) for path, now in self._now.items() if now != self._before[path]]
        return tuple(sorted(found, key=lambda change: change.after is None))


def _patched(data: bytes, section: Section, path: str) -> bytes:
    file = decode_text(data)
    try:
        return file.encode(apply_hunks(file.text, section.hunks, path))
    except UnicodeEncodeError:
        raise Refusal(f"The patch of {path} holds a lone surrogate: {file.encoding} cannot carry it.") from None
    except Refusal as refusal:
        raise Refusal(f"{refusal.message}\nNothing was changed.") from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"The patch holds a lone surrogate at {error.start}: UTF-8 cannot carry it.") from None
