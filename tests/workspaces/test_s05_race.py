"""Another process swaps folders for links while we work: nothing outside is read or written."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from windlass.core.errors import WorkspaceError
from windlass.workspaces.beneath import Confine
from windlass.workspaces.local import LocalWorkspace

READS, WRITES = 18_000, 2_000

#: Exchanges two names as fast as it can (renameat2 with RENAME_EXCHANGE), until its stdin closes.
SWAPPER = """
import ctypes, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
one, two = (os.fsencode(name) for name in sys.argv[1:3])
def swap():
    if libc.renameat2(-100, one, -100, two, 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")
swap()
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    for _ in range(200):
        swap()
"""


@contextmanager
def swapping(one: Path, two: Path) -> Generator[None]:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SWAPPER, str(one), str(two)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"ready\n"
            yield
        finally:
            assert swapper.stdin is not None
            swapper.stdin.close()
            assert swapper.wait(20) == 0


@pytest.mark.parametrize("target", ["../outside", "{place}/outside"])
async def test_s05_rename_race(place: Path, strong: Confine, target: str) -> None:
    root, outside = place / "root", place / "outside"
    (root / "dir" / "sub").mkdir(parents=True)
    (outside / "sub").mkdir(parents=True)
    for folder in (outside, outside / "sub"):
        (folder / "f").write_bytes(b"OUTSIDE")
    for folder in (root / "dir", root / "dir" / "sub"):
        (folder / "f").write_bytes(b"inside")
    (root / "link").symlink_to(target.format(place=place))
    ws = LocalWorkspace(root, confine=strong)
    seen: Counter[str] = Counter()
    with swapping(root / "dir", root / "link"):
        for turn in range(READS + WRITES):
            try:
                if turn % 10 == 0:
                    await ws.write("dir/sub/w" if turn % 20 else "dir/new/w", b"written")
                    seen["written"] += 1
                else:
                    seen[(await ws.read("dir/sub/f" if turn % 2 else "dir/f")).decode()] += 1
            except WorkspaceError as error:
                seen[type(error).__name__] += 1
    assert seen["OUTSIDE"] == 0
    assert sorted(str(path.relative_to(outside)) for path in outside.rglob("*")) == ["f", "sub", "sub/f"]
    assert {path.read_bytes() for path in outside.rglob("f")} == {b"OUTSIDE"}
    # The race took place: each kind of answer was given.
    assert seen["inside"] > 0
    assert seen["written"] > 0
    assert seen["PathEscape"] > 0
    left = [path.name for path in root.rglob(".windlass-*")]
    assert left == []


async def test_s05_listing_and_deleting_under_the_race(place: Path, strong: Confine) -> None:
    root, outside = place / "root", place / "outside"
    (root / "dir").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"OUTSIDE")
    (outside / "only-outside").write_bytes(b"")
    (root / "dir" / "f").write_bytes(b"inside")
    (root / "link").symlink_to("../outside")
    ws = LocalWorkspace(root, confine=strong)
    seen: Counter[str] = Counter()
    with swapping(root / "dir", root / "link"):
        for _ in range(500):
            try:
                found = [info.path for info in await ws.list(depth=3)]
                assert not any(path.endswith("only-outside") for path in found)
                seen["listed"] += 1
                await ws.delete("dir/only-outside")
                seen["deleted"] += 1
            except WorkspaceError as error:
                seen[type(error).__name__] += 1
    assert (outside / "only-outside").exists()
    assert seen["deleted"] == 0
    assert seen["listed"] > 0
