"""Optimisers and schedules: step by step what torch's own give, and the formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.rows import Rows, config, llama, losses, trainer
from windlass.local.llama import Llama
from windlass.training.data import Batch, Place, collate, places
from windlass.training.optim import Muon, make_optimizer, orthogonal
from windlass.training.schedule import learning_rate

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
ORACLES: dict[str, Make] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=3e-3, momentum=0.9, foreach=False),
    "adam": lambda groups: torch.optim.Adam(groups, lr=3e-3, foreach=False),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3, foreach=False),
}


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [w for w in model.parameters() if w.dim() > 1], "weight_decay": 0.01},
        {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0},
    ]


def whole_logits(model: Llama, batch: Batch) -> Tensor:
    """The loss as anyone writes it."""
    each = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="none")
    return (each * batch.weights.flatten()).sum() / batch.weights.sum()


def plain_loop(model: Llama, optimizers: list[torch.optim.Optimizer], source: Rows, epochs: int) -> list[float]:
    """The loop as anyone writes it: the loss, its gradients, clipping, a step."""
    found: list[float] = []
    for numbers, _ in places(len(source), 4, epochs, 0, Place()):
        loss = whole_logits(model, collate([source.row(number) for number in numbers]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_loss_curve_is_that_of_torch_s_own_optimiser(name: str) -> None:
    ours = trainer(optimizer=name, epochs=5)
    other = llama()
    expected = plain_loop(other, [ORACLES[name](groups_of(other))], Rows(), 5)
    got = losses(ours.run())
    assert len(got) == 30
    assert got == pytest.approx(expected, rel=2e-5)
    for mine, theirs in zip(ours.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert got[0] != got[-1]


def test_loss_curve_with_muon_is_that_of_torch_s_muon_and_adamw() -> None:
    ours, other = trainer(optimizer="muon", epochs=5), llama()
    inner = [w for name, w in other.named_parameters() if name.startswith("blk") and w.dim() == 2]
    ends = [w for name, w in other.named_parameters() if name in ("token_embd.weight", "output.weight")]
    norms = [w for w in other.parameters() if w.dim() < 2]
    assert len(inner) == 14 and len(ends) == 2
    made: Any = torch.optim
    oracle: list[torch.optim.Optimizer] = [
        made.Muon(inner, lr=3e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": ends, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}], lr=3e-3),
    ]
    # Muon works in bfloat16, which makes much of a last bit.
    assert losses(ours.run()) == pytest.approx(plain_loop(other, oracle, Rows(), 5), rel=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)], ids=str)
def test_muon_s_update_is_bit_by_bit_torch_s(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    first = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    second = [nn.Parameter(each.detach().clone()) for each in first]
    made: Any = torch.optim
    ours = Muon(first, lr=0.02, weight_decay=0.1)
    theirs = made.Muon(second, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for mine, other in zip(first, second, strict=True):
            mine.grad = torch.randn(shape)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
        for mine, other in zip(first, second, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_orthogonal_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(4, 8, 24)).float())
    assert values.min() > 0.5 and values.max() < 1.3


def test_frozen_parameters_and_single_matrices_go_to_the_right_optimiser() -> None:
    model = llama()
    model.token_embd.weight.requires_grad_(False)
    muon, adamw = make_optimizer(model, config(optimizer="muon"))
    inside: list[Tensor] = [w for group in adamw.param_groups for w in group["params"]]
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    assert not any(w is model.token_embd.weight for w in inside)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.01, 0.0]
    for weight in model.parameters():
        weight.requires_grad_(False)
    assert make_optimizer(model, config()) == []


def rates(**options: Any) -> list[float]:
    chosen = config(**{"lr": 1.0, "min_lr": 0.1, "warmup_steps": 10, "decay_steps": 100, **options})
    return [learning_rate(chosen, step) for step in range(400)]


def test_constant_and_step() -> None:
    assert set(rates(schedule="constant")) == {1.0}
    found = rates(schedule="step")
    assert found[99] == 1.0
    assert found[100] == pytest.approx(0.1) and found[199] == found[100] and found[200] == pytest.approx(0.01)


def test_cosine_falls_to_min_lr_and_never_rises_again() -> None:
    found = rates(schedule="cosine")
    assert found[0] == 1.0
    assert found[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert found[50] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(found))
    # Reference E's is a whole period: at 100 it would be back at 1.0.
    assert found[100:] == pytest.approx([0.1] * 300)


def test_warmup_cosine_and_polynomial() -> None:
    found = rates(schedule="warmup_cosine")
    assert found[:11] == pytest.approx([*[n / 10 for n in range(1, 11)], 1.0])
    assert found[55] == pytest.approx(0.55) and found[100:] == pytest.approx([0.1] * 300)
    found = rates(schedule="polynomial")
    assert found[30] == pytest.approx(0.1 + 0.9 * 0.7**0.9) and found[150] == pytest.approx(0.1)


def test_a_run_uses_its_schedule() -> None:
    ours = trainer(schedule="warmup_cosine", warmup_steps=4, decay_steps=12, min_lr=1e-4)
    events = [event for event in ours.run() if hasattr(event, "metrics")]
    expected = [learning_rate(ours.config, step) for step in range(18)]
    assert [getattr(event, "metrics")["lr"] for event in events] == expected  # noqa: B009
