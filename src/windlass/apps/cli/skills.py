"""`windlass skills`: which there are and where from, whether one is valid, and a new one to begin with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from windlass.apps.cli.common import ERROR, OK, Parser, plain, say
from windlass.core import json
from windlass.core.errors import ConfigError
from windlass.core.text import strip_escapes
from windlass.tools.skill_check import name_problems
from windlass.tools.skill_files import Skill, check_folder
from windlass.tools.skills import Skills

__all__ = ["main", "parser"]

_TEMPLATE = """---
name: {name}
description: {description}
---
# {name}

Say here, step by step, what is to be done and how to know that it is done well.

Put what is long or seldom needed into `references/`, and programs into `scripts/`; name them here.
"""
_DESCRIPTION = "Describe what this skill does, and when to use it."


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    if options.verb == "list":
        return _list(options)
    return _validate(options.paths) if options.verb == "validate" else _new(options)


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "List, check and make skills (https://agentskills.io).", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")
    text = "where each comes from, which are hidden, which are refused and why"
    listing = verbs.add_parser("list", help=text, description=f"List skills: {text}.", arguments="[FOLDER ...]")
    listing.add_argument("folders", metavar="FOLDER", nargs="*", help="look into these, before the usual places")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    text = "against the specification, line by line; exit code 0 or 1"
    checks = verbs.add_parser("validate", help=text, description=f"Check skills {text}.", arguments="PATH ...")
    checks.add_argument("paths", metavar="PATH", nargs="+", help="a skill's folder, or its SKILL.md")
    text = "a folder with a SKILL.md to begin with; nothing is overwritten"
    new = verbs.add_parser("new", help=text, description=f"Make {text}.", arguments="NAME")
    new.add_argument("name", metavar="NAME", type=plain, help="lower-case letters, digits and hyphens")
    new.add_argument("--folder", metavar="DIR", default=".agents/skills", help="where (default: .agents/skills)")
    new.add_argument("--description", metavar="TEXT", default=_DESCRIPTION, type=plain, help="what it is for")
    return parser


def _list(options: argparse.Namespace) -> int:
    skills = Skills({"scan": options.folders, "windlass": True})
    found = skills.scan()
    # Windlass's own is offered where it is asked for: `Agent(skills={"windlass": True})`, or `$windlass` in a prompt.
    rows: list[dict[str, object]] = [
        _row(skill, "option" if skill.source == "windlass" else "offered", skills) for skill in found.skills.values()
    ]
    rows += [{**_row(skill, "hidden", skills), "by": first.where or first.name} for skill, first in found.shadowed]
    for each in found.refused:
        row: dict[str, object] = {"name": Path(each.path).name, "state": "refused", "source": each.source}
        rows.append({**row, "path": each.path, "reason": each.reason})
    for row in rows:
        sys.stdout.write((json.dumps(row).decode() if options.json else _line(row)) + "\n")
    return OK


def _row(skill: Skill, state: str, skills: Skills) -> dict[str, object]:
    problems = [f"line {each.line}: {each.message}" for each in skill.problems if each.level == "error"]
    return {
        "name": skill.name, "state": state, "source": skill.source, "path": skill.where,
        "trusted": skills.trusts(skill), "description": skill.description, "paths": list(skill.paths),
        "allowed_tools": None if skill.allowed is None else [each.text for each in skill.allowed], "problems": problems,
    }  # fmt: skip


def _line(row: dict[str, object]) -> str:
    text = f"{row['name']!s:<24} {row['state']!s:<8} {row['source']!s:<8} {row['path']}"
    if row["state"] == "refused":
        text += f"  ({row['reason']})"
    elif row["state"] == "hidden":
        text += f"  (by {row['by']})"
    elif row.get("problems"):
        text += "  (not valid: windlass skills validate)"
    return strip_escapes(text).replace("\n", " ")


def _validate(paths: list[str]) -> int:
    failed = False
    for path in paths:
        problems = check_folder(path)
        bad = [each for each in problems if each.level != "note"]
        failed = failed or bool(bad)
        file = path if Path(path).suffix.lower() == ".md" else str(Path(path) / "SKILL.md")
        for each in problems:
            where = f"{file}:{each.line}" if each.line else path
            word = "note" if each.level == "note" else "error"
            sys.stdout.write(strip_escapes(f"{where}: {word}: {each.message}").replace("\n", " ") + "\n")
        if not bad:
            sys.stdout.write(strip_escapes(f"{path}: valid").replace("\n", " ") + "\n")
    return ERROR if failed else OK


def _new(options: argparse.Namespace) -> int:
    problems = name_problems(options.name)
    if problems:
        raise ConfigError(problems[0], hint="windlass skills new my-skill")
    folder = Path(options.folder).expanduser() / options.name
    description = json.dumps(options.description).decode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        with open(folder / "SKILL.md", "x", encoding="utf-8") as file:
            file.write(_TEMPLATE.format(name=options.name, description=description))
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; nothing was changed.") from None
    except OSError as error:
        raise ConfigError(f"Cannot make {folder}: {error.strerror}.") from error
    for problem in check_folder(folder):
        say(f"windlass: {folder}: {problem.message}")
    sys.stdout.write(f"{folder / 'SKILL.md'}\n")
    return OK
