"""`apply_patch`: what its format means, that it is all or nothing, and what it says when it does not fit."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.helpers import Context, call, refused, text
from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.ports import Workspace
from windlass.tools.access import Refusal
from windlass.tools.patch import apply_hunks, parse_patch
from windlass.tools.patching import apply_patch
from windlass.workspaces.memory import MemoryWorkspace


def space(ctx: Context) -> Workspace:
    assert ctx.workspace is not None
    return ctx.workspace


def whole(*lines: str) -> str:
    return "\n".join(["*** Begin Patch", *lines, "*** End Patch"])


async def test_add_update_move_and_delete_in_one_patch(ctx: Context) -> None:
    await space(ctx).write("src/app.py", b"def greet():\n    print('Hi')\n\ndef bye():\n    print('Hi')\n")
    await space(ctx).write("obsolete.txt", b"x")
    await space(ctx).write("keep.txt", b"1\n2\n3\n")
    patch = whole(
        "*** Add File: docs/hello.txt",
        "+Hello",
        "+",
        "+world",
        "*** Update File: src/app.py",
        "*** Move to: src/main.py",
        "@@ def bye():",
        "-    print('Hi')",
        "+    print('Bye')",
        "*** Update File: keep.txt",
        "@@",
        " 1",
        "-2",
        "+two",
        " 3",
        "*** Delete File: obsolete.txt",
    )
    assert await text(apply_patch, ctx, patch=patch) == (
        "Created docs/hello.txt\nMoved src/app.py to src/main.py: 1 hunk\n"
        "Updated keep.txt: 1 hunk\nDeleted obsolete.txt"
    )
    assert await space(ctx).read("docs/hello.txt") == b"Hello\n\nworld\n"
    assert await space(ctx).read("src/main.py") == b"def greet():\n    print('Hi')\n\ndef bye():\n    print('Bye')\n"
    assert await space(ctx).read("keep.txt") == b"1\ntwo\n3\n"
    assert await space(ctx).stat("src/app.py") is None
    assert await space(ctx).stat("obsolete.txt") is None
    assert [(each.path, each.before is None, each.after is None) for each in ctx.changes] == [
        ("docs/hello.txt", True, False),
        ("src/main.py", True, False),
        ("keep.txt", False, False),
        ("src/app.py", False, True),
        ("obsolete.txt", False, True),
    ]


BODY = "a\nb\nc\na\nb\nd\n"


@pytest.mark.parametrize(
    ("before", "lines", "after"),
    [
        # The first hunk may do without `@@`; `@@` lines nest.
        ("a\nb\n", ["-b", "+c"], "a\nc\n"),
        ("class A\n x\nclass B\n x\n", ["@@ class B", "- x", "+ y"], "class A\n x\nclass B\n y\n"),
        ("A\nf\nx\nB\nf\nx\n", ["@@ B", "@@ f", "-x", "+y"], "A\nf\nx\nB\nf\ny\n"),
        # Several hunks; an empty line is an empty line of the file; a mark of numbers says nothing.
        ("a\n\nb\nc\nd\n", ["@@ -1,3 +1,3 @@ def x():", " a", "", "-b", "+B", "@@", "-d", "+D"], "a\n\nB\nc\nD\n"),
        # Only additions: at the end, or behind the line named.
        ("a\nb\n", ["@@", "+c"], "a\nb\nc\n"),
        ("a\nb\n", ["@@ a", "+x"], "a\nx\nb\n"),
        ("", ["+a"], "a\n"),
        # The end of the file settles where.
        (BODY, ["@@", " b", "-d", "+D", "*** End of File"], "a\nb\nc\na\nb\nD\n"),
        ("x\ny\nx\n", ["@@", "-x", "+z", "*** End of File"], "x\ny\nz\n"),
        # Deletions alone, and all of it.
        ("a\nb\nc\n", ["@@", "-b"], "a\nc\n"),
        ("a\n", ["-a"], ""),
        # Line ends, marks and a missing last newline stay as they are.
        ("a\r\nb\r\n", [" a", "-b", "+c", "+d"], "a\r\nc\r\nd\r\n"),
        ("a\nb", ["-b", "+c"], "a\nc"),
        ("a\nb", [" b", "+c"], "a\nb\nc"),
        ("a\r\nb\nc\n", [" b", "-c", "+d"], "a\r\nb\nd\n"),
        # What stays is the file's own, when it fits only but for spaces or look-alikes.
        ("\tx  \ny\n", [" x", "-y", "+z"], "\tx  \nz\n"),
        ("say \u201chi\u201d \u2013 x\ny\n", ['@@ say "hi" - x', "-y", "+z"], "say \u201chi\u201d \u2013 x\nz\n"),
    ],
)
def test_what_a_hunk_does(before: str, lines: list[str], after: str) -> None:
    (section,) = parse_patch(whole("*** Update File: f", *lines))
    assert apply_hunks(before, section.hunks, "f") == after


@pytest.mark.parametrize(
    ("before", "lines", "said"),
    [
        (BODY, ["@@", "-b", "+B"], "f, hunk 1 of 1 (line 3 of the patch) fits in 2 places (lines 2, 5)."),
        (
            BODY,
            ["@@ zz", "-b", "+B"],
            "f, hunk 1 of 1 (line 3 of the patch): the line behind `@@` was not found: 'zz'.",
        ),
        (BODY, ["@@", "-q", "+B"], "f, hunk 1 of 1 (line 3 of the patch): these lines were not found:\nq"),
        ("alpha beta\n", ["@@", "-alpha bta", "+B"], "Nearest match, line 1:\nalpha beta"),
        (BODY, ["@@", "-d", "+D", "@@", "-c", "+C"], "stands at line 3, before the hunk before it: hunks come in the"),
        (BODY, ["@@ d", "-c", "+C"], "stands at line 3, before its `@@` line"),
        (BODY, ["@@", "-c", "+C", "*** End of File"], "stands at line 3, not at the end of the file."),
    ],
)
async def test_a_hunk_that_does_not_fit_says_why(ctx: Context, before: str, lines: list[str], said: str) -> None:
    await space(ctx).write("f", before.encode())
    answer = await refused(apply_patch, ctx, patch=whole("*** Update File: f", *lines))
    assert said in answer
    assert answer.endswith("Nothing was changed.")
    assert await space(ctx).read("f") == before.encode()
    assert ctx.changes == []


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("", "does not begin with `*** Begin Patch`"),
        ("*** Begin Patch\n*** Update File: f\n@@\n-x\n+y", "does not end with `*** End Patch`"),
        (whole(), "The patch holds no file."),
        (whole("diff --git a b"), "Line 2 of the patch: expected `*** Add File: `"),
        (whole("*** Update File: "), "Line 2 of the patch: expected `*** Add File: `"),
        (whole("*** Update File: f"), "Line 2 of the patch: an update needs a hunk"),
        (whole("*** Update File: f", "@@", " x"), "Line 3 of the patch: the hunk changes nothing"),
        (whole("*** Update File: f", "@@", "-x", "y"), "Line 5 of the patch: a line of a hunk begins with"),
        (whole("*** Update File: f", "*** Move to: ", "@@"), "Line 3 of the patch: expected a path"),
        (whole("*** Update File: f", "-x", "*** End of File", "+z"), "Line 5 of the patch: a hunk begins with `@@`"),
        (whole("*** Add File: n", "x"), "Line 3 of the patch: each line of a new file begins with `+`"),
        (whole("*** Add File: n", "+x", "", "+y"), "Line 4 of the patch: each line of a new file begins with `+`, an"),
        (whole("*** Delete File: f", "-x"), "Line 3 of the patch: nothing may follow the deletion of f"),
        (whole("*** Update File: g", "-x", "+y"), "File not found: g\nNothing was changed."),
        (whole("*** Delete File: none"), "File not found: none"),
        (whole("*** Add File: f", "+x"), "f exists already. Update it, or delete it first."),
        (whole("*** Update File: f", "*** Move to: o"), "o exists already: f cannot be moved there."),
        (whole("*** Delete File: d"), "Not a file: d is a folder."),
        (whole("*** Update File: bin", "-x", "+y"), "[Binary file: bin, 2 bytes] It cannot be patched."),
        (whole("*** Update File: f", "-x", "+x"), "No change: the patch leaves every file as it is."),
        (whole("*** Update File: f", "-x", "+\udc80"), "lone surrogate"),
        (whole("*** Add File: n", "+\udc80"), "lone surrogate"),
    ],
)
async def test_a_patch_that_cannot_be_applied_says_why(ctx: Context, patch: str, said: str) -> None:
    for path, body in (("f", b"x\n"), ("o", b"o\n"), ("d/x", b""), ("bin", b"x\x00")):
        await space(ctx).write(path, body)
    assert said in await refused(apply_patch, ctx, patch=patch)
    assert await space(ctx).read("f") == b"x\n"
    assert ctx.changes == []


async def test_a_later_section_sees_what_an_earlier_one_made(ctx: Context) -> None:
    await space(ctx).write("f", b"x\n")
    patch = whole("*** Delete File: f", "*** Add File: f", "+new", "*** Update File: ./f", "-new", "+newer")
    assert await text(apply_patch, ctx, patch=patch) == "Deleted f\nCreated f\nUpdated f: 1 hunk"
    assert await space(ctx).read("f") == b"newer\n"
    assert len(ctx.changes) == 1


async def test_padding_fences_and_line_ends_of_the_patch_do_not_matter(ctx: Context) -> None:
    await space(ctx).write("f", b"x\n")
    patch = "```\n *** Begin Patch \r\n\r\n*** Update File: f \r\n@@\r\n-x\r\n+y\r\n\r\n*** End Patch \n```"
    assert await text(apply_patch, ctx, patch=patch) == "Updated f: 1 hunk"
    assert await space(ctx).read("f") == b"y\n"


# -- all or nothing ---------------------------------------------------------------------------------------------------

TWO = whole(
    "*** Add File: new", "+n", "*** Update File: a", "-1", "+2", "*** Update File: b", "-1", "+2", "*** Delete File: c"
)


class Failing(MemoryWorkspace):
    """Refuses to change one file."""

    refuses = ""

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        if path == self.refuses:
            raise WorkspaceError(f"{path} is read-only.", path=path)
        await super().write(path, data, expected_sha256=expected_sha256)

    async def delete(self, path: str) -> None:
        if path == self.refuses:
            raise WorkspaceError(f"{path} is read-only.", path=path)
        await super().delete(path)


@pytest.mark.parametrize("refuses", ["new", "a", "b", "c"])
async def test_when_one_file_fails_the_others_are_put_back(refuses: str) -> None:
    workspace = Failing({"a": "1\n", "b": "1\n", "c": "c"})
    workspace.refuses = refuses
    ctx = Context(workspace)
    with pytest.raises(WorkspaceError, match=f"{refuses} is read-only"):
        await call(apply_patch, ctx, patch=TWO)
    assert workspace.files == {"a": "1\n", "b": "1\n", "c": "c"}
    # What was done and undone is on record, in pairs.
    order = ["new", "a", "b", "c"]
    done = order[: order.index(refuses)]
    assert [each.path for each in ctx.changes] == done + done[::-1]


async def test_what_cannot_be_put_back_is_named() -> None:
    class Stuck(Failing):
        async def delete(self, path: str) -> None:
            raise WorkspaceError(f"{path} stays.", path=path)

    ctx = Context(workspace := Stuck({"a": "1\n", "b": "1\n", "c": "c"}))
    with pytest.raises(ToolError, match=r"c stays\. Not undone: new"):
        await call(apply_patch, ctx, patch=TWO)
    assert workspace.files == {"a": "1\n", "b": "1\n", "c": "c", "new": "n\n"}


# -- against difflib --------------------------------------------------------------------------------------------------


def make_patch(old: list[str], new: list[str], context: int) -> str:
    """Write a patch as a model would: the changed groups with some lines around them."""
    lines: list[str] = []
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(context):
        lines.append("@@")
        for kind, first, last, new_first, new_last in group:
            if kind == "equal":
                lines += [f" {line}" for line in old[first:last]]
                continue
            lines += [f"-{line}" for line in old[first:last]]
            lines += [f"+{line}" for line in new[new_first:new_last]]
        if group[-1][2] == len(old):
            lines.append("*** End of File")
    return whole("*** Update File: f", *lines)


LINE = st.sampled_from(
    ["a", "b", "  c", "", "*** Add File: x", "@@ d", "-e", "+f", " g", "é\t", "*** End Patch", "\x0c"]
)
TEXTS = st.lists(LINE, max_size=14)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 4), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_patch_made_of_a_difference_gives_the_new_text(
    old: list[str], new: list[str], context: int, ends: bool, newline: str
) -> None:
    if old == new or (not ends and (not old or not new or not old[-1] or not new[-1])):
        return
    before, after = (newline.join(each) + (newline if ends and each else "") for each in (old, new))
    (section,) = parse_patch(make_patch(old, new, context))
    try:
        out = apply_hunks(before, section.hunks, "f")
    except Refusal as refusal:
        # The lines around it do not say which place is meant: refused, not guessed.
        assert "fits in" in refusal.message
        assert context < len(old)
        return
    # A file without any line end gets LF.
    assert out == (after if "\n" in before else after.replace("\r\n", "\n"))


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
async def test_with_all_lines_around_it_a_patch_always_fits(old: list[str], new: list[str]) -> None:
    if old == new:
        return
    workspace = MemoryWorkspace({"f": "".join([f"{line}\n" for line in old])})
    answer: Any = await call(apply_patch, Context(workspace), patch=make_patch(old, new, 50))
    assert answer == "Updated f: 1 hunk"
    assert workspace.files == {"f": "".join([f"{line}\n" for line in new])}
