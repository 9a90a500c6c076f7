"""glob and grep: against the standard library's glob, and line by line against plain Python."""

from __future__ import annotations

import glob as reference
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.helpers import Context, refused, text
from windlass.core import patterns
from windlass.core.errors import PathEscape, ToolError
from windlass.core.ports import Workspace
from windlass.tools import access, search
from windlass.tools.files import list_files
from windlass.tools.globs import NameFilter, expand_braces, parse_glob
from windlass.tools.search import glob, grep
from windlass.workspaces.memory import MemoryWorkspace


async def fill(ctx: Context, **contents: str) -> Workspace:
    assert ctx.workspace is not None
    for name, content in contents.items():
        await ctx.workspace.write(name.replace("__", "/").replace("_", "."), content.encode())
    return ctx.workspace


# -- glob -------------------------------------------------------------------------------------------------------------


async def test_files_are_found_by_name(ctx: Context) -> None:
    await fill(ctx, a_py="", src__b_py="", src__deep__c_py="", src__d_md="", node__x="")
    assert await text(glob, ctx, pattern="*.py") == "a.py"
    assert await text(glob, ctx, pattern="**/*.py") == "a.py\nsrc/b.py\nsrc/deep/c.py"
    assert await text(glob, ctx, pattern="src/**/*.{py,md}") == "src/b.py\nsrc/d.md\nsrc/deep/c.py"
    assert await text(glob, ctx, pattern="*.py", path="src") == "src/b.py"
    assert await text(glob, ctx, pattern="./src/[bc].py") == "src/b.py"
    assert await text(glob, ctx, pattern="src/b.py") == "src/b.py"
    assert await text(glob, ctx, pattern="*.zig") == "No files match *.zig"
    assert await text(glob, ctx, pattern="none/*.py") == "No files match none/*.py"
    assert await text(glob, ctx, pattern=".") == "No files match ."
    assert await text(glob, ctx, pattern="src/deep/**") == "src/deep/c.py"
    assert await refused(glob, ctx, pattern="*", path="scr") == "Directory not found: scr. Did you mean src?"
    assert (
        await text(glob, ctx, pattern="**", limit=2)
        == "a.py\nnode/x\n[2 of 5 names; 32 bytes left out. Narrow the pattern.]"
    )


async def test_newest_first(local: Context, place: Path) -> None:
    for age, name in enumerate(["b", "a", "c"]):
        (place / name).write_text("")
        os.utime(place / name, ns=(0, 10**9 * (10 - age)))
    assert await text(glob, local, pattern="*", sort="mtime") == "b\na\nc"


async def test_searches_do_not_enter_what_tools_install_unless_named(ctx: Context) -> None:
    await fill(ctx, a_js="x", node___modules__b_js="x")
    workspace = await fill(ctx)
    await workspace.write("node_modules/b.js", b"x")
    await workspace.write(".git/c.js", b"x")
    assert await text(glob, ctx, pattern="**/[abc].js", path=".") == "a.js\nnode/.modules/b.js"
    assert await text(glob, ctx, pattern="node_modules/*.js") == "node_modules/b.js"
    assert await text(grep, ctx, pattern="x", path=".git") == ".git/c.js"


NAMES = st.sampled_from(["a", "b", "ab", ".a", "a.py", "b.py", "[", "é"])
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8)
PIECES = st.sampled_from(["a", "b", "*", "**", "?", "*.py", "[ab]", "[!a]", "a*", "**b", ".*", "*a*b*", "[", "[[]"])
PATTERNS = st.lists(PIECES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150, deadline=None)
@given(TREES, st.lists(PATTERNS, min_size=3, max_size=3))
def test_globs_match_as_the_standard_library_does(paths: list[str], patterns_: list[str]) -> None:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as root:
        files: set[str] = set()
        for path in paths:
            try:
                Path(root, path).parent.mkdir(parents=True, exist_ok=True)
                Path(root, path).write_text("")
                files.add(path)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # drawn as a file and as a folder
        for pattern in patterns_:
            found = reference.glob(pattern, root_dir=root, recursive=True, include_hidden=True)
            wanted = {path for path in found if Path(root, path).is_file() and not path.endswith("/")}
            (parsed,) = parse_glob(pattern)
            top = "" if parsed.prefix == "." else f"{parsed.prefix}/"
            ours = {path for path in files if path.startswith(top) and parsed.matches(path[len(top) :].split("/"))}
            assert ours == wanted, pattern
            if parsed.depth is not None:
                assert all(path[len(top) :].count("/") < parsed.depth for path in ours)


def test_braces() -> None:
    assert expand_braces("a{b,{c,d}}{,e}") == ["ab", "abe", "ac", "ace", "ad", "ade"]
    assert expand_braces("{a}") == ["a"]
    assert expand_braces("a{b") == ["a{b"]
    for pattern in ("{a,b}" * 10, "{" * 400 + ",", "", "x" * 2000):
        if pattern.startswith("{{"):
            assert expand_braces(pattern) == [pattern]
        else:
            with pytest.raises(ToolError):
                expand_braces(pattern)


@pytest.mark.parametrize(
    ("pattern", "path", "kept"),
    [
        ("*.py", "a/b.py", True),
        ("*.py", "a/b.md", False),
        ("*.{py,md}", "a/b.md", True),
        ("a/*.py", "a/b.py", True),
        ("a/*.py", "x/a/b.py", False),
        ("/b.py", "a/b.py", False),
        ("**/a/*", "x/a/b.py", True),
        ("!*.py", "a/b.py", False),
        ("!*.py", "a/b.md", True),
        ("b.py", "a/b.py", True),
        ("a/**", "a/b.py", True),
        ("/", "a/b.py", False),
    ],
)
def test_the_glob_of_grep_is_ripgreps(pattern: str, path: str, kept: bool) -> None:
    assert NameFilter(pattern).keeps(path.split("/")) is kept


async def test_a_folder_may_be_named_in_several_ways(local: Context, place: Path) -> None:
    (place / "src").mkdir()
    (place / "src" / "a.py").write_text("needle\n")
    (place / "link").symlink_to("src")
    for path, name in (("src", "src"), ("./src/", "src"), (str(place / "src"), "src"), ("link", "link")):
        assert await text(list_files, local, path=path) == "📄 a.py", path
        assert await text(glob, local, pattern="*.py", path=path) == f"{name}/a.py", path
        assert await text(grep, local, pattern="needle", path=path) == f"{name}/a.py", path
    assert await text(glob, local, pattern=f"{place}/src/*.py") == "src/a.py"
    assert await text(list_files, local) == "🔗 link\n📁 src/"


async def test_s11_links_out_and_circles_are_not_followed(local: Context, place: Path) -> None:
    outside = place.parent / f"{place.name}-outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("needle")
    try:
        (place / "in").mkdir()
        (place / "in" / "mine.txt").write_text("needle")
        (place / "out").symlink_to(outside)
        (place / "file.txt").symlink_to(outside / "secret.txt")
        (place / "in" / "loop").symlink_to(place)
        assert await text(glob, local, pattern="**/*.txt") == "file.txt\nin/mine.txt"
        assert await text(grep, local, pattern="needle") == "in/mine.txt"
        assert await text(grep, local, pattern="needle", glob="out/**") == "No matches found"
        for tool, args in ((glob, {"pattern": "out/*"}), (grep, {"pattern": "needle", "path": "out"})):
            with pytest.raises(PathEscape):
                await text(tool, local, **args)
        with pytest.raises(PathEscape):
            await text(grep, local, pattern="needle", path="file.txt")
    finally:
        (outside / "secret.txt").unlink()
        outside.rmdir()


async def test_s11_a_walk_is_bounded(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        await fill(ctx, **{f"d{n}__f{n}": "x"})
    monkeypatch.setattr(access, "MAX_ENTRIES", 20)
    said = await text(glob, ctx, pattern="**")
    assert "stopped after 20 entries" in said
    assert "[stopped after 20 entries]" in await text(grep, ctx, pattern="x")
    monkeypatch.setattr(search, "SEARCH_SECONDS", -1.0)
    assert await text(glob, ctx, pattern="**") == "No files match ** (stopped after -1 s)"


# -- grep -------------------------------------------------------------------------------------------------------------

POEM = "alpha\nBeta\ngamma beta\n\ndelta\nbeta end\n"


async def test_the_three_outputs(ctx: Context) -> None:
    await fill(ctx, a_txt=POEM, b_txt="nothing\n", c_txt="beta\n")
    assert await text(grep, ctx, pattern="beta") == "a.txt\nc.txt"
    assert await text(grep, ctx, pattern="beta", output_mode="count") == "a.txt:2\nc.txt:1"
    said = await text(grep, ctx, pattern="^beta", output_mode="content", **{"-i": True})
    assert said == "a.txt:2:Beta\na.txt:6:beta end\nc.txt:1:beta"
    assert await text(grep, ctx, pattern="beta$", output_mode="content", **{"-n": False}) == (
        "a.txt:gamma beta\nc.txt:beta"
    )
    assert await text(grep, ctx, pattern="zeta") == "No matches found"
    assert await text(grep, ctx, pattern="beta", path="c.txt") == "c.txt"
    assert await text(grep, ctx, pattern="beta", glob="!a*") == "c.txt"
    assert (
        await refused(grep, ctx, pattern="x", path="c.tx") == "Path not found: c.tx. Did you mean c.txt, b.txt, a.txt?"
    )


async def test_context_lines(ctx: Context) -> None:
    await fill(ctx, a_txt="1\n2\nx\n4\n5\n6\n7\nx\n9\n", b_txt="x\n")
    both = {"output_mode": "content", "-C": 1}
    assert await text(grep, ctx, pattern="x", **both) == (
        "a.txt-2-2\na.txt:3:x\na.txt-4-4\n--\na.txt-7-7\na.txt:8:x\na.txt-9-9\n--\nb.txt:1:x"
    )
    assert await text(grep, ctx, pattern="x", path="a.txt", output_mode="content", **{"-A": 4, "-B": 0}) == (
        "a.txt:3:x\na.txt-4-4\na.txt-5-5\na.txt-6-6\na.txt-7-7\na.txt:8:x\na.txt-9-9"
    )


async def test_other_names_and_loose_values_are_taken(ctx: Context) -> None:
    await fill(ctx, a_txt="X\ny\n")
    said = await text(grep, ctx, pattern="x", output_mode="content", ignore_case="true", after_context="1")
    assert said == "a.txt:1:X\na.txt-2-y"
    assert (
        await refused(grep, ctx, pattern="x", patern=1)
        == "Validation error: Unknown field: patern (did you mean pattern?)"
    )


async def test_several_lines(ctx: Context) -> None:
    await fill(ctx, a_txt="def f(\n  a,\n):\n  pass\nend\n")
    said = await text(grep, ctx, pattern=r"def.*?\):", multiline=True, output_mode="content")
    assert said == "a.txt:1:def f(\na.txt:2:  a,\na.txt:3:):"
    assert await text(grep, ctx, pattern=r"a,\n\):", output_mode="content") == "a.txt:2:  a,\na.txt:3:):"
    assert await text(grep, ctx, pattern=r"f\($\s+a", output_mode="content") == "No matches found"


async def test_answers_are_bounded_and_go_on(ctx: Context) -> None:
    await fill(ctx, a_txt="".join([f"x{n}\n" for n in range(300)]), b_txt="x" * 3000 + "\n")
    first = await text(grep, ctx, pattern="x", output_mode="content")
    assert first.splitlines()[-2:] == ["a.txt:200:x199", "[200 lines; more follow. Go on with offset=200.]"]
    rest = await text(grep, ctx, pattern="x", output_mode="content", offset=200, head_limit=0)
    assert rest.splitlines()[0] == "a.txt:201:x200"
    assert rest.splitlines()[-1] == "b.txt:1:" + "x" * 500 + "…"
    assert await text(grep, ctx, pattern="x", head_limit=1) == "a.txt\n[1 lines; more follow. Go on with offset=1.]"
    assert await text(grep, ctx, pattern="x", offset=5) == "[offset is past the 2 lines there are.]"


async def test_binary_large_and_crlf_files(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = await fill(ctx, a_txt="x\r\ny x\r\n")
    await workspace.write("bin", b"x\x00")
    await workspace.write("large", b"x" * 101)
    await workspace.write("latin", b"x \xe9\n")
    monkeypatch.setattr(search, "MAX_FILE_BYTES", 100)
    assert await text(grep, ctx, pattern="x$", output_mode="content") == (
        "a.txt:1:x\na.txt:2:y x\n[1 files over 100 bytes were skipped]"
    )
    assert (await text(grep, ctx, pattern="^x .", path="latin")) == "No matches found"
    assert (await text(grep, ctx, pattern="^x ", path="latin", output_mode="content")) == "latin:1:x \ufffd"


async def test_a_large_file_is_searched_beside_the_loop(ctx: Context) -> None:
    await fill(ctx, a_txt="line\n" * 300_000 + "needle\n")
    assert await text(grep, ctx, pattern="ne+dle$", output_mode="content") == "a.txt:300001:needle"


async def test_a_pattern_that_cannot_be_used(ctx: Context) -> None:
    assert (await refused(grep, ctx, pattern="(")).startswith("The pattern cannot be used: missing ): (")
    assert "no look-around" in await refused(grep, ctx, pattern="(?=x)")


async def test_without_re2_plain_text_still_works(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(ctx, a_txt="a.b\nAxB\n")
    monkeypatch.setitem(sys.modules, "re2", None)
    monkeypatch.setenv("PATH", "/nowhere")  # else ripgrep would do it
    patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
    try:
        assert await text(grep, ctx, pattern="axb", output_mode="content", **{"-i": True}) == "a.txt:2:AxB"
        said = await refused(grep, ctx, pattern="a.b")
    finally:
        patterns._re2.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert said == (
        "The pattern cannot be used: without google-re2 only plain text can be matched; install windlass[regex]."
    )


BODIES = st.lists(st.text("ab \té", max_size=4), max_size=6)
EXPRESSIONS = st.sampled_from(["a", "^a", "b$", "a.b", "^$", "[^a]", r"\s", "a|b", "", "é", "(ab)+", r"\bb", "^.?$"])


@settings(deadline=None)
@given(BODIES, EXPRESSIONS, st.sampled_from(["\n", "\r\n"]), st.booleans())
async def test_grep_finds_the_lines_that_python_finds(lines: list[str], expression: str, end: str, ends: bool) -> None:
    body = end.join(lines) + (end if ends else "")
    split = body.replace("\r\n", "\n").split("\n")
    if not split[-1]:
        split.pop()
    wanted = [f"f:{at}:{line}" for at, line in enumerate(split, 1) if re.search(expression, line, re.ASCII)]
    ctx = Context(MemoryWorkspace({"f": body}))
    said = await text(grep, ctx, pattern=expression, output_mode="content")
    assert said.split("\n") == (wanted or ["No matches found"])
