"""One rule about tool calls, and whether it matches one call: yes, no, or not proven.

An *allow* rule matches only what is proven to be what it names; a *deny* or *ask* rule matches whatever could be it.
Where that cannot be told (a command line that is more than one plain command), the call is asked about.
"""

from __future__ import annotations

import fnmatch
import functools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from windlass.agent.commands import could_hold, prefix_refused, read_command, runs_others
from windlass.core.errors import ConfigError

__all__ = [
    "COMMAND_ARGUMENTS",
    "PATCHES",
    "RANK",
    "Action",
    "Match",
    "Rule",
    "command_of",
    "match_rule",
    "paths_of",
    "rule_text",
]

Action = Literal["allow", "ask", "deny"]
RANK: dict[Action, int] = {"allow": 0, "ask": 1, "deny": 2}
#: Arguments that hold a command line or a program: an allow rule with a wildcard there would allow anything.
COMMAND_ARGUMENTS = ("command", "cmd", "script", "code")
#: Arguments that hold a patch.
PATCHES = ("patch", "diff", "input")
#: Arguments that hold a file's path, by the names that tools have for it.
_PATHS = frozenset(
    {
        *("path", "paths", "file", "files", "file_path", "filename", "target", "source", "destination"),
        *("old_path", "new_path", "from", "to", "directory", "folder", "notebook_path"),
    }
)
_PATCHED = re.compile(
    r"^(?:\*\*\* (?:(?:Add|Update|Delete) File|Move to): |(?:---|\+\+\+) (?:[ab]/)?|(?:rename|copy) (?:from|to) "
    r"|diff --git a/.+ b/)([^\t\r\n]+)",
    re.MULTILINE,
)
_AUTHORITY = re.compile(r"[a-z0-9.-]+(:[0-9]+)?")
#: Names in a path that are compared, more than Linux takes; a longer one is allowed by nothing and denied by anything.
MAX_NAMES = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with calls of the tools that `tool` matches (a shell-style pattern such as `mcp_*`).

    `arguments` maps names of arguments to patterns, which all must match: `*` and `?` stay within a name of a path,
    `**` crosses them (`src/**`); a list matches when all (allow) or any (ask, deny) of its items do. `command` is the
    beginning of a command's words, compared word by word: `["git", "status"]`. Raises ConfigError for another action.
    """

    action: Action
    tool: str = "*"
    reason: str = ""
    arguments: dict[str, str] = {}
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.action not in RANK:
            raise ConfigError(f"A rule's action is {self.action!r}.", hint="It is allow, ask or deny.")
        if isinstance(self.command, str):
            raise ConfigError(f"A rule's command is {self.command!r}.", hint='It is a list: ["git", "status"].')
        msgspec.structs.force_setattr(self, "command", tuple(self.command))

    @property
    def bare(self) -> bool:
        """True for a rule on the tool alone."""
        return not self.arguments and not self.command


class Match(Struct, frozen=True):
    """Whether a rule matches a call, and why not or why that is not certain."""

    how: Literal["yes", "no", "unproven"]
    why: str = ""


_YES = Match("yes")


def rule_text(rule: Rule) -> str:
    """Return a rule in a few words: `deny 'shell' command "rm"`."""
    text = f"{rule.action} {rule.tool!r}"
    if rule.command:
        text += f" command {' '.join(rule.command)!r}"
    for name, pattern in rule.arguments.items():
        text += f" {name}={pattern!r}"
    return text


def match_rule(rule: Rule, name: str, args: dict[str, Any]) -> Match:
    """Compare a rule with a call of the tool `name`."""
    if not fnmatch.fnmatchcase(name, rule.tool):
        return Match("no", "it is about other tools")
    sure = rule.action == "allow"
    for argument, pattern in rule.arguments.items():
        if argument not in args:
            return Match("no", f"the call has no argument {argument}")
        if sure and argument in COMMAND_ARGUMENTS and re.search(r"[*?]", pattern):
            return Match("no", f"a pattern with wildcards may not allow a {argument}")
        if not _value_matches(pattern, args[argument], sure):
            return Match("no", f"{argument} is not {pattern}")
    return _command_matches(rule, args, sure) if rule.command else _YES


def command_of(args: dict[str, Any]) -> str | tuple[str, ...] | None:
    """Return the command of a call, a line or words; None where its arguments have none."""
    value = next((args[name] for name in COMMAND_ARGUMENTS if name in args), None)
    words = _strings(value)
    if words is not None:
        return words
    if not isinstance(value, str):
        return None
    rest = _strings(args.get("args"))
    return value if rest is None else (value, *rest)


def _strings(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    words = tuple(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - checked below
    return words if all(isinstance(word, str) for word in words) else None  # pyright: ignore[reportUnknownVariableType]


def _command_matches(rule: Rule, args: dict[str, Any], sure: bool) -> Match:
    command = command_of(args)
    if command is None:
        return Match("no", "the call has no command")
    words = read_command(command) if isinstance(command, str) else None
    argv = command if isinstance(command, tuple) else words.argv if words is not None else None
    if sure:
        if argv is None:
            return Match("unproven", f"the line is not proven to be one plain command: {words.why if words else ''}")
        extra = [
            key
            for key, value in args.items()
            if key not in (*COMMAND_ARGUMENTS, "args", "description") and _tells(value)
        ]
        if extra:
            return Match("unproven", f"{extra[0]} may change what it runs")
        refused = prefix_refused(rule.command, argv)
        return Match("no", refused) if refused else _YES
    line = command if isinstance(command, str) else "\n".join(command)
    if could_hold(line, rule.command):
        return _YES
    if argv is None or not argv:
        why = words.why if words is not None else "it has no words"
        return Match("unproven", f"the line is not proven not to hold it: {why}")
    if runs_others(argv[0]):
        return Match("unproven", f"{argv[0]} runs other commands")
    return Match("no", "it is another command")


def _tells(value: Any) -> bool:
    return value is not None and not isinstance(value, (bool, int, float))


# -- values and patterns ---------------------------------------------------------------------------------------------


def _value_matches(pattern: str, value: Any, sure: bool) -> bool:
    if isinstance(value, (list, tuple)):
        found = [_value_matches(pattern, item, sure) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return (bool(found) and all(found)) if sure else any(found)
    text = value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()
    if text.count("/") >= MAX_NAMES:
        return not sure
    if sure:
        return (text == pattern and "*" not in text) or (_is_plain(text, pattern) and _matches(pattern, text))
    folded = pattern.casefold()
    # A path from outside may lead back in: the workspace's own folder is part of it.
    return any(_matches(f"**/{folded}" if form.startswith(("/", "..", "~")) else folded, form) for form in _forms(text))


def _is_plain(text: str, pattern: str) -> bool:
    """Tell whether text means what it says: a clean relative path, or an address with a plain host."""
    if _CONTROL.search(text) or not text:
        return False
    head, address, rest = text.partition("://")
    if address:
        parts = rest.split("/")
        return (
            "://" in pattern
            and head.isascii()
            and _AUTHORITY.fullmatch(parts[0]) is not None
            and not {"..", "."} & set(re.split(r"[/?#]", rest)[1:])
            and "%" not in rest
        )
    if text.startswith(("/", "~")) and not pattern.startswith(("/", "~")):
        return False
    return text == "." or (posixpath.normpath(text) == text and ".." not in text.split("/"))


def _forms(text: str) -> Iterator[str]:
    """Yield what a value could mean to a file system, a URL reader or a person."""
    seen = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")
    for form in {text.casefold(), seen.casefold()}:
        yield form
        yield posixpath.normpath(form.replace("\\", "/"))


def _matches(pattern: str, text: str) -> bool:
    """Compare name by name, in time linear in both: the pattern may come from a repository, the text from a model."""
    names = text.split("/")
    reached = {0}
    for part in pattern.split("/"):
        if part == "**":
            reached = set(range(min(reached, default=len(names) + 1), len(names) + 1))
        else:
            matches = _name(part)
            reached = {at + 1 for at in reached if at < len(names) and matches(names[at])}
    return len(names) in reached


@functools.lru_cache(maxsize=512)
def _name(pattern: str) -> Callable[[str], object]:
    # fnmatch's expressions do not backtrack from one star into the one before.
    return re.compile(fnmatch.translate(pattern)).match


def paths_of(args: dict[str, Any]) -> list[str]:
    """Return every path that a call's arguments name, also in the headers of a patch."""
    found: list[str] = []
    for name, value in args.items():
        if name in _PATHS:
            found.extend(_strings(value) or ((value,) if isinstance(value, str) else ()))
        elif name in PATCHES and isinstance(value, str):
            found.extend([path.strip() for path in _PATCHED.findall(value) if path.strip() != "/dev/null"])
    return found
