"""Output: bounded in memory, kept in a private file, shown live."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process_probe import Gaps

from windlass.core.ports import ExecResult
from windlass.core.text import truncate
from windlass.workspaces import capture
from windlass.workspaces.process import run_command


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
async def test_r61_a_gigabyte_without_a_newline(cwd: str, tmp_path: Path) -> None:
    before, most = _resident(), 0

    def look(data: bytes) -> None:
        nonlocal most
        most = max(most, _resident())

    async with Gaps() as gaps:
        result = await run_command(
            "printf START; head -c 1G /dev/zero; printf END",
            cwd=cwd,
            timeout=300,
            on_output=look,
            spool_dir=str(tmp_path / "spool"),
            spool_limit=20_000_000,
        )
    assert (result.exit_code, result.total_bytes) == (0, (1 << 30) + 8)
    assert len(result.output) <= 8192
    assert result.output.startswith(b"START\0")
    assert result.output.endswith(b"\0END")
    assert b" bytes cut ...]" in result.output
    assert result.spool is not None
    assert Path(result.spool).stat().st_size == 20_000_000
    assert most - before < 64 << 20
    assert gaps.worst < 0.25


async def test_r61_binary_is_kept_as_it_came(cwd: str, tmp_path: Path) -> None:
    data = os.urandom(700_000) + b"\0\xff\xfe\x80" * 1000
    (tmp_path / "data").write_bytes(data)
    result = await run_command(["cat", "data"], cwd=cwd, spool_dir=str(tmp_path / "spool"))
    assert result.output == truncate(data, 8192)
    assert result.total_bytes == len(data)
    assert result.spool is not None
    assert Path(result.spool).read_bytes() == data
    whole = await run_command(["cat", "data"], cwd=cwd, max_output=0)
    assert whole == ExecResult(exit_code=0, output=data, total_bytes=len(data))


async def test_r61_characters_stay_whole(cwd: str) -> None:
    text = "żółć🦊" * 5000
    result = await run_command(
        [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({text!r}.encode())"], cwd=cwd
    )
    assert result.output == truncate(text.encode(), 8192)
    result.output.decode()


async def test_no_limit_is_bounded_by_the_spool(cwd: str) -> None:
    result = await run_command("head -c 300000 /dev/zero", cwd=cwd, max_output=0, spool_limit=100_000)
    assert (len(result.output) <= 100_000, result.total_bytes, result.spool) == (True, 300_000, None)


@pytest.mark.parametrize("extra", [0, 1])
async def test_spool_is_made_only_for_long_output(cwd: str, tmp_path: Path, extra: int) -> None:
    folder = tmp_path / "state" / "spool"
    old = os.umask(0)
    try:
        result = await run_command(f"head -c {1000 + extra} /dev/zero", cwd=cwd, max_output=1000, spool_dir=str(folder))
    finally:
        os.umask(old)
    if not extra:
        assert (result.spool, folder.exists(), len(result.output)) == (None, False, 1000)
        return
    assert result.spool is not None
    assert Path(result.spool).read_bytes() == b"\0" * 1001
    assert Path(result.spool).parent == folder
    assert stat.S_IMODE(Path(result.spool).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_spool_of_a_killed_command_stays(cwd: str, tmp_path: Path) -> None:
    result = await run_command(
        "head -c 50000 /dev/zero; sleep 100", cwd=cwd, timeout=1.5, spool_dir=str(tmp_path / "spool")
    )
    assert (result.killed, result.total_bytes) == ("timeout", 50_000)
    assert result.spool is not None
    assert Path(result.spool).stat().st_size == 50_000


async def test_full_disk_ends_the_spool_not_the_command(
    cwd: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the system's own refusal, in this process too
    try:
        result = await run_command("head -c 500000 /dev/zero", cwd=cwd, spool_dir=str(tmp_path / "spool"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.exit_code, result.total_bytes, result.spool) == (0, 500_000, None)
    assert list((tmp_path / "spool").iterdir()) == []
    assert "is not kept" in caplog.text


async def test_spool_folder_that_cannot_be_used(cwd: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    result = await run_command("head -c 50000 /dev/zero", cwd=cwd, spool_dir=str(tmp_path / "link"))
    assert (result.exit_code, result.spool) == (0, None)
    assert "is not a folder" in caplog.text


DEFAULT_FOLDER = """
import asyncio, os
from windlass.workspaces import capture
from windlass.workspaces.process import run_command
capture.MOST_SPOOLS = 2
async def main():
    results = [await run_command("head -c 9000 /dev/zero", cwd="/") for _ in range(4)]
    print([os.path.exists(each.spool) for each in results], oct(os.stat(os.path.dirname(results[0].spool)).st_mode))
    print(os.path.dirname(results[0].spool))
    if os.fork() == 0:
        raise SystemExit
    os.wait()
    print(os.path.exists(results[3].spool))
asyncio.run(main())
"""


def test_default_spool_folder_lives_as_long_as_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEFAULT_FOLDER], capture_output=True, timeout=60, text=True, check=False
    )
    first, folder, last = done.stdout.splitlines()[0], done.stdout.splitlines()[1], done.stdout.splitlines()[-1]
    assert first == "[False, False, True, True] 0o40700"
    assert last == "True"
    assert folder
    assert not Path(folder).exists()
    assert done.stderr == ""


async def test_live_output_comes_while_the_command_runs(cwd: str) -> None:
    pieces: list[bytes] = []

    def on_output(data: bytes) -> None:
        pieces.append(data)
        (Path(cwd) / f"seen{len(pieces)}").touch()

    # Each step waits until the last piece was shown.
    command = "seen() { until [ -e seen$1 ]; do sleep 0.01; done; }; echo one; seen 1; echo two; seen 2; echo three"
    result = await run_command(command, cwd=cwd, on_output=on_output, timeout=60)
    assert result.exit_code == 0
    assert pieces == [b"one\n", b"two\n", b"three\n"]


async def test_live_flood_is_bounded(cwd: str) -> None:
    calls: list[int] = []
    start = time.monotonic()
    await run_command("head -c 60000000 /dev/zero", cwd=cwd, on_output=lambda data: calls.append(len(data)))
    elapsed = time.monotonic() - start
    assert max(calls) <= capture.LIVE_BYTES
    assert len(calls) <= elapsed / capture.LIVE_SECONDS + 3


async def test_live_does_not_split_characters(cwd: str) -> None:
    pieces: list[bytes] = []
    fox = "🦊".encode()
    script = "import os, sys, time\nfor byte in b'a' + sys.argv[1].encode() * 3 + b'\\xff\\xf0\\x9f':\n"
    script += " os.write(1, bytes([byte])); time.sleep(0.03)"
    await run_command([sys.executable, "-c", script, "🦊"], cwd=cwd, on_output=pieces.append)
    assert b"".join(pieces) == b"a" + fox * 3 + b"\xff\xf0\x9f"
    assert len(pieces) > 2
    for piece in pieces[:-1]:
        piece.replace(b"\xff", b"").decode()


@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.InvalidStateError()])
async def test_live_callback_that_raises_is_named_once(
    cwd: str, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    calls: list[bytes] = []

    def broken(data: bytes) -> None:
        calls.append(data)
        raise error

    command: Callable[..., str] = "echo {}; sleep 0.12; echo b; exit 3".format
    result = await run_command(command("a"), cwd=cwd, on_output=broken)
    assert (result.exit_code, result.output) == (3, b"a\nb\n")
    assert calls == [b"a\n"]
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 1
    assert "broken" in records[0].getMessage()
