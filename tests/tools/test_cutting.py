"""The one rule for answers that are too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tools.helpers import Context, text
from windlass.core.ports import Tool
from windlass.tools import files, outline, search, todo
from windlass.tools.cutting import ends, fit, left_out, listed, size_of
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace

LINES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=6), max_size=8)


@given(LINES, st.integers(1, 40), st.integers(0, 5))
def test_what_fits_and_what_is_left_out_are_all_there_is(lines: list[str], size: int, most: int) -> None:
    found = fit(lines, size, most=most)
    assert found.total == len(lines)
    whole = sum([len(line.encode()) + 1 for line in lines])
    shown = sum([len(line.encode()) + 1 for line in found.lines])
    if found.clipped:
        assert len(found.lines) == 1
        assert lines[0].startswith(found.lines[0])
        assert shown - 1 <= size
        assert found.left == whole - (shown - 1)
    else:
        assert lines[: len(found.lines)] == found.lines
        assert shown <= size
        assert found.left == whole - shown
    assert most == 0 or len(found.lines) <= most


@given(st.text("aé€😀\n", max_size=60), st.integers(1, 80))
def test_the_ends_of_a_stream_are_whole_characters(body: str, size: int) -> None:
    shown = ends(body, size)
    if len(body.encode()) <= size:
        assert shown == body
        return
    first, _, last = shown.rpartition("\n")
    assert last == f"[{len(body.encode())} bytes in all]"
    assert len(first.encode()) <= size
    for piece in first.split("\n[... ")[:1]:
        assert body.startswith(piece) or body.endswith(piece)


def test_the_last_line_says_how_much_and_where_the_rest_is() -> None:
    assert listed(["a", "b", "é"], 100, "names", "Narrow.") == "a\nb\né"
    assert listed(["a", "b", "é"], 100, "names", "Narrow.", most=1) == "a\n[1 of 3 names; 5 bytes left out. Narrow.]"
    assert listed(["a", "b", "é"], 4, "names", "Narrow.") == "a\nb\n[2 of 3 names; 3 bytes left out. Narrow.]"
    assert listed(["éé"], 3, "names", "Narrow.") == "é\n[1 of 1 names; 3 bytes left out. Narrow.]"
    assert ends("x", 0, total=9, where="/spool") == "x\n[9 bytes in all; all of it is in /spool]"
    assert left_out("9 lines; more follow", 0, "Go on.") == "[9 lines; more follow. Go on.]"
    assert size_of("a\udcff") == 2


async def test_every_long_answer_follows_it(local: Context) -> None:
    """Each tool with a long answer ends with a line in square brackets that counts and says how to go on."""
    workspace = local.workspace
    assert isinstance(workspace, LocalWorkspace)
    body = "".join([f"def f{n}(): x = 1\n" for n in range(6000)])
    space = MemoryWorkspace({f"d/{n:04}-{'n' * 60}": "x\n" for n in range(1100)} | {"big.py": body})
    ctx = Context(space)
    told: dict[str, str] = {}
    calls: list[tuple[Tool, dict[str, object]]] = [
        (files.read_file, {"path": "big.py"}),
        (files.list_files, {"path": "d"}),
        (search.glob, {"pattern": "**", "limit": 1000}),
        (search.grep, {"pattern": "x", "output_mode": "content", "head_limit": 0}),
        (outline.outline, {"path": "big.py"}),
        (todo.todo_write, {"todos": [{"content": "c" * 200} for _ in range(100)]}),
    ]
    for tool, args in calls:
        said = await text(tool, ctx, **args)
        assert len(said.encode()) <= files.MAX_SHOWN + 200
        told[tool.spec.name] = said.rsplit("\n", 1)[-1]
    shell_said = await workspace.exec("yes | head -c 20000", max_output=100)
    assert shell_said.total_bytes == 20000
    assert told == {
        "read_file": "[Lines 1-2000 of 6000; 76000 bytes left out. Read on with offset=2001.]",
        "list_files": told["list_files"],
        "glob": told["glob"],
        "grep": told["grep"],
        "outline": told["outline"],
        "todo_write": told["todo_write"],
    }
    assert told["list_files"].startswith("[") and " of 1100 entries; " in told["list_files"]
    assert " of 1101 names; " in told["glob"]
    assert told["grep"].startswith("[") and "more follow. Go on with offset=" in told["grep"]
    assert " of 5000 or more symbols; " in told["outline"]
    assert " of 100 things; " in told["todo_write"]
    for line in told.values():
        assert line.endswith("]")
