"""What was read is not given twice, and what was not read is not changed."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from tests.tools.helpers import Context, call, refused, text
from windlass.core.messages import Blob
from windlass.core.ports import Tool, ToolResult, Workspace
from windlass.tools import media
from windlass.tools.fileops import file
from windlass.tools.files import edit, multi_edit, read_file, write_file
from windlass.tools.media import media_of
from windlass.tools.notebook import as_notebook
from windlass.tools.patching import apply_patch
from windlass.tools.reading import forget_reads, note_read

SAME = "Unchanged since the previous read: {}. To see it again, ask for another range."


def space(ctx: Context) -> Workspace:
    assert ctx.workspace is not None
    return ctx.workspace


async def test_an_unchanged_file_is_not_given_twice(ctx: Context) -> None:
    await space(ctx).write("a", b"one\ntwo\n")
    assert await text(read_file, ctx, path="a") == "one\ntwo"
    assert await text(read_file, ctx, path="a") == SAME.format("a")
    assert await text(read_file, ctx, path="./a") == SAME.format("./a")
    # Another range is another read.
    assert await text(read_file, ctx, path="a", offset=2) == "two\n[Line 2 of 2.]"
    assert await text(read_file, ctx, path="a", offset=2) == SAME.format("a")
    # Drift on disk makes it readable again, once.
    await space(ctx).write("a", b"three\n")
    assert await text(read_file, ctx, path="a") == "three"
    assert await text(read_file, ctx, path="a") == SAME.format("a")
    # So does what the agent writes, also when it is what was there.
    await call(edit, ctx, path="a", old_string="three", new_string="3")
    await call(edit, ctx, path="a", old_string="3", new_string="three")
    assert await text(read_file, ctx, path="a") == "three"
    assert await text(read_file, ctx, path="a") == SAME.format("a")
    # After a compaction or a rewind the model may not see it any more.
    forget_reads(ctx.state)
    assert await text(read_file, ctx, path="a") == "three"


async def test_reads_are_given_twice_where_that_is_asked_for(ctx: Context) -> None:
    ctx.state["discipline"] = {"dedup_reads": False}
    await space(ctx).write("a", b"one\n")
    assert [await text(read_file, ctx, path="a") for _ in range(2)] == ["one", "one"]


async def test_what_could_not_be_read_is_not_remembered(ctx: Context) -> None:
    for _ in range(2):
        assert await refused(read_file, ctx, path="a") == "File not found: a"
    assert "reading" not in ctx.state or ctx.state["reading"].get("seen", {}) == {}


async def test_the_memory_of_reads_is_bounded(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.tools.reading.MAX_KEPT", 2)
    for name in ("a", "b", "c"):
        note_read(ctx, name, 1, 2000, b"x")
    assert list(ctx.state["reading"]["seen"]) == ["b", "c"]


PATCH = "*** Begin Patch\n*** Update File: a\n@@\n-x\n+y\n*** End Patch"
CHANGES: list[tuple[Tool, dict[str, Any]]] = [
    (edit, {"path": "a", "old_string": "x", "new_string": "y"}),
    (multi_edit, {"path": "a", "edits": [{"old_string": "x", "new_string": "y"}]}),
    (write_file, {"path": "a", "content": "y\n"}),
    (apply_patch, {"patch": PATCH}),
    (apply_patch, {"patch": "*** Begin Patch\n*** Delete File: a\n*** End Patch"}),
    (file, {"operation": "append", "path": "a", "content": "y"}),
    (file, {"operation": "delete", "path": "a"}),
]


@pytest.mark.parametrize(("tool", "args"), CHANGES, ids=lambda each: getattr(each, "spec", None) and each.spec.name)
async def test_an_unread_or_drifted_file_is_not_changed_where_reading_is_required(
    ctx: Context, tool: Tool, args: dict[str, Any]
) -> None:
    ctx.state["discipline"] = {"require_read_before_edit": True}
    await space(ctx).write("a", b"x\n")
    said = await refused(tool, ctx, **args)
    assert said.startswith("a was not read in this session. Read it with read_file first")
    await call(read_file, ctx, path="a", limit=1)
    await space(ctx).write("a", b"x\nmore\n")
    said = await refused(tool, ctx, **args)
    assert said.startswith("a has changed since it was read. Read it again with read_file")
    assert await space(ctx).read("a") == b"x\nmore\n"
    assert ctx.changes == []
    await call(read_file, ctx, path="a")
    await call(tool, ctx, **args)
    assert len(ctx.changes) == 1


async def test_what_the_agent_wrote_counts_as_read(ctx: Context) -> None:
    ctx.state["discipline"] = {"require_read_before_edit": True}
    assert await text(write_file, ctx, path="new", content="x\n") == "Created new"
    assert await text(edit, ctx, path="new", old_string="x", new_string="y") == "Updated new: 1 replacement (line 1)"
    assert await text(write_file, ctx, path="new", content="z\n") == "Updated new"
    forget_reads(ctx.state)
    assert (await refused(write_file, ctx, path="new", content="q")).startswith("new was not read")


# -- images, documents, notebooks -------------------------------------------------------------------------------------

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
KINDS = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "image/gif": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "image/webp": b"RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00",
    "application/pdf": b"%PDF-1.4\n1 0 obj\n",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_media_are_told_by_their_bytes_not_by_their_names(ctx: Context, kind: str) -> None:
    await space(ctx).write("notes.txt", KINDS[kind])
    output = await call(read_file, ctx, path="notes.txt")
    assert isinstance(output, ToolResult)
    (part,) = output.content
    assert isinstance(part, Blob)
    assert (part.mime_type, part.content, part.filename) == (kind, KINDS[kind], "notes.txt")
    assert part.modality == ("document" if kind == "application/pdf" else "image")
    assert await text(read_file, ctx, path="notes.txt") == SAME.format("notes.txt")


async def test_text_that_only_looks_like_media_is_text(ctx: Context) -> None:
    for path, body in {
        "fake.png": "no picture",
        "a.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
        "gif.md": "GIF89a is a format of 1989, é",
        "webp.md": "RIFF    WEBP are eight letters",
        "codec.md": "The new WEBP codec",
    }.items():
        await space(ctx).write(path, body.encode())
        assert await text(read_file, ctx, path=path) == body


async def test_media_that_are_too_large_are_named(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.tools.files.PDF_BYTES", 20)
    await space(ctx).write("a.pdf", b"%PDF-1.4\n" + b"x" * 20)
    assert await text(read_file, ctx, path="a.pdf") == (
        "[application/pdf: a.pdf, 29 bytes: over 20, too large to show]"
    )
    assert media.IMAGE_BYTES < media.PDF_BYTES
    assert media_of(b"", "x") is None


async def test_a_notebook_is_its_cells(ctx: Context) -> None:
    cells: list[Any] = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {
            "cell_type": "code",
            "source": "print(1)",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": ["<Figure>"]}},
                {"output_type": "display_data", "data": {"image/png": "AAAA"}},
                {"output_type": "error", "traceback": ["\x1b[31mZeroDivisionError\x1b[0m", "line 1"]},
                {"output_type": "stream", "text": "y" * 5000},
                "no output",
            ],
        },
        {"source": ""},
        7,
    ]  # fmt: skip
    await space(ctx).write("n.ipynb", msgspec.json.encode({"cells": cells, "nbformat": 4}))
    said = await text(read_file, ctx, path="n.ipynb")
    lines = said.split("\n")
    assert lines[0] == "[Notebook of 4 cells, shown as text; the file itself is JSON]"
    assert lines[2:8] == ["## Cell 1 [markdown]", "# Title", "words", "", "## Cell 2 [code]", "print(1)"]
    assert lines[8:12] == ["-- output", "1", "-- output", "<Figure>"]
    assert lines[12:19] == [
        "[image/png]", "-- output", "[image/png]", "-- output", "ZeroDivisionError", "line 1", "-- output",
    ]  # fmt: skip
    assert "[5000 bytes in all]" in lines
    assert await text(read_file, ctx, path="n.ipynb", offset=3, limit=1) == (
        f"## Cell 1 [markdown]\n[Line 3 of {len(lines)}; "
        f"{len(said.encode()) - len(lines[0]) - len(lines[2]) - 2} bytes left out. Read on with offset=4.]"
    )


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"cells": 1}', b'{"cell": []}', b"\xff"])
async def test_what_is_no_notebook_is_read_as_it_is(ctx: Context, body: bytes) -> None:
    await space(ctx).write("n.ipynb", body)
    assert as_notebook("n.ipynb", body) is None
    assert await text(read_file, ctx, path="n.ipynb") == body.decode("utf-8", "replace")
