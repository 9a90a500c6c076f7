"""`windlass train`: run, stop, resume, info, export, as a user types them."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import subprocess
import sys
from typing import Any

import pytest

from tests.apps.helpers import Cli, default_signals
from windlass.core.events import TrainStep, decode_event

SMALL = ("--sample-count", "64", "-b", "16", "--lr", "0.003", "--warmup-steps", "4", "--device", "cpu")


def losses(out: str) -> list[float]:
    events = [decode_event(line) for line in out.splitlines()]
    return [event.metrics["loss"] for event in events if isinstance(event, TrainStep)]


@pytest.fixture
def one_thread(cli: Cli) -> Cli:
    """The program with one thread for numbers: the machine has other work."""
    cli.env["OMP_NUM_THREADS"] = "1"
    return cli


@pytest.mark.slow
async def test_without_data_it_learns_a_task_and_writes_everything_asked_for(one_thread: Cli) -> None:
    cli = one_thread
    done = await cli("train", "run", "-e", "2", *SMALL, "--checkpoint-path", "saved", "--log-dir", "logs",
                     "--tensorboard", "--export-gguf", "count.gguf")  # fmt: skip
    assert done.code == 0, done.err
    assert "No data was given: a network of 516 parameters learns a generated task: counting up" in done.err
    assert "step 8/8, loss 2." in done.err and "saved saved/step-00000008" in done.err
    assert done.out.startswith("8 steps; 1536 tokens; loss 2.") and done.out.endswith("wrote count.gguf\n")
    assert (cli.folder / "count.gguf").read_bytes()[:4] == b"GGUF"
    names = {path.name.split(".")[0] for path in (cli.folder / "logs").iterdir()}
    assert names == {"train", "curves", "events"}
    shown = await cli("train", "info", "saved")
    assert shown.code == 0 and "parameters  516" in shown.out and "step        8" in shown.out
    told: dict[str, Any] = (await cli("train", "info", "saved", "--json")).json()
    assert (told["kind"], told["tokens"], told["epoch"], told["tokenizer"]) == ("windlass", 1536, 2, True)
    assert told["config"]["sample_count"] == 64 and "device" in told["config"]
    written = await cli("train", "export", "saved", "again.gguf", "--dtype", "f32")
    assert (written.code, written.out) == (0, "again.gguf\n")
    assert (cli.folder / "again.gguf").stat().st_size > (cli.folder / "count.gguf").stat().st_size


@pytest.mark.slow
async def test_resume_goes_on_to_the_last_bit(one_thread: Cli) -> None:
    cli = one_thread
    whole = await cli("train", "run", "-e", "3", *SMALL, "--json")
    first = await cli("train", "run", "-e", "3", *SMALL, "--json", "--max-steps", "7", "--checkpoint-path", "saved")
    second = await cli("train", "resume", "saved", "--max-steps", "0", "--json")
    assert (whole.code, first.code, second.code) == (0, 0, 0), second.err
    assert len(losses(whole.out)) == 12 and len(losses(first.out)) == 7
    assert losses(first.out) + losses(second.out) == losses(whole.out)


async def test_every_flag_of_reference_e_is_taken(one_thread: Cli) -> None:
    done = await one_thread(
        "train", "run", "-e", "1", "-b", "16", "--model-size", "300", "--lr", "0.001", "--optimizer", "adamw",
        "--lr-schedule", "warmup_cosine", "--checkpoint-interval", "1", "--checkpoint-path", "./model",
        "--mixed-precision", "--sample-count", "32", "--quiet", "--device", "cpu",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (one_thread.folder / "model").glob("step-*")) == [
        "step-00000001", "step-00000002",
    ]  # fmt: skip


@pytest.mark.slow
async def test_text_is_learned_with_a_tokenizer_of_its_own(one_thread: Cli) -> None:
    cli = one_thread
    (cli.folder / "book.txt").write_text("the cat sat on the mat.\nthe hat sat on the cat.\n" * 60)
    done = await cli("train", "run", "--data", "book.txt", "--eval-data", "book.txt", "--seq-len", "32", "-e", "1",
                     "-b", "8", "--width", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--feed-forward",
                     "24", "--checkpoint-path", "saved", "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    assert "tokens were learned from the data" in done.err and "held-out loss" in done.out
    shown: dict[str, Any] = (await cli("train", "info", "saved", "--json")).json()
    assert shown["shape"]["width"] == 16 and shown["tokenizer"] is True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
async def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(one_thread: Cli, number: int) -> None:
    cli = one_thread
    command = [sys.executable, "-m", "windlass", "train", "run", "-e", "100000", *SMALL, "--checkpoint-path", "saved",
               "--json"]  # fmt: skip
    with default_signals():
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cli.folder, env=cli.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    assert process.stdout is not None
    lines: list[bytes] = []
    while not any(b"train.step" in line for line in lines):
        lines.append(await process.stdout.readline())
    process.send_signal(number)
    out, err = await process.communicate()
    kinds = [json.loads(line)["kind"] for line in [*lines, *out.splitlines()]]
    assert process.returncode == 130
    assert kinds[-2:] == ["checkpoint.saved", "run.finished"] and kinds.count("checkpoint.saved") == 1
    assert b"windlass train resume saved goes on" in err
    steps = kinds.count("train.step")
    assert (await cli("train", "info", "saved", "--json")).json()["step"] == steps


async def test_files_of_reference_e_are_shown(one_thread: Cli) -> None:
    cli = one_thread
    generic = b"ABIC" + struct.pack("<HQQI", 1, 12, 1_700_000_000, 3) + struct.pack("<3f", 1, 2, 3)
    (cli.folder / "old.ckpt").write_bytes(generic)
    llm = b"ABLC" + struct.pack("<HQIQQIII", 1, 5, 2, 640, 1_700_000_000, 2, 2, 2) + struct.pack("<6f", *range(6))
    (cli.folder / "llm.ckpt").write_bytes(llm)
    shown: dict[str, Any] = (await cli("train", "info", "old.ckpt", "--json")).json()
    assert (shown["kind"], shown["step"], shown["parameters"]) == ("ABIC", 12, 3)
    assert shown["time"].startswith("2023-11-14T22:13:20")
    shown = (await cli("train", "info", "llm.ckpt", "--json")).json()
    assert (shown["kind"], shown["epoch"], shown["tokens"], shown["moments"]) == ("ABLC", 2, 640, 2)
    refused = await cli("train", "resume", "old.ckpt")
    assert refused.code == 1 and "is a file; a checkpoint is a folder" in refused.err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("run", "--tensorboard"), 2, "need log_dir"),
        (("run", "-e", "0"), 2, "at least 1"),
        (("run", "--recipe", "none"), 2, "Unknown recipe"),
        (("run", "--optimizer", "none"), 2, "invalid choice"),
        (("run", "--heads", "3", "--data", "x.bin"), 1, "x.bin"),
        (("info", "nothing"), 1, "no checkpoint in nothing"),
        (("resume", "nothing"), 1, "no checkpoint in nothing"),
        ((), 2, "VERB"),
    ],
    ids=["logs", "epochs", "recipe", "optimizer", "data", "info", "resume", "verb"],
)
async def test_wrong_use_says_what_is_wrong(one_thread: Cli, args: tuple[str, ...], code: int, text: str) -> None:
    done = await one_thread("train", *args)
    assert (done.code, done.out) == (code, "") and text in done.err and "Traceback" not in done.err


async def test_help_is_a_verb(cli: Cli) -> None:
    assert (await cli("train", "help")).out == (await cli("train", "--help")).out != ""


def test_the_module_does_not_load_torch() -> None:
    """So that help is there at once, on a machine without torch too."""
    script = "import sys; from windlass.apps.cli.train import parser; parser('train').format_help()"
    script += "; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
