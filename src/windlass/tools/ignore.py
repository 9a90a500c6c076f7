"""What `.gitignore` files leave out of a search (gitignore(5)).

Only the `.gitignore` files of the workspace count, those above the searched folder too: not a user's own excludes, not
`.git/info/exclude`, not `.ignore`. A folder that is left out is not entered, so nothing below it can be taken back.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from windlass.tools.globs import Glob

__all__ = ["IGNORE_FILE", "MAX_IGNORE_BYTES", "Rule", "Rules", "is_ignored", "parse_ignore"]

IGNORE_FILE = ".gitignore"
MAX_IGNORE_BYTES = 256 * 1024
_MAX_RULES = 2000
_POSIX = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "xdigit": "0-9a-fA-F",
}  # fmt: skip
_POSIX_CLASS = re.compile(r"\[:(\w+):\]")


class Rule(Struct, frozen=True):
    """One line. `name` is matched on the last name alone, at any depth; else `path` on all names below the folder."""

    back: bool
    folders_only: bool
    name: re.Pattern[str] | None = None
    path: Glob | None = None

    def matches(self, parts: Sequence[str], *, folder: bool) -> bool:
        """Tell whether the rule speaks of an entry, given as names below the folder of its file."""
        if self.folders_only and not folder:
            return False
        if self.name is not None:
            return self.name.match(parts[-1]) is not None
        return self.path is not None and self.path.matches(parts)


#: The rules of one file, and how many names its folder's path has.
Rules = tuple[int, tuple[Rule, ...]]


def is_ignored(rules: Sequence[Rules], parts: Sequence[str], *, folder: bool) -> bool:
    """Tell whether an entry, given as names below the workspace's root, is left out; the last rule that fits decides.

    `rules` go from the root to the entry's own folder.
    """
    for depth, each in reversed(rules):
        below = parts[depth:]
        for rule in reversed(each):
            if rule.matches(below, folder=folder):
                return not rule.back
    return False


@lru_cache(maxsize=256)
def parse_ignore(data: bytes) -> tuple[Rule, ...]:
    """Return the rules of a `.gitignore`; lines that can match nothing are left out."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    found = [_rule(line) for line in text.split("\n")[:_MAX_RULES]]
    return tuple([rule for rule in found if rule is not None])


def _rule(line: str) -> Rule | None:
    line = _trimmed(line.removesuffix("\r"))
    if not line or line.startswith("#"):
        return None
    back = line.startswith("!")
    line = line[1:] if back else line
    folders_only = line.endswith("/") and not line.endswith("\\/")
    line = line[:-1] if folders_only else line
    names = [name for name in line.split("/") if name]
    if not names:
        return None
    converted = [name if name == "**" else _name_pattern(name) for name in names]
    if any(name is None for name in converted):
        return None
    whole = [name for name in converted if name is not None]
    if "/" not in line:
        only = "*" if whole[0] == "**" else whole[0]
        return Rule(back, folders_only, name=re.compile(fnmatch.translate(only)))
    if whole[-1] == "**":
        whole.append("*")  # all that is below, not the folder itself
    return Rule(back, folders_only, path=Glob(".", tuple(whole)))


def _trimmed(line: str) -> str:
    """Drop the spaces at the end, but for an escaped one."""
    bare = line.rstrip(" ")
    slashes = len(bare) - len(bare.rstrip("\\"))
    return f"{bare} " if slashes % 2 and len(bare) < len(line) else bare


def _name_pattern(name: str) -> str | None:
    """Return a name of a rule as fnmatch writes it; None for one that can match nothing."""
    out: list[str] = []
    at = 0
    while at < len(name):
        char = name[at]
        if char == "\\":
            if at + 1 == len(name):
                return None
            out.append(_literal(name[at + 1]))
            at += 2
        elif char == "[":
            read = _class(name, at + 1)
            if read is None:
                return None
            out.append(read[0])
            at = read[1]
        else:
            out.append(char)
            at += 1
    return re.sub(r"\*{2,}", "*", "".join(out))


def _literal(char: str) -> str:
    return f"[{char}]" if char in "*?[" else char


def _class(name: str, at: int) -> tuple[str, int] | None:
    """Return a `[...]` in fnmatch's form, and where it ends; None when it never does."""
    turned = name[at : at + 1] in ("!", "^")
    at += turned
    chars: list[str] = []
    while at < len(name) and (name[at] != "]" or not chars):
        posix = _POSIX_CLASS.match(name, at)
        if posix is not None:
            if posix[1] not in _POSIX:
                return None
            chars.append(_POSIX[posix[1]])
            at = posix.end()
        elif name[at] == "\\" and at + 1 < len(name):
            chars.append(name[at + 1])
            at += 2
        else:
            chars.append(name[at])
            at += 1
    if at >= len(name):
        return None
    # fnmatch takes `]` only as the first, and `!` anywhere else.
    if chars == ["!"] and not turned:
        return "!", at + 1
    order = sorted(chars, key=lambda char: {"]": 0, "!": 2}.get(char, 1))
    return f"[{'!' if turned else ''}{''.join(order)}]", at + 1
