"""Two processes under torchrun compute what one does, with whole models (DDP) and with divided ones (FSDP2)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from tests.training.rows import Rows, config, trainer
from tests.training.spread import SCENARIOS, run
from windlass.core.errors import ConfigError
from windlass.local.llama_gguf import load_gguf
from windlass.training.distributed import joined
from windlass.training.team import Alone

ROOT = Path(__file__).parents[2]
WAYS = ("ddp", "fsdp")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: `one` by this process, `ddp` and `fsdp` by two under torchrun."""
    out = tmp_path_factory.mktemp("runs")
    for scenario in SCENARIOS:
        if scenario != "resumed":
            run(scenario, Alone(), out / "one", "ddp", out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.training.spread", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def told(folder: Path, scenario: str) -> Any:
    return msgspec.json.decode((folder / f"{scenario}.json").read_bytes())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "resumed"])
def test_two_processes_do_what_one_does(runs: Path, way: str, scenario: str) -> None:
    alone, both = told(runs / "one", scenario), told(runs / way, scenario)
    assert both["size"] == 2
    assert len(both["steps"]) == len(alone["steps"]) > 1
    # Muon turns its updates in bfloat16: its sums are of another order when the matrix is divided.
    loose = scenario == "muon"
    for ours, theirs in zip(alone["steps"], both["steps"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-3 if loose else 1e-5)
    weights, others = (load_file(runs / name / f"{scenario}.safetensors") for name in ("one", way))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=5e-3 if loose else 1e-6, rtol=0)


def test_fsdp_divides_what_learns_and_ddp_does_not(runs: Path) -> None:
    whole, divided = told(runs / "ddp", "plain"), told(runs / "fsdp", "plain")
    assert whole["local"] == whole["kept"] == divided["kept"]
    assert divided["local"] <= divided["kept"] * 0.55


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_one_process_is_taken_up_by_two(runs: Path, way: str) -> None:
    through, resumed = told(runs / "one", "plain")["steps"], told(runs / way, "resumed")["steps"]
    assert len(resumed) == len(through) - 6
    for ours, theirs in zip(through[6:], resumed, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_two_processes_is_taken_up_by_one(runs: Path, way: str, tmp_path: Path) -> None:
    assert len(told(runs / way, "saved")["saved"]) == 2
    run("resumed", Alone(), tmp_path, "ddp", runs / way / "saved")
    through, resumed = told(runs / "one", "plain")["steps"], told(tmp_path, "resumed")["steps"]
    assert len(resumed) == len(through) - 6
    for ours, theirs in zip(through[6:], resumed, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_the_first_process_exports_the_whole_model(runs: Path, way: str) -> None:
    ours, theirs = (load_gguf(runs / name / "m.gguf")[0].state_dict() for name in ("one", way))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-3, rtol=0)  # F16


def test_without_torchrun_there_is_one_process_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(config(parallel="fsdp")) as team:
        assert type(team) is Alone
        assert not torch.distributed.is_initialized()


def test_variables_that_torchrun_sets_must_all_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR"), joined(config()):
        pass


def test_processes_read_disjoint_rows_and_make_equally_many_passes() -> None:
    class Counted(Rows):
        def __init__(self) -> None:
            super().__init__(27)
            self.read: list[int] = []

        def row(self, index: int) -> Any:
            self.read.append(index)
            return super().row(index)

    seen: list[list[int]] = []
    passes: list[list[int]] = []
    for rank in range(3):
        source, team = Counted(), Alone()
        team.rank, team.size = rank, 3
        made = trainer(source, batch_size=2, grad_accum=2)
        made.team = team
        source.read.clear()
        passes.append([len(made._load(source, list(range(n)))) for n in (12, 9, 7, 2)])  # pyright: ignore[reportPrivateUsage]
        source.read.clear()
        made._load(source, list(range(27)))  # pyright: ignore[reportPrivateUsage]
        seen.append(list(source.read))
    assert passes == [[2, 2, 2, 1]] * 3
    assert sorted(number for rows in seen for number in rows) == list(range(27))
