"""The rules of the Agent Skills specification (https://agentskills.io/specification), each with a line number.

Where these rules and the reference validator (`skills-ref`) part is listed in docs/skills.md; a test holds the list.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from windlass.core.errors import ToolError, WorkspaceError
from windlass.tools.globs import NameFilter
from windlass.tools.skill_frontmatter import Front, Level, Problem
from windlass.tools.skill_rules import AllowedError, parse_allowed, split_outside

__all__ = ["FIELDS", "MAX_COMPATIBILITY", "MAX_DESCRIPTION", "MAX_NAME", "check_front", "globs_of", "name_problems"]

MAX_NAME = 64
MAX_DESCRIPTION = 1024
MAX_COMPATIBILITY = 500
#: The fields of the specification, and `paths` of reference C.
FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools", "paths")
#: The specification asks to keep the file below this.
_LONG_BODY = 500


def check_front(front: Front, folder: str | None) -> list[Problem]:
    """Check what was read against the specification; `folder` is the name of the skill's folder, None: not checked."""
    problems = list(front.problems)
    if any(each.level == "fatal" for each in problems):
        return problems
    fields, lines = front.fields, front.lines
    for name, line in lines.items():
        if name not in FIELDS:
            problems.append(Problem(line, f"Unexpected field {name!r}: the fields are {', '.join(FIELDS)}."))
    given = "name" in fields
    problems += [
        Problem(lines.get("name", 1), message, level)
        for message, level in _name(fields.get("name"), given, folder)
    ]  # fmt: skip
    checks: tuple[tuple[str, Found], ...] = (
        ("description", _description(fields.get("description"))),
        ("license", [] if isinstance(fields.get("license", ""), str) else [("license must be a text.", "error")]),
        ("compatibility", _compatibility(fields["compatibility"]) if "compatibility" in fields else []),
        ("metadata", _metadata(fields["metadata"]) if "metadata" in fields else []),
        ("allowed-tools", _allowed(fields["allowed-tools"]) if "allowed-tools" in fields else []),
        ("paths", _paths(fields["paths"]) if "paths" in fields else []),
    )
    for field, found in checks:
        problems += [Problem(lines.get(field, 1), message, level) for message, level in found]
    if not front.body:
        problems.append(Problem(front.body_line, "There are no instructions below the fields.", "note"))
    if (count := front.body.count("\n") + 1) > _LONG_BODY:
        text = f"The instructions have {count} lines; keep them below {_LONG_BODY}, and the rest in references/."
        problems.append(Problem(front.body_line, text, "note"))
    return sorted(problems, key=lambda each: each.line)


Found = list[tuple[str, Level]]


def name_problems(name: str) -> list[str]:
    """Return what is wrong with a skill's name; nothing for a good one."""
    return [message for message, _ in _name(name, True, None)]


def _name(value: Any, given: bool, folder: str | None) -> Found:
    if not given:
        return [("The field `name` is missing.", "fatal")]
    if not isinstance(value, str) or not value.strip():
        return [("name must be a text that is not empty.", "fatal")]
    name = unicodedata.normalize("NFKC", value.strip())
    out: Found = []
    if any(not (char.isalnum() or char in "-_") for char in name):
        out.append((f"The name {name!r:.100} may hold letters, digits and hyphens only.", "fatal"))
    elif "_" in name:
        out.append((f"The name {name!r:.100} may hold letters, digits and hyphens only, no `_`.", "error"))
    if len(name) > MAX_NAME:
        out.append((f"The name has {len(name)} characters; {MAX_NAME} is the most.", "error"))
    if name != name.lower():
        out.append((f"The name {name!r:.100} must be in lower case.", "error"))
    if name.startswith("-") or name.endswith("-"):
        out.append(("The name cannot begin or end with a hyphen.", "error"))
    if "--" in name:
        out.append(("The name cannot hold two hyphens in a row.", "error"))
    if folder is not None and unicodedata.normalize("NFKC", folder) != name:
        out.append((f"The folder is called {folder!r:.100}, the skill {name!r:.100}: they must be the same.", "error"))
    return out


def _description(value: Any) -> Found:
    if value is None:
        return [("The field `description` is missing.", "fatal")]
    if not isinstance(value, str) or not value.strip():
        return [("description must be a text that is not empty.", "fatal")]
    if len(value) > MAX_DESCRIPTION:
        return [(f"description has {len(value)} characters; {MAX_DESCRIPTION} is the most.", "error")]
    return []


def _compatibility(value: Any) -> Found:
    if not isinstance(value, str) or not value.strip():
        return [("compatibility must be a text that is not empty.", "error")]
    if len(value) > MAX_COMPATIBILITY:
        return [(f"compatibility has {len(value)} characters; {MAX_COMPATIBILITY} is the most.", "error")]
    return []


def _metadata(value: Any) -> Found:
    if isinstance(value, dict):
        deep = [str(key) for key, each in value.items() if not isinstance(each, str)]
        return [(f"metadata holds texts by name; {', '.join(deep)} is none.", "note")] if deep else []
    # An empty one is an empty text in YAML of this kind.
    return [] if value == "" else [("metadata must be fields of its own, indented below it.", "error")]


def _allowed(value: Any) -> Found:
    if isinstance(value, dict):
        return [("allowed-tools must be a text or a list.", "error")]
    try:
        entries = parse_allowed(value)
    except AllowedError as error:
        return [(f"{error}.", "error")]
    return [] if entries else [("allowed-tools is empty: it narrows nothing.", "note")]


def globs_of(value: Any) -> tuple[str, ...]:
    """Return the patterns of a `paths` field: a text with commas, or a list. Raises ValueError for a bad one."""
    if isinstance(value, dict):
        raise ValueError("paths must be a text or a list")
    out: list[str] = []
    for text in [value] if isinstance(value, str) else value:
        out += split_outside(text, ",\n", "{", "}")
    for pattern in out:
        if pattern.startswith("!"):
            raise ValueError(f"the pattern {pattern!r:.100} cannot exclude")
        try:
            NameFilter(pattern)
        except (ToolError, WorkspaceError) as error:
            raise ValueError(error.message.rstrip(".")) from None
    return tuple(out)


def _paths(value: Any) -> Found:
    try:
        return [] if globs_of(value) else [("paths is empty: the skill is always offered.", "note")]
    except ValueError as error:
        return [(f"paths: {error}.", "error")]
