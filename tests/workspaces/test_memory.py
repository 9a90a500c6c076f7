"""The workspace that is a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from windlass.core.errors import PathEscape, WorkspaceError
from windlass.testing.workspace_kit import CHECKS, check_workspace
from windlass.workspaces.memory import MemoryWorkspace


async def test_memory_keeps_the_port() -> None:
    assert await check_workspace(MemoryWorkspace) == list(CHECKS)


async def test_nothing_touches_the_disk(audited: Callable[[], Any]) -> None:
    with audited() as seen:
        ws = MemoryWorkspace({"a/b.txt": "one", "bin": b"\xff"})
        await ws.write("c/d.txt", b"two")
        await ws.read("a/b.txt")
        await ws.list(depth=5)
        await ws.stat("bin")
        await ws.delete("bin")
        for call in (ws.exec("touch x"), ws.read("/etc/passwd"), ws.write("../x", b"x")):
            with pytest.raises(WorkspaceError):
                await call
        await ws.close()
    assert seen == []
    with audited() as seen, open(__file__, "rb"):
        pass
    assert [event for event, _ in seen] == ["open"]  # the record does see what is opened


async def test_the_file_map_comes_back() -> None:
    ws = MemoryWorkspace({"./lib//foo.ex": "défmodule", "logo.png": b"\x89PNG\xff", "empty": b"", "old.txt": "x"})
    assert ws.files == {"empty": "", "lib/foo.ex": "défmodule", "logo.png": b"\x89PNG\xff", "old.txt": "x"}
    assert ws.changed == {}
    assert ws.deleted == []
    await ws.write("lib/foo.ex", b"changed")
    await ws.write("new.txt", b"new")
    await ws.write("empty", b"")
    await ws.delete("old.txt")
    assert ws.changed == {"lib/foo.ex": "changed", "new.txt": "new"}
    assert ws.deleted == ["old.txt"]
    assert list(ws.files) == ["empty", "lib/foo.ex", "logo.png", "new.txt"]
    await ws.write("old.txt", b"y")
    await ws.write("lib/foo.ex", "défmodule".encode())
    assert ws.deleted == []
    assert ws.changed == {"new.txt": "new", "old.txt": "y"}
    await ws.close()
    assert ws.files["new.txt"] == "new"


async def test_the_map_is_a_copy() -> None:
    given = {"a": "1"}
    ws = MemoryWorkspace(given)
    given["a"] = "2"
    ws.files["a"] = "3"
    assert await ws.read("a") == b"1"
    buffer = bytearray(b"x")
    await ws.write("b", bytes(buffer))
    buffer[0] = 0
    assert await ws.read("b") == b"x"


async def test_text_that_utf8_cannot_carry_comes_back() -> None:
    ws = MemoryWorkspace({"latin": "caf\udce9"})
    assert await ws.read("latin") == b"caf\xe9"
    assert ws.files["latin"] == b"caf\xe9"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"../x": ""}, PathEscape),
        ({"/x": ""}, PathEscape),
        ({"": ""}, WorkspaceError),
        ({"a": "", "./a": ""}, WorkspaceError),
        ({"a": "", "a/b": ""}, WorkspaceError),
        ({"a/b": "", "a": ""}, WorkspaceError),
        ({".": ""}, WorkspaceError),
    ],
)
def test_a_bad_file_map_is_refused(files: dict[str, str | bytes], kind: type[WorkspaceError]) -> None:
    with pytest.raises(kind):
        MemoryWorkspace(files)


async def test_its_size_is_bounded_and_given_back() -> None:
    ws = MemoryWorkspace(max_bytes=1000)
    await ws.write("a", bytes(500))
    with pytest.raises(WorkspaceError, match="1000 bytes of memory"):
        await ws.write("b", bytes(500))
    with pytest.raises(WorkspaceError, match="1000 bytes"):
        await ws.write("deep/er/file", bytes(100))
    assert [info.path for info in await ws.list(depth=9)] == ["a"]
    await ws.write("a", bytes(800))  # what it replaces is given back
    await ws.delete("a")
    await ws.write("b", bytes(800))
    await ws.delete("b")
    for turn in range(50):
        await ws.write(f"d{turn}/f", b"")
        await ws.delete(f"d{turn}/f")
        await ws.delete(f"d{turn}")
    with pytest.raises(WorkspaceError, match="1000 bytes"):
        for count in range(100):
            await ws.write(f"empty{count}", b"")
    assert len(ws.files) < 10


async def test_a_command_is_told_that_there_is_no_shell() -> None:
    with pytest.raises(WorkspaceError, match="virtual file system has no shell"):
        await MemoryWorkspace().exec("ls")
