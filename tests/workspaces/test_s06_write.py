"""Writing: what is there stays whole, what is elsewhere stays untouched, whatever fails or is planted."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.workspaces import atomic, beneath
from windlass.workspaces.beneath import Confine
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.private import create_private, private_dir

NOBODY = 65534


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("swap", ["content", "file", "link in", "link out", "folder", "gone", "fifo"])
async def test_s06_what_was_swapped_since_the_preview_is_not_written(
    ws: LocalWorkspace, place: Path, swap: str
) -> None:
    root = place / "root"
    await ws.write("d/f", b"previewed")
    await ws.write("other/f", b"other")
    previewed = sha(await ws.read("d/f"))
    file = root / "d" / "f"
    if swap == "content":
        file.write_bytes(b"changed!!")
    elif swap == "folder":
        (root / "d").rename(root / "was")
        (root / "d").symlink_to("other")
    else:
        file.unlink()
        if swap == "file":
            file.write_bytes(b"another")
        elif swap == "fifo":
            os.mkfifo(file)
        elif swap != "gone":
            file.symlink_to("../other/f" if swap == "link in" else "../../outside/secret.txt")
    with pytest.raises(WorkspaceError):
        await ws.write("d/f", b"EVIL", expected_sha256=previewed)
    regular = [path for path in place.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert b"EVIL" not in {path.read_bytes() for path in regular}
    assert not any(path.name.startswith(".windlass-") for path in regular)


async def test_s06_a_swap_while_the_new_content_is_written_is_seen(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "root" / "f"
    file.write_bytes(b"previewed")
    real = atomic._fill  # pyright: ignore[reportPrivateUsage]

    def fill_then_swap(fd: int, data: bytes, old: os.stat_result | None) -> None:
        real(fd, data, old)
        file.write_bytes(b"swapped!!")

    monkeypatch.setattr(atomic, "_fill", fill_then_swap)
    with pytest.raises(WorkspaceError, match="changed by someone else"):
        await ws.write("f", b"EVIL", expected_sha256=sha(b"previewed"))
    assert file.read_bytes() == b"swapped!!"


async def test_s06_a_swap_between_the_comparison_and_the_end_of_it_is_seen(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "root" / "f"
    file.write_bytes(b"previewed")
    (place / "root" / "g").write_bytes(b"swapped")
    real = hashlib.sha256

    def hash_then_swap() -> Any:
        (place / "root" / "g").replace(file)
        return real()

    monkeypatch.setattr(hashlib, "sha256", hash_then_swap)
    with pytest.raises(WorkspaceError, match="changed by someone else"):
        await ws.write("f", b"EVIL", expected_sha256=real(b"previewed").hexdigest())
    assert file.read_bytes() == b"swapped"


async def test_s07_a_hard_link_to_a_file_outside_is_cut(ws: LocalWorkspace, place: Path) -> None:
    secret, name = place / "outside" / "secret.txt", place / "root" / "hard"
    name.hardlink_to(secret)
    before = secret.stat()
    await ws.write("hard", b"mine", expected_sha256=sha(b"OUTSIDE"))
    assert name.read_bytes() == b"mine"
    assert secret.read_bytes() == b"OUTSIDE"
    after = secret.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)
    assert name.stat().st_ino != before.st_ino


class Planned(clock.Clock):
    """A clock whose ids an attacker knows in advance."""

    def __init__(self) -> None:
        super().__init__(seed=7)

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000


def plant(folder: Path, target: Path, names: list[str]) -> None:
    """Make links to `target`, as another user where we may act as one."""
    for name in names:
        other = NOBODY if os.geteuid() == 0 else None
        subprocess.run(["ln", "-s", str(target), str(folder / name)], check=True, user=other, group=other)


async def test_s13_a_temporary_name_planted_by_another_user_is_not_followed(ws: LocalWorkspace, place: Path) -> None:
    root, secret = place / "root", place / "outside" / "secret.txt"
    place.chmod(0o755)
    root.chmod(0o1777)
    known = Planned()
    names = [f".windlass-{known.new_id()}.tmp" for _ in range(3)]
    plant(root, secret, names)
    with clock.use(Planned()):
        await ws.write("f", b"mine")
    assert (root / "f").read_bytes() == b"mine"
    assert not (root / "f").is_symlink()
    assert secret.read_bytes() == b"OUTSIDE"
    assert sorted(os.listdir(root)) == sorted(["f", *names])


def test_s13_private_places_planted_by_another_user_are_refused(place: Path) -> None:
    place.chmod(0o1777)
    target = place / "target"
    target.mkdir(mode=0o777)
    plant(place, target, ["state", "file"])
    with pytest.raises(WorkspaceError, match="not a folder"):
        private_dir(place / "state")
    with pytest.raises(WorkspaceError, match="exists"):
        create_private(place / "file")
    assert os.listdir(target) == []
    (place / "plain").write_bytes(b"")
    with pytest.raises(WorkspaceError):
        private_dir(place / "plain")
    with pytest.raises(WorkspaceError):
        create_private(place / "plain")
    if os.geteuid() == 0:
        subprocess.run(["mkdir", str(place / "theirs")], check=True, user=NOBODY, group=NOBODY)
        with pytest.raises(WorkspaceError, match="another user"):
            private_dir(place / "theirs")


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_s14_private_modes_do_not_depend_on_the_umask(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = private_dir(place / "state")
        assert private_dir(place / "state") == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        fd = create_private(folder / "key")
        os.write(fd, b"secret")
        os.close(fd)
        folder.chmod(0o755)
        private_dir(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "key").stat().st_mode) & 0o177 == 0


def test_s14_parents_of_a_private_folder_are_private_too(place: Path) -> None:
    before = os.umask(0)
    try:
        private_dir(place / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((place / path).stat().st_mode) for path in ("a", "a/b", "a/b/c")} == {0o700}


WRITER = """
import asyncio, sys
from windlass.workspaces.local import LocalWorkspace
async def main():
    ws = LocalWorkspace(sys.argv[1])
    print("ready", flush=True)
    while True:
        for letter in (b"A", b"B"):
            await ws.write("d/file", letter * 2_000_000)
asyncio.run(main())
"""


def test_r39_kill_during_a_write_leaves_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "d" / "file"
    file.parent.mkdir()
    file.write_bytes(b"A" * 2_000_000)
    for kill in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.003 + kill * 0.004)
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(20) == -signal.SIGKILL
        content = file.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1
        others = [name for name in os.listdir(file.parent) if name != "file"]
        assert len(others) <= 1  # at most the temporary file of the write that was killed
        for name in others:
            assert name.startswith(".windlass-")
            (file.parent / name).unlink()


def open_below(root: Path) -> list[str]:
    """Return the files and folders below `root` that this process has open."""
    found = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    return [path for path in found if path.startswith(f"{root}/")]


class FailingOs:
    """Be the module `os`, but fail the n-th of the calls that can fail, once."""

    CALLS = frozenset(
        {"open", "fstat", "stat", "write", "read", "fsync", "replace", "link", "unlink", "mkdir", "readlink", "fchmod"}
    )

    def __init__(self, fail_at: int, code: int) -> None:
        self.calls = 0
        self.failed = ""
        self._fail_at, self._code = fail_at, code

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.failing(name, real) if name in self.CALLS else real

    def failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._fail_at:
                self.failed = name
                raise OSError(self._code, os.strerror(self._code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("case", ["new", "deep", "replace", "must be new", "must be old", "linked"])
async def test_r42_every_call_of_a_write_may_fail(
    place: Path, confine: Confine, case: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = {"deep": "a/b/f", "linked": "link"}.get(case, "f")
    expected = {"must be new": "", "must be old": sha(b"old")}.get(case)
    there = case in ("replace", "must be old", "linked")
    failed: list[str] = []
    for turn in range(1, 200):
        root = Path(tempfile.mkdtemp(dir=place))
        if there:
            (root / "f").write_bytes(b"old")
        if case == "linked":
            (root / "link").symlink_to("f")
        ws = LocalWorkspace(root, confine=confine)
        shim = FailingOs(turn, code)
        with monkeypatch.context() as patch:
            for module in (beneath, atomic):
                patch.setattr(module, "os", shim)
            if confine == "openat2":
                real = beneath._openat2  # pyright: ignore[reportPrivateUsage]
                patch.setattr(beneath, "_openat2", shim.failing("openat2", real))
            try:
                await ws.write(path, b"new", expected_sha256=expected)
                error = None
            except WorkspaceError as caught:
                error = caught
        files = {
            str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()
        }
        assert open_below(root) == [], shim.failed
        name = path if case == "deep" else "f"
        assert set(files) <= {name}, shim.failed  # no temporary file
        assert files.get(name) in (b"new", b"old" if there else None), shim.failed
        if not shim.failed:
            assert error is None
            assert files == {name: b"new"}
            break
        failed.append(shim.failed)
        assert error is None or error.path == path
        assert error is not None or files == {name: b"new"}, shim.failed  # said to be done: done
    else:
        raise AssertionError("the write never went through")
    assert {"open", "write", "fsync"} <= set(failed)
    assert ("link" if case == "must be new" else "replace") in failed


async def test_r43_a_folder_that_cannot_be_synced_is_told_as_not_safe(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: beneath.Folder) -> None:
        raise OSError(errno.EIO, "Input/output error")

    await ws.write("f", b"old")
    monkeypatch.setattr(beneath.Folder, "sync", fail)
    with pytest.raises(WorkspaceError, match="crash now may bring the old one back") as caught:
        await ws.write("f", b"new")
    assert caught.value.path == "f"
    assert (place / "root" / "f").read_bytes() == b"new"


async def test_r42_a_file_system_without_hard_links_still_makes_new_files(
    ws: LocalWorkspace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    await ws.write("f", b"new", expected_sha256="")
    with pytest.raises(WorkspaceError, match="already exists"):
        await ws.write("f", b"other", expected_sha256="")
    assert (place / "root" / "f").read_bytes() == b"new"
    assert os.listdir(place / "root") == ["f"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_r42_the_message_says_what_to_do(ws: LocalWorkspace, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(WorkspaceError, match="thing was changed") as caught:
        await ws.write("f", b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == code
