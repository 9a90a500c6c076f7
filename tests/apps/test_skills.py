"""`windlass skills`: what it lists, what it says is wrong and where, and what it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skills_ref import validate
from skills_ref.parser import read_properties

from tests.apps.helpers import Cli


def write(folder: Path, name: str, fields: str = "", description: str = "It does it.") -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "SKILL.md").write_text(f"---\nname: {name}\ndescription: {description}\n{fields}---\nDo it.\n")
    return place


async def test_list_says_where_each_comes_from_and_why_some_are_refused(cli: Cli) -> None:
    home = Path(cli.env["HOME"])
    write(cli.folder / ".agents/skills", "same", description="Project's.")
    write(home / ".agents/skills", "same", description="User's.")
    write(home / ".windlass/skills", "mine", fields="allowed-tools: Bash(git:*) Read\npaths: '*.py'\n")
    write(cli.folder / "more", "named", fields="color: red\n")
    (cli.folder / ".agents/skills/gone").symlink_to(home / ".agents/skills/same")
    done = await cli("skills", "list", "more")
    assert done.code == 0 and done.err == ""
    rows = [line.split(None, 3) for line in done.out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["windlass", "option", "windlass"], ["named", "offered", "named"], ["same", "offered", "project"],
        ["mine", "offered", "user"], ["same", "hidden", "user"], ["gone", "refused", "project"],
    ]  # fmt: skip
    assert rows[1][3].endswith("(not valid: windlass skills validate)") and "(by " in rows[4][3]
    assert "leads outside this folder" in rows[5][3]
    whole: list[dict[str, Any]] = [
        json.loads(line) for line in (await cli("skills", "list", "--json")).out.splitlines()
    ]  # fmt: skip
    mine = next(row for row in whole if row["name"] == "mine")
    assert (mine["trusted"], mine["allowed_tools"], mine["paths"]) == (True, ["Bash(git:*)", "Read"], ["*.py"])
    assert [row["trusted"] for row in whole if row["name"] == "same"] == [False, True]


async def test_validate_names_files_and_lines_and_ends_with_0_or_1(cli: Cli) -> None:
    good, bad = write(cli.folder, "good"), write(cli.folder, "bad", fields="color: red\nlicense: a: b\n")
    done = await cli("skills", "validate", "good", "good/SKILL.md")
    assert (done.code, done.out) == (0, "good: valid\ngood/SKILL.md: valid\n")
    done = await cli("skills", "validate", "good", "bad", "nothing")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "good: valid" and lines[1].startswith("bad/SKILL.md:4: error: Unexpected field 'color'")
    assert lines[2].startswith("bad/SKILL.md:5: error: A colon and a space") and lines[3].startswith("nothing: error:")
    assert (validate(good) == [], validate(bad) == []) == (True, False)
    write(cli.folder, "evil", description="x\\e")
    (cli.folder / "evil/SKILL.md").write_text("---\nname: evil\n\x1b[2J: x\n---\n")
    assert "\x1b" not in (await cli("skills", "validate", "evil")).out


async def test_new_makes_a_valid_skill_and_never_overwrites(cli: Cli) -> None:
    done = await cli("skills", "new", "my-skill", "--description", 'Says "a: b" # always, é.')
    folder = cli.folder / ".agents/skills/my-skill"
    assert (done.code, done.out, done.err) == (0, ".agents/skills/my-skill/SKILL.md\n", "")
    assert validate(folder) == [] and read_properties(folder).description == 'Says "a: b" # always, é.'
    assert (await cli("skills", "validate", str(folder))).code == 0
    (folder / "SKILL.md").write_text("mine")
    again = await cli("skills", "new", "my-skill")
    assert again.code == 2 and "is there already" in again.err and (folder / "SKILL.md").read_text() == "mine"
    for name in ("Bad", "a/b", "../x", "-a", "a--b", "x" * 65, "a_b", "a\nb"):
        assert (await cli("skills", "new", "--folder", "here", "--", name)).code == 2
    assert not (cli.folder / "here").exists()
    (cli.folder / "taken").write_text("")
    assert (await cli("skills", "new", "x", "--folder", "taken")).code == 2
    plain = await cli("skills", "new", "plain", "--folder", "elsewhere")
    assert plain.code == 0 and validate(cli.folder / "elsewhere/plain") == []


async def test_wrong_use_ends_with_2(cli: Cli) -> None:
    for args in ((), ("lst",), ("new",), ("validate",)):
        assert (await cli("skills", *args)).code == 2
