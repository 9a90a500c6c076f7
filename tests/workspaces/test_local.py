"""The workspace that is a folder on disk."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.errors import PathEscape, WorkspaceError
from windlass.core.ports import Workspace
from windlass.testing.workspace_kit import CHECKS, check_workspace
from windlass.workspaces import beneath, threads
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace
from windlass.workspaces.paths import is_protected


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_local_keeps_the_port(place: Path, confine: beneath.Confine) -> None:
    def make() -> LocalWorkspace:
        return LocalWorkspace(tempfile.mkdtemp(dir=place), confine=confine)

    assert await check_workspace(make) == list(CHECKS)


def test_it_says_how_strongly_it_is_confined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LocalWorkspace(place, confine="walk").confinement == "walk (weaker)"
    assert LocalWorkspace(place, confine="path").confinement == "path check (weakest)"
    assert LocalWorkspace(place).confinement == "openat2"
    monkeypatch.setattr(beneath, "_has_openat2", lambda: False)  # as under a filter that forbids the call
    assert LocalWorkspace(place).confinement == "walk (weaker)"
    with pytest.raises(WorkspaceError, match="not implemented"):
        LocalWorkspace(place, confine="openat2")
    monkeypatch.setattr(os, "supports_dir_fd", set[object]())
    assert LocalWorkspace(place).confinement == "path check (weakest)"


def test_a_root_that_is_no_folder_is_refused(place: Path, confine: beneath.Confine) -> None:
    (place / "file").write_bytes(b"")
    for root, cause in (("none", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(WorkspaceError) as caught:
            LocalWorkspace(place / root, confine=confine)
        assert isinstance(caught.value.__cause__, cause)


async def test_absolute_paths_under_the_root_are_taken(ws: LocalWorkspace, place: Path) -> None:
    await ws.write(f"{place}/root/a/b.txt", b"x")
    assert await ws.read("a/b.txt") == b"x"
    assert [info.path for info in await ws.list(f"{ws.root}/a")] == ["a/b.txt"]
    (place / "other-name").symlink_to(place / "root")
    linked = LocalWorkspace(place / "other-name")
    assert await linked.read(f"{place}/root/a/b.txt") == b"x"  # commands show the real name
    assert await linked.read(f"{place}/other-name/a/b.txt") == b"x"


async def test_a_root_that_is_moved_stays_the_same_folder(place: Path, strong: beneath.Confine) -> None:
    (place / "root").mkdir()
    ws = LocalWorkspace(place / "root", confine=strong)
    await ws.write("a.txt", b"mine")
    (place / "root").rename(place / "moved")
    (place / "root").mkdir()
    (place / "root" / "a.txt").write_bytes(b"other")
    assert await ws.read("a.txt") == b"mine"


async def test_replacing_keeps_the_mode_and_a_new_file_follows_the_umask(ws: LocalWorkspace, place: Path) -> None:
    file = place / "root" / "run.sh"
    before = os.umask(0o027)
    try:
        await ws.write("run.sh", b"1")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        for mode in (0o755, 0o600, 0o666):
            file.chmod(mode)
            await ws.write("run.sh", b"2")
            assert stat.S_IMODE(file.stat().st_mode) == mode
        file.chmod(0o4755)
        await ws.write("run.sh", b"3")
        assert stat.S_IMODE(file.stat().st_mode) == 0o755  # new content never inherits set-uid
    finally:
        os.umask(before)


async def test_a_private_file_is_never_readable_while_it_is_replaced(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "root" / "key"
    file.write_bytes(b"old")
    file.chmod(0o600)
    modes: list[int] = []
    real = os.write

    def watched(fd: int, data: bytes) -> int:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return real(fd, data)

    monkeypatch.setattr(os, "write", watched)
    before = os.umask(0)
    try:
        await ws.write("key", b"new")
    finally:
        os.umask(before)
    assert modes == [0o600]


@pytest.mark.parametrize("size", [1000, 300 * 1024, 3 * 1024 * 1024])
async def test_reading_is_bounded(place: Path, confine: beneath.Confine, size: int) -> None:
    ws = LocalWorkspace(place, max_file_bytes=size, confine=confine)
    (place / "fits").write_bytes(b"x" * size)
    (place / "large").write_bytes(b"x" * (size + 1))
    assert len(await ws.read("fits")) == size
    assert len(await ws.read("large", limit=size)) == size
    assert len(await ws.read("fits", limit=size + 10)) == size
    for limit in (None, size + 1):
        with pytest.raises(WorkspaceError, match=f"bound is {size} bytes"):
            await ws.read("large", limit=limit)
    with pytest.raises(WorkspaceError, match=f"bound is {size} bytes"):
        await ws.write("more", b"x" * (size + 1))
    assert not (place / "more").exists()


async def test_a_file_that_claims_no_size_is_read_and_bounded() -> None:
    ws = LocalWorkspace("/proc/self", max_file_bytes=1000)
    assert (await ws.read("stat")).startswith(str(os.getpid()).encode())
    with pytest.raises(WorkspaceError, match="too large"):
        await ws.read("smaps")


async def test_protected_paths_are_refused_by_their_real_name(place: Path, confine: beneath.Confine) -> None:
    (place / ".git" / "hooks").mkdir(parents=True)
    (place / "docs").symlink_to(".git/hooks")
    (place / "alias").symlink_to(".git/config")
    (place / "src").mkdir()
    (place / "src" / "up").symlink_to("../.git")
    ws = LocalWorkspace(place, protect=is_protected, confine=confine)
    for path in (".git/hooks/x", "docs/x", "docs/new/x", "alias", "src/up/config", ".GIT/config", "new/.windlass/x"):
        with pytest.raises(WorkspaceError, match="is protected") as caught:
            await ws.write(path, b"evil")
        assert caught.value.path == path
    (place / ".git" / "hooks" / "there").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="is protected"):
        await ws.delete("docs/there")
    assert os.listdir(place / ".git") == ["hooks"]
    assert os.listdir(place / ".git" / "hooks") == ["there"]
    assert not (place / "new" / ".windlass").exists()
    await ws.write("src/main.py", b"fine")
    assert await ws.read("docs/there") == b""


async def test_real_path_resolves_links_for_files_that_do_not_exist_too(ws: LocalWorkspace, place: Path) -> None:
    root = place / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "link").symlink_to("a/b")
    (root / "a" / "up").symlink_to("..")
    (root / "dangling").symlink_to("a/new.txt")
    (root / "out").symlink_to("../outside")
    wanted = {
        ".": ".",
        "a": "a",
        "link": "a/b",
        "link/x.txt": "a/b/x.txt",
        "link/no/such/x": "a/b/no/such/x",
        "a/up": ".",
        "a/up/link/y": "a/b/y",
        "a/up/up": "up",
        "dangling": "a/new.txt",
        "none": "none",
    }
    assert {path: await ws.real_path(path) for path in wanted} == wanted
    for path in ("out/x", "out/no/such/x"):
        with pytest.raises(PathEscape):
            await ws.real_path(path)
    deep = "/".join(["no"] * 1300)
    assert await ws.real_path(deep) == deep


async def test_r44_a_file_without_write_permission_is_not_replaced(place: Path, confine: beneath.Confine) -> None:
    place.chmod(0o755)
    (place / "root").mkdir(mode=0o755)
    (place / "root" / "locked").write_bytes(b"old")
    (place / "root" / "locked").chmod(0o444)
    (place / "root").chmod(0o777)
    ws = LocalWorkspace(place / "root", confine=confine)
    if os.getuid() == 0:  # root may write to anything, so this is done as somebody else
        os.seteuid(65534)
    try:
        with pytest.raises(WorkspaceError, match="may not be accessed"):
            await ws.write("locked", b"new")
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert (place / "root" / "locked").read_bytes() == b"old"
    assert os.listdir(place / "root") == ["locked"]


async def test_twenty_writers_lose_no_update(ws: LocalWorkspace) -> None:
    await ws.write("count", b"0")
    refused = 0

    async def add_one() -> None:
        nonlocal refused
        while True:
            old = await ws.read("count")
            await asyncio.sleep(0)  # all have read before the first writes
            try:
                await ws.write("count", b"%d" % (int(old) + 1), expected_sha256=hashlib.sha256(old).hexdigest())
            except WorkspaceError as error:
                assert "changed by someone else" in str(error)
                refused += 1
            else:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(add_one())
    assert await ws.read("count") == b"20"
    assert refused >= 19


async def test_one_of_twenty_makes_the_file(ws: LocalWorkspace) -> None:
    results = await asyncio.gather(
        *(ws.write("new", b"%d" % n, expected_sha256="") for n in range(20)), return_exceptions=True
    )
    winners = [n for n, result in enumerate(results) if result is None]
    assert len(winners) == 1
    assert await ws.read("new") == b"%d" % winners[0]
    assert [info.path for info in await ws.list()] == ["new"]


@pytest.mark.parametrize(("sync", "content"), [(1, b"old"), (2, b"new")])
async def test_r70_a_cancelled_write_is_settled_when_the_cancel_comes_back(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch, sync: int, content: bytes
) -> None:
    if sync == 2 and ws.confinement.startswith("path"):
        return  # without handles of folders there is no second sync to stand still in
    await ws.write("a.txt", b"old")
    started, release = threading.Event(), threading.Event()
    real, calls = os.fsync, 0

    def slow(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == sync:  # the first is of the new content, the second of the folder, after the rename
            started.set()
            assert release.wait(20)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    task = asyncio.create_task(ws.write("a.txt", b"new"))
    while not started.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()  # the thread still stands in its call: nothing is settled yet
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ws.read("a.txt") == content
    assert os.listdir(place / "root") == ["a.txt"]
    assert calls == sync


async def test_r70_a_write_cancelled_anywhere_changes_nothing_afterwards(ws: LocalWorkspace, place: Path) -> None:
    for pause in range(12):
        await ws.write("a.txt", b"old")
        task = asyncio.create_task(ws.write("a.txt", b"new" * 100_000))
        await asyncio.sleep(pause / 10_000)
        task.cancel()
        await asyncio.wait([task])
        settled = await ws.read("a.txt")
        assert settled in (b"old", b"new" * 100_000)
        assert os.listdir(place / "root") == ["a.txt"]
        await asyncio.sleep(0.002)
        assert await ws.read("a.txt") == settled


async def test_closing_gives_every_handle_back(place: Path, confine: beneath.Confine) -> None:
    before = open_fds()
    for _ in range(3):
        ws = LocalWorkspace(place, confine=confine)
        await ws.write("a/b/c.txt", b"x" * 300_000)
        await ws.read("a/b/c.txt")
        await ws.list(depth=5)
        await ws.stat("a/b")
        for path in ("none", "a", "../x"):
            with pytest.raises(WorkspaceError):
                await ws.read(path)
        await ws.close()
    async with clock.deadline(20):  # a thread lets go of its last job a moment after it told the result
        while open_fds() > before:
            await asyncio.sleep(0.01)


async def test_work_on_a_thread_outlives_close(ws: LocalWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started, release = threading.Event(), threading.Event()
    real = os.fsync

    def slow(fd: int) -> None:
        started.set()
        assert release.wait(10)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    root = Path(ws.root)
    task = asyncio.create_task(ws.write("a.txt", b"x"))
    while not started.is_set():
        await asyncio.sleep(0.001)
    await ws.close()
    release.set()
    await task
    assert (root / "a.txt").read_bytes() == b"x"
    with pytest.raises(WorkspaceError, match="closed"):
        await ws.write("b.txt", b"x")


async def test_a_hung_disk_does_not_hold_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SETTLE", 0.05)
    release, stop = threading.Event(), threads.Stop()
    with pytest.raises(TimeoutError):
        async with clock.deadline(0.05):
            await threads.in_thread(lambda: release.wait(30), stop=stop)
    assert stop.asked
    assert await threads.in_thread(lambda: 42) == 42  # another thread takes the next job
    release.set()


async def test_thread_work_raises_what_it_raised_and_threads_stay_few() -> None:
    def fail() -> None:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        await threads.in_thread(fail)
    assert await asyncio.gather(*(threads.in_thread(lambda n=n: n) for n in range(100))) == list(range(100))
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("windlass-files")]
    assert 1 <= len(ours) <= 4
    assert all(thread.daemon for thread in ours)


def test_a_forked_process_has_threads_of_its_own() -> None:
    script = """
import asyncio, os
from windlass.workspaces.threads import in_thread
assert asyncio.run(in_thread(lambda: 1)) == 1
pid = os.fork()
if pid == 0:
    os._exit(asyncio.run(in_thread(lambda: 7)))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


async def test_a_command_runs_in_the_root(place: Path) -> None:
    ws = LocalWorkspace(place)
    assert ws.capabilities == {"shell", "filesystem", "network"}
    done = await ws.exec("pwd")
    assert (done.exit_code, done.output.decode().strip()) == (0, str(place))
    await ws.close()
    with pytest.raises(WorkspaceError, match="closed"):
        await ws.exec("pwd")


_PATHS = st.sampled_from(["a", "b", "a/b", "a/b/c", "a/../b", "./a", ".", "..", "a/", "b/x", "b/é", "~", "/a", "x\ny"])
_DATA = st.sampled_from([b"", b"1", b"two", bytes(range(256))])
_SHA = st.sampled_from([None, "", *(hashlib.sha256(data).hexdigest() for data in (b"", b"1"))])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _PATHS, _DATA, _SHA),
        st.tuples(st.just("read"), _PATHS, st.none() | st.integers(-1, 5)),
        st.tuples(st.just("list"), _PATHS, st.integers(-1, 3), st.integers(0, 4)),
        st.tuples(st.just("delete"), _PATHS),
        st.tuples(st.just("stat"), _PATHS),
    ),
    max_size=25,
)


async def _step(ws: Workspace, step: tuple[Any, ...]) -> object:
    result: Any
    try:
        match step:
            case ("write", path, data, sha):
                result = await ws.write(path, data, expected_sha256=sha)
            case ("read", path, limit):
                result = await ws.read(path, limit=limit)
            case ("list", path, depth, limit):
                result = await ws.list(path, depth=depth, limit=limit)
            case (_, path):
                result = await (ws.delete if step[0] == "delete" else ws.stat)(path)
            case _:
                raise ValueError(step)
    except WorkspaceError as error:
        return type(error), str(error), type(error.__cause__)
    if step[0] == "list":
        return [(info.path, info.kind, info.size) for info in result]
    return result and (result.path, result.kind, result.size) if step[0] == "stat" else result


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=_STEPS)
async def test_disk_and_memory_do_the_same(place: Path, strong: beneath.Confine, steps: list[tuple[Any, ...]]) -> None:
    disk = LocalWorkspace(tempfile.mkdtemp(dir=place), confine=strong)
    memory = MemoryWorkspace()
    for step in steps:
        assert await _step(disk, step) == await _step(memory, step), step
    on_disk = {info.path: await disk.read(info.path) for info in await disk.list(depth=9) if info.kind == "file"}
    assert on_disk == {path: await memory.read(path) for path in memory.files}
    await disk.close()
