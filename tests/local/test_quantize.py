"""Models of one type made into another, and run."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants

from tests.local.asking import ask, said
from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local import engine_quants, quantize
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions
from windlass.local.engine_quants import ENGINE_TYPES, engine_quantizer
from windlass.local.gguf import TENSOR_TYPES
from windlass.local.gguf_data import GgufFile, to_float
from windlass.local.gguf_write import GgufFileWriter
from windlass.local.quantize import MODEL_TYPES, quantize_model

TINY = embedded_model().path
K_QUANTS = [kind for kind in MODEL_TYPES if kind.endswith("_K")]


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "f32.gguf"
    made = quantize_model(TINY, path, "f32")
    assert made.types == {"F32": 56} and made.before < made.after == path.stat().st_size
    return path


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_matrices_are_as_the_gguf_package_writes_them(floats: Path, tmp_path: Path, kind: str) -> None:
    made = quantize_model(floats, tmp_path / "m.gguf", kind)
    assert made.types == {kind: 43, "F32": 13} and made.instead == {}
    number = GGMLQuantizationType[kind]
    before = {tensor.name: tensor for tensor in GGUFReader(floats).tensors}
    reader = GGUFReader(tmp_path / "m.gguf")
    for tensor in reader.tensors:
        old = before[tensor.name]
        wanted = quants.quantize(old.data, number) if len(old.shape) > 1 else old.data
        assert tensor.data.tobytes() == wanted.tobytes(), tensor.name
    assert reader.fields["general.file_type"].contents() == quantize.FILE_TYPES[kind]
    assert reader.fields["general.quantization_version"].contents() == 2


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_by_the_engine_can_be_read_and_are_near(floats: Path, tmp_path: Path, kind: str) -> None:
    """They equal `llama-quantize --pure` byte by byte (checked by hand, all types); here their error is bounded."""
    made = quantize_model(floats, tmp_path / "m.gguf", kind)
    other = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}[kind]
    assert made.types == {kind: 37, other: 6, "F32": 13}
    # 640 numbers in a row are not divided by blocks of 256.
    assert made.instead == {f"blk.{layer}.ffn_down.weight": other for layer in range(6)}
    bound = {"Q2_K": 0.4, "Q3_K": 0.25, "Q4_K": 0.12, "Q5_K": 0.06, "Q6_K": 0.03}[kind]
    with GgufFile(floats) as old, GgufFile(tmp_path / "m.gguf") as new:
        for tensor in new.info.tensors:
            if tensor.type == kind:
                a, b = old.array(tensor.name), new.array(tensor.name)
                assert np.sqrt(np.mean((a - b) ** 2)) < bound * np.sqrt(np.mean(a**2)), tensor.name


async def test_the_engine_runs_what_was_made(floats: Path, tmp_path: Path) -> None:
    """F32 and Q8_0 again say what the shipped Q8_0 model says; Q4_K at least something."""
    answers: list[str] = []
    for kind in ("F32", "Q8_0", "Q4_K"):
        path = tmp_path / f"{kind}.gguf"
        quantize_model(floats, path, kind)
        engine = Engine(path, EngineOptions(context=512, threads=1, gpu_layers=0, memory_map=False))
        answers.append((await ask(engine, said("Hello!", max_tokens=40))).text)
        engine.close()
    shipped = Engine(TINY, EngineOptions(context=512, threads=1, gpu_layers=0, memory_map=False))
    own = (await ask(shipped, said("Hello!", max_tokens=40))).text
    shipped.close()
    assert answers[0] == answers[1] == own != ""
    assert answers[2] != ""


def test_there_and_back_is_the_same_file(floats: Path, tmp_path: Path) -> None:
    quantize_model(floats, tmp_path / "m.gguf", "Q8_0")
    with GgufFile(TINY) as shipped, GgufFile(tmp_path / "m.gguf") as again:
        for tensor in shipped.info.tensors:
            ours = [p.tobytes() for p in again.raw(tensor.name)]
            assert ours == [p.tobytes() for p in shipped.raw(tensor.name)]


def test_what_is_quantised_is_not_quantised_again_unasked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds Q8_0 already"):
        quantize_model(TINY, tmp_path / "m.gguf", "Q4_0")
    assert quantize_model(TINY, tmp_path / "m.gguf", "Q4_0", again=True).types == {"Q4_0": 43, "F32": 13}
    assert quantize_model(TINY, tmp_path / "n.gguf", "bf16").types == {"BF16": 43, "F32": 13}


def test_the_output_may_be_of_another_type(floats: Path, tmp_path: Path) -> None:
    made = quantize_model(floats, tmp_path / "m.gguf", "Q4_0", output_kind="Q6_K")
    assert made.types == {"Q4_0": 42, "Q6_K": 1, "F32": 13}
    assert {tensor.name: tensor.type for tensor in made.info.tensors}["token_embd.weight"] == "Q6_K"


def test_vectors_routers_and_odd_rows(tmp_path: Path) -> None:
    writer = GgufFileWriter()
    for name, shape in {
        "blk.0.attn_norm.weight": [64], "blk.0.ffn_gate_inp.weight": [4, 64], "blk.0.attn_q.bias": [64],
        "blk.0.ffn_up_exps.weight": [2, 3, 64], "blk.0.odd.weight": [3, 33], "output.weight": [5, 64],
    }.items():  # fmt: skip
        writer.add_tensor(name, shape, "F32", np.ones(shape, np.float32))
    writer.add_tensor("order", [2, 2], "I32", np.ones((2, 2), np.int32))
    writer.write(tmp_path / "a.gguf")
    made = quantize_model(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0")
    types = {tensor.name: tensor.type for tensor in made.info.tensors}
    assert types == {
        "blk.0.attn_norm.weight": "F32", "blk.0.ffn_gate_inp.weight": "F32", "blk.0.attn_q.bias": "F32",
        "blk.0.ffn_up_exps.weight": "Q8_0", "blk.0.odd.weight": "F16", "output.weight": "Q8_0", "order": "I32",
    }  # fmt: skip
    assert made.instead == {"blk.0.odd.weight": "F16"}
    with GgufFile(tmp_path / "b.gguf") as file:
        assert all(np.allclose(file.array(name), 1, atol=1e-3) for name in types)


def test_errors_name_what_is_wrong(floats: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'Q4_K'"):
        quantize_model(floats, tmp_path / "m.gguf", "q4_kk")
    writer = GgufFileWriter()
    writer.add_tensor("a.weight", [2, 32], "F32", np.full((2, 32), np.nan, np.float32))
    writer.write(tmp_path / "nan.gguf")
    with pytest.raises(ConfigError, match=r"'a\.weight' cannot be Q8_0: The weights hold infinities"):
        quantize_model(tmp_path / "nan.gguf", tmp_path / "m.gguf", "Q8_0")
    part = GgufFileWriter()
    part.add("split.count", 2, "uint16")
    part.write(tmp_path / "part.gguf")
    with pytest.raises(LocalModelError, match="one part of a model"):
        quantize_model(tmp_path / "part.gguf", tmp_path / "m.gguf", "Q8_0")
    assert not (tmp_path / "m.gguf").exists()


def test_progress_counts_bytes_and_can_end_it(floats: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = quantize_model(floats, tmp_path / "m.gguf", "Q8_0", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in made.info.tensors)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(floats, tmp_path / "n.gguf", "Q8_0", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_engines_function_writes_what_the_gguf_package_can_read() -> None:
    engine = engine_quantizer()
    assert engine is not None, "the installed engine exports its quantiser"
    rows = np.random.default_rng(3).standard_normal((4, 512)).astype(np.float32)
    for kind in ENGINE_TYPES:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        made = engine(rows, kind)
        assert made.shape == (4, 512 // block * size)
        assert np.sqrt(np.mean((to_float(made, kind) - rows) ** 2)) < 0.35
        # Row by row it is the same: a large matrix may come in pieces.
        assert (np.concatenate([engine(row[None], kind) for row in rows]) == made).all()
    with pytest.raises(ConfigError, match="Rows of 100"):
        engine(np.zeros((1, 100), np.float32), "Q4_K")
    with pytest.raises(ConfigError, match="infinities"):
        engine(np.full((1, 256), np.inf, np.float32), "Q4_K")
    with pytest.raises(ConfigError, match="IQ1_S"):
        engine(np.zeros((1, 256), np.float32), "IQ1_S")
    assert {*ENGINE_TYPES} <= {name for name, _, _ in TENSOR_TYPES.values()}


class _NoFunction:
    def __init__(self, path: str) -> None:
        """Load a library that exports nothing."""


@pytest.fixture
def no_function(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """An engine whose library exports nothing."""
    monkeypatch.setattr(engine_quants.ctypes, "CDLL", _NoFunction)
    engine_quantizer.cache_clear()
    monkeypatch.setattr(quantize, "engine_quantizer", engine_quantizer)
    yield
    monkeypatch.undo()
    engine_quantizer.cache_clear()


@pytest.mark.usefixtures("no_function")
def test_without_the_engines_function_the_error_says_so(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"does not offer it.*llama-quantize on the PATH"):
        quantize_model(floats, tmp_path / "m.gguf", "Q4_K")
    assert quantize_model(floats, tmp_path / "m.gguf", "Q8_0").types["Q8_0"] == 43  # needs no engine


@pytest.mark.usefixtures("no_function")
@pytest.mark.skipif(sys.platform == "win32", reason="a program by its first line")
def test_a_program_on_the_path_stands_in(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with the command line of llama.cpp's own, which no package registry carries."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "llama-quantize"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from windlass.local.quantize import quantize_model\n"
        "*options, source, target, kind = sys.argv[1:]\n"
        "if kind != 'Q6_K':\n"
        "    sys.exit('failed to quantize: ' + kind)\n"
        "assert options == ['--pure', '--output-tensor-type', 'Q6_K', '--token-embedding-type', 'Q6_K'], options\n"
        "quantize_model(source, target, kind)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    made = quantize_model(floats, tmp_path / "m.gguf", "Q6_K")
    assert made.types["Q6_K"] == 37 and made.info.path == str(tmp_path / "m.gguf")
    with pytest.raises(LocalModelError, match="status 1: failed to quantize: Q4_K_M"):
        quantize_model(floats, tmp_path / "n.gguf", "Q4_K")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "m.gguf"]
