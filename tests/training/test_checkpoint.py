"""Checkpoints: a run that was killed goes on to the last bit, and what is damaged is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.rows import Rows, config, llama, losses, steps, trainer
from windlass.core.events import CheckpointSaved, Log, TrainStep
from windlass.training import checkpoint
from windlass.training.data import Place
from windlass.training.errors import CheckpointError
from windlass.training.tokenizer import Tokenizer
from windlass.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
EPOCHS = 4


class Runs:
    """Runs in processes of their own, forked from one that has torch loaded."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.training.killed"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.curve, self.calls = dict[int, str](), 0

    def start(self, folder: Path, call: int = 0) -> int:
        """Begin a run that dies at `call`; return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder} {EPOCHS} {call} {folder}.txt\n")
        self.process.stdin.flush()
        return self.number()

    def number(self) -> int:
        """Read an id or an exit code."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def run(self, folder: Path, call: int = 0) -> int:
        """Return the exit code of a run."""
        self.start(folder, call)
        return self.number()

    def check(self, folder: Path) -> None:
        """Go on until the end, and compare every step of every attempt with the undisturbed run, to the bit."""
        assert self.run(folder) == 0
        lines = read(folder)
        assert {number for number, _ in lines} == set(self.curve)
        assert [(number, line) for number, line in lines if self.curve[number] != line] == []
        assert sorted(entry.name for entry in folder.iterdir()) == [".lock", "step-00000021", "step-00000024"]
        assert checkpoint.read(checkpoint.find(folder)).state.step == 24


def read(folder: Path) -> list[tuple[int, str]]:
    """Return the step and the rest of every line that the runs over a folder wrote."""
    lines = [line.split(" ", 1) for line in Path(f"{folder}.txt").read_text().splitlines()]
    return [(int(number), rest) for number, rest in lines if number != "calls"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Generator[Runs]:
    """Processes to be killed, and the curve of the run that nobody disturbs."""
    made, folder = Runs(), tmp_path_factory.mktemp("runs") / "whole"
    assert made.run(folder) == 0
    made.curve = dict(read(folder))
    made.calls = int(Path(f"{folder}.txt").read_text().splitlines()[-1].split()[1])
    assert sorted(made.curve) == list(range(1, 6 * EPOCHS + 1)) and made.calls > 60
    yield made
    made.process.communicate(timeout=60)


def test_r80_kill_9_while_a_checkpoint_is_written_resumes_bit_exactly(tmp_path: Path, runs: Runs) -> None:
    """In `make soak` at every call that changes the file system; else at every seventh."""
    for call in range(1, runs.calls + 1, 1 if os.environ.get("WINDLASS_SOAK") else 7):
        assert runs.run(tmp_path / str(call), call) == -signal.SIGKILL
        runs.check(tmp_path / str(call))


def test_r80_kill_9_from_outside_and_again_and_again(tmp_path: Path, runs: Runs) -> None:
    folder, draw = tmp_path / "run", random.Random(7)
    for _ in range(4):
        lines = len(read(folder)) if Path(f"{folder}.txt").exists() else 0
        child = runs.start(folder)
        while not Path(f"{folder}.txt").exists() or len(read(folder)) < lines + draw.randrange(1, 4):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        assert runs.number() == -signal.SIGKILL
    runs.check(folder)


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"optimizer": "adam", "precision": "bf16"},
                                     {"precision": "fp16"}, {"grad_accum": 3, "batch_size": 1}],
                         ids=["adamw", "sgd", "adam-bf16", "fp16", "accumulated"])  # fmt: skip
def test_resuming_in_the_middle_of_an_epoch_is_bit_exact(tmp_path: Path, options: dict[str, Any]) -> None:
    every = {"epochs": 4, "schedule": "cosine", "decay_steps": 20, **options}
    straight = Trainer(config(**every), model=llama(), source=Rows(), eval_source=Rows(4, shift=1))
    expected = steps(straight.run())
    first = Trainer(config(**every, max_steps=8, checkpoint_path=str(tmp_path)), model=llama(), source=Rows(),
                    eval_source=Rows(4, shift=1))  # fmt: skip
    begun = steps(first.run())
    second = Trainer.load(
        tmp_path, changes={"max_steps": 0}, model=llama(seed=5), source=Rows(), eval_source=Rows(4, shift=1)
    )
    assert second.step == 8
    events = list(second.run())
    assert not any(isinstance(event, Log) for event in events)
    assert begun + steps(events) == expected
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_early_stopping_goes_on_counting_after_resuming(tmp_path: Path) -> None:
    every: dict[str, Any] = {"epochs": 50, "early_stopping_patience": 4, "early_stopping_threshold": 10.0}
    first = Trainer(config(**every, max_steps=14, checkpoint_path=str(tmp_path)), model=llama(), source=Rows(),
                    eval_source=Rows(4, shift=1))  # fmt: skip
    list(first.run())
    second = Trainer.load(
        tmp_path, changes={"max_steps": 0}, model=llama(), source=Rows(), eval_source=Rows(4, shift=1)
    )
    assert second.step + len(losses(second.run())) == 5 * 6


def test_only_the_newest_are_kept_and_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".new-x").mkdir()
    (tmp_path / ".new-x" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    events = list(trainer(checkpoint_path=str(tmp_path), checkpoint_interval=4, max_checkpoints=2).run())
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.step for event in saved] == [4, 8, 12, 16, 18]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        ".lock", "notes.txt", "step-00000016", "step-00000018",
    ]  # fmt: skip
    assert checkpoint.find(tmp_path).name == "step-00000018"


def test_what_was_put_aside_comes_back_when_the_process_died_between_two_names(tmp_path: Path) -> None:
    list(trainer(checkpoint_path=str(tmp_path)).run())
    (tmp_path / "step-00000018").rename(tmp_path / ".old-step-00000018")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.find(tmp_path)
    with checkpoint.Folder(tmp_path) as folder:
        assert folder.latest() == tmp_path / "step-00000018"


def test_a_new_run_does_not_mix_with_the_checkpoints_of_another(tmp_path: Path) -> None:
    list(trainer(checkpoint_path=str(tmp_path)).run())
    with pytest.raises(CheckpointError, match="later than step 0"):
        list(trainer(checkpoint_path=str(tmp_path)).run())
    with checkpoint.Folder(tmp_path), pytest.raises(CheckpointError, match="Another run"):
        list(trainer(checkpoint_path=str(tmp_path)).run())
    again = Trainer.load(tmp_path, model=llama(), source=Rows())
    assert losses(again.run()) == []


def test_other_options_are_told(tmp_path: Path) -> None:
    list(trainer(checkpoint_path=str(tmp_path), max_steps=6).run())
    ours = Trainer(config(lr=1e-4, epochs=2), model=llama(), source=Rows(20))
    ours.resume(tmp_path)
    (note,) = [event for event in ours.run() if isinstance(event, Log)]
    assert note.level == "warning"
    assert "lr was 0.003 and is 0.0001" in note.message and "had 24 rows and has 20" in note.message
    assert "epochs" not in note.message


def test_another_model_is_refused(tmp_path: Path) -> None:
    list(trainer(checkpoint_path=str(tmp_path), max_steps=2).run())
    with pytest.raises(CheckpointError, match="of another model"):
        Trainer(config(), model=llama(width=16), source=Rows()).resume(tmp_path)
    plain = Trainer(config(), model=torch.nn.Embedding(17, 17), source=Rows())
    with pytest.raises(CheckpointError, match="not of this model"):
        plain.resume(tmp_path)


def test_the_tokenizer_is_in_the_checkpoint(tmp_path: Path) -> None:
    made = Tokenizer.train(["some text"] * 4, 300)
    ours = Trainer(config(max_steps=1, checkpoint_path=str(tmp_path)), model=llama(), source=Rows(), tokenizer=made)
    list(ours.run())
    again = Trainer.load(tmp_path, model=llama(), source=Rows())
    assert again.tokenizer is not None and again.tokenizer.tokens() == made.tokens()
    assert again.tokenizer.eos == made.eos


def saved(folder: Path) -> Path:
    with checkpoint.Folder(folder) as place:
        state = checkpoint.State(step=3, place=Place(1, 2), tokens=7)
        return place.save(state, {"w": torch.arange(6.0)}, {"w|m": torch.ones(6)}, {"tokenizer.json": b"{}"})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = saved(tmp_path_factory.mktemp("damaged"))
    name = data.draw(st.sampled_from(sorted(entry.name for entry in path.iterdir())))
    raw = bytearray((path / name).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    (path / name).write_bytes(raw)
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


def test_missing_files_later_schemas_and_foreign_names_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert checkpoint.read(path).state == checkpoint.State(step=3, place=Place(1, 2), tokens=7)
    state = path / "state.json"
    good = msgspec.json.decode(state.read_bytes())
    state.write_bytes(msgspec.json.encode({**good, "schema": 2}))
    with pytest.raises(CheckpointError, match="newer than 1"):
        checkpoint.read_state(path)
    state.write_bytes(b"[]")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read_state(path)
    state.write_bytes(msgspec.json.encode(good))
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_disk_that_refuses_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    ours = trainer(checkpoint_path=str(tmp_path), checkpoint_interval=3)
    run = ours.run()
    for event in run:
        if isinstance(event, CheckpointSaved):
            break
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
        patch.setattr(os, "fsync", full)
        for event in run:
            assert isinstance(event, TrainStep) or event.__class__.__name__ == "RunFinished"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "step-00000003"]
    assert checkpoint.read(checkpoint.find(tmp_path)).state.step == 3
