"""How a tool call looks to a person in an editor: its kind, its title, the places it is about, its text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from acp.helpers import text_block, tool_content, tool_diff_content
from acp.schema import ContentToolCallContent, FileEditToolCallContent, ToolCallLocation, ToolKind

from windlass.core import json
from windlass.core.request import ToolAnnotations
from windlass.core.text import strip_escapes, visible

__all__ = [
    "absolute",
    "clean",
    "diff",
    "fenced",
    "first_line",
    "kind_of",
    "locations",
    "plain_input",
    "said",
    "shown_input",
    "title_of",
]

#: Kinds of the tools that we know by name.
KINDS: dict[str, ToolKind] = {
    "read_file": "read", "outline": "read", "list_files": "search", "glob": "search", "grep": "search",
    "write_file": "edit", "edit": "edit", "multi_edit": "edit", "apply_patch": "edit", "file": "edit",
    "shell": "execute", "todo_write": "think", "skills_use": "read", "skills_read": "read",
    "spawn": "other", "web_fetch": "fetch",
}  # fmt: skip
_OPERATIONS: dict[str, ToolKind] = {"delete": "delete", "remove": "delete", "move": "move", "rename": "move"}
#: Words in the names of other tools, the first that is found wins.
_WORDS: tuple[tuple[re.Pattern[str], ToolKind], ...] = (
    (re.compile(r"(?:^|_)(?:fetch|browse|download|http|url|web)"), "fetch"),
    (re.compile(r"(?:^|_)(?:search|find|grep|glob|list|query)"), "search"),
    (re.compile(r"(?:^|_)(?:delete|remove|drop)"), "delete"),
    (re.compile(r"(?:^|_)(?:move|rename)"), "move"),
    (re.compile(r"(?:^|_)(?:edit|write|patch|replace|create|update|insert)"), "edit"),
    (re.compile(r"(?:^|_)(?:run|exec|execute|shell|bash|command)"), "execute"),
    (re.compile(r"(?:^|_)(?:read|get|show|view|cat)"), "read"),
    (re.compile(r"(?:^|_)(?:think|plan|todo)"), "think"),
)
_PATHS = ("path", "destination", "file", "file_path")
_TITLE = 160
#: Bytes of one side of a difference; a larger file is named and not shown.
MAX_DIFF = 1 << 20
#: Characters of a tool's text; what the model reads is bounded elsewhere.
MAX_TEXT = 64 << 10


def clean(text: str) -> str:
    """Return text that can be sent: half of a surrogate pair, which a stream may end in, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def kind_of(name: str, args: Mapping[str, Any], notes: ToolAnnotations | None = None) -> ToolKind:
    """Return the protocol's kind of a call: by the names we know, else by the tool's hints and the words of its name.

    >>> kind_of("grep", {}), kind_of("file", {"operation": "delete"}), kind_of("mcp_web_fetch_page", {})
    ('search', 'delete', 'fetch')
    """
    if name == "file" and (operation := _OPERATIONS.get(str(args.get("operation", "")))):
        return operation
    if name in KINDS:
        return KINDS[name]
    found: ToolKind | None = next((kind for words, kind in _WORDS if words.search(name.lower())), None)
    if notes is None or not notes.read_only:
        return found or "other"
    # A tool that says it only reads is shown as nothing that changes.
    if found == "fetch" or found == "search" or found == "think":
        return found
    return "fetch" if notes.open_world else "read"


def title_of(name: str, args: Mapping[str, Any]) -> str:
    """Return one line that says what a call does; what would hide or reorder text in it is made visible."""
    make = _TITLES.get(name)
    text = _one(make(args)) if make is not None else _one(" ".join([name, *[f"{k}={v}" for k, v in args.items()]]))
    return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"


def _about(verb: str, key: str = "path") -> Callable[[Mapping[str, Any]], str]:
    return lambda args: f"{verb} {args.get(key, '')}".strip()


def _shell(args: Mapping[str, Any]) -> str:
    text = str(args.get("command", ""))
    return f"`{text}`" if "`" not in text and text else text or "shell"


def _file(args: Mapping[str, Any]) -> str:
    target = f" to {args['destination']}" if args.get("destination") else ""
    return f"{str(args.get('operation', 'file')).capitalize()} {args.get('path', '')}{target}"


_TITLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "read_file": _about("Read"), "outline": _about("Outline of"), "list_files": _about("List"),
    "glob": _about("Find", "pattern"), "grep": _about("Search for", "pattern"),
    "write_file": _about("Write"), "edit": _about("Edit"), "multi_edit": _about("Edit"),
    "apply_patch": lambda _: "Apply a patch", "todo_write": lambda _: "Update the plan",
    "shell": _shell, "file": _file, "skills_use": _about("Skill", "name"),
    "spawn": _about("Sub-agent:", "task"), "web_fetch": _about("Fetch", "url"),
}  # fmt: skip


def _one(text: str) -> str:
    return visible(" ".join(strip_escapes(clean(text[: 8 * _TITLE])).split()))


def absolute(cwd: str, path: str) -> str:
    """Return the absolute path that the protocol asks for."""
    return os.path.normpath(os.path.join(cwd, path))  # noqa: PTH118 - no file is touched


def locations(cwd: str, args: Mapping[str, Any]) -> list[ToolCallLocation]:
    """Return the files that a call names, with the line (from 1) where it names one."""
    found: list[ToolCallLocation] = []
    for key in _PATHS:
        path = args.get(key)
        if isinstance(path, str) and path and "\0" not in path:
            line = args.get("offset") if key == "path" else None
            found.append(
                ToolCallLocation(path=clean(absolute(cwd, path)), line=line if isinstance(line, int) else None)
            )
    return found


def plain_input(args: Mapping[str, Any]) -> Any:
    """Return the arguments as any JSON reader takes them."""
    return json.loads(json.dumps(dict(args)))


def fenced(text: str, language: str = "") -> str:
    """Return text as a block of Markdown that it cannot end itself, cut in the middle when it is very long."""
    if len(text) > MAX_TEXT:
        cut = len(text) - MAX_TEXT
        text = f"{text[: MAX_TEXT // 4]}\n[... {cut} characters left out ...]\n{text[-3 * MAX_TEXT // 4 :]}"
    longest = max([len(run) for run in re.findall(r"`{3,}", text)], default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def said(text: str) -> ContentToolCallContent:
    """Return Markdown as content of a tool call."""
    return tool_content(text_block(clean(text)))


def shown_input(name: str, args: Mapping[str, Any], reason: str) -> list[ContentToolCallContent]:
    """Return what a person must see before a call is allowed: all of it, with nothing hidden, and why it is asked."""
    command = args.get("command")
    if KINDS.get(name) == "execute" and isinstance(command, str):
        rest = {key: value for key, value in args.items() if key != "command"}
        body = fenced(visible(clean(command)), "sh") + (f"\n\n{_pretty(rest)}" if rest else "")
    else:
        body = _pretty(args) if args else ""
    why = visible(clean(reason))
    return [said(f"{why}\n\n{body}".strip())] if why or body else []


def _pretty(args: Mapping[str, Any]) -> str:
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value).decode()}" for key, value in args.items()]
    return fenced(visible(clean("\n".join(lines))))


def diff(cwd: str, path: str, before: bytes | None, after: bytes | None) -> FileEditToolCallContent | None:
    """Return the difference of a file, None where it is no text or too large to be shown."""
    if len(before or b"") > MAX_DIFF or len(after or b"") > MAX_DIFF:
        return None
    try:
        old, new = None if before is None else before.decode(), "" if after is None else after.decode()
    except UnicodeDecodeError:
        return None
    return tool_diff_content(clean(absolute(cwd, path)), new, old)


def first_line(before: bytes | None, after: bytes | None) -> int:
    """Return the line (from 1) where two contents begin to differ."""
    old, new = (before or b"").split(b"\n"), (after or b"").split(b"\n")
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return min(same, len(new) - 1) + 1
