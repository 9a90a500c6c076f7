"""The output matrix and the loss in one: the same numbers and gradients as with whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training.rows import Rows, config, llama
from windlass.training import head
from windlass.training.data import collate
from windlass.training.head import HeadLoss, right
from windlass.training.loss import Objective
from windlass.training.trainer import Trainer

N, WIDTH, VOCAB = 150, 12, 40


def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(N, WIDTH, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
    return x, weight, torch.randint(0, VOCAB, (N,)), torch.rand(N)


def plainly(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, ...]:
    logits = F.linear(x, weight).float()
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    plain = F.cross_entropy(logits, targets, reduction="none")
    return (each * weights).sum(), (plain * weights).sum(), ((logits.argmax(-1) == targets) * weights).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("pieces", [1, 3], ids=["whole", "pieces"])
def test_sums_and_gradients_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, pieces: int
) -> None:
    if pieces > 1:
        monkeypatch.setattr(head, "_ON_CPU", 1)  # then 64 rows at once: 150 are three pieces, the last one smaller
    x, weight, targets, weights = given()
    sums: Any = HeadLoss.apply(x, weight, targets, weights, smoothing, True)
    (sums[0] * 0.5).backward()
    ours = [x.grad, weight.grad]
    x.grad = weight.grad = None
    expected = plainly(x, weight, targets, weights, smoothing)
    (expected[0] * 0.5).backward()
    for a, b in zip([*sums, *ours], [*expected, x.grad, weight.grad], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [each.requires_grad for each in sums] == [True, False, False]


def test_in_bfloat16_it_is_as_near_as_autocast() -> None:
    x, weight, targets, weights = given()
    exact = torch.autograd.grad(plainly(x, weight, targets, weights, 0.0)[0], (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        usual = torch.autograd.grad(plainly(x, weight, targets, weights, 0.0)[0], (x, weight))
        sums: Any = HeadLoss.apply(x, weight, targets, weights, 0.0, False)
    ours = torch.autograd.grad(sums[0], (x, weight))
    for true, theirs, got in zip(exact, usual, ours, strict=True):
        assert got.dtype == torch.float32
        assert (got - true).norm() <= 1.3 * (theirs - true).norm()


def test_only_the_gradients_that_are_asked_for_are_made() -> None:
    x, weight, targets, weights = given()
    weight.requires_grad_(False)
    sums: Any = HeadLoss.apply(x, weight, targets, weights, 0.0, False)
    sums[0].backward()
    assert x.grad is not None and weight.grad is None
    with torch.no_grad():
        quiet: Any = HeadLoss.apply(x, weight, targets, weights, 0.0, True)
    assert quiet[0] == sums[0] and sums[2] == 0 and quiet[2] > 0


def test_what_is_right_is_the_highest_and_shared_where_several_are() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 1.0], [2.0, 2.0, 2.0], [5.0, 1.0, 1.0]])
    assert right(scores, torch.tensor([1, 0, 2, 1])).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0])


def test_a_head_with_something_around_it_is_called_as_it_is() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = llama()
    assert model.output is not None
    batch = collate([Rows().row(n) for n in range(4)])
    before = Objective(model)(batch).loss
    doubled = Doubled(8, 17, bias=False)
    doubled.weight = model.output.weight
    model.output = doubled
    assert Objective(model)(batch).loss != before


def test_fp16_keeps_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadLoss, "apply", None)
    events = list(Trainer(config(precision="fp16", epochs=1), model=llama(), source=Rows()).run())
    assert len(events) == 8
