"""Glob patterns over workspace paths, matched name by name: no regular expression sees the whole path."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from msgspec import Struct

from windlass.core.errors import PathEscape, ToolError

__all__ = ["Glob", "NameFilter", "expand_braces", "parse_glob"]

#: Alternatives that braces may make of one pattern.
MAX_ALTERNATIVES = 64
_MAX_PATTERN = 1000
_MAGIC = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")


class Glob(Struct, frozen=True):
    """One pattern without braces: `prefix` is the folder that it starts in, `names` are matched one by one below it.

    `*`, `?` and `[a-z]` match within a name, `**` matches any number of folders. Names that start with a dot match too.
    """

    prefix: str
    names: tuple[str, ...]

    @property
    def depth(self) -> int | None:
        """How deep below `prefix` a match can lie; None: any depth."""
        return None if "**" in self.names else len(self.names)

    def matches(self, path: Sequence[str]) -> bool:
        """Tell whether a path below `prefix`, given as names, matches."""
        names = self.names
        reached = _skip(names, {0})
        for part in path:
            after: set[int] = set()
            for at in reached:
                if at < len(names):
                    if names[at] == "**":
                        after.add(at)
                    elif fnmatch.fnmatchcase(part, names[at]):
                        after.add(at + 1)
            reached = _skip(names, after)
            if not reached:
                return False
        return len(names) in reached


def _skip(names: tuple[str, ...], reached: set[int]) -> set[int]:
    """Add the places that are reached when `**` matches no folder at all."""
    out = set(reached)
    for at in sorted(reached):
        while at < len(names) and names[at] == "**":
            at += 1
            out.add(at)
    return out


def parse_glob(pattern: str) -> list[Glob]:
    """Return the alternatives of a pattern.

    Names in front without a special character are its `prefix`, for the workspace to judge. Raises PathEscape for a
    `..` after them, and ToolError for an empty pattern or one with too many alternatives.
    """
    return [_parse(each) for each in expand_braces(pattern)]


def _parse(pattern: str) -> Glob:
    names = pattern.split("/")
    start = 0
    while start < len(names) - 1 and not _MAGIC.search(names[start]):
        start += 1
    rest = [name for name in names[start:] if name != "."]
    if ".." in rest:
        raise PathEscape(f"{pattern!r:.200} has a `..` in it.", path=pattern, hint="Name the folder to search in.")
    return Glob("/".join(names[:start]) or ("/" if start else "."), _below(rest))


def _below(names: list[str]) -> tuple[str, ...]:
    # What ends in `**` means all files below a folder, not also a file in its place.
    return (*names, "*") if names[-1:] == ["**"] else tuple(names)


def expand_braces(pattern: str) -> list[str]:
    """Return the patterns that `{a,b}` stands for, innermost braces first; a lone brace is itself. Raises ToolError."""
    if not pattern or len(pattern) > _MAX_PATTERN:
        raise ToolError(f"The pattern has {len(pattern)} characters; 1 to {_MAX_PATTERN} are allowed.")
    done: list[str] = []
    work = [pattern]
    while work:
        each = work.pop()
        found = _BRACES.search(each)
        if found is None:
            done.append(each)
        else:
            work += [each[: found.start()] + part + each[found.end() :] for part in reversed(found[1].split(","))]
        if len(done) + len(work) > MAX_ALTERNATIVES:
            raise ToolError(f"The pattern {pattern!r:.200} has more than {MAX_ALTERNATIVES} alternatives.")
    return list(dict.fromkeys([each for each in done if each]))


class NameFilter:
    """The `glob` of grep, as ripgrep has it: without a slash it is matched on the name, `!` in front turns it round."""

    def __init__(self, pattern: str) -> None:
        self._wanted = not pattern.startswith("!")
        alternatives = expand_braces(pattern.removeprefix("!"))
        self._globs = [_parse_below(each) for each in alternatives]

    def keeps(self, path: Sequence[str]) -> bool:
        """Tell whether a file, given as names below the searched folder, is searched."""
        return any(each.matches(path) for each in self._globs) == self._wanted


def _parse_below(pattern: str) -> Glob:
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if ".." in names:
        raise PathEscape(f"{pattern!r:.200} has a `..` in it.", path=pattern, hint="Name the folder as `path`.")
    return Glob(".", _below(names if "/" in pattern.strip("/") or pattern.startswith("/") else ["**", *names]))
