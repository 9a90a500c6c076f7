"""What the tests of data files share: a process that is killed while it writes, and hostile files."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from windlass.training.files import DataError


def killed_while(script: str, *args: str | Path) -> None:
    """Run a program until it prints a line, then kill it with signal 9."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert line.strip() == "writing"
    assert process.returncode == -signal.SIGKILL


def truncations(data: bytes) -> Iterator[bytes]:
    """Every beginning of a file but the whole."""
    for end in range(len(data)):
        yield data[:end]


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The file with one byte changed, for every byte in two ways."""
    for at in range(len(data)):
        for bits in (0x01, 0xFF):
            yield at, data[:at] + bytes((data[at] ^ bits,)) + data[at + 1 :]


def refused(read: Callable[[Path], object], path: Path, data: bytes) -> DataError:
    """Write a file and return the typed error that reading it raises."""
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return caught.value


def peak_of(script: str, *args: str | Path) -> int:
    """Run a program in a process of its own; returns by how many bytes its peak of memory grew while it worked.

    The program prints the peak (kilobytes) before and after the work, on one line.
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)], capture_output=True, text=True, check=True
    ).stdout.split()
    return (int(out[-1]) - int(out[-2])) * (1 if sys.platform == "darwin" else 1024)


PEAK = "import resource\ndef peak():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
