"""Checkpoints of reference E: both layouts by hand, hostile files, and on into safetensors and a run of ours."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.training.data_files import killed_while, refused, truncations
from windlass.core.errors import ConfigError
from windlass.core.events import TrainStep
from windlass.local.llama import Llama, LlamaConfig
from windlass.training import checkpoint
from windlass.training.abi import (
    AbiCheckpoint,
    LlmCheckpoint,
    abi_shapes,
    abi_to_checkpoint,
    abi_to_safetensors,
    read_abi,
    split,
    write_abi,
)
from windlass.training.config import TrainConfig
from windlass.training.data import Place, Row
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge, UnsupportedVersion
from windlass.training.trainer import Trainer

#: Step 42 at second 1234, the weights 0.5, 1.5, 2.5.
ABIC = b"ABIC" + struct.pack("<HQQI3f", 1, 42, 1234, 3, 0.5, 1.5, 2.5)
#: Step 7, epoch 2, 42 tokens, second 99; three weights, three first and two second moments.
ABLC = b"ABLC" + struct.pack("<HQIQQIII8f", 1, 7, 2, 42, 99, 3, 3, 2, 1, 2, 3, 0.5, 0.25, 0.125, 4, 8)
TINY = LlamaConfig(vocab_size=11, width=8, layers=2, heads=2, kv_heads=1, feed_forward=12, context=16)


def floats(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


def test_abic_is_the_file_made_by_hand(tmp_path: Path) -> None:
    assert len(ABIC) == 4 + 2 + 8 + 8 + 4 + 12
    path = tmp_path / "a.ckpt"
    write_abi(path, AbiCheckpoint(floats(0.5, 1.5, 2.5), step=42, timestamp=1234))
    assert path.read_bytes() == ABIC
    found = read_abi(path)
    assert isinstance(found, AbiCheckpoint)
    assert (found.weights.tolist(), found.step, found.timestamp) == ([0.5, 1.5, 2.5], 42, 1234)


def test_ablc_is_the_file_made_by_hand(tmp_path: Path) -> None:
    assert len(ABLC) == 4 + 2 + 8 + 4 + 8 + 8 + 12 + 32
    path = tmp_path / "a.ckpt"
    made = LlmCheckpoint(floats(1, 2, 3), floats(0.5, 0.25, 0.125), floats(4, 8), 7, 2, 42, 99)
    write_abi(path, made)
    assert path.read_bytes() == ABLC
    found = read_abi(path)
    assert isinstance(found, LlmCheckpoint)
    assert [part.tolist() for part in found[:3]] == [[1, 2, 3], [0.5, 0.25, 0.125], [4, 8]]
    assert found[3:] == (7, 2, 42, 99)


WEIGHTS = arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=True))
U64, U32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)


@given(
    st.builds(AbiCheckpoint, WEIGHTS, U64, U64)
    | st.builds(LlmCheckpoint, WEIGHTS, WEIGHTS, WEIGHTS, U64, U32, U64, U64)
)
def test_any_checkpoint_comes_back(
    tmp_path_factory: pytest.TempPathFactory, made: AbiCheckpoint | LlmCheckpoint
) -> None:
    path = tmp_path_factory.mktemp("c") / "a.ckpt"
    write_abi(path, made)
    found = read_abi(path)
    assert type(found) is type(made) and len(found) == len(made)
    for left, right in zip(found, made, strict=True):
        if isinstance(left, np.ndarray):
            assert isinstance(right, np.ndarray) and left.tobytes() == right.tobytes()  # NaN included
        else:
            assert left == right


@pytest.mark.parametrize("data", [ABIC, ABLC], ids=["abic", "ablc"])
def test_every_truncation_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.ckpt"
    for cut in [*truncations(data), data + b"\0", data + bytes(4)]:
        assert isinstance(refused(read_abi, path, cut), InvalidFormat)


@given(st.binary(max_size=120))
def test_any_bytes_behind_a_magic_are_typed_errors(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("c") / "a.ckpt"
    for magic in (b"ABIC\1\0", b"ABLC\1\0", b""):
        path.write_bytes(magic + tail)
        try:
            read_abi(path)
        except DataError:
            continue


def test_versions_and_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for data in (ABIC, ABLC):
        assert isinstance(refused(read_abi, path, data[:4] + b"\2\0" + data[6:]), UnsupportedVersion)
        assert isinstance(refused(read_abi, path, data[:4] + b"\0\0" + data[6:]), UnsupportedVersion)
        path.write_bytes(data)
        with pytest.raises(PayloadTooLarge):
            read_abi(path, max_bytes=len(data) - 1)
        read_abi(path, max_bytes=len(data))
    assert isinstance(refused(read_abi, path, b"ABIX" + ABIC[4:]), InvalidFormat)


def test_s100_counts_of_2_32_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    tracemalloc.start()
    try:
        refused(read_abi, path, ABIC[:22] + b"\xff" * 4 + ABIC[26:])
        for at in (34, 38, 42):
            refused(read_abi, path, ABLC[:at] + b"\xff" * 4 + ABLC[at + 4 :])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_the_fields_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for step in (-1, 1 << 64):
        with pytest.raises(ConfigError):
            write_abi(path, AbiCheckpoint(floats(1), step=step))
    with pytest.raises(ConfigError):
        write_abi(path, LlmCheckpoint(floats(1), floats(), floats(), epoch=1 << 32))
    huge = np.broadcast_to(np.float32(0), (1 << 32,))
    with pytest.raises(PayloadTooLarge):
        write_abi(path, AbiCheckpoint(huge))
    assert list(tmp_path.iterdir()) == []
    write_abi(path, AbiCheckpoint(floats(1)))
    with pytest.raises(ConfigError, match="already"):
        write_abi(path, AbiCheckpoint(floats(2)))


def test_a_checkpoint_becomes_safetensors(tmp_path: Path) -> None:
    source, target = tmp_path / "a.ckpt", tmp_path / "a.safetensors"
    source.write_bytes(ABLC)
    abi_to_safetensors(source, target)
    assert {name: part.tolist() for name, part in load_file(target).items()} == {
        "weights": [1, 2, 3],
        "first": [0.5, 0.25, 0.125],
        "second": [4, 8],
    }
    with safe_open(target, "np") as file:
        told = file.metadata()
    assert told["step"] == "7" and told["epoch"] == "2" and told["tokens"] == "42" and told["source"] == "LlmCheckpoint"
    with pytest.raises(ConfigError, match="already"):
        abi_to_safetensors(source, target)
    source.write_bytes(ABIC)
    abi_to_safetensors(source, target, shapes={"a": (1, 2), "b": ()}, overwrite=True)
    assert {name: part.tolist() for name, part in load_file(target).items()} == {"a": [[0.5, 1.5]], "b": 2.5}


@pytest.mark.parametrize("shapes", [{"a": (2,)}, {"a": (4,)}, {"a": (1 << 40, 1 << 40)}, {"a": (-3,)}, {}])
def test_tensors_that_are_not_the_checkpoint_s_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    source = tmp_path / "a.ckpt"
    source.write_bytes(ABIC)
    with pytest.raises(InvalidFormat):
        abi_to_safetensors(source, tmp_path / "a.safetensors", shapes=shapes)
    assert not (tmp_path / "a.safetensors").exists()


def test_the_shapes_of_a_llama_are_those_of_its_tensors() -> None:
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=11, width=8, layers=2, heads=2, kv_heads=1, feed_forward=12, context=16, tied=tied
        )
        shapes = abi_shapes(config)
        state = Llama(config).state_dict()
        assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == config.parameters
    # The order of the reference: embedding; per layer q, k, v, o, norm, gate, up, down, norm; norm; output.
    assert [name.removeprefix("blk.0.").removesuffix(".weight") for name in list(shapes)[:10]] == [
        "token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_gate", "ffn_up", "ffn_down",
        "ffn_norm",
    ]  # fmt: skip
    assert list(shapes)[-2:] == ["output_norm.weight", "output.weight"]


def llama_file(path: Path, *, moments: bool = True) -> Llama:
    """An ABLC file with a small llama's weights, after step 5."""
    torch.manual_seed(1)
    model = Llama(TINY)
    state = model.state_dict()
    flat = np.concatenate([state[name].numpy().reshape(-1) for name in abi_shapes(TINY)])
    first = np.full_like(flat, 0.01) if moments else floats()
    second = np.full_like(flat, 0.02) if moments else floats()
    write_abi(path, LlmCheckpoint(flat, first, second, step=5, epoch=0, tokens=320, timestamp=9))
    return model


def test_a_llama_s_weights_load_into_our_model(tmp_path: Path) -> None:
    model = llama_file(tmp_path / "a.ckpt")
    abi_to_safetensors(tmp_path / "a.ckpt", tmp_path / "a.safetensors", shapes=abi_shapes(TINY))
    other = Llama(TINY)
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name for name in tensors if name.startswith("first.")} == {f"first.{name}" for name in abi_shapes(TINY)}
    kept = {
        name: torch.from_numpy(part) for name, part in tensors.items() if not name.startswith(("first.", "second."))
    }
    other.load_state_dict(kept)
    tokens = torch.arange(8).reshape(1, 8)
    assert torch.equal(model(tokens), other(tokens))
    found = read_abi(tmp_path / "a.ckpt")
    assert set(split(found.weights, abi_shapes(TINY))) == set(kept)


@pytest.mark.parametrize("moments", [True, False], ids=["with-moments", "weights-alone"])
def test_a_run_of_ours_goes_on_from_the_reference_s_checkpoint(tmp_path: Path, moments: bool) -> None:
    model = llama_file(tmp_path / "a.ckpt", moments=moments)
    made = abi_to_checkpoint(tmp_path / "a.ckpt", tmp_path / "run", TINY)
    kept = checkpoint.read(checkpoint.find(tmp_path / "run"))
    assert kept.path == made and made.name == "step-00000005"
    assert (kept.state.step, kept.state.tokens, kept.state.place) == (5, 320, Place(0, 0))
    assert all(torch.equal(kept.model[name], tensor) for name, tensor in model.state_dict().items())
    assert len(kept.optimiser) == (3 * len(abi_shapes(TINY)) if moments else 0)
    config = TrainConfig(batch_size=2, max_steps=6, epochs=100, device="cpu", sample_count=8)
    trainer = Trainer(config, model=Llama(TINY), source=Numbers())
    trainer.resume(made)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in trainer.model.state_dict().items())
    if moments:
        memory = trainer.updates.memory()
        assert float(memory["output_norm.weight|exp_avg_sq"][0]) == pytest.approx(0.02)
        assert float(memory["output_norm.weight|step"]) == 5
    assert [event.step for event in trainer.run() if isinstance(event, TrainStep)] == [6]


class Numbers:
    """Rows that count."""

    name, vocab_size = "numbers", 11

    def __len__(self) -> int:
        return 8

    def row(self, index: int) -> Row:
        return Row(np.arange(index, index + 6, dtype=np.int32) % 11)


def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(ABIC)
    killed_while(
        """
        import sys, time
        from windlass.training.files import replacing
        with replacing(sys.argv[1], overwrite=True) as file:
            file.write(b"ABIC" + bytes(1 << 20))
            file.flush()
            print("writing", flush=True)
            time.sleep(60)
        """,
        path,
    )
    assert path.read_bytes() == ABIC
