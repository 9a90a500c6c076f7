"""Read, write, edit and list the files of the workspace."""

from __future__ import annotations

import posixpath
from typing import Annotated, Any

from msgspec import Meta, Struct

from windlass.core.attachments import blob
from windlass.core.errors import UnsupportedInputError
from windlass.core.messages import Blob
from windlass.core.ports import FileInfo, ToolContext, ToolResult
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal, answers, not_found, parts_below, put, walk, workspace_of
from windlass.tools.function import tool
from windlass.tools.text import decode_text, describe_lines, is_binary, replace_once

__all__ = ["Edit", "edit", "list_files", "multi_edit", "read_file", "write_file"]

#: What one answer of read_file holds at most, in bytes.
MAX_SHOWN = 64 * 1024
#: How far into a file read_file can look, and how large a file can be edited or replaced.
MAX_FILE = 16 * 1024 * 1024
#: Vendors refuse larger images.
MAX_MEDIA = 5 * 1024 * 1024
MAX_LISTED = 1000
_MAX_DEPTH = 10
_MEDIA = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
#: From this size on, text is worked on in a thread: the event loop goes on meanwhile.
_LARGE = 1024 * 1024
_ICONS = {"dir": "📁", "file": "📄", "symlink": "🔗", "other": "❔"}

Count = Annotated[int, Meta(ge=1)]


class Edit(Struct, frozen=True):
    """One replacement."""

    old_string: str
    new_string: str
    replace_all: bool = False


@tool(annotations={"read_only": True})
@answers
async def read_file(ctx: ToolContext, path: str, offset: Count = 1, limit: Count = 2000) -> Any:
    """Read a file: text, image or PDF.

    Args:
        offset: First line.
        limit: Lines to read.
    """
    info = await _existing(ctx, path)
    data = await workspace_of(ctx).read(path, limit=MAX_FILE + 1)
    part = _media(data, path)
    if part is not None:
        if info.size > MAX_MEDIA:
            return f"[{part.mime_type}: {path}, {info.size} bytes: over {MAX_MEDIA}, too large to show]"
        return ToolResult((part,))
    if is_binary(data):
        return f"[Binary file: {path}, {info.size} bytes]"
    if len(data) > _LARGE:
        return await run_in_thread(_page, data, offset, limit)
    return _page(data, offset, limit)


@tool(annotations={"destructive": True, "idempotent": True})
@answers
async def write_file(ctx: ToolContext, path: str, content: str) -> Any:
    """Create or replace a whole file; folders are made."""
    data = _encoded("content", content)
    info = await workspace_of(ctx).stat(path)
    before = None if info is None else await _content(ctx, path, info)
    if before == data:
        return f"No change needed: {path}"
    await put(ctx, path, data, before)
    return f"{'Created' if before is None else 'Updated'} {path}"


@tool(annotations={"destructive": True})
@answers
async def edit(ctx: ToolContext, path: str, old_string: str, new_string: str, replace_all: bool = False) -> Any:
    """Replace text in a file. old_string must match exactly once, unless replace_all."""
    return await _edit(ctx, path, [Edit(old_string, new_string, replace_all)])


@tool(annotations={"destructive": True})
@answers
async def multi_edit(ctx: ToolContext, path: str, edits: Annotated[list[Edit], Meta(min_length=1)]) -> Any:
    """Make several edits to one file, in order; all or none."""
    return await _edit(ctx, path, edits)


@tool(annotations={"read_only": True})
@answers
async def list_files(ctx: ToolContext, path: str = ".", depth: Annotated[Count, Meta(le=_MAX_DEPTH)] = 1) -> Any:
    """List a folder."""
    workspace = workspace_of(ctx)
    info = await workspace.stat(path)
    if info is None:
        raise await not_found(ctx, path, "Directory")
    if info.kind != "dir":
        raise Refusal(f"Not a directory: {path}")
    found = await walk(ctx, info.path, depth=depth, keep=lambda _: True, seconds=10.0)
    if not found.entries:
        return "(empty folder)"
    shown = sorted([_listed(info.path, entry) for entry in found.entries])[:MAX_LISTED]
    out = [f"{icon} {name}" for name, icon in shown]
    if found.stopped or len(found.entries) > MAX_LISTED:
        total = f"the first {len(found.entries)}" if found.stopped else str(len(found.entries))
        out.append(f"[{len(shown)} of {total} entries shown. List a folder below, or use glob.]")
    return "\n".join(out)


async def _existing(ctx: ToolContext, path: str) -> FileInfo:
    info = await workspace_of(ctx).stat(path)
    if info is None:
        raise await not_found(ctx, path)
    if info.kind == "dir":
        raise Refusal(f"Not a file: {path} is a folder. Use list_files.")
    return info


async def _content(ctx: ToolContext, path: str, info: FileInfo) -> bytes:
    if info.kind == "dir":
        raise Refusal(f"Not a file: {path} is a folder.")
    data = await workspace_of(ctx).read(path, limit=MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise Refusal(f"{path} is too large to change here: {info.size} bytes, at most {MAX_FILE}.")
    return data


def _media(data: bytes, path: str) -> Blob | None:
    """Return an image or PDF by its first bytes, None for anything else."""
    try:
        kind = blob(data[:32])
    except UnsupportedInputError:
        return None
    if kind.mime_type not in _MEDIA:
        return None
    return Blob(data, kind.mime_type, kind.modality, posixpath.basename(path))


def _page(data: bytes, offset: int, limit: int) -> str:
    """Return some lines of a file, and how to go on where it has more."""
    cut = len(data) > MAX_FILE
    file = decode_text(data[:MAX_FILE] if not cut else data[: data.rfind(b"\n", 0, MAX_FILE) + 1 or MAX_FILE])
    if not file.text:
        return "(empty file)"
    lines = file.text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    total = f"{len(lines)}{' or more' if cut else ''}"
    if offset > len(lines):
        return f"[offset {offset} is past the end: the file has {total} lines.]"
    out: list[str] = []
    room = MAX_SHOWN
    for line in lines[offset - 1 : offset - 1 + limit]:
        size = len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
        if size + 1 > room:
            break
        room -= size + 1
        out.append(line)
    last, note = offset + len(out) - 1, ""
    if not out:
        # One line alone is over the bound: only its beginning can be shown.
        head = lines[offset - 1].encode("utf-8", "surrogateescape")[:MAX_SHOWN]
        out, last, note = [head.decode("utf-8", "ignore")], offset, f" Line {offset} is cut after {MAX_SHOWN} bytes."
    text = _printable("\n".join(out))
    if last < len(lines):
        return f"{text}\n[Lines {offset}-{last} of {total}.{note} Read on with offset={last + 1}.]"
    if cut:
        return f"{text}\n[Lines {offset}-{last} of {total}.{note} The rest lies beyond {MAX_FILE} bytes: use shell.]"
    return text if offset == 1 and not note else f"{text}\n[Lines {offset}-{last} of {total}.{note}]"


def _printable(text: str) -> str:
    """Show bytes that are no UTF-8 as U+FFFD."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"{name} holds a lone surrogate at {error.start}: UTF-8 cannot carry it.") from None


async def _edit(ctx: ToolContext, path: str, edits: list[Edit]) -> str:
    before = await _content(ctx, path, await _existing(ctx, path))
    if is_binary(before):
        raise Refusal(f"[Binary file: {path}, {len(before)} bytes] It cannot be edited as text.")
    if len(before) > _LARGE:
        after, done = await run_in_thread(_apply, before, edits, path)
    else:
        after, done = _apply(before, edits, path)
    if after == before:
        raise Refusal("No change: the edits undo each other.")
    # Between two reads of one file another call may have changed it: the write compares before it replaces.
    await put(ctx, path, after, before)
    return f"Updated {path}: {done}"


def _apply(data: bytes, edits: list[Edit], path: str) -> tuple[bytes, str]:
    file = decode_text(data)
    text, lines = file.text, list[int]()
    for number, each in enumerate(edits, 1):
        try:
            _encoded("old_string", each.old_string)
            _encoded("new_string", each.new_string)
            text, lines = replace_once(text, each.old_string, each.new_string, every=each.replace_all, path=path)
        except Refusal as refusal:
            if len(edits) == 1:
                raise
            raise Refusal(f"Edit {number} of {len(edits)}: {refusal.message}\nNothing was changed.") from None
    return file.encode(text), describe_lines(lines) if len(edits) == 1 else f"{len(edits)} edits"


def _listed(base: str, entry: FileInfo) -> tuple[str, str]:
    parts = parts_below(base, entry.path)
    name = "/".join(parts) + ("/" if entry.kind == "dir" else "")
    return name, _ICONS[entry.kind]
