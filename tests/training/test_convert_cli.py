"""`windlass convert` as a user runs it: the example of reference E, models, embeddings, nothing overwritten unasked."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from windlass.apps.cli import COMMANDS, main
from windlass.local.gguf import read_header
from windlass.local.llama import Llama, LlamaConfig
from windlass.local.llama_gguf import load_gguf
from windlass.training.abi import AbiCheckpoint, write_abi
from windlass.training.export import export_gguf
from windlass.training.tokenbin import read_tokens, write_tokens
from windlass.training.tokenizer import Tokenizer
from windlass.training.wdbx import WdbxReader

TOKENS = [n * 7919 % 50000 for n in range(5000)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run the command in this process: torch is loaded once."""
    code = main(["convert", *args])
    out, err = capsys.readouterr()
    return code, out, err


def dataset(source: str, target: str, format: str, *more: str) -> list[str]:
    return ["dataset", "--input", source, "--output", target, "--format", format, *more]


def test_the_example_of_reference_e_as_a_program(here: Path) -> None:
    write_tokens("data.bin", TOKENS)
    env = {"PATH": os.environ["PATH"], "HOME": str(here), "PYTHONWARNINGS": "error::ResourceWarning"}
    for args in (dataset("data.bin", "data.wdbx", "to-wdbx"), dataset("data.wdbx", "back.bin", "to-tokenbin")):
        done = subprocess.run(
            [sys.executable, "-m", "windlass", "convert", *args], capture_output=True, text=True, env=env, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "back.bin: 5000 tokens\n"
    assert (here / "back.bin").read_bytes() == (here / "data.bin").read_bytes()
    # Where it was asked for, not under ./backups/.
    assert sorted(file.name for file in here.iterdir()) == ["back.bin", "data.bin", "data.wdbx"]


def test_the_block_size_is_2048_or_as_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens("data.bin", TOKENS)
    assert convert(capsys, *dataset("data.bin", "a.wdbx", "to-wdbx")) == (0, "a.wdbx: 5000 tokens in 3 records\n", "")
    code, out, _ = convert(capsys, *dataset("data.bin", "b.wdbx", "to-wdbx", "--block-size", "100"))
    assert (code, out) == (0, "b.wdbx: 5000 tokens in 50 records\n")
    with WdbxReader(here / "b.wdbx") as reader:
        assert len(reader) == 50


def test_nothing_is_overwritten_without_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens("a.bin", [1, 2])
    write_tokens("b.bin", [3])
    assert convert(capsys, *dataset("a.bin", "a.wdbx", "to-wdbx"))[0] == 0
    code, out, err = convert(capsys, *dataset("a.wdbx", "b.bin", "to-tokenbin"))
    assert (code, out) == (2, "") and "--force" in err and read_tokens("b.bin").tolist() == [3]
    assert convert(capsys, *dataset("a.wdbx", "b.bin", "to-tokenbin", "--force"))[0] == 0
    assert read_tokens("b.bin").tolist() == [1, 2]
    code, _, err = convert(capsys, *dataset("a.bin", "./a.bin", "to-wdbx", "--force"))
    assert code == 2 and "same file" in err and read_tokens("a.bin").tolist() == [1, 2]


def test_errors_are_one_line_and_leave_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "odd.bin").write_bytes(b"12345")
    (here / "no.wdbx").write_bytes(b"nothing of that kind")
    for args, code, word in (
        (dataset("odd.bin", "x.wdbx", "to-wdbx"), 1, "32-bit"),
        (dataset("no.wdbx", "x.bin", "to-tokenbin"), 1, "no WDBX"),
        (dataset("gone.bin", "x.wdbx", "to-wdbx"), 1, "gone.bin"),
        (dataset("odd.bin", "none/x.wdbx", "to-wdbx"), 2, "no folder"),
        (dataset("odd.bin", "x.wdbx", "to-zip"), 2, "--help"),
        (["dataset", "--input", "odd.bin", "--format", "to-wdbx"], 2, "--output"),
        (["model", "--input", "odd.bin", "--output", "x.gguf", "--format", "gguf"], 1, "not opened"),
        (["embeddings", "--input", "odd.bin", "--output", "x.json", "--format", "json"], 1, "odd.bin"),
    ):
        found, out, err = convert(capsys, *args)
        assert (found, out) == (code, "") and word in err and err.count("\n") == 1, args
    assert sorted(file.name for file in here.iterdir()) == ["no.wdbx", "odd.bin"]


def test_damaged_datasets_are_refused_or_read_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens("a.bin", [258, 259])
    convert(capsys, *dataset("a.bin", "a.wdbx", "to-wdbx"))
    data = (here / "a.wdbx").read_bytes()
    (here / "a.wdbx").write_bytes(data.replace(struct.pack("<I", 259), struct.pack("<I", 515)))
    code, _, err = convert(capsys, *dataset("a.wdbx", "b.bin", "to-tokenbin"))
    assert code == 1 and "sum" in err and not (here / "b.bin").exists()
    assert convert(capsys, *dataset("a.wdbx", "b.bin", "to-tokenbin", "--no-verify"))[0] == 0
    assert read_tokens("b.bin").tolist() == [258, 515]


def test_embeddings_go_through_all_three_formats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.json").write_text('{"embeddings": [[0.1, -2], [3, 4]]}')
    for source, target, format, more in (
        ("a.json", "a.csv", "csv", ()),
        ("a.csv", "a.f32", "binary", ()),
        ("a.f32", "b.json", "json", ("--dimension", "2")),
    ):
        args = ["embeddings", "--input", source, "--output", target, "--format", format, *more]
        assert convert(capsys, *args) == (0, f"{target}: 2 vectors of 2 numbers\n", "")
    assert json.loads((here / "b.json").read_text()) == {"embeddings": [[0.1, -2], [3, 4]]}


def model_args(source: str, target: str, format: str, *more: str) -> list[str]:
    return ["model", "--input", source, "--output", target, "--format", format, *more]


def test_a_model_goes_to_safetensors_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.train(["some text to learn from, and some more " * 5], 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=1, feed_forward=64, context=32
    )
    model = Llama(config)
    export_gguf(model, tokenizer, here / "a.gguf", dtype="f32")
    code, out, err = convert(capsys, *model_args("a.gguf", "hf", "safetensors", "--dtype", "f32"))
    assert (code, err) == (0, "") and "F32" in out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in (here / "hf").iterdir()}
    assert convert(capsys, *model_args("hf", "b.gguf", "gguf", "--dtype", "f32"))[0] == 0
    tokens = torch.arange(20).reshape(1, 20)
    with torch.no_grad():
        assert torch.equal(load_gguf("b.gguf")[0](tokens), model(tokens))
    assert convert(capsys, *model_args("b.gguf", "c.gguf", "gguf", "--dtype", "q8_0"))[0] == 0
    assert {tensor.type for tensor in read_header(here / "c.gguf").tensors} == {"F32", "Q8_0"}
    assert convert(capsys, *model_args("hf/model.safetensors", "d.gguf", "gguf"))[0] == 0
    assert {tensor.type for tensor in read_header(here / "d.gguf").tensors} == {"F32", "F16"}
    code, _, err = convert(capsys, *model_args("a.gguf", "hf", "safetensors"))
    assert code == 2 and "--force" in err
    assert convert(capsys, *model_args("a.gguf", "hf", "safetensors", "--force"))[0] == 0
    for args, word in (
        (model_args("hf", "x", "safetensors"), "already"),
        (model_args("a.gguf", "x.gguf", "gguf", "--dtype", "q99"), "q99"),
        (model_args("a.gguf", "x", "safetensors", "--dtype", "q8_0"), "Q8_0"),
        (model_args("a.gguf", "b.gguf", "safetensors", "--force"), "is a file"),
    ):
        code, _, err = convert(capsys, *args)
        assert code == 2 and word.lower() in err.lower(), args
    assert sorted(file.name for file in here.iterdir()) == ["a.gguf", "b.gguf", "c.gguf", "d.gguf", "hf"]


def test_a_checkpoint_of_reference_e_goes_to_safetensors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_abi("model.ckpt", AbiCheckpoint(np.array([1, 2], np.float32), step=3))
    assert convert(capsys, *model_args("model.ckpt", "a.safetensors", "safetensors"))[0] == 0
    assert load_file("a.safetensors")["weights"].tolist() == [1, 2]
    code, _, err = convert(capsys, *model_args("model.ckpt", "a.gguf", "gguf"))
    assert code == 2 and "sizes" in err


def test_help_loads_neither_torch_nor_numpy(here: Path) -> None:
    assert "convert" in COMMANDS
    script = """
import sys
from windlass.apps.cli import main
for args in (["convert", "--help"], ["convert", "dataset", "--help"], ["convert", "model", "--help"]):
    assert main(args) == 0
assert not {"torch", "numpy", "gguf", "safetensors"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--block-size" in done.stdout and max(len(line) for line in done.stdout.splitlines()) <= 80
