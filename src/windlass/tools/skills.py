"""Skills for an agent: a catalogue in its system text, tools to use them, and gates that narrow what it may call.

The format is that of the Agent Skills specification (https://agentskills.io/specification). Only names and
descriptions are told up front; instructions come when a skill is used, its files when they are read.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from windlass.core.errors import ConfigError, UnknownNameError, WorkspaceError
from windlass.core.events import SkillActivated
from windlass.core.ports import CapabilityHost, FileInfo, Tool, ToolContext, TurnView, Workspace
from windlass.core.text import strip_escapes
from windlass.core.threads import run_in_thread
from windlass.tools.globs import NameFilter
from windlass.tools.skill_files import Found, Place, Skill, default_places, own_skill, scan
from windlass.tools.skill_rules import refusal
from windlass.tools.skill_tools import NAMES, find_skill, skill_tools
from windlass.tools.skill_use import Shell, commands_in, render

__all__ = ["MAX_CATALOG", "OPTIONS", "Skills", "catalog_of", "expand", "trusted_by_default"]

#: Bytes of the catalogue in the system text.
MAX_CATALOG = 16 * 1024
_MAX_NAMES = 2 * 1024
#: What `Skills({…})` may hold.
OPTIONS = ("scan", "write", "exclude", "enabled", "trusted", "windlass", "defaults", "skill_tool")
#: Files of one listed folder that `paths` are compared with.
_MAX_LISTED = 1000
_MENTION = re.compile(r"(?<![\w$\\])\$(\w[\w-]*)")
_COMMAND = re.compile(r"\s*/(\w[\w-]*)(?:\s+(.*))?\s*", re.DOTALL)
_LEAD = "Instructions for certain tasks. When a task fits a description, call {} with its name before you begin."

Trust = Callable[[Skill], bool] | bool


def trusted_by_default(skill: Skill) -> bool:
    """Tell whether a skill's `!` commands may run where nobody says otherwise.

    Those of the user's own folders, of the program and of Windlass may; those of a project or of a folder that was
    merely named may not.
    """
    return skill.source in ("user", "program", "windlass")


class _InUse(Struct):
    """The skill in use; `run_id` is empty until the run that was prepared for it begins."""

    skill: Skill
    run_id: str


class _Memory(Struct):
    """What one session knows: the catalogue as its hook left it, what `paths` have shown, and what is in use.

    `aliases` maps a tool's own name to the one the model sees.
    """

    catalog: str | None = None
    shown: set[str] = set()
    aliases: Mapping[str, str] = {}
    in_use: _InUse | None = None


class Skills:
    """Offer skills to an agent: `Agent(skills=…)`, or in `capabilities`.

    `value` is a folder, a list of folders (these and no others are looked into), True (the usual places), or a mapping:
    `scan` (further folders, looked into first), `write` (skills from `define_skill`), `exclude` (names), `enabled`,
    `trusted` (a function of a Skill, or a bool: whether its `!` commands run; default `trusted_by_default`), `windlass`
    (True: offer Windlass's own skill), `defaults` (False: not the usual places), `skill_tool` (True: `skills_use` is
    called `skill`, as in reference D). A folder holds skills, or is one.

    The usual places are `.agents/skills`, `.zidane/skills` and `.windlass/skills` in the workspace's folder (`cwd`),
    then in the user's (`home`). With a virtual workspace they are left out: only named folders are ever opened. The
    first skill of a name wins. Raises ConfigError or UnknownNameError for a value that does not fit.
    """

    def __init__(
        self,
        value: Any = True,
        *,
        trusted: Trust | None = None,
        cwd: str | os.PathLike[str] | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        options = _options(value)
        self.enabled: bool = options.get("enabled", True)
        given = trusted if trusted is not None else options.get("trusted")
        self._trusted: Trust = trusted_by_default if given is None else given
        self._named = [os.fspath(path) for path in options.get("scan", ())]
        self._defined: list[Skill] = list(options.get("write", ()))
        self._exclude = tuple(options.get("exclude", ()))
        self._own: bool = options.get("windlass", False)
        self._defaults: bool = options.get("defaults", True)
        self._cwd, self._home = cwd, home
        self._use_name = "skill" if options.get("skill_tool") else "skills_use"
        self._tools = skill_tools(self, self._use_name)
        self._host: CapabilityHost | None = None
        #: What the last scan found; empty before `open`.
        self.found = Found()
        #: The skills whose commands run when they are used.
        self._running: set[str] = set()
        #: What runs of sub-agents must keep to, by their ids.
        self._inherited: dict[str, tuple[Skill, ...]] = {}

    # -- the capability --------------------------------------------------------------------------------------------

    async def open(self, host: CapabilityHost, /) -> None:
        """Look for skills."""
        self._host = host
        await self.reload(host.workspace)

    async def close(self) -> None:
        """Nothing is held open."""

    async def reload(self, workspace: Workspace | None = None) -> None:
        """Look for skills again; conversations that go on see the change at their next run."""
        if self.enabled:
            self.found = await run_in_thread(self.scan, workspace)
            self._running = {each.name for each in self.skills.values() if commands_in(each.body) and self.trusts(each)}

    def scan(self, workspace: Workspace | None = None) -> Found:
        """Look for skills and return what is there, for an agent with that workspace. Blocks on the disk."""
        own = [own_skill()] if self._own else []
        # The program's own word counts more than a file's.
        return scan(self.places(workspace), [*self._defined, *own], self._exclude)

    def places(self, workspace: Workspace | None = None) -> list[Place]:
        """Return where this looks, in order, for an agent with that workspace."""
        named = [Place(str(Path(path).expanduser()), "named") for path in self._named]
        root = workspace.root if workspace is not None else None
        virtual = root is not None and not Path(root).is_absolute()
        if not self._defaults or (virtual and self._cwd is None):
            return named
        cwd = self._cwd or root or Path.cwd()
        return [*named, *default_places(Path(cwd), Path(self._home) if self._home is not None else _user_home())]

    @property
    def skills(self) -> Mapping[str, Skill]:
        """Every skill by name, offered or not."""
        return self.found.skills

    @property
    def names(self) -> frozenset[str]:
        """The names that a person may mention: of every skill found, and `windlass`."""
        own = {"windlass"} - set(self._exclude) if self.enabled else set[str]()
        return frozenset({*self.skills, *own})

    def offered(self, state: Mapping[str, Any]) -> list[Skill]:
        """Return the skills that the catalogue of a session holds now: those with `paths` once one was touched."""
        shown = self._memory(state).shown
        return [each for each in self.skills.values() if not each.paths or each.name in shown]

    def tools(self, turn: TurnView, /) -> Sequence[Tool]:
        """Return the tools, none where there is nothing to use; scripts only where there is a shell."""
        memory = self._memory(turn.state)
        memory.aliases = turn.aliases
        if not self._catalog(turn.state) and memory.in_use is None:
            return ()
        use, use_running, read, script = self._tools
        if turn.workspace is None or "shell" not in turn.workspace.capabilities:
            return (use, read)
        # What may run commands does not only read: a policy shall know.
        running = not self._running.isdisjoint(self.usable(turn.state))
        return (use_running if running else use, read, script)

    def instructions(self, turn: TurnView, /) -> str:
        """Return the catalogue, nothing where there is none."""
        catalog = self._catalog(turn.state)
        lead = _LEAD.format(turn.aliases.get(self._use_name, self._use_name))
        return f"{lead}\n{catalog}" if catalog else ""

    def hooks(self) -> Mapping[str, Callable[..., Any]]:
        """Return the hooks: the catalogue at the start of a run, the gate, what was touched, and sub-agents."""
        if not self.enabled:
            return {}
        return {
            "session:start": self._started,
            "session:end": self._ended,
            "tool:gate": self._gate,
            "tool:after": self._touched,
            "spawn:before": self._spawning,
        }

    def status(self, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return a line about each skill for people: where it comes from, and whether it is offered or in use."""
        memory, offered = self._memory(state), {each.name for each in self.offered(state)}
        rows: list[tuple[str, str]] = []
        for skill in self.skills.values():
            using = memory.in_use is not None and memory.in_use.skill is skill
            word = "in use" if using else "offered" if skill.name in offered else f"waits for {', '.join(skill.paths)}"
            rows.append((skill.name, f"{word}, {skill.source}{'' if self.trusts(skill) else ', not trusted'}"))
        return [*rows, *[(each.path, f"refused: {each.reason}") for each in self.found.refused]]

    # -- the shelf that the tools see ------------------------------------------------------------------------------

    def usable(self, state: Mapping[str, Any]) -> Mapping[str, Skill]:
        """Return what may be used in a session now: what is offered, and what is in use already."""
        using = self._memory(state).in_use
        return {each.name: each for each in (*self.offered(state), *([using.skill] if using is not None else []))}

    def trusts(self, skill: Skill) -> bool:
        """Tell whether a skill's `!` commands may run."""
        return self._trusted if isinstance(self._trusted, bool) else bool(self._trusted(skill))

    def begin(self, skill: Skill, state: dict[str, Any], run_id: str) -> None:
        """Take note that a run uses a skill, in place of the one before."""
        self._memory(state).in_use = _InUse(skill, run_id)

    def shell(self, ctx: ToolContext) -> Shell:
        """Return where a skill's commands run for a call; the gates of the shell are asked about each."""
        name = self._memory(ctx.state).aliases.get("shell", "shell")
        return _shell(ctx.workspace, ctx.fire, name, ctx.call_id)

    async def name_for_next_run(self, name: str, arguments: str, state: dict[str, Any], space: Workspace | None) -> str:
        """Return the instructions of a skill that a person names; it is in use in the session's next run.

        Windlass's own is found by its name also where it is not offered. Raises ToolError for an unknown name.
        """
        known = dict(self.skills)
        if name in self.names and name not in known:
            known[name] = await run_in_thread(own_skill)
        skill = find_skill(known, name)
        host = self._host
        space = space if space is not None or host is None else host.workspace
        shell = _shell(space, None if host is None else host.fire, "shell", "")
        text = await render(skill, arguments, trusted=self.trusts(skill), shell=shell)
        self.begin(skill, state, "")
        if host is not None:
            host.emit(SkillActivated(name=skill.name))
            await host.fire("skills:activate", name=skill.name, path=skill.where)
        return text

    # -- what a session knows --------------------------------------------------------------------------------------

    def _memory(self, state: Mapping[str, Any]) -> _Memory:
        # By the capability, too: hooks of a parent are asked in its sub-agents' sessions, which have their own.
        if not isinstance(state, dict):
            return _Memory()
        known: dict[Skills, _Memory] = state.setdefault("skills", {})
        return known.setdefault(self, _Memory())

    def _catalog(self, state: Mapping[str, Any]) -> str:
        catalog = self._memory(state).catalog
        return catalog_of(self.offered(state)) if catalog is None else catalog

    async def _ask_catalog(self, state: Mapping[str, Any]) -> None:
        """Make the catalogue, and let the hook of that name change it."""
        catalog = catalog_of(self.offered(state))
        if self._host is not None:
            catalog = str((await self._host.fire("skills:catalog", catalog=catalog)).catalog or "")
        self._memory(state).catalog = catalog

    # -- hooks -----------------------------------------------------------------------------------------------------

    async def _started(self, ctx: Any) -> None:
        memory = self._memory(ctx.scope.state)
        if memory.in_use is not None:
            # One that a person named beforehand belongs to this run; any other ended with its own.
            memory.in_use = None if memory.in_use.run_id else _InUse(memory.in_use.skill, ctx.scope.run_id)
        await self._ask_catalog(ctx.scope.state)

    def _ended(self, ctx: Any) -> None:
        self._inherited.pop(ctx.scope.run_id, None)
        memory = self._memory(ctx.scope.state)
        if memory.in_use is not None and memory.in_use.run_id == ctx.scope.run_id:
            memory.in_use = None

    def _spawning(self, ctx: Any) -> None:
        if narrowing := self._narrowing(ctx.scope):
            self._inherited[ctx.id] = narrowing

    def _narrowing(self, scope: Any) -> tuple[Skill, ...]:
        """Return the skills that narrow a run: the one in use, and those of the runs that it serves."""
        using = self._memory(scope.state).in_use
        own = (using.skill,) if using is not None and using.run_id == scope.run_id else ()
        return tuple([each for each in (*self._inherited.get(scope.run_id, ()), *own) if each.allowed is not None])

    async def _gate(self, ctx: Any) -> None:
        narrowing = self._narrowing(ctx.scope)
        if not narrowing:
            return
        aliases = self._memory(ctx.scope.state).aliases
        own = {seen: name for name, seen in aliases.items()}
        # A name that only resembles a tool's is not judged here by what it may mean: the model can write it rightly.
        tool = own.get(ctx.name) or (ctx.name if ctx.name not in aliases else f"{ctx.name} (here {aliases[ctx.name]})")
        if tool in NAMES:
            return
        for skill in narrowing:
            allowed = skill.allowed or ()
            if (why := await refusal(allowed, tool, ctx.input, ctx.scope.workspace)) is not None:
                shown = ", ".join([each.text for each in allowed]) or "no tool"
                ctx.block, ctx.reason = True, f"the skill {skill.name} is in use and allows {shown}; {why}"
                return

    async def _touched(self, ctx: Any) -> None:
        """Offer the skills whose `paths` match what a call has read, changed or listed."""
        memory = self._memory(ctx.scope.state)
        waiting = [each for each in self.skills.values() if each.paths and each.name not in memory.shown]
        path = ctx.input.get("path")
        if not waiting or not isinstance(path, str) or not path:
            return
        touched = await _files_at(path, ctx.input.get("depth"), ctx.scope.workspace)
        for skill in waiting:
            filters = [NameFilter(glob) for glob in skill.paths]
            if any(each.keeps(file.split("/")) for each in filters for file in touched):
                memory.shown.add(skill.name)
        if any(each.name in memory.shown for each in waiting):
            await self._ask_catalog(ctx.scope.state)


# -- parts -------------------------------------------------------------------------------------------------------------


def _options(value: Any) -> dict[str, Any]:
    """Return the mapping that a value stands for. Raises ConfigError or UnknownNameError."""
    if value is True or value is None:
        return {}
    if value is False:
        return {"enabled": False}
    if isinstance(value, (str, os.PathLike)):
        return {"scan": [value], "defaults": False}
    if isinstance(value, Sequence):
        items: Sequence[Any] = value
        folders = [each for each in items if not isinstance(each, Skill)]
        out: dict[str, Any] = {
            "scan": folders,
            "write": [each for each in items if isinstance(each, Skill)],
            "defaults": False,
        }
    elif isinstance(value, Mapping):
        out = {str(key): each for key, each in value.items()}
    else:
        raise ConfigError(f"skills={value!r:.200} is not understood.", hint="Give folders, or a mapping of options.")
    for name in out:
        if name not in OPTIONS:
            raise UnknownNameError("option of skills", name, OPTIONS)
    for name in ("scan", "exclude", "write"):
        if isinstance(given := out.get(name), (str, os.PathLike, Skill)):
            out[name] = [given]
    if any(not isinstance(each, (str, os.PathLike)) for each in out.get("scan", ())):
        raise ConfigError("skills: `scan` holds paths of folders.", hint="Skills of a program go into `write`.")
    if any(not isinstance(each, Skill) for each in out.get("write", ())):
        raise ConfigError("skills: `write` holds what define_skill returns.")
    return out


def _user_home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _shell(space: Workspace | None, fire: Any, name: str, call_id: str) -> Shell:
    """Return a place for commands where the gates of the shell are asked about each of them first."""

    async def ask(command: str) -> str | None:
        if fire is None:
            return None
        ctx = await fire(
            "tool:gate", turn_id="", call_id=call_id, name=name, input={"command": command}, run_tool_counts={},
            block=False, reason=None, result=None,
        )  # fmt: skip
        return str(ctx.reason or "a hook forbids it") if ctx.block else None

    return Shell(space, ask)


def catalog_of(skills: Sequence[Skill]) -> str:
    """Return the catalogue: names and descriptions, within MAX_CATALOG bytes; nothing for no skills.

    Where they are too many, the last line says how many are left out and what they are called.
    """
    if not skills:
        return ""
    out, left = ["<available_skills>"], list[str]()
    room = MAX_CATALOG - _MAX_NAMES
    for skill in skills:
        told = html.escape(" ".join(strip_escapes(skill.description).split())[:1024], quote=False)
        line = f"<skill><name>{html.escape(skill.name)}</name><description>{told}</description></skill>"
        size = len(line.encode("utf-8", "replace")) + 1
        if left or size > room:
            left.append(skill.name)
        else:
            room -= size
            out.append(line)
    if left:
        names = ", ".join(left)
        cut = names.encode()[: _MAX_NAMES - 200].decode("utf-8", "ignore")
        out.append(f"[{len(left)} more, which can be used by name: {cut}{'' if cut == names else ', ...'}]")
    return "\n".join([*out, "</available_skills>"])


async def _files_at(path: str, depth: Any, workspace: Workspace | None) -> list[str]:
    """Return the files that a call with that path was about: itself, or what was listed of a folder."""
    if workspace is None:
        return [path.removeprefix("./")] if not path.startswith(("/", "..")) else []
    try:
        info: FileInfo | None = await workspace.stat(path)
        if info is None:
            return []
        if info.kind != "dir":
            return [info.path]
        levels = depth if isinstance(depth, int) and 1 <= depth <= 10 else 1
        listed = await workspace.list(info.path, depth=levels, limit=_MAX_LISTED)
    except WorkspaceError:
        return []
    return [each.path for each in listed if each.kind == "file"]


async def expand(
    prompt: str, skills: Skills, state: dict[str, Any] | None = None, workspace: Workspace | None = None
) -> str:
    """Return a prompt with the skills that a person named in it: `/name what to do`, or `$name` anywhere.

    A prompt that begins with `/name` becomes that skill's instructions, the rest their arguments; after any other, the
    instructions of each `$name` are added. Names of no skill stay as they are. With a session's `state`, the last one
    is in use in its next run: what it does not allow is blocked. `workspace` is where trusted `!` commands run, by
    default the agent's.
    """
    state = {} if state is None else state
    known = skills.names
    if (found := _COMMAND.fullmatch(prompt)) is not None and found[1] in known:
        return await skills.name_for_next_run(found[1], (found[2] or "").strip(), state, workspace)
    names = [match[1] if match[1] in known else match[1].rstrip("-") for match in _MENTION.finditer(prompt)]
    chosen = [name for name in dict.fromkeys(names) if name in known]
    return "\n\n".join([prompt, *[await skills.name_for_next_run(name, "", state, workspace) for name in chosen]])
