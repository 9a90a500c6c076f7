"""Skills: what one is, how it is read from a folder or defined in a program, and where they are looked for."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from windlass.core.errors import ConfigError, PathEscape, WorkspaceError
from windlass.tools.skill_check import MAX_DESCRIPTION, check_front, globs_of, name_problems
from windlass.tools.skill_disk import entries, inside, read_inside, real_inside
from windlass.tools.skill_frontmatter import Front, Problem, read_front
from windlass.tools.skill_rules import Allowed, AllowedError, parse_allowed

__all__ = [
    "MAX_FILES",
    "MAX_SKILL",
    "MAX_SKILLS",
    "OWN",
    "Found",
    "Place",
    "Refused",
    "Skill",
    "Source",
    "check_folder",
    "default_places",
    "define_skill",
    "own_skill",
    "resources",
    "scan",
]

#: Bytes of a SKILL.md, skills in all, and files of one skill that are listed.
MAX_SKILL = 256 * 1024
MAX_SKILLS = 500
MAX_FILES = 100
#: Folders of a project or of the user in which skills lie: reference C's two, then ours.
_FOLDERS = (".agents/skills", ".zidane/skills", ".windlass/skills")
#: Reasons that are told why a skill is refused; `windlass skills validate` has them all.
_SHOWN = 3
_RESOURCES = ("scripts", "references", "assets")
#: Where Windlass's own skill lies.
OWN = Path(__file__).parents[1] / "skills"

#: Where a skill comes from: a project's folder, the user's, one that was named, the program itself, or Windlass.
Source = Literal["project", "user", "named", "program", "windlass"]


class Skill(Struct, frozen=True, eq=False):
    """A skill: what a model is told of it, and the instructions it gets when it is used.

    `folder` is its real folder, None for one that a program defined, whose `files` are then all it has. `allowed` is
    None where the skill does not narrow the tools. `problems` are those it was loaded in spite of.
    """

    name: str
    description: str
    body: str
    source: Source = "program"
    folder: str | None = None
    license: str | None = None
    compatibility: str | None = None
    metadata: Mapping[str, str] = {}
    allowed: tuple[Allowed, ...] | None = None
    paths: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    problems: tuple[Problem, ...] = ()

    @property
    def where(self) -> str:
        """The SKILL.md's path, for people and hooks; empty where there is none."""
        return "" if self.folder is None else str(Path(self.folder) / "SKILL.md")


class Place(Struct, frozen=True):
    """A folder to look in, and whose it is. A project's own must lie in `base` also when links are followed."""

    path: str
    source: Source
    base: str | None = None


class Refused(Struct, frozen=True):
    """What lies in a place and is not offered, and why."""

    path: str
    source: Source
    reason: str


class Found(Struct, frozen=True):
    """What a scan found: skills by name, those hidden by an earlier one of the same name, and what was refused."""

    skills: Mapping[str, Skill] = {}
    shadowed: tuple[tuple[Skill, Skill], ...] = ()
    refused: tuple[Refused, ...] = ()


def define_skill(
    name: str,
    description: str,
    body: str,
    *,
    allowed_tools: str | Sequence[str] | None = None,
    paths: str | Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    license: str | None = None,
    compatibility: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Skill:
    """Make a skill in a program: `Agent(skills={"write": [define_skill(…)]})`.

    `files` maps paths such as `references/api.md` to their texts. Raises ConfigError for what a SKILL.md may not hold.
    """
    problems = name_problems(name)
    if not description.strip() or len(description) > MAX_DESCRIPTION:
        problems.append(f"The description has {len(description)} characters; 1 to {MAX_DESCRIPTION} are allowed.")
    try:
        allowed = None if allowed_tools is None else parse_allowed(allowed_tools)
        globs = globs_of(paths if isinstance(paths, str) else list(paths))
    except ValueError as error:
        raise ConfigError(f"The skill {name!r}: {error}.") from None
    for path in files or {}:
        if path.startswith(("/", ".")) or ".." in path.split("/"):
            problems.append(f"The file {path!r} is no path inside the skill.")
    if problems:
        raise ConfigError(f"The skill {name!r}: {' '.join(problems)}")
    return Skill(
        unicodedata.normalize("NFKC", name), description.strip(), body.strip(), license=license,
        compatibility=compatibility, metadata=dict(metadata or {}), allowed=allowed or None, paths=globs,
        files=dict(files or {}),
    )  # fmt: skip


# -- reading one -------------------------------------------------------------------------------------------------------


def _text(root: str, name: str) -> tuple[str | None, str]:
    """Return the text of a SKILL.md below `root`, else None and why there is none that can be read."""
    try:
        data = read_inside(root, name, MAX_SKILL + 1)
    except WorkspaceError as error:
        return None, error.message
    if len(data) > MAX_SKILL:
        return None, f"SKILL.md is larger than {MAX_SKILL} bytes."
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return None, f"SKILL.md is not UTF-8 (byte {error.start})."


def _file_name(folder: str) -> str | None:
    """Return what the file is called: `SKILL.md`, or `skill.md` where there is no other."""
    return next((name for name in ("SKILL.md", "skill.md") if os.path.lexists(f"{folder}/{name}")), None)


def check_folder(path: str | Path) -> list[Problem]:
    """Check a skill's folder (or its SKILL.md) as `windlass skills validate` does; nothing for a valid one."""
    folder = Path(path)
    if folder.name.lower() == "skill.md" and not folder.is_dir():
        folder = folder.parent
    if not folder.exists():
        return [Problem(0, f"There is no folder {folder}.", "fatal")]
    if not folder.is_dir():
        return [Problem(0, f"{folder} is no folder.", "fatal")]
    name = _file_name(str(folder))
    if name is None:
        return [Problem(0, f"There is no SKILL.md in {folder}.", "fatal")]
    text, why = _text(str(folder), name)
    if text is None:
        return [Problem(1, why, "fatal")]
    return check_front(read_front(text), folder.absolute().name or None)


def _load(root: str, entry: str, source: Source) -> Skill | str:
    """Read the skill in the folder `entry` of `root` ('' is `root` itself); else return why it is refused."""
    try:
        folder = real_inside(root, entry) if entry else os.path.realpath(root)
    except PathEscape:
        return "a link that leads outside this folder; name the folder it leads to, to have it"
    name = _file_name(folder)
    if name is None:
        return "there is no SKILL.md in it"
    # The SKILL.md may be a link as well: it must stay where the skill's own folder must.
    text, why = _text(root, f"{entry}/{name}" if entry else name)
    if text is None:
        return why.rstrip(".")
    front = read_front(text)
    problems = check_front(front, entry or Path(folder).name)
    fatal = [f"line {each.line}: {each.message.rstrip('.')}" for each in problems if each.level == "fatal"]
    return "; ".join(fatal[:_SHOWN]) if fatal else _skill(front, problems, folder, source)


def _skill(front: Front, problems: Sequence[Problem], folder: str, source: Source) -> Skill:
    fields = front.fields

    def text(field: str) -> str | None:
        value = fields.get(field)
        return value if isinstance(value, str) and value.strip() else None

    metadata: Any = fields.get("metadata")
    allowed: tuple[Allowed, ...] | None = None
    if "allowed-tools" in front.lines:
        # What was meant to narrow and cannot be read narrows to nothing.
        allowed = ()
        value = fields.get("allowed-tools")
        with contextlib.suppress(AllowedError):
            allowed = (parse_allowed(value) or None) if isinstance(value, (str, list)) else ()
    try:
        paths = globs_of(fields.get("paths", ""))
    except ValueError:
        paths = ()
    return Skill(
        unicodedata.normalize("NFKC", str(fields["name"]).strip()), str(fields["description"]).strip(), front.body,
        source, folder, text("license"), text("compatibility"),
        {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {},
        allowed, paths, problems=tuple(problems),
    )  # fmt: skip


def resources(skill: Skill) -> list[str]:
    """Return the files in a skill's scripts/, references/ and assets/, two levels deep, at most MAX_FILES."""
    if skill.folder is None:
        return sorted(skill.files)
    out: list[str] = []
    for top in _RESOURCES:
        for entry in entries(Path(skill.folder) / top):
            if entry.is_file(follow_symlinks=False):
                out.append(f"{top}/{entry.name}")
            elif entry.is_dir(follow_symlinks=False):
                below = [each.name for each in entries(entry.path) if each.is_file(follow_symlinks=False)]
                out += [f"{top}/{entry.name}/{name}" for name in below]
    return out[:MAX_FILES]


# -- looking for them --------------------------------------------------------------------------------------------------


def default_places(cwd: str | Path | None, home: str | Path | None) -> list[Place]:
    """Return where skills are looked for by default: the project's three folders, then the user's.

    A project that is the home folder itself is the user's.
    """
    out: list[Place] = []
    if cwd is not None and (home is None or os.path.realpath(cwd) != os.path.realpath(home)):
        out += [Place(str(Path(cwd) / name), "project", str(cwd)) for name in _FOLDERS]
    if home is not None:
        out += [Place(str(Path(home) / name), "user") for name in _FOLDERS]
    return out


def scan(places: Sequence[Place], defined: Sequence[Skill] = (), exclude: Sequence[str] = ()) -> Found:
    """Read all skills of these places; the first of a name wins, those that a program defined first of all.

    Blocks on the disk. Opens nothing outside the places.
    """
    skills: dict[str, Skill] = {}
    shadowed: list[tuple[Skill, Skill]] = []
    refused: list[Refused] = []

    def take(skill: Skill) -> None:
        if skill.name in exclude:
            refused.append(Refused(skill.where or skill.name, skill.source, "it is excluded"))
        elif (first := skills.get(skill.name)) is not None:
            shadowed.append((skill, first))
        elif len(skills) >= MAX_SKILLS:
            refused.append(Refused(skill.where, skill.source, f"there are more than {MAX_SKILLS} skills"))
        else:
            skills[skill.name] = skill

    for skill in defined:
        take(skill)
    for place in places:
        if not Path(place.path).is_dir():
            continue
        if place.base is not None and not inside(os.path.realpath(place.path), os.path.realpath(place.base)):
            refused.append(Refused(place.path, place.source, "a link that leads outside the project"))
            continue
        for path, found in _in_place(place):
            if isinstance(found, Skill):
                take(found)
            else:
                refused.append(Refused(path, place.source, found))
    return Found(skills, tuple(shadowed), tuple(refused))


def _in_place(place: Place) -> list[tuple[str, Skill | str]]:
    out: list[tuple[str, Skill | str]] = []
    if _file_name(place.path) is not None:
        # The folder that was named is a skill itself.
        return [(place.path, _load(place.path, "", place.source)), *_nested(place.path)]
    for entry in entries(place.path):
        if not entry.is_dir():
            continue
        # A link is judged before anything behind it is looked at.
        if entry.is_symlink() or _file_name(entry.path) is not None:
            out.append((entry.path, _load(place.path, entry.name, place.source)))
        if not entry.is_symlink():
            out += _nested(entry.path)
    return out


def _nested(folder: str) -> list[tuple[str, Skill | str]]:
    """Return the skills one level deeper, which are not loaded."""
    return [
        (entry.path, "it lies inside another folder of skills; only the first level is read")
        for entry in entries(folder)
        if entry.is_dir(follow_symlinks=False) and _file_name(entry.path) is not None
    ]


def own_skill() -> Skill:
    """Return Windlass's own skill: how to use it. Raises ConfigError when the installation lacks it."""
    found = _load(str(OWN), "windlass", "windlass")
    if isinstance(found, str):
        raise ConfigError(f"Windlass's own skill cannot be read: {found}.", hint="Install windlass again.")
    return found
