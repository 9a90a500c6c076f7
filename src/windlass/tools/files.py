"""Read, write, edit and list the files of the workspace."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from windlass.core.ports import FileInfo, ToolContext, ToolResult
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal, not_found, parts_below, walk, workspace_of
from windlass.tools.builtin import Change, Plan, builtin, changing, path_of
from windlass.tools.cutting import fit, left_out, listed, size_of
from windlass.tools.media import IMAGE_BYTES, PDF_BYTES, media_of
from windlass.tools.notebook import as_notebook
from windlass.tools.reading import check_read, note_read, shown_before
from windlass.tools.text import decode_text, describe_lines, is_binary, replace_once

__all__ = ["Edit", "edit", "list_files", "multi_edit", "read_file", "write_file"]

#: What one answer of read_file holds at most, in bytes.
MAX_SHOWN = 64 * 1024
#: How far into a file read_file can look, and how large a file can be edited or replaced.
MAX_FILE = 16 * 1024 * 1024
MAX_LISTED = 1000
_LISTED_BYTES = 64 * 1024
_MAX_DEPTH = 10
#: From this size on, text is worked on in a thread: the event loop goes on meanwhile.
_LARGE = 1024 * 1024
_ICONS = {"dir": "📁", "file": "📄", "symlink": "🔗", "other": "❔"}
_LINES = 2000

Count = Annotated[int, Meta(ge=1)]


class Edit(Struct, frozen=True):
    """One replacement."""

    old_string: str
    new_string: str
    replace_all: bool = False


@builtin(read_only=True)
async def read_file(ctx: ToolContext, path: str, offset: Count = 1, limit: Count = _LINES) -> Any:
    """Read a file: text, image, PDF or notebook.

    Args:
        offset: First line.
        limit: Lines to read.
    """
    info = await _existing(ctx, path)
    data = await workspace_of(ctx).read(path, limit=MAX_FILE + 1)
    if shown_before(ctx, info.path, offset, limit, data):
        return f"Unchanged since the previous read: {path}. To see it again, ask for another range."
    answer = await _shown(path, info.size, data, offset, limit)
    note_read(ctx, info.path, offset, limit, data)
    return answer


async def _shown(path: str, size: int, data: bytes, offset: int, limit: int) -> Any:
    part = media_of(data, path)
    if part is not None:
        most = PDF_BYTES if part.modality == "document" else IMAGE_BYTES
        if size > most:
            return f"[{part.mime_type}: {path}, {size} bytes: over {most}, too large to show]"
        return ToolResult((part,))
    if is_binary(data):
        return f"[Binary file: {path}, {size} bytes]"
    if len(data) > _LARGE:
        return await run_in_thread(_page, path, data, size, offset, limit)
    return _page(path, data, size, offset, limit)


@changing(idempotent=True)
async def write_file(ctx: ToolContext, path: str, content: str) -> Any:
    """Create or replace a whole file; folders are made."""
    data = _encoded("content", content)
    info = await workspace_of(ctx).stat(path)
    before = None if info is None else await _content(ctx, path, info)
    if before == data:
        return f"No change needed: {path}"
    name = path_of(path, info)
    if before is not None:
        check_read(ctx, name, before)
    return Plan((Change(name, before, data),), f"{'Created' if before is None else 'Updated'} {path}")


@changing()
async def edit(ctx: ToolContext, path: str, old_string: str, new_string: str, replace_all: bool = False) -> Any:
    """Replace text in a file. old_string must match exactly once, unless replace_all."""
    return await _edit(ctx, path, [Edit(old_string, new_string, replace_all)])


@changing()
async def multi_edit(ctx: ToolContext, path: str, edits: Annotated[list[Edit], Meta(min_length=1)]) -> Any:
    """Make several edits to one file, in order; all or none."""
    return await _edit(ctx, path, edits)


@builtin(read_only=True)
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
    lines = [f"{icon} {name}" for name, icon in sorted([_listed(info.path, entry) for entry in found.entries])]
    text = listed(lines, _LISTED_BYTES, "entries", "List a folder below, or use glob.", most=MAX_LISTED)
    return f"{text}\n[{found.stopped}: there may be more.]" if found.stopped else text


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


def _page(path: str, data: bytes, size: int, offset: int, limit: int) -> str:
    """Return some lines of a file, and how to go on where it has more. Raises Refusal for broken UTF-16."""
    cut = len(data) > MAX_FILE
    if cut:
        data = data[: data.rfind(b"\n", 0, MAX_FILE) + 1 or MAX_FILE]
    text = as_notebook(path, data) or decode_text(data).text
    if not text:
        return "(empty file)"
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    total = f"{len(lines)}{' or more' if cut else ''}"
    if offset > len(lines):
        return f"[offset {offset} is past the end: the file has {total} lines.]"
    shown = fit(lines[offset - 1 : offset - 1 + limit], MAX_SHOWN)
    last = offset + len(shown.lines) - 1
    body = _printable("\n".join(shown.lines))
    what = f"Lines {offset}-{last} of {total}" if last > offset else f"Line {offset} of {total}"
    if shown.clipped:
        what += f", cut after {MAX_SHOWN} bytes"
    left = shown.left + sum([size_of(line) + 1 for line in lines[offset - 1 + limit :]])
    if cut:
        left += size - len(data)
    if last < len(lines):
        return f"{body}\n{left_out(what, left, f'Read on with offset={last + 1}.')}"
    if left:
        return f"{body}\n{left_out(what, left, f'No more than {MAX_FILE} bytes can be read here: use shell.')}"
    return body if offset == 1 else f"{body}\n[{what}.]"


def _printable(text: str) -> str:
    """Show bytes that are no UTF-8 as U+FFFD."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"{name} holds a lone surrogate at {error.start}: UTF-8 cannot carry it.") from None


async def _edit(ctx: ToolContext, path: str, edits: list[Edit]) -> Plan:
    info = await _existing(ctx, path)
    before = await _content(ctx, path, info)
    check_read(ctx, info.path, before)
    if is_binary(before):
        raise Refusal(f"[Binary file: {path}, {len(before)} bytes] It cannot be edited as text.")
    if len(before) > _LARGE:
        after, done = await run_in_thread(_apply, before, edits, path)
    else:
        after, done = _apply(before, edits, path)
    if after == before:
        raise Refusal("No change: the edits undo each other.")
    # Between two reads of one file another call may have changed it: the write compares before it replaces.
    return Plan((Change(info.path, before, after),), f"Updated {path}: {done}")


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
