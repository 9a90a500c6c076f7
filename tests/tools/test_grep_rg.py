"""The two ways of grep give the same answers; `.gitignore` means what git and ripgrep say; a planted rg never runs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.helpers import Context, refused, text
from windlass.core import patterns
from windlass.tools import rg, search
from windlass.tools.access import walk
from windlass.tools.ignore import is_ignored, parse_ignore
from windlass.tools.rg import candidates, find_rg, for_rust, without_cr
from windlass.tools.search import grep
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace

RG = shutil.which("rg") or ""
NAMES = ["a", "b.py", "c.txt", "build", "x.o", "sub", ".hid", "é.md", "sp ace", "Makefile", "[z]", "-n"]
PATTERNS = [
    "a", "*.py", "build/", "/build", "sub/", "!a", "*", "!*.py", "sub/*", "/sub/a", "**/x.o", "sub/**", "a/**/b.py",
    "# no", "\\#", "*.o ", "\\!a", "[a-c]*", "[!a]*", "[^.]*", "!.gitignore", "?", "*.t[xyz]t", "sp\\ ace", "\\[z\\]",
    "/*", "!/sub", "**", "*/", "build/x.o", "[[:alpha:]]", "a\\", "[", "b.py\r", "/", "!", "é*", "-n", "**/sub/**",
]  # fmt: skip
LINES = ["needle", "Needle 1", "x\ty", "", "a.b", "éa needle", "end\r", "l\rone", "\x00\x00late", "word needle_ two"]
QUERIES = [
    "needle", "^needle$", r"needle\b", r"\bneedle", r"\d", r"\w+$", r"\W", r"\s", r"a.b", "^$", "x|end",
    "(?:a|é)", "[^a-z]",
    r"end$", r"l.one", r"[A-Z]\w+ \d", r"e{2}dle", r"\S+\t\S", "é", "(?i)NEEDLE", r"\D$", "N", "one|(end)?",
    ".", r"a\.b",
]  # fmt: skip


def make_tree(root: Path, chance: random.Random, *, ignores: bool = True) -> None:
    for _ in range(chance.randint(3, 25)):
        parts = [chance.choice(NAMES) for _ in range(chance.randint(1, 4))]
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            body = "\n".join([chance.choice(LINES) for _ in range(chance.randint(0, 5))])
            path.write_bytes(body.encode() + chance.choice([b"", b"\n", b"\r\n", b"\xff\n"]))
        except OSError:
            continue  # a file where a folder would have to be
    folders = [root, *[path for path in root.rglob("*") if path.is_dir()]]
    if ignores:
        for folder in chance.sample(folders, min(len(folders), chance.randint(1, 3))):
            lines = [chance.choice(PATTERNS) for _ in range(chance.randint(1, 5))]
            folder.joinpath(".gitignore").write_bytes("\n".join(lines).encode())


async def kept(workspace: LocalWorkspace, base: str = ".") -> set[str]:
    found = await walk(Context(workspace), base, depth=None, keep=lambda _: True, seconds=60, ignore=True)
    return {entry.path for entry in found.entries if entry.kind == "file"}


@pytest.mark.parametrize("seed", range(40))
async def test_gitignore_means_what_git_and_ripgrep_say(place: Path, seed: int) -> None:
    make_tree(place, random.Random(seed))
    workspace = LocalWorkspace(place)
    ours = await kept(workspace)
    await workspace.close()
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", "."], cwd=place, env=env, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard"], cwd=place, env=env, check=True, capture_output=True
    )
    assert ours == {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}


@pytest.mark.parametrize("seed", range(40, 60))
async def test_an_ignored_search_of_a_folder_below_is_ripgreps(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    make_tree(place, chance)
    folders = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_dir()] or ["."]
    base = chance.choice(sorted(folders))
    # rg 13 differs from git where a class or an escape is broken, and for a rule that is `**` alone.
    odd = ("a\\", "[", "[[:alpha:]]", "b.py\r", "**", "sub/**", "**/sub/**", "a/**/b.py", "sp\\ ace", "[^.]*", "[!a]*")
    if any(line in odd for path in place.rglob(".gitignore") for line in path.read_bytes().decode().split("\n")):
        return
    workspace = LocalWorkspace(place)
    ours = await kept(workspace, base)
    await workspace.close()
    command = [
        RG,
        "--no-config",
        "--files",
        "-0",
        "--hidden",
        "--no-require-git",
        "--no-ignore-dot",
        "--no-ignore-global",
    ]
    listed = subprocess.run([*command, f"./{base}"], cwd=place, check=False, capture_output=True)
    names = {os.fsdecode(name).removeprefix("./").removeprefix("./") for name in listed.stdout.split(b"\0") if name}
    assert ours == names


@pytest.mark.parametrize("seed", range(25))
async def test_both_ways_of_grep_give_the_same_answer(place: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    make_tree(place, chance)
    workspace = LocalWorkspace(place)
    ctx = Context(workspace)
    asked: list[str] = []
    real = rg.candidates

    async def watched(*args: Any, **options: Any) -> Any:
        found = await real(*args, **options)
        asked.append(args[1] if found is not None else "")
        return found

    monkeypatch.setattr(rg, "candidates", watched)
    for _ in range(6):
        args: dict[str, Any] = {
            "pattern": chance.choice(QUERIES),
            "output_mode": chance.choice(["content", "files_with_matches", "count"]),
            "-i": chance.random() < 0.3,
            "-C": chance.choice([0, 0, 1]),
            "head_limit": chance.choice([0, 3, 200]),
            "offset": chance.choice([0, 0, 2]),
        }
        if chance.random() < 0.3:
            args["glob"] = chance.choice(["*.py", "!*.py", "sub/**", "*.{py,txt}"])
        if chance.random() < 0.2:
            args["type"] = chance.choice(["py", "txt", "make"])
        monkeypatch.setattr(rg, "LEAST_FILES", 0)
        fast = await text(grep, ctx, **args)
        monkeypatch.setattr(rg, "LEAST_FILES", 1 << 30)
        assert fast == await text(grep, ctx, **args), args
    await workspace.close()
    assert len(asked) == 6
    assert any(asked)


PIECES = [
    "a", "b", " ", "\\d", "\\w", "\\W", "\\s", "\\S", "\\D", "\\b", "\\.", ".", "^", "$", "[ab]", "[^a]",
    "(?:a|b)", "(b)",
    "a*", "b+?", "a{2}", "|", "1", "_", "-",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), st.lists(st.text("ab1_ -\r\té.", max_size=6), max_size=5)
)
def test_ripgrep_never_misses_what_we_would_find(pieces: list[str], lines: list[str]) -> None:
    pattern = "".join(pieces)
    rust = for_rust(pattern)
    try:
        found = search._Search(search._query({"pattern": pattern}))  # pyright: ignore[reportPrivateUsage]
    except search.Refusal:
        return
    body = "\n".join(lines).encode() + b"\n"
    ours = found._search("f", body)  # pyright: ignore[reportPrivateUsage]
    if not ours or rust is None:
        return
    ran = subprocess.run(
        [RG, "--no-config", "--text", "--encoding=none", "-c", "-e", rust, "--", "-"], input=body, check=False,
        capture_output=True,
    )  # fmt: skip
    assert ran.returncode == 0, (pattern, rust, ran.stderr)


@pytest.mark.parametrize(
    "pattern",
    [r"\pL", "(?i)a", "[[:alpha:]]", r"[\d]", "{", "a\nb", r"\Qa\E", "[a--b]", "é", "\\", "a$b", "(a$)", "a^", "(^a)"],
)
def test_patterns_that_are_not_certain_are_not_passed_on(pattern: str) -> None:
    assert for_rust(pattern) is None


# -- S27: whose rg runs -----------------------------------------------------------------------------------------------


def plant(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "rg"
    program.write_text(f"#!/bin/sh\ntouch {folder.parent}/ran\nexit 1\n")
    program.chmod(0o755)
    return program


async def test_s27_an_rg_of_the_workspace_never_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = place / "ws", place / "outside"
    plant(root / "bin")
    plant(root)
    outside.mkdir()
    (outside / "rg").symlink_to(root / "bin" / "rg")
    (place / "into").symlink_to(root / "bin")
    for number in range(3):
        (root / f"{number}.txt").write_text("needle\n")
    monkeypatch.chdir(root)
    monkeypatch.setattr(rg, "LEAST_FILES", 0)
    workspace = LocalWorkspace(root)
    planted = ["", ".", "bin", str(root / "bin"), str(root), f"{root}/../ws/bin", str(place / "into"), str(outside)]
    monkeypatch.setenv("PATH", os.pathsep.join(planted))
    assert find_rg(str(root)) is None
    answer = "0.txt\n1.txt\n2.txt"
    assert await text(grep, Context(workspace), pattern="needle", glob="*.txt") == answer
    monkeypatch.setenv("PATH", os.pathsep.join([*planted, str(Path(RG).parent)]))
    assert find_rg(str(root)) == os.path.realpath(RG)
    assert await text(grep, Context(workspace), pattern="needle", glob="*.txt") == answer
    await workspace.close()
    assert not list(place.rglob("ran"))
    # Nor one in the folder that this program happens to run in.
    monkeypatch.chdir(place / "ws" / "bin")
    monkeypatch.setenv("PATH", str(root / "bin"))
    assert find_rg(str(outside)) is None


async def test_where_ripgrep_cannot_be_asked_we_search_ourselves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rg, "LEAST_FILES", 0)
    workspace = LocalWorkspace(place)
    (place / "a.txt").write_text("needle\n")
    assert await candidates(workspace, "needle", ["a.txt"], ignore_case=False, seconds=10) == {"a.txt"}
    assert await candidates(workspace, "needl", ["a.txt"], ignore_case=False, seconds=10) == {"a.txt"}
    assert await candidates(workspace, "NEEDLE", ["a.txt"], ignore_case=False, seconds=10) == set()
    assert await candidates(workspace, "NEEDLE", ["a.txt"], ignore_case=True, seconds=10) == {"a.txt"}
    # A file that is gone, a pattern that is not certain, no rg, and no shell.
    assert await candidates(workspace, "needle", ["gone"], ignore_case=False, seconds=10) is None
    assert await candidates(workspace, r"\pL", ["a.txt"], ignore_case=False, seconds=10) is None
    monkeypatch.setenv("PATH", str(place))
    assert await candidates(workspace, "needle", ["a.txt"], ignore_case=False, seconds=10) is None
    assert await text(grep, Context(workspace), pattern="needle") == "a.txt"
    memory = MemoryWorkspace({"a.txt": "needle"})
    assert await candidates(memory, "needle", ["a.txt"], ignore_case=False, seconds=10) is None
    assert await text(grep, Context(memory), pattern="needle") == "a.txt"
    await workspace.close()


async def test_many_names_go_in_portions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rg, "_MAX_NAMES", 30)
    monkeypatch.setattr(rg, "LEAST_FILES", 0)
    for number in range(12):
        (place / f"{number:02} file.txt").write_text("needle\n" if number % 2 else "hay\n")
    workspace = LocalWorkspace(place)
    said = await text(grep, Context(workspace), pattern="needle")
    assert said.split("\n") == [f"{number:02} file.txt" for number in range(1, 12, 2)]
    await workspace.close()


# -- without RE2 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_re2(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Hide google-re2."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "re2", None)
        patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
        yield
    patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]


#: Patterns that mean the same to both, for files of ASCII.
COMMON = [
    "needle",
    "^needle",
    r"e{2}dle$",
    "x|end",
    "[A-Z]",
    "a.b",
    "^$",
    ".",
    "n(e+)d",
    "(?i)NEEDLE",
    r"\d",
    "end$",
    "q",
]


@pytest.mark.parametrize("seed", range(20))
async def test_ripgrep_alone_gives_the_same_answer(place: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    make_tree(place, chance)
    for path in place.rglob("*"):
        if path.is_file() and path.name != ".gitignore":
            path.write_bytes(bytes([byte for byte in path.read_bytes() if byte < 128]))
    workspace = LocalWorkspace(place)
    ctx = Context(workspace)
    for _ in range(5):
        args: dict[str, Any] = {
            "pattern": chance.choice([*COMMON, r"needle\r?\n", "e\nx"]),
            "output_mode": chance.choice(["content", "files_with_matches", "count"]),
            "-i": chance.random() < 0.3,
            "-A": chance.choice([0, 0, 2]),
        }
        ours = await text(grep, ctx, **args)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "re2", None)
            patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
            assert await text(grep, ctx, **args) == ours, args
        patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
    await workspace.close()


@pytest.mark.usefixtures("no_re2")
async def test_without_re2_ripgrep_matches_and_says_what_it_cannot(local: Context, place: Path) -> None:
    (place / "a.txt").write_bytes(b"one\r\ntwo three\r\n\xff two\r\n")
    (place / os.fsdecode(b"\xe9.txt")).write_bytes(b"two\n")
    said = await text(grep, local, pattern="t[w]o", output_mode="content", path="a.txt")
    assert said == "a.txt:2:two three\na.txt:3:\ufffd two"
    assert await text(grep, local, pattern="t[w]o$", output_mode="count") == "a.txt:1\n\udce9.txt:1"
    assert await text(grep, local, pattern="one.t[w]", output_mode="content", multiline=True) == "No matches found"
    said = await text(grep, local, pattern="one..t[w]", output_mode="content", multiline=True)
    assert said == "a.txt:1:one\na.txt:2:two three"
    assert "unclosed group" in await refused(grep, local, pattern="(")
    memory = Context(MemoryWorkspace({"a.txt": "two"}))
    assert "without google-re2 only plain text can be matched" in await refused(grep, memory, pattern="t[w]o")


@given(st.binary(max_size=30), st.data())
def test_places_are_the_same_once_line_ends_are(data: bytes, draw: st.DataObject) -> None:
    data = data.replace(b"\x01", b"\r\n")
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    cuts = [at for at in cuts if data[at - 1 : at + 1] != b"\r\n" or not at]
    places = [(at, at) for at in cuts]
    wanted = [(len(data[:at].replace(b"\r\n", b"\n")),) * 2 for at in cuts]
    assert without_cr(data, places) == wanted


# -- the rest of grep's arguments -------------------------------------------------------------------------------------


async def test_types_of_files(ctx: Context) -> None:
    assert ctx.workspace is not None
    for path in ("a.py", "b/c.pyi", "d.rs", "Makefile", "x.mk"):
        await ctx.workspace.write(path, b"needle\n")
    assert await text(grep, ctx, pattern="needle", type="py") == "a.py\nb/c.pyi"
    assert await text(grep, ctx, pattern="needle", type="make") == "Makefile\nx.mk"
    assert await text(grep, ctx, pattern="needle", type="py", glob="b/**") == "b/c.pyi"
    assert await refused(grep, ctx, pattern="needle", type="pyy") == "Unknown type: pyy. Did you mean py?"
    assert await refused(grep, ctx, pattern="needle", type="qqqqqq") == "Unknown type: qqqqqq. Use glob instead."


async def test_what_is_ignored_is_said_when_nothing_is_found(ctx: Context) -> None:
    assert ctx.workspace is not None
    await ctx.workspace.write(".gitignore", b"build/\n*.log\n")
    for path in ("build/a", "build/b/c", "x.log", "src/y.log", "src/z"):
        await ctx.workspace.write(path, b"needle\n")
    assert await text(grep, ctx, pattern="needle") == "src/z"
    assert await text(grep, ctx, pattern="needle", glob="*.log") == (
        "No matches found\n[what .gitignore names was not searched: 3 entries]"
    )
    # What is named itself is searched.
    assert await text(grep, ctx, pattern="needle", path="x.log") == "x.log"
    assert await text(grep, ctx, pattern="needle", path="build") == "build/a\nbuild/b/c"


@given(st.binary(max_size=60), st.text("ab/.*[]!\\é", min_size=1, max_size=8))
def test_any_gitignore_can_be_read(data: bytes, path: str) -> None:
    rules = ((0, parse_ignore(data)),)
    parts = [part for part in path.split("/") if part] or ["a"]
    assert is_ignored(rules, parts, folder=False) in (True, False)
