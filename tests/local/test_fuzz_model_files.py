"""Strangers' headers by the thousand: each is read, or refused with a typed error, soon and with little memory.

`make soak` runs a million of each format; `WINDLASS_FUZZ_CASES` and `WINDLASS_FUZZ_SEED` choose other numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from tests.local.model_file_mutations import Kind, cases
from windlass.core.errors import LocalModelError
from windlass.local.gguf import GgufInfo, read_header
from windlass.local.gguf_data import GgufFile
from windlass.local.safetensors import BITS, SafetensorsFile, SafetensorsInfo, read_safetensors

SOAK = bool(os.environ.get("WINDLASS_SOAK"))
MARKS = [pytest.mark.soak] if SOAK else []
SHORT, LONG = 3_000, 1_000_000
#: Seconds of this thread's own computing; the aim is 0.1, a loaded machine's caches may cost more.
CEILING = 0.1
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None


def campaign(kind: Kind, seed: int, count: int, path: Path) -> dict[str, Any]:
    """Read `count` cases and return how many were read and refused, and the longest time in seconds.

    Raises AssertionError that names the case when one breaks a promise.
    """
    readers: dict[Kind, tuple[Callable[[Path], Any], Callable[[Any, Path], None]]] = {
        "gguf": (read_header, _check_gguf),
        "safetensors": (read_safetensors, _check_safetensors),
    }
    reader, check = readers[kind]
    found = {"read": 0, "refused": 0, "longest": 0.0}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    with contextlib.closing(os.fdopen(descriptor, "r+b", buffering=0)) as file:
        for number, data in enumerate(cases(kind, seed, count)):
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))
            start = time.thread_time()
            try:
                info = reader(path)
            except LocalModelError as error:
                found["refused"] += 1
                assert error.path == str(path) and str(path) in error.message and len(error.message) < 1000
            except BaseException as error:
                raise AssertionError(f"case {number} of {kind}, seed {seed}: {data[:400]!r}") from error
            else:
                found["read"] += 1
                check(info, path)
            spent = time.thread_time() - start
            found["longest"] = max(found["longest"], spent)
            assert spent < CEILING, f"case {number} of {kind}, seed {seed}, took {spent} s: {data[:400]!r}"
    return found


def _check_gguf(info: GgufInfo, path: Path) -> None:
    """Whatever was read is true: tensors in the file, aligned, apart, their bytes there to be read."""
    end = info.data_offset
    for tensor in sorted(info.tensors, key=lambda item: item.offset):
        assert tensor.offset >= end and (tensor.offset - info.data_offset) % info.alignment == 0
        end = tensor.offset + tensor.nbytes
        assert end <= info.size and math.prod(tensor.dims) > 0 and "\0" not in tensor.name
    with GgufFile(path) as file:
        for key in info.metadata:
            file.raw_value(key)
        for tensor in info.tensors:
            assert sum(piece.nbytes for piece in file.raw(tensor.name)) == tensor.nbytes


def _check_safetensors(info: SafetensorsInfo, path: Path) -> None:
    end = info.data_offset
    for tensor in info.tensors:
        assert tensor.offset == end and math.prod(tensor.shape) * BITS[tensor.dtype] == 8 * tensor.nbytes
        end += tensor.nbytes
    assert end == info.size
    with SafetensorsFile(path) as file:
        for name in file:
            assert len(file.raw(name)) == file.tensor(name).nbytes
    # What we take, the official reader takes too.
    with safe_open(path, "np") as theirs:
        assert sorted(theirs.keys()) == sorted(tensor.name for tensor in info.tensors)


def run(kind: Kind, seed: int, count: int, memory: int) -> dict[str, float]:
    """Run a campaign in a process that may take `memory` bytes above what it starts with."""
    script = (
        "import json, resource, sys, tempfile, pathlib\n"
        "from tests.local.test_fuzz_model_files import FOLDER, campaign\n"
        "from windlass.local.gguf_data import GgufFile\n"
        "kind, seed, count, memory = sys.argv[1], *map(int, sys.argv[2:])\n"
        "now = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (now + memory, now + memory))\n"
        "with tempfile.TemporaryDirectory(dir=FOLDER) as folder:\n"
        "    print(json.dumps(campaign(kind, seed, count, pathlib.Path(folder) / 'model.file')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, kind, str(seed), str(count), str(memory)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(7200 if SOAK else 240)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=MARKS) for kind in ("gguf", "safetensors")])
def test_s100_s105_headers_are_read_or_refused(kind: Kind) -> None:
    count = int(os.environ.get("WINDLASS_FUZZ_CASES", LONG if SOAK else SHORT))
    found = run(kind, int(os.environ.get("WINDLASS_FUZZ_SEED", 0)), count, 64 << 20)
    assert found["read"] + found["refused"] == count
    # A campaign that never gets past the magic number would prove nothing.
    assert found["read"] > count // 50 and found["refused"] > count // 4


def test_the_campaign_can_fail(tmp_path: Path) -> None:
    """A reader that lets an untyped error out, or says what is not true, is found."""

    def careless(path: Path) -> Any:
        data = path.read_bytes()
        return struct.unpack("<Q", data[8:16])

    seen = 0
    for data in cases("gguf", 0, 200):
        (tmp_path / "a").write_bytes(data)
        with contextlib.suppress(struct.error):
            careless(tmp_path / "a")
            continue
        seen += 1
    assert seen > 0
    assert [*cases("gguf", 5, 40)] == [*cases("gguf", 5, 40)] != [*cases("gguf", 6, 40)]
    assert [*cases("safetensors", 5, 40)] == [*cases("safetensors", 5, 40)]


def test_the_official_reader_refuses_what_breaks_it(tmp_path: Path) -> None:
    """Of what we refuse, the official reader takes only names that come twice and what it has no use for."""
    differ = 0
    for data in cases("safetensors", 2, 300):
        path = tmp_path / "a.safetensors"
        path.write_bytes(data)
        try:
            read_safetensors(path)
            continue
        except LocalModelError as error:
            ours = error.message
        try:
            with safe_open(path, "np"):
                differ += 1
        except SafetensorError:
            continue
        known = ("twice", "not a name", "not exactly dtype", "__metadata__ is not")
        assert any(words in ours for words in known), ours
    assert differ > 0
