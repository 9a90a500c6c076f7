"""Named sets of tools: a name stands for them wherever tools are given."""

from __future__ import annotations

from windlass.core.errors import UnknownNameError
from windlass.core.ports import Tool
from windlass.tools.basic import echo, utc
from windlass.tools.files import edit, list_files, multi_edit, read_file, write_file
from windlass.tools.search import glob, grep
from windlass.tools.shell import shell
from windlass.tools.spawn import spawn
from windlass.tools.todo import todo_write
from windlass.tools.web import web_fetch

__all__ = ["BASIC", "CODING", "DEMO", "FILES", "NONE", "TOOLSETS", "toolset"]

#: Read, change and search files.
FILES: tuple[Tool, ...] = (read_file, write_file, edit, multi_edit, list_files, glob, grep)
#: Reference C's basic tools.
BASIC: tuple[Tool, ...] = (shell, read_file, write_file, edit, multi_edit, list_files, spawn)
#: What a coding agent works with. `apply_patch`, `outline` and `file` are added by name: every request pays for a tool.
CODING: tuple[Tool, ...] = (shell, *FILES, todo_write, spawn, web_fetch)
#: Nothing that touches anything.
DEMO: tuple[Tool, ...] = (echo, utc)
NONE: tuple[Tool, ...] = ()

TOOLSETS: dict[str, tuple[Tool, ...]] = {"files": FILES, "basic": BASIC, "coding": CODING, "demo": DEMO, "none": NONE}


def toolset(name: str) -> tuple[Tool, ...]:
    """Return the tools of a set. Raises UnknownNameError with the nearest name."""
    try:
        return TOOLSETS[name]
    except KeyError:
        raise UnknownNameError("tool set", name, TOOLSETS) from None
