"""GGUF files that are written here, read back by our reader, by the gguf package and by the engine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.gguf import GgufArray, read_header
from windlass.local.gguf_data import GgufFile, from_float, to_float
from windlass.local.gguf_write import GgufFileWriter, file_type_of, value_type

RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((8, 64)).astype(np.float32)


def written(path: Path, kind: str = "F32", array: NDArray[Any] = MATRIX, **options: Any) -> Path:
    writer = GgufFileWriter("llama", **options)
    writer.add("general.name", "one")
    writer.add_tensor("a.weight", array.shape, kind, array)
    writer.write(path)
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_are_those_of_the_gguf_package(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "m.gguf", kind)
    number = GGMLQuantizationType[kind]
    (tensor,) = GGUFReader(path).tensors
    assert (tensor.name, tensor.tensor_type, list(tensor.shape)) == ("a.weight", number, [64, 8])
    wanted = quants.quantize(MATRIX, number)
    assert tensor.data.tobytes() == wanted.tobytes()
    with GgufFile(path) as file:
        assert (file.array("a.weight") == quants.dequantize(wanted.view(np.uint8), number).reshape(8, 64)).all()
        assert file.array("a.weight").dtype == np.float32


def test_values_are_read_back_by_the_gguf_package_and_by_us(tmp_path: Path) -> None:
    values: dict[str, tuple[Any, str | None, str]] = {
        "small": (7, None, "uint32"),
        "negative": (-7, None, "int32"),
        "large": (1 << 40, None, "int64"),
        "larger": ((1 << 64) - 1, None, "uint64"),
        "byte": (200, "uint8", "uint8"),
        "number": (0.5, None, "float32"),
        "double": (0.1, "float64", "float64"),
        "flag": (True, None, "bool"),
        "empty": ("", None, "string"),
        "text": ("wörds\n\0", None, "string"),
        "texts": (["a", "", "ö"], None, "string"),
        "whole": ([1, -2, 3], None, "int32"),
        "many": (list(range(1000)), None, "int32"),
        "mixed": ([1, 2.5], None, "float32"),
        "flags": ([True, False], None, "bool"),
    }
    writer = GgufFileWriter("llama", alignment=64)
    for key, (value, kind, _) in values.items():
        writer.add(key, value, kind)
    writer.add_tensor("t", [3], "F32", np.ones(3, np.float32))
    info = writer.write(tmp_path / "m.gguf")
    assert (info.version, info.alignment, info.path) == (3, 64, str(tmp_path / "m.gguf"))
    theirs = GGUFReader(tmp_path / "m.gguf").fields
    with GgufFile(tmp_path / "m.gguf") as file:
        for key, (value, _, kind) in values.items():
            ours = info.metadata[key]
            assert (ours.type if isinstance(ours, GgufArray) else info.types[key]) == kind
            assert file.value(key) == value, key
            if value != "":  # their reader cannot tell an empty string
                assert theirs[key].contents() == value, key
        assert file.value("general.architecture") == "llama"


Scalar = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.text(max_size=40), st.booleans(), st.floats(width=32))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="./\\"), min_size=1, max_size=20),
        Scalar | st.lists(st.text(max_size=9), min_size=1) | st.lists(st.integers(-9, 1 << 40), min_size=1),
        max_size=6,
    ),
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4),
)
def test_what_is_written_is_what_is_read(tmp_path: Path, values: dict[str, Any], shapes: list[list[int]]) -> None:
    writer = GgufFileWriter("x")
    writer.add_all(values)
    arrays = {f"t{number}": RNG.standard_normal(shape).astype(np.float32) for number, shape in enumerate(shapes)}
    for name, array in arrays.items():
        writer.add_tensor(name, array.shape, "F32", array)
    info = writer.write(tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        assert file.info == info
        for key, value in values.items():
            found = file.value(key)
            assert found == value or (value != value and found != found)
        for name, array in arrays.items():
            assert (file.array(name) == array).all() and file.array(name).shape == array.shape


def test_s103_nothing_is_given_twice() -> None:
    writer = GgufFileWriter()
    writer.add("a", 1)
    writer.add_tensor("t", [1], "F32", np.zeros(1, np.float32))
    with pytest.raises(ConfigError, match="'a' is given twice"):
        writer.add("a", 1)
    with pytest.raises(ConfigError, match=r"'general\.architecture' is given twice"):
        writer.add("general.architecture", "x")
    with pytest.raises(ConfigError, match="'t' is given twice"):
        writer.add_tensor("t", [1], "F32", np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("", 1, None), ("a\0b", 1, None), ("k", None, None), ("k", [], None), ("k", [1, "a"], None),
        ("k", [True, 1], None), ("k", 1 << 64, None), ("k", [1 << 63, -1], None), ("k", 300, "uint8"),
        ("k", -1, "uint32"), ("k", "a", "uint32"), ("k", 2, "bool"), ("k", 1, "string"), ("k", 1, "array"),
        ("k", 1.5, "int32"), ("k", [[1]], None), ("k", [], "int32"), ("k", True, "uint8"),
    ],
)  # fmt: skip
def test_values_that_gguf_cannot_hold(key: str, value: Any, kind: str | None) -> None:
    with pytest.raises(ConfigError):
        GgufFileWriter().add(key, value, kind)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("", [1], "F32"), ("../t", [1], "F32"), ("a\0", [1], "F32"), ("t" * 64, [1], "F32"), ("t", [], "F32"),
        ("t", [0], "F32"), ("t", [1, 1, 1, 1, 1], "F32"), ("t", [33], "Q8_0"), ("t", [1], "F31"), ("t", [2], "F32"),
    ],
)  # fmt: skip
def test_tensors_that_gguf_cannot_hold(name: str, shape: list[int], kind: str) -> None:
    with pytest.raises(ConfigError):
        GgufFileWriter().add_tensor(name, shape, kind, np.zeros(1, np.float32))


@pytest.mark.parametrize("alignment", [0, -32, 33, 1 << 31])
def test_alignments_that_no_reader_takes(alignment: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        GgufFileWriter(alignment=alignment)


def test_numbers_that_a_type_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="F16 ends at 65504"):
        written(tmp_path / "m.gguf", "F16", np.full((1, 32), 70000.0, np.float32))
    for bad in (np.inf, np.nan):
        with pytest.raises(ConfigError, match="infinities or what is not a number"):
            written(tmp_path / "m.gguf", "Q8_0", np.full((1, 32), bad, np.float32))
    assert list(tmp_path.iterdir()) == []
    assert np.isinf(to_float(from_float(np.full((1, 2), np.inf), "F16"), "F16")).all()


def test_types_without_a_decoder_are_named() -> None:
    with pytest.raises(ConfigError, match="Q8_K"):
        to_float(np.zeros((1, 292), np.uint8), "Q8_K")
    with pytest.raises(ConfigError, match="cannot write Q4_K"):
        from_float(np.zeros((1, 256), np.float32), "Q4_K")


def test_whole_numbers_and_doubles_stay_what_they_are(tmp_path: Path) -> None:
    arrays = {"I8": np.int8(-5), "I16": np.int16(-500), "I32": np.int32(1 << 30), "I64": np.int64(1 << 60)}
    writer = GgufFileWriter()
    for kind, value in arrays.items():
        writer.add_tensor(kind, [2], kind, np.array([value, 0]))
    writer.add_tensor("F64", [1], "F64", np.array([0.1]))
    writer.write(tmp_path / "m.gguf")
    for tensor in GGUFReader(tmp_path / "m.gguf").tensors:
        assert tensor.data[0] == (0.1 if tensor.name == "F64" else arrays[tensor.name])


def test_rows_that_do_not_make_the_shape(tmp_path: Path) -> None:
    for count in (0, 7, 9):
        writer = GgufFileWriter()
        writer.add_tensor("t", [8, 64], "Q8_0", lambda count=count: iter([MATRIX[:1]] * count))
        with pytest.raises(ConfigError, match="not the 544 bytes of its shape"):
            writer.write(tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    before = path.read_bytes()

    def broken() -> Iterator[NDArray[Any]]:
        yield MATRIX[:4]
        raise RuntimeError("the source failed")

    writer = GgufFileWriter()
    writer.add_tensor("t", MATRIX.shape, "F32", broken)
    with pytest.raises(RuntimeError, match="the source failed"):
        writer.write(path)

    def stop(done: int, total: int) -> None:
        assert (done, total) == (2048, 2048)
        raise KeyboardInterrupt

    other = GgufFileWriter()
    other.add_tensor("t", MATRIX.shape, "F32", MATRIX)
    with pytest.raises(KeyboardInterrupt):
        other.write(path, progress=stop)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match="cannot be written: No such file"):
        written(tmp_path / "no" / "m.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_r37_killed_amid_writing(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    before = path.read_bytes()
    script = f"""
        import os, signal
        import numpy as np
        from windlass.local.gguf_write import GgufFileWriter
        writer = GgufFileWriter()
        writer.add_tensor("t", [64, 64], "F32", np.ones((64, 64), np.float32))
        writer.write({str(path)!r}, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == before
    read_header(path)


def test_a_large_model_needs_little_memory(tmp_path: Path) -> None:
    """A quarter of a gigabyte of weights passes through a process that may have 150 MB above what it started with."""
    script = f"""
        import resource, numpy as np
        from windlass.local.gguf_write import GgufFileWriter
        from windlass.local.quantize import quantize_model
        def rows():
            for number in range(32):
                yield np.full((512, 4096), number, np.float32)
        writer = GgufFileWriter()
        writer.add_tensor("blk.0.t.weight", [16384, 4096], "Q4_0", rows)
        now = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (now + (150 << 20), now + (150 << 20)))
        print(writer.write({str(tmp_path / "m.gguf")!r}).size)
        quantize_model({str(tmp_path / "m.gguf")!r}, {str(tmp_path / "q.gguf")!r}, "Q8_0", again=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 16384 * 4096 // 2
    assert (tmp_path / "q.gguf").stat().st_size > 16384 * 4096


def test_types_of_values() -> None:
    cases: list[tuple[Any, str]] = [(1, "uint32"), (-1, "int32"), (1.0, "float32"), ("a", "string"), (True, "bool")]
    cases += [([1], "int32"), ([1 << 31], "uint32"), ([1 << 33], "int64"), ([1, -1 << 40], "int64"), (b"a", "string")]
    assert [value_type("k", value) for value, _ in cases] == [kind for _, kind in cases]


def test_file_type_is_that_of_most_bytes() -> None:
    assert file_type_of([("F32", 10), ("Q8_0", 100)]) == 7
    assert file_type_of([]) is None
    assert file_type_of([("IQ1_S", 5)]) is None
    wanted = {name: kind for name in ("F32", "F16", "Q8_0", "BF16") for kind in [file_type_of([(name, 1)])]}
    types = gguf.LlamaFileType
    assert wanted == {
        "F32": types.ALL_F32, "F16": types.MOSTLY_F16, "Q8_0": types.MOSTLY_Q8_0, "BF16": types.MOSTLY_BF16,
    }  # fmt: skip


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    with GgufFile(path) as file:
        os.truncate(path, file.info.data_offset + 100)
        with pytest.raises(LocalModelError, match="became shorter while it was read"):
            file.array("a.weight")
        with pytest.raises(UnknownNameError, match=r"a\.weigth"):
            file.tensor("a.weigth")
        with pytest.raises(UnknownNameError, match=r"general\.nam"):
            file.value("general.nam")
