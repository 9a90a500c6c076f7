"""Find files by name and by content, in this process, without following links."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.patterns import Pattern, PatternError, compile_pattern
from windlass.core.ports import FileInfo, ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.schema import compile_schema
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal, Walk, answers, not_found, walk, workspace_of
from windlass.tools.function import SpecTool, tool
from windlass.tools.globs import Glob, NameFilter, parse_glob
from windlass.tools.text import is_binary

__all__ = ["glob", "grep"]

#: Seconds that one search may take, files read by it and bytes read from one and from all of them.
SEARCH_SECONDS = 20.0
MAX_FILES = 20_000
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_TOTAL_BYTES = 512 * 1024 * 1024
#: What one answer holds at most, and how much of a line.
MAX_SHOWN = 32 * 1024
MAX_LINE = 500
_MAX_CONTEXT = 50
_MAX_MATCHES = 10_000
_HEAD_LIMIT = 200
#: Files between two turns of the event loop: a small file may be read without waiting.
_BREATH = 16
_LARGE = 1024 * 1024


@tool(annotations={"read_only": True})
@answers
async def glob(
    ctx: ToolContext,
    pattern: str,
    path: str = ".",
    sort: Literal["name", "mtime"] = "name",
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200,
) -> Any:
    """Find files by name, e.g. src/**/*.{py,md}.

    Args:
        path: Folder to search.
    """
    found: dict[str, FileInfo] = {}
    stopped = ""
    if await workspace_of(ctx).stat(path) is None:
        raise await not_found(ctx, path, "Directory")
    by_prefix: dict[str, list[Glob]] = {}
    for each in parse_glob(pattern):
        by_prefix.setdefault(each.prefix, []).append(each)
    for prefix, globs in by_prefix.items():
        # Alone it goes to the workspace as the model wrote it: behind `./`, a `~` would be a mere name.
        below = await _below(ctx, prefix if path == "." else posixpath.join(path, prefix), globs)
        found.update({entry.path: entry for entry in below.entries if entry.kind != "dir"})
        stopped = stopped or below.stopped
    if not found:
        return f"No files match {pattern}" + (f" ({stopped})" if stopped else "")
    entries = sorted(found.values(), key=lambda entry: entry.path)
    if sort == "mtime":
        entries.sort(key=lambda entry: -entry.mtime_ns)
    out = [entry.path for entry in entries[:limit]]
    if stopped or len(entries) > limit:
        total = f"{len(entries)} found, {stopped}" if stopped else f"{len(entries)}"
        out.append(f"[{len(out)} of {total}. Narrow the pattern.]")
    return "\n".join(out)


async def _below(ctx: ToolContext, folder: str, globs: list[Glob]) -> Walk:
    base = await workspace_of(ctx).stat(folder)
    if base is None or base.kind != "dir":
        return Walk([])
    depths = [each.depth for each in globs]
    depth = None if None in depths else max([each for each in depths if each is not None])
    return await walk(
        ctx,
        base.path,
        depth=depth,
        keep=lambda parts: any(each.matches(parts) for each in globs),
        seconds=SEARCH_SECONDS,
    )


class _Query(Struct, rename={"ignore_case": "-i", "numbers": "-n", "after": "-A", "before": "-B", "context": "-C"}):
    """The arguments of grep; the names are those of ripgrep, where it has them."""

    pattern: str
    path: str = "."
    glob: str | None = None
    output_mode: Literal["content", "files_with_matches", "count"] = "files_with_matches"
    ignore_case: bool = False
    numbers: bool = True
    after: Annotated[int, Meta(ge=0)] = 0
    before: Annotated[int, Meta(ge=0)] = 0
    context: Annotated[int, Meta(ge=0)] = 0
    multiline: bool = False
    head_limit: Annotated[int, Meta(ge=0)] = _HEAD_LIMIT
    offset: Annotated[int, Meta(ge=0)] = 0


_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_PROPERTIES: dict[str, Any] = {
    "pattern": {"type": "string", "description": "Regular expression (RE2)"},
    "path": {"type": "string", "description": "File or folder"},
    "glob": {"type": "string", "description": "Files to search, e.g. *.py"},
    "output_mode": {
        "type": "string",
        "enum": ["content", "files_with_matches", "count"],
        "default": "files_with_matches",
    },
    "-i": _FLAG,
    "-n": _FLAG,
    "-A": _COUNT,
    "-B": _COUNT,
    "-C": _COUNT,
    "multiline": _FLAG,
    "head_limit": {**_COUNT, "default": _HEAD_LIMIT},
    "offset": _COUNT,
}
#: Names that programs and models use instead, taken without being advertised.
_ALIASES = {
    "i": "-i",
    "ignore_case": "-i",
    "case_insensitive": "-i",
    "n": "-n",
    "line_numbers": "-n",
    "A": "-A",
    "after_context": "-A",
    "B": "-B",
    "before_context": "-B",
    "C": "-C",
    "context": "-C",
}
_SCHEMA: dict[str, Any] = {"type": "object", "properties": _PROPERTIES, "required": ["pattern"]}
_closed = compile_schema({**_SCHEMA, "additionalProperties": False})


@answers
async def _grep(args: dict[str, Any], ctx: ToolContext) -> Any:
    checked = _closed.check({_ALIASES.get(name, name): value for name, value in args.items()})
    if checked.error is not None:
        return ToolResult(f"Validation error: {checked.error}", status="error")
    search = _Search(_query(checked.args))
    stopped = await search.run(ctx)
    return search.report(stopped)


def _query(args: dict[str, Any]) -> _Query:
    query = msgspec.convert(args, _Query)
    query.after = min(max(query.after, query.context), _MAX_CONTEXT)
    query.before = min(max(query.before, query.context), _MAX_CONTEXT)
    # A line never holds its own end: such a pattern can only mean several lines.
    query.multiline = query.multiline or "\n" in query.pattern or "\\n" in query.pattern
    return query


#: What grep offers to a model.
grep = SpecTool(
    ToolSpec(
        "grep",
        "Search file contents.",
        _SCHEMA,
        annotations=ToolAnnotations(read_only=True),
    ),
    _grep,
)


class _Search:
    """One grep: reads file after file and keeps the lines of its answer, no more of them than are shown."""

    def __init__(self, query: _Query) -> None:
        self.query = query
        self.out: list[str] = []
        self.large = 0
        self._seen = 0  # lines of the answer, those before `offset` included
        self._size = 0
        self._full = ""
        try:
            self.pattern: Pattern = compile_pattern(
                query.pattern,
                ignore_case=query.ignore_case,
                multiline=True,
                dotall=query.multiline,
                within_lines=not query.multiline,
            )
        except PatternError as error:
            raise Refusal(f"The pattern cannot be used: {error}.") from None

    async def run(self, ctx: ToolContext) -> str:
        """Search, and return why the search stopped early, if it did."""
        files, stopped = await self._files(ctx)
        end = clock.monotonic() + SEARCH_SECONDS
        total = 0
        for number, (path, size) in enumerate(files):
            if number % _BREATH == 0:
                await clock.sleep(0)
            if number >= MAX_FILES or total > MAX_TOTAL_BYTES or clock.monotonic() > end:
                return f"stopped after {number} files"
            if size > MAX_FILE_BYTES:
                self.large += 1
                continue
            total += size
            try:
                data = await workspace_of(ctx).read(path, limit=MAX_FILE_BYTES)
            except WorkspaceError:
                if len(files) == 1:
                    raise
                continue  # it went away, or may not be read: the others are still worth searching
            if is_binary(data):
                continue
            lines = await run_in_thread(self._search, path, data) if len(data) > _LARGE else self._search(path, data)
            if not self._take(lines):
                break
        return stopped

    async def _files(self, ctx: ToolContext) -> tuple[list[tuple[str, int]], str]:
        workspace, query = workspace_of(ctx), self.query
        keeps = NameFilter(query.glob).keeps if query.glob else None
        info = await workspace.stat(query.path)
        if info is None:
            raise await not_found(ctx, query.path, "Path")
        if info.kind != "dir":
            return [(info.path, info.size)], ""
        found = await walk(ctx, info.path, depth=None, keep=keeps or (lambda _: True), seconds=SEARCH_SECONDS)
        return [(entry.path, entry.size) for entry in found.entries if entry.kind == "file"], found.stopped

    def _search(self, path: str, data: bytes) -> list[str]:
        """Return the lines of the answer that one file gives."""
        text = data.replace(b"\r\n", b"\n") if b"\r\n" in data else data
        spans = list(_spans(self.pattern, text, whole=self.query.multiline))
        if not spans:
            return []
        if self.query.output_mode == "files_with_matches":
            return [path]
        if self.query.output_mode == "count":
            return [f"{path}:{len(spans)}"]
        return self._content(path, text, spans)

    def _content(self, path: str, text: bytes, spans: list[tuple[int, int]]) -> list[str]:
        query = self.query
        lines = text.split(b"\n")
        if not lines[-1]:
            lines.pop()
        hits: set[int] = set()
        for first, last in _line_spans(text, spans):
            hits.update(range(first, min(last, len(lines) - 1) + 1))
        shown = hits
        if query.before or query.after:
            around = range(-query.before, query.after + 1)
            shown = {at + step for at in hits for step in around if 0 <= at + step < len(lines)}
        out: list[str] = []
        last = -1
        for at in sorted(shown):
            if shown is not hits and last >= 0 and at > last + 1:
                out.append("--")
            mark = ":" if at in hits else "-"
            number = f"{at + 1}{mark}" if query.numbers else ""
            out.append(f"{path}{mark}{number}{_clipped(lines[at])}")
            last = at
        return out

    def _take(self, lines: list[str]) -> bool:
        """Keep the lines that `offset` and `head_limit` ask for; False when the answer is full."""
        query = self.query
        if lines and (query.before or query.after) and query.output_mode == "content" and self._seen:
            lines = ["--", *lines]
        for line in lines:
            self._seen += 1
            if self._seen <= query.offset:
                continue
            size = len(line.encode()) + 1
            if (query.head_limit and len(self.out) >= query.head_limit) or self._size + size > MAX_SHOWN:
                self._full = f"[More follows. Go on with offset={query.offset + len(self.out)}.]"
                return False
            self._size += size
            self.out.append(line)
        return True

    def report(self, stopped: str) -> str:
        """Return the answer as text."""
        out = list(self.out)
        if not out:
            out.append("No matches found" if not self._seen else f"[offset is past the {self._seen} lines there are.]")
        if self._full:
            out.append(self._full)
        notes = [stopped] if stopped else []
        if self.large:
            notes.append(f"{self.large} files over {MAX_FILE_BYTES} bytes were skipped")
        if notes:
            out.append(f"[{'; '.join(notes)}]")
        return "\n".join(out)


def _spans(pattern: Pattern, text: bytes, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Yield where the pattern matches; at most once a line unless matches may span lines (`whole`)."""
    at = found = 0
    while at <= len(text) and found < _MAX_MATCHES:
        match = pattern.search(text, at)
        if match is None:
            return
        start, end = match.start(), match.end()
        if start == len(text) and (not text or text.endswith(b"\n")):
            return  # behind the last line's end there is no line
        yield start, end
        found += 1
        if whole and end > start:
            at = end
            continue
        line_end = text.find(b"\n", end)
        if line_end < 0:
            return
        at = line_end + 1


def _line_spans(text: bytes, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the first and last line (from 0) of each match."""
    line = at = 0
    for start, end in spans:
        line += text.count(b"\n", at, start)
        at = start
        yield line, line + text.count(b"\n", start, max(start, end - 1))


def _clipped(line: bytes) -> str:
    text = line[: MAX_LINE * 4].decode("utf-8", "replace")
    return text if len(text) <= MAX_LINE else text[:MAX_LINE] + "…"
