"""The format of skills: what is read of a SKILL.md, and agreement with the reference validator."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import strictyaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skills_ref import validate
from skills_ref.errors import ParseError
from skills_ref.parser import parse_frontmatter

from windlass.tools.skill_check import check_front
from windlass.tools.skill_files import MAX_SKILL, check_folder
from windlass.tools.skill_frontmatter import MAX_DEPTH, MAX_FRONT, MAX_KEYS, read_front
from windlass.tools.skill_rules import AllowedError, parse_allowed


def skill(folder: Path, text: str, name: str = "SKILL.md") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def front(text: str) -> Any:
    """The fields, or "error" where the reference would refuse them."""
    found = read_front(f"---\n{text}\n---\nbody")
    return "error" if any(each.level != "note" for each in found.problems) else found.fields


def reference(text: str) -> Any:
    try:
        loaded: Any = strictyaml.load(f"\n{text}\n").data
    except strictyaml.YAMLError:
        return "error"
    except NotImplementedError:  # StrictYAML's own parser gives up on some comments
        assume(False)
        raise
    return loaded if isinstance(loaded, dict) else "error"


def refused(folder: Path) -> bool:
    return any(each.level != "note" for each in check_folder(folder))


YAML = [
    "name: a\ndescription: b", "a: 'x ''y'' z'", 'a: "x\\ny \\u00e9 \\x41"', "a: foo # c\nb: d", "a: x#y", "a: x:y",
    "a: >\n  foo\n  bar\n\n  baz\n   more\n  end\nb: 1", "a: |\n  foo\n\n  bar\n", "a: |-\n  x\n  y\nb: 2",
    "a: >-\n  x\n  y", "a: |+\n  x\n\n\nb: 1", "a: foo\n  bar\n\n  baz\nb: c", "a: foo: bar", "a: b\na: c",
    "m:\n  x: 1\n  y: 'z'\nb: 1", "l:\n  - x\n  - y z\nb: 1", "l:\n- x\n- y\nb: 1", "a: [x]", "a: {x: y}", "a: &x y",
    "a: *x", "a: !t y", "a:\nb: c", "a: 'multi\n  line\n\n  text'\nb: c", 'a: "fold \\\n   ed"', 'a: "x" y', "a: 'open",
    "# c\na: b\n# d\nc: d", " a: b\n c: d", " a: b\nc: d", "a: b\n c: d", "a: b\n  c", "a: -x", "a: - x", "a: @x",
    "a: %x", "a: ,x", "a: ?x", "a: :x", "a: x:", "a: http://x.y", "a:b", "a", "- a", "a: |2\n    x\n   y",
    "m:\n  a:\n    b: c", "a: #c\nb: d", "a:   x  ", 'a: "a\\q"', "a: ~", "a: null", "a: true", "a: 1.0", "a: |\nb: c",
    "a: >\n\n  x\n", "a: >\n   x\n  y\n", "a:\n  multi\n  line", "a:\n  'q'", "a: x\n\n\nb: y", "a: x\n# c\nb: y",
    "a: x\n  # c\n  y", "m:\n  a: x\n b: y", "a b: c", "a: x - y", "a: x\n  - y", "a: |\n  x  \n  y\n", "a: '  x  '",
    "a: >\n  x\n\n\n  y\n    z\n\n  w\n", 'a: "x  \n  y"', "l:\n  - 'a: b'\n  - \"c\"\n", "l:\n  -\n  - x", "a: x\ty",
    "\ta: b", "a:\tb", "a: b\n  c: d", "a: \"\"", "a: ''", "a: |\n  # no comment\n  x", "a: é – 技能",
]  # fmt: skip


@pytest.mark.parametrize("text", YAML)
def test_the_reader_agrees_with_the_references_yaml(text: str) -> None:
    assert front(text) == reference(text)


#: What the reference reads and this reader refuses: forms of YAML that no skill needs.
STRICTER = [
    "? a\n: b", "'a': b", "m:\n  - a: b", "m:\n  - - b", "a: b\n...",
    "a:\n  b:\n    c:\n      d:\n        e: f", "a: x\x85y", "a: x\u2028y",
]  # fmt: skip


@pytest.mark.parametrize("text", STRICTER)
def test_what_is_refused_although_the_reference_reads_it(text: str) -> None:
    assert front(text) == "error" and reference(text) != "error"


_KEYS = st.sampled_from(["name", "description", "license", "metadata", "x-y", "a b"])
_PLAIN = st.text(st.sampled_from("ab zé:#-'\"[]{},&*!|>%@`?\\~0."), max_size=12)
_VALUE = st.one_of(
    _PLAIN.map(lambda text: f" {text}"),
    _PLAIN.map(lambda text: ' "' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    _PLAIN.map(lambda text: " '" + text.replace("'", "''") + "'"),
    st.tuples(st.sampled_from(["|", ">", "|-", ">-"]), st.lists(_PLAIN.map(str.rstrip), min_size=1, max_size=4)).map(
        lambda pair: f" {pair[0]}\n  x" + "".join([f"\n  {line}".rstrip() for line in pair[1]])
    ),
    st.lists(_PLAIN, min_size=1, max_size=3).map(lambda lines: " x" + "".join([f"\n  {line}" for line in lines])),
    st.lists(_PLAIN, min_size=1, max_size=3).map(lambda items: "".join([f"\n  - {item}" for item in items])),
)
_FRONTS = st.lists(st.tuples(_KEYS, _VALUE), min_size=1, max_size=4).map(
    lambda pairs: "\n".join([f"{key}:{value}" for key, value in pairs])
)


@settings(max_examples=250, deadline=None)
@given(_FRONTS)
def test_generated_fronts_are_read_as_the_reference_reads_them(text: str) -> None:
    ours, theirs = front(text), reference(text)
    if ours == "error":
        # The reader may be stricter only where a list holds something else than texts.
        assert theirs == "error" or any(not isinstance(each, str) for each in _leaves(theirs)), text
    else:
        assert ours == theirs, text


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    for each in value.values() if isinstance(value, dict) else []:
        items: list[Any] = each if isinstance(each, list) else []
        found += [item for item in items if not isinstance(item, str)]
        found += [each] if isinstance(each, dict) else []
    return found


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    for each in (text, f"---\n{text}\n---\n", f"---\nname: x\n{text}\ndescription: y\n---\n"):
        found = read_front(each)
        lines = each.count("\n") + each.count("\r") + 1
        assert all(1 <= problem.line <= lines + 1 and problem.message for problem in found.problems)


# -- the reference's own cases -----------------------------------------------------------------------------------------


def _case(name: str, fields: str, folder: str | None = None) -> tuple[str, str]:
    return folder or name, f"---\nname: {name}\n{fields}---\n# Body\n"


DESCRIBED = "description: A test skill\n"
#: The files of the reference's own tests (skills-ref 0.1.1): folder, SKILL.md, and whether it is valid.
CASES = [
    (*_case("my-skill", DESCRIBED), True),
    (*_case("MySkill", DESCRIBED), False),
    (*_case("a" * 70, DESCRIBED), False),
    (*_case("-my-skill", DESCRIBED), False),
    (*_case("my--skill", DESCRIBED), False),
    (*_case("my_skill", DESCRIBED), False),
    (*_case("correct-name", DESCRIBED, "wrong-name"), False),
    (*_case("my-skill", f"{DESCRIBED}unknown_field: should not be here\n"), False),
    (*_case("my-skill", f"{DESCRIBED}license: MIT\nmetadata:\n  author: Test\n"), True),
    (*_case("my-skill", f"{DESCRIBED}allowed-tools: Bash(jq:*) Bash(git:*)\n"), True),
    (*_case("技能", "description: A skill with Chinese name\n"), True),
    (*_case("мой-навык", DESCRIBED), True),
    (*_case("НАВЫК", DESCRIBED), False),
    (*_case("my-skill", f"description: {'x' * 1100}\n"), False),
    (*_case("my-skill", f"{DESCRIBED}compatibility: Requires Python 3.11+\n"), True),
    (*_case("my-skill", f"{DESCRIBED}compatibility: {'x' * 550}\n"), False),
    (*_case("cafe\u0301", DESCRIBED, "caf\u00e9"), True),
    ("my-skill", "# No frontmatter here", False),
    ("my-skill", "---\nname: my-skill\ndescription: A test skill\n", False),
    ("my-skill", "---\nname: [invalid\ndescription: broken\n---\nBody here\n", False),
    ("my-skill", "---\n- just\n- a\n- list\n---\nBody\n", False),
    ("my-skill", "---\ndescription: A test skill\n---\nBody\n", False),
    ("my-skill", "---\nname: my-skill\n---\nBody\n", False),
    (*_case("my-skill", f"{DESCRIBED}metadata:\n  author: Test Author\n  version: 1.0\n"), True),
]


@pytest.mark.parametrize(("name", "text", "valid"), CASES, ids=range(len(CASES)))
def test_the_references_own_cases(tmp_path: Path, name: str, text: str, valid: bool) -> None:
    folder = skill(tmp_path / name, text)
    assert (validate(folder) == []) is valid
    assert refused(folder) is not valid


def test_the_references_cases_of_paths(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "file.txt", tmp_path / "empty"):
        assert validate(path) and refused(path)
    lower = skill(tmp_path / "my-skill", _case("my-skill", DESCRIBED)[1], "skill.md")
    assert validate(lower) == [] and not refused(lower) and not refused(lower / "skill.md")
    skill(lower, "broken")  # SKILL.md counts more
    assert validate(lower) and refused(lower)


#: What this validator refuses and the reference takes: each is against the text of the specification, or unreadable.
REFUSED_HERE = [
    _case("my-skill", f"{DESCRIBED}compatibility: ''\n"),
    _case("my-skill", f"{DESCRIBED}license:\n  - MIT\n"),
    _case("my-skill", f"{DESCRIBED}metadata: text\n"),
    _case("my-skill", f"{DESCRIBED}allowed-tools: Bash(git:*\n"),
    _case("my-skill", f"{DESCRIBED}allowed-tools:\n  a: b\n"),
    ("my-skill", "---name: my-skill\ndescription: x\n---\nBody"),
]
#: And the other way round: reference C's field, and `---` inside a text.
TAKEN_HERE = [
    _case("my-skill", f"{DESCRIBED}paths: src/**/*.py, *.sql\n"),
    _case("my-skill", "description: 'This --- or that'\n"),
]


def test_the_differences_from_the_reference_are_these(tmp_path: Path) -> None:
    for at, (name, text) in enumerate(REFUSED_HERE):
        folder = skill(tmp_path / f"r{at}" / name, text)
        assert validate(folder) == [] and refused(folder), text
    for at, (name, text) in enumerate(TAKEN_HERE):
        folder = skill(tmp_path / f"t{at}" / name, text)
        assert validate(folder) != [] and not refused(folder), text


def test_hundreds_of_generated_skills_are_judged_alike(tmp_path: Path) -> None:
    chance = random.Random(7)
    names = [
        "my-skill",
        "a",
        "x1",
        "Bad",
        "-a",
        "a-",
        "a--b",
        "a_b",
        "a b",
        "é",
        "ß",
        "ñandú",
        "x" * 64,
        "x" * 65,
        "a.b",
    ]
    extras = [
        "", "license: MIT\n", 'license: "a: b"\n', "license: a: b\n", "metadata:\n  a: 1\n  b: 'x'\n",
        "metadata:\n", "metadata:\n  a:\n    b: c\n", "compatibility: git\n", f"compatibility: {'x' * 501}\n",
        "allowed-tools: Read Bash\n", "allowed-tools:\n  - Read\n  - Bash(git:*)\n", "allowed-tools:\n- Read\n",
        "allowed-tools: [Read]\n", "other: x\n",
        "# a comment\n", "\n", "name: twice\n", "model: &a opus\n",
    ]  # fmt: skip
    descriptions = [
        "d", "", "'it''s'", '"q\\n"', ">\n  folded\n  text\n", "|-\n  kept\n\n  lines\n", "x" * 1024, "x" * 1025,
        "a\n  b", "Use when: x", "a # comment", "[flow]", "{a: b}", "- item", "*alias", "é" * 1024,
    ]  # fmt: skip
    seen = {True: 0, False: 0}
    for number in range(400):
        name, described = chance.choice(names), chance.choice(descriptions)
        fields = "".join(chance.sample(extras, chance.randrange(3)))
        text = f"---\nname: {name}\ndescription: {described}\n{fields}---\n\nBody\n"
        folder = skill(tmp_path / str(number) / (name if chance.random() < 0.9 else "other"), text)
        theirs = validate(folder) == []
        assert (not refused(folder)) is theirs, (text, check_folder(folder), validate(folder))
        seen[theirs] += 1
    assert min(seen.values()) > 40


def test_bodies_are_those_of_the_reference() -> None:
    for text in ("---\nname: a\n---\n\n  body\n\n", "---\nname: a\n---\nx\n\ny\n", "---\r\nname: a\r\n---\r\nx\r\n"):
        fields, body = parse_frontmatter(text.replace("\r\n", "\n"))
        found = read_front(text)
        assert (found.fields, found.body) == (fields, body)
    with pytest.raises(ParseError):
        parse_frontmatter("x")


# -- lines and bounds --------------------------------------------------------------------------------------------------


def test_problems_have_their_lines() -> None:
    fields = "name: Bad\n# comment\ndescription: one\n  two: three\nwhat: x\nlicense: MIT\n  more\nmetadata: [a]\n"
    text = f"---\n{fields}---\nx"
    found = check_front(read_front(text), "bad")
    assert [(each.line, each.level) for each in found] == [
        (2, "error"), (2, "error"), (5, "error"), (6, "error"), (9, "error"), (9, "error"),
    ]  # fmt: skip
    assert "in quotes" in found[2].message and "'what'" in found[3].message and "brackets" in found[4].message


def test_size_depth_and_keys_are_bounded(tmp_path: Path) -> None:
    long = read_front("---\n" + "a: b\n" * MAX_FRONT + "---\n")
    assert [each.level for each in long.problems] == ["fatal"] and str(MAX_FRONT) in long.problems[0].message
    deep = "".join([f"{'  ' * level}k:\n" for level in range(MAX_DEPTH + 2)])
    assert any("four deep" in each.message for each in read_front(f"---\n{deep}---\n").problems)
    many = "".join([f"k{number}: x\n" for number in range(MAX_KEYS + 1)])
    assert any(str(MAX_KEYS) in each.message for each in read_front(f"---\n{many}---\n").problems)
    big = skill(tmp_path / "big", _case("big", DESCRIBED)[1] + "x" * MAX_SKILL)
    assert [each.level for each in check_folder(big)] == ["fatal"]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "SKILL.md").write_bytes(b"---\nname: raw\xff\n---\n")
    assert "not UTF-8" in check_folder(tmp_path / "raw")[0].message


def test_allowed_tools_are_read_in_every_form() -> None:
    for text in ("Bash(git add:*) Read", "Bash(git add:*), Read", "Bash(git add:*),Read"):
        assert [each.text for each in parse_allowed(text)] == ["Bash(git add:*)", "Read"]
    shell, read = parse_allowed(["Bash(git add:*)", "Read"])
    assert (shell.tools, shell.pattern, read.tools, read.pattern) == (("shell",), "git add:*", ("read_file",), None)
    assert parse_allowed("Edit")[0].tools == ("edit", "multi_edit")
    assert parse_allowed("mcp__git__log Bash(*) my_tool")[0].tools == ("mcp_git_log",)
    assert [each.pattern for each in parse_allowed("Bash(*) Bash()")] == [None, None]
    for bad in ("Bash(", "Bash)", "Ba sh$", "(x)"):
        with pytest.raises(AllowedError):
            parse_allowed(bad)
