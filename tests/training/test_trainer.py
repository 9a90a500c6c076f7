"""The loop: events, accumulation, precision, evaluation, stopping, and losses that are no number."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.rows import Rows, config, llama, losses, steps, trainer
from windlass.core.errors import ConfigError, WindlassError
from windlass.core.events import CheckpointSaved, Event, Log, RunFinished, RunStarted, TrainStep
from windlass.training.checkpoint import read_state
from windlass.training.config import TrainConfig
from windlass.training.data import Batch, Row, collate
from windlass.training.errors import TrainingError
from windlass.training.head import HeadLoss
from windlass.training.loss import Objective
from windlass.training.trainer import Trainer


def finished(events: list[Event]) -> RunFinished:
    assert isinstance(events[-1], RunFinished)
    return events[-1]


def test_events_come_in_order_and_are_numbered(tmp_path: Path) -> None:
    seen: list[Event] = []
    ours = Trainer(
        config(checkpoint_path=str(tmp_path), checkpoint_interval=4, log_interval=3, epochs=2),
        model=llama(), source=Rows(), eval_source=Rows(6, shift=1), sinks=[seen.append],
    )  # fmt: skip
    events = list(ours.run())
    assert seen == events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.run_id for event in events} == {ours.run_id}
    kinds = [type(event).__name__ for event in events]
    step = "TrainStep"
    assert kinds == [
        "RunStarted", *[step] * 4, "CheckpointSaved", *[step] * 4, "CheckpointSaved", *[step] * 4, "CheckpointSaved",
        "RunFinished",
    ]  # fmt: skip
    metrics = steps(events)
    always = {"loss", "lr", "grad_norm", "tokens", "epoch"}
    assert [set(each) - always for each in metrics[:3]] == [set(), set(), {"accuracy", "perplexity"}]
    assert set(metrics[5]) - always == {"accuracy", "perplexity", "eval_loss", "eval_perplexity", "eval_accuracy"}
    assert metrics[5]["epoch"] == 1.0 and metrics[-1]["epoch"] == 2.0
    assert metrics[-1]["tokens"] == 2 * sum(len(Rows().row(n).tokens) - 1 for n in range(24))
    done = finished(events)
    assert (done.stop_reason, done.turns, done.output["reason"]) == ("end_turn", 12, "epochs")
    assert all(event.metrics["tokens_per_second"] > 0 for event in events if isinstance(event, TrainStep))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_accumulated_batches_are_one_large_batch(name: str) -> None:
    """Rows of unlike lengths and weights: a mean of means would differ."""
    large = steps(trainer(optimizer=name, batch_size=12).run())
    small = steps(trainer(optimizer=name, batch_size=2, grad_accum=6).run())
    assert len(large) == len(small) == 6
    for one, other in zip(large, small, strict=True):
        assert one == pytest.approx(other, rel=2e-5)


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    events = list(trainer(Rows(10), batch_size=4, epochs=2).run())
    assert len(losses(events)) == 6 and finished(events).output["epoch"] == 2


def test_only_weighted_positions_are_computed_and_the_loss_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = llama(), list[int]()

    apply: Any = HeadLoss.apply

    def seen(*given: Any) -> Any:
        calls.append(len(given[0]))
        return apply(*given)

    monkeypatch.setattr(HeadLoss, "apply", seen)
    batch = collate([Rows().row(n) for n in range(6)])
    sums = Objective(model)(batch, True)
    assert calls == [int((batch.weights > 0).sum())] and calls[0] < batch.weights.numel()
    whole = model(batch.inputs)
    each = F.cross_entropy(whole.flatten(0, 1), batch.targets.flatten(), reduction="none")
    assert sums.loss.item() == pytest.approx((each * batch.weights.flatten()).sum().item(), rel=1e-6)
    right = (whole.argmax(-1) == batch.targets) * batch.weights
    assert sums.correct.item() == pytest.approx(right.sum().item())
    assert batch.weight == pytest.approx(batch.weights.sum().item())


def test_label_smoothing_is_torch_s_and_perplexity_is_without_it() -> None:
    batch, model = collate([Rows(weights=False).row(n) for n in range(4)]), llama()
    sums = Objective(model, 0.1)(batch)
    logits = model(batch.inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, batch.targets.flatten(), reduction="sum", label_smoothing=0.1)
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = F.cross_entropy(logits, batch.targets.flatten(), reduction="sum")
    assert sums.entropy.item() == pytest.approx(plain.item(), rel=1e-6)
    (first, *_) = steps(trainer(label_smoothing=0.1, log_interval=1).run())
    assert first["perplexity"] != pytest.approx(math.exp(first["loss"]), rel=1e-4)


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.05), ("fp16", 0.02)])
def test_mixed_precision_follows_fp32(precision: str, near: float) -> None:
    full = losses(trainer(epochs=10).run())
    ours = trainer(epochs=10, precision=precision)
    mixed = losses(ours.run())
    assert mixed != full and mixed == pytest.approx(full, abs=near)
    assert {weight.dtype for weight in ours.model.parameters()} == {torch.float32}
    assert ours.updates.scaler.is_enabled() == (precision == "fp16")


def test_fp16_passes_over_a_step_whose_scaled_gradients_overflow() -> None:
    ours = trainer(precision="fp16", epochs=1)
    ours.updates.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    before = [weight.detach().clone() for weight in ours.model.parameters()]
    run = ours.run()
    assert [type(next(run)), type(next(run))] == [RunStarted, TrainStep]
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))
    assert ours.updates.scaler.get_scale() == 2.0**125
    assert len(losses(run)) == 5


def test_clipping_bounds_the_step_and_the_norm_told_is_the_one_before() -> None:
    norms = [each["grad_norm"] for each in steps(trainer(gradient_clip=1e-6, optimizer="sgd", epochs=1).run())]
    free = [each["grad_norm"] for each in steps(trainer(gradient_clip=0.0, optimizer="sgd", epochs=1, lr=1e-9).run())]
    assert norms == pytest.approx(free, rel=1e-3) and min(norms) > 0.01
    ours = trainer(gradient_clip=1e-6, optimizer="sgd", epochs=1, momentum=0.0, weight_decay=0.0)
    before = [weight.detach().clone() for weight in ours.model.parameters()]
    list(ours.run())
    moved = sum(float((a - b.detach()).square().sum()) for a, b in zip(before, ours.model.parameters(), strict=True))
    assert math.sqrt(moved) <= 6 * 3e-3 * 1e-6 * 1.01


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    assert losses(trainer(activation_checkpointing=True).run()) == losses(trainer().run())


class Plain(nn.Module):
    """A model that is no llama, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(17, 8), nn.Linear(8, 17)

    def forward(self, tokens: Tensor, *, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.head(F.dropout(self.embedding(tokens), 0.2, self.training))


def test_other_models_train_too_and_randomness_is_the_seed_s() -> None:
    def run(seed: int) -> list[float]:
        torch.manual_seed(9)
        ours = Trainer(config(seed=seed), model=Plain(), source=Rows())
        torch.rand(seed + 1)  # what others draw meanwhile does not matter
        return losses(ours.run())

    assert run(3) == run(3)
    assert run(3) != run(4)


class Broken(Rows):
    """A row in the second step of which the model makes infinities."""

    def row(self, index: int) -> Row:
        found = super().row(index)
        return found._replace(weights=np.full(len(found.tokens), np.inf, np.float32)) if index == 5 else found


def test_r80_a_loss_that_is_no_number_names_its_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    ours = trainer(Broken(), epochs=2, batch_size=1, checkpoint_path=str(tmp_path), checkpoint_interval=1)
    with pytest.raises(TrainingError, match="The loss of step") as caught:
        list(ours.run())
    error = caught.value
    assert error.step > 1
    assert error.checkpoint == str(tmp_path / f"step-{error.step - 1:08}")
    assert error.checkpoint is not None and read_state(Path(error.checkpoint)).step == error.step - 1
    again = Trainer.load(tmp_path, model=llama(), source=Rows())
    assert again.step == error.step - 1
    assert all(math.isfinite(loss) for loss in losses(again.run()))


def test_a_failed_run_tells_its_error_before_it_raises() -> None:
    events: list[Event] = []
    ours = Trainer(config(), model=llama(), source=Broken(), sinks=[events.append])
    with pytest.raises(TrainingError):
        list(ours.run())
    done = finished(events)
    assert done.stop_reason == "error" and done.error is not None and done.error["code"] == "training"


def test_early_stopping_counts_evaluations_without_gain() -> None:
    options: dict[str, Any] = {"epochs": 50, "early_stopping_patience": 3, "early_stopping_threshold": 10.0}
    ours = Trainer(config(**options), model=llama(), source=Rows(), eval_source=Rows(4, shift=1))
    events = list(ours.run())
    assert finished(events).output["reason"] == "early_stopping"
    assert len(losses(events)) == 4 * 6
    assert [len(losses(ours.run())), finished(list(ours.run())).output["reason"]] == [0, "early_stopping"]
    never = Trainer(config(**{**options, "early_stopping_patience": 0, "epochs": 6}), model=llama(), source=Rows(),
                    eval_source=Rows(4, shift=1))  # fmt: skip
    assert finished(list(never.run())).output["reason"] == "epochs"


def test_evaluation_every_few_steps_is_over_all_rows_and_changes_nothing() -> None:
    other = Rows(7, shift=1)
    ours = Trainer(config(eval_interval=4), model=llama(), source=Rows(), eval_source=other)
    metrics = steps(ours.run())
    assert [n for n, each in enumerate(metrics, 1) if "eval_loss" in each] == [4, 8, 12, 16]
    assert [each["loss"] for each in metrics] == losses(trainer().run())
    batch = collate([other.row(n) for n in range(7)])
    with torch.no_grad():
        sums = Objective(ours.model.eval())(batch, True)
    found = ours.evaluate()
    assert found["eval_loss"] == pytest.approx(sums.entropy.item() / batch.weight, rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx(sums.correct.item() / batch.weight, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    with pytest.raises(ConfigError, match="no data to evaluate"):
        trainer().evaluate()


def test_max_steps_ends_a_run() -> None:
    events = list(trainer(max_steps=5).run())
    assert len(losses(events)) == 5 and finished(events).stop_reason == "max_turns"


def test_stop_from_another_thread_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    ours = trainer(epochs=10_000, checkpoint_path=str(tmp_path))
    events: list[Event] = []
    for event in ours.run():
        events.append(event)
        if isinstance(event, TrainStep) and event.step == 3:
            thread = threading.Thread(target=ours.stop)
            thread.start()
            thread.join()
    assert [type(event).__name__ for event in events[-2:]] == ["CheckpointSaved", "RunFinished"]
    assert finished(events).stop_reason == "cancelled" and ours.step == 3
    assert isinstance(events[-2], CheckpointSaved) and read_state(Path(events[-2].path)).step == 3


def test_ctrl_c_stops_in_an_orderly_way_and_the_handler_is_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ours = trainer(epochs=10_000, checkpoint_path=str(tmp_path))
        for event in ours.run():
            if isinstance(event, TrainStep) and event.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
        assert ours.step == 2 and read_state(tmp_path / "step-00000002").step == 2
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            for event in ours.run():
                if isinstance(event, RunStarted):
                    os.kill(os.getpid(), signal.SIGINT)
                    os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_data_it_learns_a_task_says_so_and_the_loss_falls() -> None:
    ours = Trainer(TrainConfig(device="cpu", log_interval=100))
    events = list(ours.run())
    (note,) = [event for event in events if isinstance(event, Log)]
    count = sum(weight.numel() for weight in ours.model.parameters())
    assert note.message == (
        f"No data was given: a network of {count} parameters learns a generated task: counting up by 1, 2 or 3, "
        "modulo 10."
    )
    assert abs(count - 512) <= 16
    found = losses(events)
    assert len(found) == 320 and found[0] == pytest.approx(math.log(11), abs=0.05)
    assert sum(found[-10:]) / 10 < 1.7
    assert ours.evaluate()["eval_accuracy"] > 0.5


@pytest.mark.parametrize("size", [64, 2000, 20_000, 1_000_000])
def test_the_network_has_about_the_size_that_was_asked_for(size: int) -> None:
    ours = Trainer(TrainConfig(device="cpu", model_size=size))
    assert sum(weight.numel() for weight in ours.model.parameters()) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "no-such"}, "cannot be used"),
        ({"recipe": "no-such"}, "Unknown recipe"),
        ({"data": "/no/such/file.bin"}, "/no/such/file.bin"),
        ({"tokenizer": "/no/such"}, "Cannot read the tokenizer"),
    ],
    ids=["device", "recipe", "data", "tokenizer"],
)
def test_what_is_not_there_is_told_before_anything_is_trained(options: dict[str, Any], text: str) -> None:
    with pytest.raises(WindlassError, match=text):
        Trainer(TrainConfig(**options))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="17 tokens, the model 9"):
        Trainer(config(), model=llama(vocab_size=9), source=Rows())
    with pytest.raises(ConfigError, match="no parameter that learns"):
        Trainer(config(), model=llama().requires_grad_(False), source=Rows())
    with pytest.raises(ConfigError, match="no rows"):
        Trainer(config(), model=llama(), source=Rows(0))
    with pytest.raises(ConfigError, match="for llama models"):
        Trainer(config(activation_checkpointing=True), model=Plain(), source=Rows())
    with pytest.raises(ConfigError, match="export_gguf_path needs"):
        list(trainer(export_gguf_path="x.gguf").run())


def test_a_batch_without_any_weight_changes_nothing_and_is_no_error() -> None:
    class Silent(Rows):
        def row(self, index: int) -> Row:
            found = super().row(index)
            return found._replace(weights=np.zeros(len(found.tokens), np.float32))

    ours = trainer(Silent(), weight_decay=0.0)
    before = [weight.detach().clone() for weight in ours.model.parameters()]
    assert set(losses(ours.run())) == {0.0}
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))


def test_collate_marks_what_counts() -> None:
    tokens = np.arange(5, dtype=np.int32)
    full = collate([Row(tokens), Row(tokens)])
    assert isinstance(full, Batch) and full.chosen is None and (full.weight, full.tokens) == (8.0, 8)
    part = collate([Row(tokens), Row(tokens[:3], weights=np.array([1, 0, 1], np.float32))])
    assert part.chosen is not None and part.chosen.tolist() == [0, 1, 2, 3, 5]
    assert (part.weight, part.tokens) == (5.0, 6)
