"""What a run leaves: JSON lines, TensorBoard, W&B, pictures; and what it shows while it runs."""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.training.rows import Rows, config, llama, losses, steps, trainer
from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.events import CheckpointSaved, Event, Log, RunFinished, RunStarted, TrainStep
from windlass.training.curves import Curve, curves_of, draw, to_png, to_svg
from windlass.training.glyphs import GLYPHS
from windlass.training.logs import FILE, TAGS, Logs, read_log
from windlass.training.progress import Progress, duration
from windlass.training.trainer import Trainer


def test_the_jsonl_file_is_the_event_stream(tmp_path: Path) -> None:
    events = list(trainer(log_dir=str(tmp_path)).run())
    assert list(read_log(tmp_path)) == events
    first = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    assert (first["kind"], first["v"]) == ("run.started", 1)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes() + b'{"v":1,"kind":"log","mess')
    assert list(read_log(tmp_path)) == events
    (tmp_path / FILE).write_bytes(b"[]\n")
    with pytest.raises(ConfigError, match="line 1, is no event"):
        list(read_log(tmp_path))


def test_a_resumed_run_has_one_curve_without_the_steps_that_were_lost(tmp_path: Path) -> None:
    """The log is written at every step, a checkpoint at every fourth: after a kill the log is ahead."""
    straight = losses(trainer(epochs=3).run())
    first = trainer(epochs=3, checkpoint_path=str(tmp_path / "c"), checkpoint_interval=4, log_dir=str(tmp_path / "l"))
    for event in first.run():
        if isinstance(event, TrainStep) and event.step == 11:
            break
    assert len(losses(read_log(tmp_path / "l"))) == 11
    second = Trainer.load(tmp_path / "c", model=llama(), source=Rows())
    assert second.step == 8
    list(second.run())
    assert losses(read_log(tmp_path / "l")) == straight
    list(trainer(log_dir=str(tmp_path / "l"), max_steps=2).run())
    assert len(losses(read_log(tmp_path / "l"))) == 2


def test_tensorboard_reads_every_tag(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = config(log_dir=str(tmp_path), tensorboard=True, log_interval=2)
    events = list(Trainer(options, model=llama(), source=Rows(), eval_source=Rows(3, shift=1)).run())
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert file.stat().st_size > 0
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    tags: Any = found.Tags()
    assert sorted(tags["scalars"]) == sorted(TAGS.values()) == sorted(
        ["train/loss", "train/accuracy", "train/perplexity", "train/learning_rate", "train/grad_norm", "val/loss",
         "val/perplexity", "val/accuracy"]
    )  # fmt: skip
    for name, tag in TAGS.items():
        told = [(step, each[name]) for step, each in enumerate(steps(events), 1) if name in each]
        assert [(each.step, each.value) for each in found.Scalars(tag)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in told
        ]


def test_tensorboard_forgets_the_steps_that_were_lost(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs, saved = str(tmp_path / "l"), str(tmp_path / "c")
    first = trainer(checkpoint_path=saved, checkpoint_interval=4, log_dir=logs, tensorboard=True)
    for event in first.run():
        if isinstance(event, TrainStep) and event.step == 7:
            break
    list(Trainer.load(saved, changes={"lr": 1e-3}, model=llama(), source=Rows()).run())
    found = EventAccumulator(logs)
    found.Reload()
    assert [each.step for each in found.Scalars("train/loss")] == list(range(1, 19))


_WANDB = """
import sys
import torch
torch.set_num_threads(1)
from tests.training.rows import trainer
list(trainer(log_dir=sys.argv[1], wandb=True, max_steps=4).run())
"""


@pytest.mark.slow
def test_wandb_writes_an_offline_run_and_connects_to_nobody(tmp_path: Path) -> None:
    """Everything that speaks HTTP in there, Go included, would go through this proxy."""
    calls: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                with peer:
                    calls.append(peer.recv(200))

        thread = threading.Thread(target=listen)
        thread.start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")
        environ = {**os.environ, **dict.fromkeys(names, proxy), "NO_PROXY": "", "no_proxy": "", "HOME": str(tmp_path),
                   "WANDB_MODE": "offline"}  # fmt: skip
        try:
            out = subprocess.run(
                [sys.executable, "-c", _WANDB, str(tmp_path / "logs")],
                cwd=Path(__file__).parents[2], env=environ, capture_output=True, text=True, timeout=200,
            )  # fmt: skip
        finally:
            done.set()
            thread.join()
    assert out.returncode == 0, out.stderr
    assert calls == []
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B" and b"train/loss" in data
    assert (tmp_path / "logs" / FILE).is_file()


def test_logs_without_a_folder_or_their_package_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ConfigError, match="need log_dir"):
            config(**{name: True})
    for name, modules in {
        "tensorboard": ["tensorboard.compat.proto", "tensorboard.summary.writer"],
        "wandb": ["wandb"],
    }.items():
        with monkeypatch.context() as patch:
            for module in modules:
                patch.setitem(sys.modules, module, None)
            ours = trainer(log_dir=str(tmp_path), **{name: True})
            with pytest.raises(ConfigError, match=r"pip install 'windlass\[logs\]'"):
                list(ours.run())
            assert ours.step == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write logs"):
        Logs(config(log_dir=str(tmp_path / "file")), "run")


def test_curves_are_drawn_at_the_end_of_a_run(tmp_path: Path) -> None:
    options = config(log_dir=str(tmp_path))
    list(Trainer(options, model=llama(), source=Rows(), eval_source=Rows(3, shift=1)).run())
    root = ElementTree.fromstring((tmp_path / "curves.svg").read_text())
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"training loss", "held-out loss", "learning rate", "step", "rows"} <= set(texts)
    lines = [each.get("points", "") for each in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert max(len(points.split()) for points in lines) == 18
    size, pixels = decoded((tmp_path / "curves.png").read_bytes())
    assert size == (900, 560)
    assert {(31, 119, 180), (214, 39, 40), (44, 130, 60), (255, 255, 255)} <= pixels
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(ConfigError, match="no step"):
        draw(tmp_path)


def decoded(data: bytes) -> tuple[tuple[int, int], set[tuple[int, int, int]]]:
    """Read a PNG of ours: its size and its colours; sums are checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, dict[bytes, bytes]()
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 2)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == height * (1 + 3 * width)
    found: set[tuple[int, int, int]] = set()
    for y in range(height):
        row = rows[y * (1 + 3 * width) + 1 : (y + 1) * (1 + 3 * width)]
        found |= set(zip(row[::3], row[1::3], row[2::3], strict=True))
    return (width, height), found


@pytest.mark.parametrize("points", [
    [(1.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)], [(float(n), math.sin(n / 50)) for n in range(5000)],
    [(1.0, 1e-12), (2.0, 3e-12)], [(1.0, 0.0), (1e9, 1e12)], [(1.0, -5.0), (2.0, 5.0)],
], ids=["one", "level", "many", "small", "large", "negative"])  # fmt: skip
def test_curves_of_any_values_stay_inside_the_picture(points: list[tuple[float, float]]) -> None:
    curves = [Curve("training loss", points)]
    root = ElementTree.fromstring(to_svg(curves, "a < b & c"))
    for each in root.iter("{http://www.w3.org/2000/svg}polyline"):
        places = [tuple(map(float, pair.split(","))) for pair in each.get("points", "").split()]
        assert all(0 <= x <= 900 and 0 <= y <= 560 for x, y in places)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) >= 4
    assert decoded(to_png(curves))[0] == (900, 560)


def test_the_letters_are_all_there_and_of_one_size() -> None:
    assert set("abcdefghijklmnopqrstuvwxyz0123456789.,-+:/_ ()%=?") == set(GLYPHS)
    assert all(len(row) == 5 and set(row) <= {".", "#"} for rows in GLYPHS.values() for row in rows)
    assert {len(rows) for rows in GLYPHS.values()} == {7, 8}


def test_a_step_that_came_twice_counts_once() -> None:
    twice = [TrainStep(step=1, metrics={"loss": 2.0}), TrainStep(step=1, metrics={"loss": 3.0, "lr": math.nan})]
    assert curves_of(twice) == [Curve("training loss", [(1.0, 3.0)])]


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = [RunStarted(session_id="s", model="Llama", prompt="data\x1b[31m")]
    for n in range(1, 5):
        metrics = {"loss": 2.0 / n, "tokens": 100.0 * n, "tokens_per_second": 50.0}
        events.append(TrainStep(step=n, metrics=metrics | ({"eval_loss": 1.5} if n == 2 else {})))
    events += [Log(message="careful", level="warning"), CheckpointSaved(path="c/step-4", step=4),
               RunFinished(stop_reason="end_turn")]  # fmt: skip
    now = [0.0]

    def tick() -> float:
        now[0] += 2.0
        return now[0]

    monkeypatch.setattr(clock, "monotonic", tick)
    monkeypatch.setenv("COLUMNS", "80")
    plain, screen = io.StringIO(), io.StringIO()
    shown, lines = Progress(4, screen, terminal=True), Progress(4, plain)
    for event in events:
        shown(event)
    for event in events:
        lines(event)
    assert plain.getvalue().splitlines() == [
        "Training on data.",
        "step 1/4, loss 2.0000, 50 tokens/s",
        "step 4/4, loss 0.5000, held-out loss 1.5000, 50 tokens/s",
        "warning: careful",
        "Step 4: saved c/step-4",
    ]
    bars = re.findall(r"\r\x1b\[2K(\[[# ]{24}\] step [^\r\n]*)", screen.getvalue())
    assert (
        bars[1] == "[############            ] step 2/4, 4s left, loss 1.0000, held-out loss 1.5000, 50 tokens/s"[:79]
    )
    assert bars[-1].startswith("[########################] step 4/4")
    assert len(bars) == 4 and "\x1b[31m" not in screen.getvalue()


def test_durations() -> None:
    assert [duration(x) for x in (0, 59.4, 60, 3599, 3600, 90_000)] == [
        "0s",
        "59s",
        "1m00s",
        "59m59s",
        "1h00m",
        "25h00m",
    ]
