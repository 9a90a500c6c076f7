"""Nothing outside the root is reached: by spelling, by links, by /proc, by what is no file."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_paths import ESCAPES

from windlass.core import clock
from windlass.core.errors import PathEscape, WorkspaceError
from windlass.workspaces.beneath import READ, Confine, Tree, open_tree
from windlass.workspaces.local import LocalWorkspace

SECRET = b"OUTSIDE"


def actions(ws: LocalWorkspace, path: str) -> dict[str, Callable[[], Any]]:
    return {
        "read": partial(ws.read, path),
        "write": partial(ws.write, path, b"EVIL"),
        "stat": partial(ws.stat, path),
        "list": partial(ws.list, path),
        "real_path": partial(ws.real_path, path),
        "delete": partial(ws.delete, path),
    }


def outside(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "outside").iterdir()}


@pytest.mark.parametrize("path", ESCAPES)
async def test_s01_nothing_is_opened_for_a_path_that_leaves(
    ws: LocalWorkspace, path: str, audited: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> int:
        raise AssertionError("something was opened")

    monkeypatch.setattr(Tree, "folder", opened)
    for name, action in actions(ws, path).items():
        with audited() as seen, pytest.raises(PathEscape) as caught:
            await action()
        assert seen == [], name
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("absolute", "{place}/outside"),
        ("relative", "../outside"),
        ("chain", "relative"),
        ("through", "deep/../../outside"),
        ("back", "../root/../outside"),
        ("far", "../../../../../../../../etc"),
        ("up", ".."),
        ("dot", "./deep/up3/outside"),
        ("own-absolute", "{place}/root/deep"),
    ],
)
async def test_s02_links_that_lead_out_are_refused(ws: LocalWorkspace, place: Path, name: str, target: str) -> None:
    root = place / "root"
    (root / "deep").mkdir()
    (root / "deep" / "up3").symlink_to("../..")
    (root / "relative").symlink_to("../outside")
    if name != "relative":
        (root / name).symlink_to(target.format(place=place))
    below = {action: name if action == "list" else f"{name}/secret.txt" for action in actions(ws, "")}
    for action, path in below.items():
        if name == "own-absolute" and ws.confinement.startswith("path"):
            continue  # the weakest way compares where it leads, not how it is written
        with pytest.raises(PathEscape):
            await actions(ws, path)[action]()
    assert outside(place) == {"secret.txt": SECRET}
    (listed,) = [info for info in await ws.list() if info.path == name]
    assert (listed.kind, listed.size) == ("symlink", 0)


@pytest.mark.parametrize("target", ["{place}/outside/secret.txt", "../outside/secret.txt", "../outside/new.txt"])
async def test_s02_a_file_link_that_leads_out_is_refused(ws: LocalWorkspace, place: Path, target: str) -> None:
    link = place / "root" / "link"
    link.symlink_to(target.format(place=place))
    for name, action in actions(ws, "link").items():
        if name != "delete":
            with pytest.raises(PathEscape):
                await action()
    await ws.delete("link")  # the link itself is inside
    assert not link.is_symlink()
    assert outside(place) == {"secret.txt": SECRET}


async def test_s02_links_inside_are_followed(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_bytes(b"one")
    (root / "dir").symlink_to("a/b")
    (root / "a" / "up").symlink_to("../a/./b/../b")
    (root / "file").symlink_to("dir/f")
    (root / "chain").symlink_to("file")
    (root / "new").symlink_to("a/made")
    for path in ("dir/f", "a/up/f", "file", "chain"):
        assert await ws.read(path) == b"one"
        info = await ws.stat(path)
        assert info is not None
        assert (info.kind, info.size) == ("file", 3)
    await ws.write("chain", b"two")
    assert (root / "a" / "b" / "f").read_bytes() == b"two"
    assert (root / "chain").is_symlink()
    assert (root / "file").is_symlink()
    assert await ws.stat("new") is None
    await ws.write("new", b"made")
    assert (root / "a" / "made").read_bytes() == b"made"
    await ws.write("dir/deeper/g", b"deep")
    assert (root / "a" / "b" / "deeper" / "g").read_bytes() == b"deep"
    assert [info.path for info in await ws.list("dir", depth=2)] == ["dir/deeper", "dir/deeper/g", "dir/f"]
    await ws.delete("chain")
    assert (root / "file").is_symlink()


def test_s02_an_open_folder_follows_no_link(place: Path, confine: Confine) -> None:
    (place / "f").write_bytes(b"x")
    (place / "link").symlink_to("f")
    with open_tree(str(place), confine).folder() as folder:
        os.close(folder.open("f", READ))
        with pytest.raises(OSError, match="symbolic links"):
            folder.open("link", READ)
        found = folder.lstat("link")
        assert found is not None
        assert stat.S_ISLNK(found.st_mode)
        assert folder.readlink("link") == "f"
        assert folder.readlink("f") is None
        assert folder.readlink("none") is None


async def test_s02_loops_end_in_an_error(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    (root / "self").symlink_to("self")
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    (root / "here").symlink_to(".")
    for count in range(60):
        (root / f"l{count}").symlink_to(f"l{count + 1}")
    (root / "l60").write_bytes(b"end")
    # The weakest way lets the system's own resolver count, which follows a long chain to its end.
    for path in ("self", "x", "self/f", "y/f", *(["l0"] if not ws.confinement.startswith("path") else [])):
        for action in ("read", "write", "stat"):
            with pytest.raises(WorkspaceError, match="loop of links"):
                await actions(ws, path)[action]()
    assert await ws.read("l30") == b"end"
    assert await ws.read("/".join(["here"] * 30) + "/l60") == b"end"


async def test_s04_links_of_proc_are_not_followed(place: Path, strong: Confine) -> None:
    ws = LocalWorkspace(place, confine=strong)
    with open(place / "open.txt", "wb") as open_file:
        proc = LocalWorkspace("/proc/self", confine=strong)
        for path in ("root/etc/passwd", "cwd/pyproject.toml", "exe", f"fd/{open_file.fileno()}", "task/../cwd/x"):
            with pytest.raises(WorkspaceError):
                await proc.read(path)
    for target in ("/proc/self/root", "/proc/self/cwd", "/dev/fd", "/dev/stdin", "/proc/self/fd/0"):
        (place / "link").symlink_to(target)
        for path in ("link", "link/etc/passwd", "link/0"):
            with pytest.raises(PathEscape):
                await ws.read(path)
        (place / "link").unlink()
        with pytest.raises(PathEscape):
            await ws.read(target)


async def test_s08_a_neighbour_with_the_same_prefix_is_outside(place: Path, confine: Confine) -> None:
    for name in ("ws", "ws-evil"):
        (place / name).mkdir()
    (place / "ws-evil" / "f").write_bytes(SECRET)
    ws = LocalWorkspace(place / "ws", confine=confine)
    (place / "ws" / "link").symlink_to("../ws-evil")
    for path in (f"{place}/ws-evil/f", "../ws-evil/f", "link/f", f"{place}/ws/../ws-evil/f"):
        with pytest.raises(PathEscape):
            await ws.read(path)


def _files(top: Path) -> Iterator[bytes]:
    for folder, _, names in os.walk(os.fsencode(top)):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), os.fsencode(top))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(path=st.text(max_size=12) | st.text(alphabet="aAé.\u0301 \\%~/:\0\n\udcff", max_size=12))
@example(path="e\u0301")
@example(path="\ufb01")
@example(path="a.")
@example(path="%2e%2e%2fx")
async def test_s09_a_write_makes_the_very_name_or_nothing(place: Path, path: str) -> None:
    top = Path(tempfile.mkdtemp(dir=place))
    ws = LocalWorkspace(top)
    try:
        await ws.write(path, b"x")
    except WorkspaceError as error:
        assert error.path == path
        assert list(_files(top)) == []
    else:
        (made,) = _files(top)
        kept = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
        assert all(name in kept for name in made.split(b"/"))  # `..` may take names away, nothing changes one
        assert await ws.read(path) == b"x"
        await ws.delete(path)
        assert list(_files(top)) == []
    await ws.close()


async def test_s09_case_and_unicode_forms_are_files_of_their_own(ws: LocalWorkspace) -> None:
    names = ["A", "a", "\u00e9", "e\u0301", "x", "x.", "x ", "\ufb01", "fi", "K", "\u212a"]
    for name in names:
        await ws.write(name, name.encode(), expected_sha256="")
    assert [await ws.read(name) for name in names] == [name.encode() for name in names]


async def test_s10_what_is_no_regular_file_is_refused_without_waiting(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    os.mkfifo(root / "fifo")
    (root / "linked").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    names = ["fifo", "linked", "socket"]
    if os.geteuid() == 0:
        for name, numbers in (("zero", (1, 5)), ("tty", (5, 0))):
            os.mknod(root / name, 0o600 | 0o020000, os.makedev(*numbers))
            names.append(name)
    before = {name: (root / name).lstat().st_ino for name in names}
    async with clock.deadline(20):
        for name in names:
            for action in (partial(ws.read, name), partial(ws.read, name, limit=10), partial(ws.write, name, b"x")):
                with pytest.raises(WorkspaceError) as caught:
                    await action()
                assert "not a regular file" in str(caught.value) or isinstance(caught.value.__cause__, PermissionError)
        with pytest.raises(WorkspaceError):
            await ws.write("fifo", b"x", expected_sha256="0" * 64)
    assert {name: (root / name).lstat().st_ino for name in names} == before
    kinds = {info.path: info.kind for info in await ws.list()}
    assert kinds == {name: "symlink" if name == "linked" else "other" for name in names}


async def test_s11_listing_follows_no_link_and_is_bounded(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    (root / "a").mkdir()
    (root / "a" / "loop").symlink_to("..")
    (root / "out").symlink_to("../outside")
    (root / "root").symlink_to("/")
    for count in range(300):
        (root / "a" / f"{count:03}").write_bytes(b"")
    found = await ws.list(depth=1000)
    assert len(found) == 304
    assert not any("secret" in info.path or "loop/" in info.path for info in found)
    assert [info.path for info in found if info.kind == "symlink"] == ["a/loop", "out", "root"]
    first = [info.path for info in await ws.list(depth=1000, limit=7)]
    assert first == ["a", "a/000", "a/001", "a/002", "a/003", "out", "root"]
    assert len(await ws.list("a/loop", depth=3)) == 304  # a link inside may be named, once


async def test_s11_a_folder_that_may_not_be_read_keeps_the_rest_visible(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    place.chmod(0o755)
    for name in ("open", "shut"):
        (root / name).mkdir()
        (root / name / "f").write_bytes(b"")
    (root / "shut").chmod(0o700 if os.geteuid() == 0 else 0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        assert [info.path for info in await ws.list(depth=3)] == ["open", "open/f", "shut"]
        with pytest.raises(WorkspaceError, match="may not be accessed"):
            await ws.list("shut")
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        (root / "shut").chmod(0o755)


async def test_s11_a_tree_deeper_than_a_path_can_name_is_listed_as_far_as_it_goes(
    place: Path, confine: Confine
) -> None:
    here = os.open(place, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    found = await LocalWorkspace(place, confine=confine).list(depth=100)
    assert 19 <= len(found) <= 30
