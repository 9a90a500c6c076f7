"""Find files by name and by content, in this process, without following links."""

from __future__ import annotations

import difflib
import fnmatch
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.patterns import Pattern, PatternError, compile_pattern
from windlass.core.ports import FileInfo, ToolContext, ToolResult, Workspace
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.threads import run_in_thread
from windlass.tools import rg
from windlass.tools.access import Refusal, Walk, answers, not_found, walk, workspace_of
from windlass.tools.aliases import arguments_of
from windlass.tools.builtin import builtin
from windlass.tools.cutting import left_out, listed, size_of
from windlass.tools.filetypes import FILE_TYPES
from windlass.tools.function import SpecTool
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


@builtin(read_only=True)
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
    text = listed([entry.path for entry in entries], MAX_SHOWN, "names", "Narrow the pattern.", most=limit)
    return f"{text}\n[{stopped}: there may be more.]" if stopped else text


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
    type: str | None = None


_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_PROPERTIES: dict[str, Any] = {
    "pattern": {"type": "string", "description": "Regular expression (RE2)"},
    "path": {"type": "string", "description": "File or folder"},
    "glob": {"type": "string", "description": "Files to search, e.g. *.py"},
    "type": {"type": "string", "description": "Kind of file, e.g. py"},
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
_SCHEMA: dict[str, Any] = {"type": "object", "properties": _PROPERTIES, "required": ["pattern"]}
#: Other names of the arguments are taken without being advertised; a name that is none is refused all the same.
_closed = arguments_of("grep", {**_SCHEMA, "additionalProperties": False})


class GrepTool(SpecTool):
    """A search whose arguments may have ripgrep's names or words for them."""

    def __init__(self) -> None:
        super().__init__(
            ToolSpec("grep", "Search file contents.", _SCHEMA, annotations=ToolAnnotations(read_only=True)), _grep
        )
        self.validator = arguments_of("grep", _SCHEMA)


@answers
async def _grep(args: dict[str, Any], ctx: ToolContext) -> Any:
    checked = _closed.check(args)
    if checked.error is not None:
        return ToolResult(f"Validation error: {checked.error}", status="error")
    search = _Search(_query(checked.args))
    stopped = await search.run(ctx)
    return search.report(stopped)


def has_re2() -> bool:
    """Tell whether more than literal text can be matched here."""
    try:
        compile_pattern("a|b", multiline=True)
    except PatternError:
        return False
    return True


def _query(args: dict[str, Any]) -> _Query:
    query = msgspec.convert(args, _Query)
    query.after = min(max(query.after, query.context), _MAX_CONTEXT)
    query.before = min(max(query.before, query.context), _MAX_CONTEXT)
    # A line never holds its own end: such a pattern can only mean several lines.
    query.multiline = query.multiline or "\n" in query.pattern or "\\n" in query.pattern
    return query


#: What grep offers to a model.
grep = GrepTool()


class _Search:
    """One grep: reads file after file and keeps the lines of its answer, no more of them than are shown."""

    def __init__(self, query: _Query) -> None:
        self.query = query
        self.out: list[str] = []
        self.large = self.ignored = 0
        self._seen = 0  # lines of the answer, those before `offset` included
        self._size = 0
        self._full = ""
        self.pattern: Pattern | None = None
        #: What ripgrep found, by file, where we cannot match the pattern ourselves.
        self.places: dict[str, list[tuple[int, int]]] = {}
        try:
            self.pattern = compile_pattern(
                query.pattern,
                ignore_case=query.ignore_case,
                multiline=True,
                dotall=query.multiline,
                within_lines=not query.multiline,
            )
        except PatternError as error:
            self.why = f"The pattern cannot be used: {error}."
            if has_re2():
                raise Refusal(self.why) from None

    async def run(self, ctx: ToolContext) -> str:
        """Search, and return why the search stopped early, if it did."""
        workspace, end = workspace_of(ctx), clock.monotonic() + SEARCH_SECONDS
        files, stopped = await self._files(ctx)
        files = await self._sieved(workspace, files, end)
        total = 0
        for number, (path, size) in enumerate(files):
            if number % _BREATH == 0:
                await clock.sleep(0)
            if number >= MAX_FILES or total > MAX_TOTAL_BYTES or clock.monotonic() > end:
                return f"stopped after {number} files"
            total += size
            try:
                data = await workspace.read(path, limit=MAX_FILE_BYTES)
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
        info = await workspace.stat(query.path)
        if info is None:
            raise await not_found(ctx, query.path, "Path")
        if info.kind != "dir":
            self.large = int(info.size > MAX_FILE_BYTES)
            return ([] if self.large else [(info.path, info.size)]), ""
        keeps = self._filters()
        found = await walk(
            ctx,
            info.path,
            depth=None,
            keep=lambda parts: all(keep(parts) for keep in keeps),
            seconds=SEARCH_SECONDS,
            ignore=True,
        )
        self.ignored = found.ignored
        files = [(entry.path, entry.size) for entry in found.entries if entry.kind == "file"]
        small = [each for each in files if each[1] <= MAX_FILE_BYTES]
        self.large = len(files) - len(small)
        return small, found.stopped

    def _filters(self) -> list[Callable[[Sequence[str]], bool]]:
        query, out = self.query, list[Callable[[Sequence[str]], bool]]()
        if query.glob:
            out.append(NameFilter(query.glob).keeps)
        if query.type:
            if query.type not in FILE_TYPES:
                near = difflib.get_close_matches(query.type, FILE_TYPES, n=1)
                hint = f" Did you mean {near[0]}?" if near else " Use glob instead."
                raise Refusal(f"Unknown type: {query.type}.{hint}")
            patterns = FILE_TYPES[query.type]
            out.append(lambda parts: any(fnmatch.fnmatchcase(parts[-1], pattern) for pattern in patterns))
        return out

    async def _sieved(self, workspace: Workspace, files: list[tuple[str, int]], end: float) -> list[tuple[str, int]]:
        """Return the files that ripgrep finds something in, or all of them where it cannot tell.

        Raises Refusal where neither of us can match the pattern.
        """
        if self.pattern is None:
            return await self._matched(workspace, files, end)
        if len(files) < rg.LEAST_FILES or self.query.multiline:
            return files
        names = [path for path, _ in files]
        left = max(end - clock.monotonic(), 0.1)
        found = await rg.candidates(
            workspace, self.query.pattern, names, ignore_case=self.query.ignore_case, seconds=left
        )
        return files if found is None else [each for each in files if each[0] in found]

    async def _matched(self, workspace: Workspace, files: list[tuple[str, int]], end: float) -> list[tuple[str, int]]:
        if rg.program_for(workspace) is None:
            raise Refusal(self.why)
        found = await rg.matches(
            workspace,
            self.query.pattern,
            [path for path, _ in files],
            ignore_case=self.query.ignore_case,
            multiline=self.query.multiline,
            seconds=max(end - clock.monotonic(), 0.1),
        )
        if isinstance(found, str):
            raise Refusal(f"The pattern cannot be used: {found}.")
        self.places = found
        return [each for each in files if each[0] in found]

    def _search(self, path: str, data: bytes) -> list[str]:
        """Return the lines of the answer that one file gives."""
        text = data.replace(b"\r\n", b"\n") if b"\r\n" in data else data
        pattern = self.pattern or rg.Spans(rg.without_cr(data, self.places.get(path, [])))
        spans = list(_spans(pattern, text, whole=self.query.multiline))
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
            size = size_of(line) + 1
            if (query.head_limit and len(self.out) >= query.head_limit) or self._size + size > MAX_SHOWN:
                shown = len(self.out)
                self._full = left_out(f"{shown} lines; more follow", 0, f"Go on with offset={query.offset + shown}.")
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
        if self.ignored and not self._seen:
            notes.append(f"what .gitignore names was not searched: {self.ignored} entries")
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
