"""read_file, write_file, edit, multi_edit, list_files: what the model reads, and what is in the files then."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.helpers import Context, call, refused, text
from windlass.core.errors import ToolError, WorkspaceError
from windlass.core.messages import Blob
from windlass.core.ports import ToolResult, Workspace
from windlass.tools import files
from windlass.tools.access import Refusal
from windlass.tools.files import edit, list_files, multi_edit, read_file, write_file
from windlass.tools.text import decode_text, replace_once
from windlass.workspaces.memory import MemoryWorkspace

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 20


def space(ctx: Context) -> Workspace:
    assert ctx.workspace is not None
    return ctx.workspace


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- read_file --------------------------------------------------------------------------------------------------------


async def test_a_small_file_is_read_as_it_is(ctx: Context) -> None:
    await space(ctx).write("a/b.txt", "héllo\nworld\n".encode())
    assert await text(read_file, ctx, path="a/b.txt") == "héllo\nworld"


async def test_reading_pages_with_a_footer(ctx: Context) -> None:
    await space(ctx).write("n.txt", b"".join([b"%d\n" % n for n in range(1, 11)]))
    assert await text(read_file, ctx, path="n.txt", limit=3) == (
        "1\n2\n3\n[Lines 1-3 of 10; 15 bytes left out. Read on with offset=4.]"
    )
    assert await text(read_file, ctx, path="n.txt", offset="9") == "9\n10\n[Lines 9-10 of 10.]"
    assert await text(read_file, ctx, path="n.txt", offset=11) == "[offset 11 is past the end: the file has 10 lines.]"


async def test_reading_is_capped_in_bytes(ctx: Context) -> None:
    await space(ctx).write("long.txt", (b"x" * 999 + b"\n") * 100 + b"y" * 100_000 + b"\nend\n")
    first = await text(read_file, ctx, path="long.txt")
    assert first.endswith("\n[Lines 1-65 of 102; 135005 bytes left out. Read on with offset=66.]")
    assert len(first) < files.MAX_SHOWN + 100
    line = await text(read_file, ctx, path="long.txt", offset=101)
    assert line.endswith("y\n[Line 101 of 102, cut after 65536 bytes; 34469 bytes left out. Read on with offset=102.]")
    assert await text(read_file, ctx, path="long.txt", offset=102) == "end\n[Line 102 of 102.]"


async def test_the_default_is_2000_lines(ctx: Context) -> None:
    await space(ctx).write("n.txt", b"a\n" * 2001)
    assert (await text(read_file, ctx, path="n.txt")).endswith(
        "\n[Lines 1-2000 of 2001; 2 bytes left out. Read on with offset=2001.]"
    )


async def test_odd_files(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "IMAGE_BYTES", 100)
    monkeypatch.setattr(files, "MAX_FILE", 50)
    contents: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "(empty file)"),
        "bin": (b"a\x00b", "[Binary file: bin, 3 bytes]"),
        "crlf": (b"a\r\nb\r\n", "a\nb"),
        "bom": (b"\xef\xbb\xbfa", "a"),
        "utf16": ("é\n".encode("utf-16"), "é"),
        "latin": (b"caf\xe9", "caf\ufffd"),
        "big.png": (PNG + b"\x00" * 100, "[image/png: big.png, 128 bytes: over 100, too large to show]"),
        "big": (
            b"0123456789\n" * 6,
            "\n".join(["0123456789"] * 4) + "\n[Lines 1-4 of 4 or more; 22 bytes left out. "
            "No more than 50 bytes can be read here: use shell.]",
        ),
    }
    for path, (data, wanted) in contents.items():
        await space(ctx).write(path, data)
        assert await text(read_file, ctx, path=path) == wanted, path


async def test_images_and_pdfs_come_as_parts(ctx: Context) -> None:
    await space(ctx).write("x/a.dat", PNG)
    await space(ctx).write("b.pdf", b"%PDF-1.7\n...")
    output = await call(read_file, ctx, path="x/a.dat")
    assert output == ToolResult((Blob(PNG, "image/png", "image", "a.dat"),))
    output = await call(read_file, ctx, path="b.pdf")
    assert output == ToolResult((Blob(b"%PDF-1.7\n...", "application/pdf", "document", "b.pdf"),))


async def test_a_missing_file_names_the_nearest(ctx: Context) -> None:
    await space(ctx).write("src/main.py", b"")
    assert await refused(read_file, ctx, path="src/mian.py") == "File not found: src/mian.py. Did you mean src/main.py?"
    assert await refused(read_file, ctx, path="nowhere/x") == "File not found: nowhere/x"
    assert await refused(read_file, ctx, path="src") == "Not a file: src is a folder. Use list_files."


async def test_without_a_workspace_the_error_says_so() -> None:
    with pytest.raises(ToolError, match="no workspace"):
        await call(read_file, Context(), path="x")


# -- write_file -------------------------------------------------------------------------------------------------------


async def test_writing_says_what_happened_and_reports_the_change(ctx: Context) -> None:
    assert await text(write_file, ctx, path="a/b.txt", content="one") == "Created a/b.txt"
    assert await text(write_file, ctx, path="a/b.txt", content="two") == "Updated a/b.txt"
    assert await text(write_file, ctx, path="a/b.txt", content="two") == "No change needed: a/b.txt"
    assert await space(ctx).read("a/b.txt") == b"two"
    assert [(c.path, c.call_id, c.before, c.after) for c in ctx.changes] == [
        ("a/b.txt", "call-1", None, sha(b"one")),
        ("a/b.txt", "call-1", sha(b"one"), sha(b"two")),
    ]


async def test_writing_refuses_what_cannot_be_written(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    await space(ctx).write("a/b", b"12345")
    assert await refused(write_file, ctx, path="a", content="x") == "Not a file: a is a folder."
    wanted = "content holds a lone surrogate at 1: UTF-8 cannot carry it."
    assert await refused(write_file, ctx, path="c", content="x\ud800") == wanted
    monkeypatch.setattr(files, "MAX_FILE", 4)
    wanted = "a/b is too large to change here: 5 bytes, at most 4."
    assert await refused(write_file, ctx, path="a/b", content="x") == wanted
    assert ctx.changes == []


async def test_a_file_that_changes_between_read_and_write_is_left_alone() -> None:
    class Racing(MemoryWorkspace):
        async def read(self, path: str, *, limit: int | None = None) -> bytes:
            data = await super().read(path, limit=limit)
            await super().write(path, b"someone else's")
            return data

    ctx = Context(Racing({"a": "mine"}))
    for tool, args in ((write_file, {"content": "x"}), (edit, {"old_string": "mine", "new_string": "x"})):
        await MemoryWorkspace.write(space(ctx), "a", b"mine")  # pyright: ignore[reportArgumentType]
        with pytest.raises(WorkspaceError, match="changed by someone else"):
            await call(tool, ctx, path="a", **args)
        assert await MemoryWorkspace.read(space(ctx), "a") == b"someone else's"  # pyright: ignore[reportArgumentType]
    assert ctx.changes == []


# -- edit -------------------------------------------------------------------------------------------------------------


async def test_an_exact_edit(ctx: Context) -> None:
    await space(ctx).write("a.py", b"def f():\n    return 1\n")
    said = await text(edit, ctx, path="a.py", old_string="return 1", new_string="return 2")
    assert said == "Updated a.py: 1 replacement (line 2)"
    assert await space(ctx).read("a.py") == b"def f():\n    return 2\n"
    assert [(c.before, c.after) for c in ctx.changes] == [
        (sha(b"def f():\n    return 1\n"), sha(b"def f():\n    return 2\n"))
    ]


async def test_replace_all(ctx: Context) -> None:
    await space(ctx).write("a", b"x\ny\nx x\n")
    said = await text(edit, ctx, path="a", old_string="x", new_string="zz", replace_all="true")
    assert said == "Updated a: 3 replacements (lines 1, 3, 3)"
    assert await space(ctx).read("a") == b"zz\ny\nzz zz\n"


@pytest.mark.parametrize(
    ("content", "old", "new", "said"),
    [
        (
            "x\ny\nx\n",
            "x",
            "z",
            "old_string is not unique in f: 2 matches (lines 1, 3). Add lines around it, or set replace_all.",
        ),
        (
            "aaa",
            "aa",
            "b",
            "old_string is not unique in f: 2 matches (lines 1, 1). Add lines around it, or set replace_all.",
        ),
        ("x", "x", "x", "No change: old_string and new_string are the same."),
        ("x", "", "y", "old_string is empty. Use write_file to write a whole file."),
        ("a\r\n", "a\n", "a\r\n", "No change: old_string and new_string differ in line ends only, and those are kept."),
        ("x", "q", "y", "old_string not found in f."),
        (
            "if a:\n\treturn  1\nelse:\n",
            "    return  1\nelse:",
            "y",
            "old_string not found in f. Nearest match, lines 2-3 (the first line is the same but for spaces):\n"
            "\treturn  1\nelse:",
        ),
        (
            "alpha beta gamma\nthe quick brown fox\nomega\n",
            "the quick brwn fox\nomega",
            "y",
            "old_string not found in f. Nearest match, lines 2-3:\nthe quick brown fox\nomega",
        ),
    ],
)
async def test_an_edit_that_cannot_be_made_says_why(ctx: Context, content: str, old: str, new: str, said: str) -> None:
    await space(ctx).write("f", content.encode())
    assert await refused(edit, ctx, path="f", old_string=old, new_string=new) == said
    assert await space(ctx).read("f") == content.encode()
    assert ctx.changes == []


async def test_edits_of_what_is_no_text_file(ctx: Context) -> None:
    await space(ctx).write("bin", b"a\x00b")
    await space(ctx).write("utf16", b"\xff\xfea\x00b")
    args = {"old_string": "a", "new_string": "b"}
    assert (await refused(edit, ctx, path="bin", **args)).startswith("[Binary file: bin, 3 bytes]")
    assert "byte 4 is not" in await refused(edit, ctx, path="utf16", **args)
    assert await refused(edit, ctx, path="none", **args) == "File not found: none"
    await space(ctx).write("bin2", b"a")
    assert "lone surrogate" in await refused(edit, ctx, path="bin2", old_string="a", new_string="\udc80")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\xef\xbb\xbfold\r\nrest\r\n", b"\xef\xbb\xbfn1\r\nn2\r\nrest\r\n"),
        ("old\nrest".encode("utf-16"), "n1\nn2\nrest".encode("utf-16")),
        (b"\xe9 old\nrest \xff", b"\xe9 n1\nn2\nrest \xff"),
        (b"a\nold\r\nrest\nb", b"a\nn1\r\nn2\r\nrest\nb"),
    ],
)
async def test_line_ends_marks_and_foreign_bytes_stay(ctx: Context, before: bytes, after: bytes) -> None:
    await space(ctx).write("f", before)
    await call(edit, ctx, path="f", old_string="old\nrest", new_string="n1\nn2\nrest")
    assert await space(ctx).read("f") == after


async def test_a_large_file_is_edited_and_a_miss_is_cheap(ctx: Context) -> None:
    data = b"".join([b"line number %d of a long file\n" % n for n in range(60_000)])
    await space(ctx).write("f", data)
    said = await refused(edit, ctx, path="f", old_string="line numbr 5 of a long file", new_string="x")
    assert "Nearest match" in said
    await call(edit, ctx, path="f", old_string="number 59999 ", new_string="NUMBER ")
    assert await space(ctx).read("f") == data.replace(b"number 59999 ", b"NUMBER ")


LINES = st.lists(st.text("ab \t", max_size=3), max_size=5)


@given(LINES, st.sampled_from(["\n", "\r\n"]), LINES, LINES, st.booleans())
def test_an_edit_is_str_replace_whatever_the_line_ends(
    lines: list[str], end: str, old: list[str], new: list[str], every: bool
) -> None:
    body, wanted, put = "\n".join(lines), "\n".join(old), "\n".join(new)
    places = [at for at in range(len(body)) if body.startswith(wanted, at)]
    try:
        out, found = replace_once(body.replace("\n", end), wanted, put, every=every, path="f")
    except Refusal:
        assert not wanted or wanted == put or not places or (len(places) > 1 and not every)
        return
    # A file without any line end gets LF.
    assert out == body.replace(wanted, put).replace("\n", end if "\n" in body else "\n")
    assert len(found) == body.count(wanted)
    assert found[0] == body[: places[0]].count("\n") + 1


@given(st.text("a\n", max_size=12), st.data())
def test_mixed_line_ends_outside_the_edit_are_untouched(body: str, data: st.DataObject) -> None:
    mixed = "".join([data.draw(st.sampled_from(["\n", "\r\n"])) if char == "\n" else char for char in body])
    text_before = mixed + "KEY\nEND" + mixed
    out, lines = replace_once(text_before, "KEY\nEND", "x", every=False, path="f")
    assert out == mixed + "x" + mixed
    assert lines == [body.count("\n") + 1]


@given(st.binary(max_size=40))
def test_decoding_is_reversible(data: bytes) -> None:
    try:
        file = decode_text(data)
    except Refusal:
        assert data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return
    assert file.encode(file.text) == data


# -- multi_edit -------------------------------------------------------------------------------------------------------


async def test_several_edits_in_order(ctx: Context) -> None:
    await space(ctx).write("f", b"a b c")
    edits: Any = [{"old_string": "a", "new_string": "b b"}, {"old_string": "b", "new_string": "x", "replace_all": True}]
    assert await text(multi_edit, ctx, path="f", edits=edits) == "Updated f: 2 edits"
    assert await space(ctx).read("f") == b"x x x c"
    assert len(ctx.changes) == 1


async def test_several_edits_are_all_or_nothing(ctx: Context) -> None:
    await space(ctx).write("f", b"a b c")
    edits = [{"old_string": "a", "new_string": "x"}, {"old_string": "q", "new_string": "y"}]
    said = await refused(multi_edit, ctx, path="f", edits=edits)
    assert said == "Edit 2 of 2: old_string not found in f.\nNothing was changed."
    undone = [{"old_string": "a", "new_string": "x"}, {"old_string": "x", "new_string": "a"}]
    assert await refused(multi_edit, ctx, path="f", edits=undone) == "No change: the edits undo each other."
    assert await space(ctx).read("f") == b"a b c"
    assert ctx.changes == []


async def test_edits_as_json_text_or_alone_are_taken(ctx: Context) -> None:
    await space(ctx).write("f", b"a b")
    await call(multi_edit, ctx, path="f", edits='[{"old_string": "a", "new_string": "x"}]')
    await call(multi_edit, ctx, path="f", edits={"old_string": "b", "new_string": "y"})
    assert await space(ctx).read("f") == b"x y"


# -- list_files -------------------------------------------------------------------------------------------------------


async def test_a_folder_is_listed(ctx: Context) -> None:
    for path in ("b.txt", "a/c.txt", "a/d/e.txt", ".git/config"):
        await space(ctx).write(path, b"")
    assert await text(list_files, ctx) == "📁 .git/\n📁 a/\n📄 b.txt"
    assert await text(list_files, ctx, path="a/") == "📄 c.txt\n📁 d/"
    assert await text(list_files, ctx, depth=3) == "📁 .git/\n📁 a/\n📄 a/c.txt\n📁 a/d/\n📄 a/d/e.txt\n📄 b.txt"
    assert await text(list_files, ctx, path=".git") == "📄 config"


async def test_folders_that_cannot_be_listed(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await text(list_files, ctx) == "(empty folder)"
    for name in ("src/a", "src/b", "src/c"):
        await space(ctx).write(name, b"")
    assert await refused(list_files, ctx, path="scr") == "Directory not found: scr. Did you mean src?"
    assert await refused(list_files, ctx, path="src/a") == "Not a directory: src/a"
    monkeypatch.setattr(files, "MAX_LISTED", 2)
    wanted = "📄 a\n📄 b\n[2 of 3 entries; 7 bytes left out. List a folder below, or use glob.]"
    assert await text(list_files, ctx, path="src") == wanted
