"""The tools through which a model uses skills: skills_use, skills_read, skills_run_script."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from windlass.core.errors import ToolError
from windlass.core.events import SkillActivated
from windlass.core.ports import Tool, ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.tools.access import workspace_of
from windlass.tools.function import SpecTool
from windlass.tools.media import media_of
from windlass.tools.skill_files import Skill
from windlass.tools.skill_use import MAX_READ, Shell, render, resource, script_argv, told

__all__ = ["NAMES", "Shelf", "find_skill", "skill_tools"]

#: The names of these tools: while a skill narrows what may be called, they stay.
NAMES = frozenset({"skills_use", "skills_read", "skills_run_script", "skill"})
#: What one answer of skills_read holds, in bytes, and the lines of one page.
_MAX_SHOWN = 64 * 1024
_PAGE = 2000
SCRIPT_SECONDS = 120.0
_MAX_SECONDS = 600.0
_GRACE = 15.0
_TEXT = {"type": "string"}


class Shelf(Protocol):
    """Where the tools find skills, and who keeps which one is in use."""

    def usable(self, state: Mapping[str, Any]) -> Mapping[str, Skill]:
        """Return what may be used in a session now."""
        ...

    def trusts(self, skill: Skill) -> bool:
        """Tell whether a skill's commands may run."""
        ...

    def begin(self, skill: Skill, state: dict[str, Any], run_id: str) -> None:
        """Take note that a run uses a skill."""

    def shell(self, ctx: ToolContext) -> Shell:
        """Return where a skill's commands run for a call."""
        ...


def find_skill(skills: Mapping[str, Skill], name: str) -> Skill:
    """Return a skill by name. Raises ToolError with the nearest names."""
    wanted = name.strip().lstrip("$/")
    if wanted in skills:
        return skills[wanted]
    near = difflib.get_close_matches(wanted[:100], skills, n=3, cutoff=0.5)
    known = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(list(skills)[:50]) or 'none'}."
    raise ToolError(f"There is no skill {name!r:.100}.", hint=known)


def skill_tools(shelf: Shelf, use_name: str = "skills_use") -> tuple[Tool, Tool, Tool, Tool]:
    """Make the tools: use, the same where that may run commands, read, run a script.

    `use_name` is what the first two are called (reference D: `skill`). A policy lets those that only read pass.
    """

    async def use(args: dict[str, Any], ctx: ToolContext) -> str:
        skill = find_skill(shelf.usable(ctx.state), args["name"])
        shelf.begin(skill, ctx.state, ctx.run_id)
        shell = shelf.shell(ctx)
        text = await render(skill, args.get("arguments", ""), trusted=shelf.trusts(skill), shell=shell)
        await ctx.emit(SkillActivated(name=skill.name))
        await ctx.fire("skills:activate", name=skill.name, path=skill.where)
        return text

    async def read(args: dict[str, Any], ctx: ToolContext) -> Any:
        skill = find_skill(shelf.usable(ctx.state), args["name"])
        data = await resource(skill, args["path"])
        if (part := media_of(data, args["path"])) is not None and len(data) <= MAX_READ:
            return ToolResult((part,))
        return _page(args["path"], data, args.get("offset", 1), args.get("limit", _PAGE))

    async def run_script(args: dict[str, Any], ctx: ToolContext) -> Any:
        skill = find_skill(shelf.usable(ctx.state), args["name"])
        return await _run(skill, args, ctx)

    arguments = {"name": _TEXT, "arguments": {"type": "string", "description": "What it is to work on"}}
    what = "Use a skill: returns its instructions."
    return (
        SpecTool(_spec(use_name, what, arguments, ["name"], ToolAnnotations(read_only=True)), use),
        SpecTool(_spec(use_name, what, arguments, ["name"], ToolAnnotations(read_only=False, open_world=True)), use),
        SpecTool(_spec("skills_read", "Read a file of a skill.", {
            "name": _TEXT, "path": {"type": "string", "description": "Such as references/api.md"},
            "offset": {"type": "integer", "minimum": 1, "description": "First line", "default": 1},
            "limit": {"type": "integer", "minimum": 1, "description": "Lines to read", "default": _PAGE},
        }, ["name", "path"], ToolAnnotations(read_only=True)), read),
        SpecTool(_spec("skills_run_script", "Run a script of a skill; returns its output.", {
            "name": _TEXT, "script": {"type": "string", "description": "Such as scripts/check.py"},
            "args": {"type": "array", "items": _TEXT, "description": "Its arguments, word by word"},
            "timeout": {"type": "number", "exclusiveMinimum": 0, "default": SCRIPT_SECONDS,
                        "description": f"Seconds, at most {_MAX_SECONDS:g}"},
        }, ["name", "script"], ToolAnnotations(read_only=False, destructive=True, open_world=True)), run_script,
            timeout=_MAX_SECONDS + _GRACE),
    )  # fmt: skip


def _spec(
    name: str, description: str, properties: dict[str, Any], required: list[str], annotations: ToolAnnotations
) -> ToolSpec:  # fmt: skip
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSpec(name, description, schema, annotations=annotations)


async def _run(skill: Skill, args: dict[str, Any], ctx: ToolContext) -> Any:
    workspace = workspace_of(ctx)
    if "shell" not in workspace.capabilities:
        raise ToolError("This workspace has no shell.", hint="Read the script, and do by hand what it does.")
    argv = script_argv(skill, args["script"], args.get("args", []), workspace)
    seconds = min(float(args.get("timeout", SCRIPT_SECONDS)), _MAX_SECONDS)

    decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def on_output(data: bytes) -> None:
        if text := decode(data):
            ctx.progress(text)

    environment = {} if skill.folder is None else {"SKILL_DIR": skill.folder}
    result = await workspace.exec(argv, timeout=seconds, max_output=8192, env=environment, on_output=on_output)
    text = told(result, seconds)
    if result.exit_code in (126, 127) and not argv[0].startswith("./"):
        text += f"\n[It could not be started: {argv[0]} or the script may not be there in this workspace.]"
    if result.killed is not None:
        return ToolResult(text, "timeout" if result.killed == "timeout" else "error")
    return text


def _page(path: str, data: bytes, offset: int, limit: int) -> str:
    """Return some lines of a text, and how to go on where it has more."""
    if b"\x00" in data[:8192]:
        return f"[Binary file: {path}]"
    lines = data[:MAX_READ].decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    if offset > len(lines):
        return f"[offset {offset} is past the end: the file has {len(lines)} lines.]"
    out, room = list[str](), _MAX_SHOWN
    for line in lines[offset - 1 : offset - 1 + limit]:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        out.append(line)
    if not out:
        out = [lines[offset - 1].encode()[:_MAX_SHOWN].decode("utf-8", "ignore")]
    last = offset + len(out) - 1
    if last < len(lines):
        return "\n".join(out) + f"\n[Lines {offset}-{last} of {len(lines)}. Read on with offset={last + 1}.]"
    more = f"\n[The file goes on beyond {MAX_READ} bytes.]" if len(data) > MAX_READ else ""
    return ("\n".join(out) + more) or "(empty file)"
