"""The workspace that an editor's buffers shine through: what it reads, what it writes, and what it leaves alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from acp import RequestError
from hypothesis import given
from hypothesis import strategies as st

from windlass.apps.acp.files import ClientFiles, merged
from windlass.core.errors import PathEscape, WorkspaceError
from windlass.core.messages import ToolCall
from windlass.core.ports import Workspace
from windlass.testing.workspace_kit import check_workspace
from windlass.workspaces.local import LocalWorkspace


class Buffers:
    """An editor's files: texts by absolute path, and who asked for what."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts
        self.asked: list[str] = []
        self.wrote: list[tuple[str, str]] = []

    async def read(self, path: str) -> str:
        self.asked.append(path)
        if path not in self.texts:
            raise RequestError.resource_not_found(path)
        return self.texts[path]

    async def write(self, path: str, text: str) -> None:
        self.wrote.append((path, text))


def named(files: ClientFiles, *paths: str, tool: str = "read_file") -> None:
    files.expect([ToolCall("c", tool, {"path": path}) for path in paths])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def buffers() -> Buffers:
    return Buffers()


@pytest.fixture
def files(tmp_path: Path, buffers: Buffers) -> ClientFiles:
    return ClientFiles(LocalWorkspace(tmp_path), str(tmp_path), buffers.read, buffers.write)


def test_it_is_a_workspace(files: ClientFiles) -> None:
    assert isinstance(files, Workspace)
    assert files.confinement  # what the port does not name is the inner one's


async def test_only_files_that_a_call_names_are_asked_for(files: ClientFiles, buffers: Buffers, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_text("disk")
        buffers.texts[str(tmp_path / name)] = "buffer"
    named(files, "a")
    named(files, "b", tool="grep")
    files.expect([ToolCall("c", "apply_patch", {"patch": "*** Begin Patch\n*** Update File: d\n@@\n-x\n+y\n"})])
    assert [await files.read(name) for name in "abcd"] == [b"buffer", b"disk", b"disk", b"buffer"]
    assert await files.read(str(tmp_path / "a")) == b"buffer"
    assert await files.read("a", limit=3) == b"dis"  # cut: the disk's


async def test_what_is_no_text_or_not_there_is_the_disk_s(files: ClientFiles, buffers: Buffers, tmp_path: Path) -> None:
    (tmp_path / "bin").write_bytes(b"\x00\xff")
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "unknown").write_text("disk")
    named(files, "bin", "latin", "unknown", "missing")
    assert await files.read("bin") == b"\x00\xff" and await files.read("latin") == b"\xe9"
    assert buffers.asked == []
    assert await files.read("unknown") == b"disk" and buffers.asked == [str(tmp_path / "unknown")]
    with pytest.raises(WorkspaceError):
        await files.read("missing")


async def test_the_folder_still_bounds_what_is_read(files: ClientFiles, buffers: Buffers, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside"
    buffers.texts[str(outside)] = "secret"
    named(files, "../outside", str(outside))
    for path in ("../outside", str(outside)):
        with pytest.raises(PathEscape):
            await files.read(path)
        with pytest.raises(PathEscape):
            await files.write(path, b"x")
    assert buffers.asked == [] and buffers.wrote == []


async def test_a_write_goes_to_the_disk_and_then_to_the_editor(
    files: ClientFiles, buffers: Buffers, tmp_path: Path
) -> None:
    await files.write("sub/new", b"text", expected_sha256="")
    assert (tmp_path / "sub" / "new").read_bytes() == b"text"
    await files.write("bin", b"\x00")
    assert buffers.wrote == [(str(tmp_path / "sub" / "new"), "text")]


async def test_a_write_expects_the_text_that_was_read(files: ClientFiles, buffers: Buffers, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("disk")
    buffers.texts[str(tmp_path / "a")] = "buffer"
    named(files, "a")
    with pytest.raises(WorkspaceError):
        await files.write("a", b"new", expected_sha256=sha(b"disk"))
    assert (tmp_path / "a").read_text() == "disk" and buffers.wrote == []
    await files.write("a", b"new", expected_sha256=sha(b"buffer"))
    assert (tmp_path / "a").read_text() == "new"
    buffers.texts.clear()
    with pytest.raises(WorkspaceError):
        await files.write("a", b"newer", expected_sha256=sha(b"disk"))
    with pytest.raises(WorkspaceError):
        await files.write("a", b"newer", expected_sha256="")


async def test_a_protected_file_is_not_written_through_the_editor(tmp_path: Path, buffers: Buffers) -> None:
    inner = LocalWorkspace(tmp_path, protect=lambda path: "no" if path == "p" else None)
    files = ClientFiles(inner, str(tmp_path), buffers.read, buffers.write)
    with pytest.raises(WorkspaceError):
        await files.write("p", b"x")
    assert buffers.wrote == []


async def test_a_client_that_fails_costs_nothing(tmp_path: Path) -> None:
    async def read(path: str) -> str:
        raise ConnectionError("gone")

    async def write(path: str, text: str) -> None:
        raise RequestError.internal_error()

    files = ClientFiles(LocalWorkspace(tmp_path), str(tmp_path), read, write)
    named(files, "a")
    await files.write("a", b"text")
    assert await files.read("a") == b"text"


async def test_it_passes_the_kit_of_workspaces(tmp_path: Path) -> None:
    number = 0

    def make() -> Workspace:
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        buffers = Buffers()
        return ClientFiles(LocalWorkspace(folder), str(folder), buffers.read, buffers.write)

    await check_workspace(make)


@given(st.text(alphabet="ab\r\n\ufeffé", max_size=30))
def test_text_that_is_saved_is_the_file_s_own_bytes(text: str) -> None:
    # An editor shows line ends as it likes; what it did not change must not become a change.
    disk = text.encode()
    assert merged(disk, text) == disk
    assert merged(disk, text.replace("\r\n", "\n").replace("\r", "\n")) == disk
    assert merged(disk, text.removeprefix("\ufeff")) == disk


def test_changed_text_keeps_the_file_s_line_ends_and_mark() -> None:
    assert merged(b"\xef\xbb\xbfa\r\nb\r\n", "a\nc\n") == b"\xef\xbb\xbfa\r\nc\r\n"
    assert merged(b"a\nb\r\n", "x\ny\n") == b"x\ny\n"
    assert merged(b"", "new\n") == b"new\n"
