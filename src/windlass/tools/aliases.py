"""The names that Claude Code gives to tools like ours, and the arguments that models know from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.core.schema import Checked, Validator, compile_schema

__all__ = ["ARGUMENT_ALIASES", "CLAUDE_ALIASES", "Arguments", "arguments_of"]

#: Our name -> theirs: `Agent(tool_aliases=CLAUDE_ALIASES)` shows a model the tools that it was trained with.
CLAUDE_ALIASES: Mapping[str, str] = {
    "shell": "Bash",
    "read_file": "Read",
    "write_file": "Write",
    "edit": "Edit",
    "multi_edit": "MultiEdit",
    "list_files": "LS",
    "glob": "Glob",
    "grep": "Grep",
    "todo_write": "TodoWrite",
    "spawn": "Task",
    "web_fetch": "WebFetch",
}

_PATH = {"file_path": "path", "filepath": "path", "filename": "path", "file": "path"}
_FOLDER = {"directory": "path", "dir": "path", "folder": "path", "dir_path": "path", "directory_path": "path"}
_EDIT = {
    "old_str": "old_string",
    "old_text": "old_string",
    "oldString": "old_string",
    "new_str": "new_string",
    "new_text": "new_string",
    "newString": "new_string",
    "replaceAll": "replace_all",
}
#: Tool -> the name that a model sends -> ours. An empty name is one that says nothing to us: it is dropped.
ARGUMENT_ALIASES: Mapping[str, Mapping[str, str]] = {
    "shell": {"cmd": "command", "description": ""},
    "read_file": {**_PATH, "start_line": "offset", "filePath": "path"},
    "write_file": {**_PATH, "filePath": "path", "contents": "content", "file_text": "content", "text": "content"},
    "edit": {**_PATH, "filePath": "path", **_EDIT},
    "multi_edit": {**_PATH, "filePath": "path"},
    "list_files": {**_FOLDER, "ignore": ""},
    "glob": {**_FOLDER, "glob": "pattern", "glob_pattern": "pattern"},
    "grep": {
        **_FOLDER,
        **_PATH,
        "query": "pattern",
        "regex": "pattern",
        "include": "glob",
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
    },
    "apply_patch": {"input": "patch", "diff": "patch"},
    "outline": _PATH,
    "file": {**_PATH, "to": "destination", "dest": "destination", "op": "operation"},
    "todo_write": {"items": "todos", "plan": "todos"},
}


class Arguments:
    """Checks a tool's arguments as its schema says, after the names that a model knows from elsewhere became ours.

    Has the shape of `core.schema.Validator`; what was renamed is among the coercions.
    """

    __slots__ = ("_aliases", "_validator", "schema")

    def __init__(self, schema: dict[str, Any], aliases: Mapping[str, str]) -> None:
        self.schema, self._aliases = schema, aliases
        self._validator: Validator = compile_schema(schema)

    def renamed(self, value: Any) -> tuple[Any, tuple[str, ...]]:
        """Return arguments under our names, and the names that were changed. One that is given already stays."""
        if not isinstance(value, dict) or self._aliases.keys().isdisjoint(value):
            return value, ()
        out: dict[str, Any] = {}
        changed: list[str] = []
        for name, item in value.items():
            ours = self._aliases.get(name, name)
            if ours != name and (ours in value or ours in out):
                ours = name
            if ours != name:
                changed.append(ours or name)
            if ours:
                out[ours] = item
        return out, tuple(changed)

    def check(self, value: Any, /) -> Checked:
        """Return what `core.schema.Validator.check` does, of the renamed arguments."""
        checked = self._validator.check(value)
        if checked.error is None:
            return checked
        args, changed = self.renamed(value)
        if not changed:
            return checked
        again = self._validator.check(args)
        return Checked(again.args, (*changed, *again.coercions), again.error)

    def fits(self, value: Any, /) -> bool:
        """Tell whether the value fits as it is."""
        return self._validator.fits(value)


def arguments_of(name: str, schema: dict[str, Any]) -> Arguments:
    """Return the checker of a built-in tool's arguments. Raises ConfigError for a broken schema."""
    return Arguments(schema, ARGUMENT_ALIASES.get(name, {}))
