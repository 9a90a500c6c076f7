"""What many updates become: our rules against Flower's own functions, on the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.training.flower import (
    Array,
    ArrayRecord,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    Message,
    MetricRecord,
    MultiKrum,
    RecordDict,
    compute_clip_model_update,
    old,
)
from windlass.training.federated import InsufficientUpdates, InvalidUpdate, aggregate
from windlass.training.federated.config import FederatedConfig
from windlass.training.federated.flower import make_strategy

F64 = NDArray[np.float64]


def made(n: int, size: int = 37, seed: int = 0) -> tuple[list[F64], list[int]]:
    rng = np.random.default_rng([n, size, seed])
    return [rng.normal(size=size) for _ in range(n)], rng.integers(1, 1000, n).tolist()


def flower(strategy: Any, updates: list[Any], counts: list[int]) -> NDArray[Any]:
    """Return what a strategy of Flower makes of the replies of nodes, through its own messages."""
    replies: list[Message] = []
    for update, count in zip(updates, counts, strict=True):
        metrics = MetricRecord({"num-examples": count, "num-updates": 1})
        content = RecordDict({"arrays": ArrayRecord({"weights": Array(update)}), "metrics": metrics})
        replies.append(Message(content, message_type="train", dst_node_id=1))
    arrays, _ = strategy.aggregate_train(1, replies)
    return arrays["weights"].numpy()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16])
def test_weighted_mean_is_fedavg_to_the_last_bit(n: int) -> None:
    updates, counts = made(n)
    ours = aggregate.weighted_mean(updates, counts)
    assert np.array_equal(ours, flower(FedAvg(), updates, counts))
    np.testing.assert_allclose(ours, old.aggregate([([u], c) for u, c in zip(updates, counts, strict=True)])[0], 1e-13)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_mean_is_fedavg_with_equal_counts(n: int) -> None:
    updates, counts = made(n)
    assert np.array_equal(aggregate.mean(updates), flower(FedAvg(weighted_by_key="num-updates"), updates, counts))


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.2, 0.49])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_trimmed_mean_is_fedtrimmedavg(n: int, cut: float) -> None:
    updates, counts = made(n)
    ours = aggregate.trimmed_mean(updates, cut)
    np.testing.assert_allclose(ours, flower(FedTrimmedAvg(beta=cut), updates, counts), 1e-14)
    results = [([u], c) for u, c in zip(updates, counts, strict=True)]
    np.testing.assert_allclose(ours, old.aggregate_trimmed_avg(results, cut)[0], 1e-14)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_median_is_fedmedian_to_the_last_bit(n: int) -> None:
    updates, counts = made(n)
    ours = aggregate.median(updates)
    assert np.array_equal(ours, flower(FedMedian(), updates, counts))
    assert np.array_equal(ours, old.aggregate_median([([u], 1) for u in updates])[0])


@pytest.mark.parametrize("malicious", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 9, 16])
def test_krum_and_multikrum_are_flower_s(n: int, malicious: int) -> None:
    updates, counts = made(n, seed=malicious)
    if malicious and n < 2 * malicious + 3:
        with pytest.raises(InsufficientUpdates, match=f"needs {2 * malicious + 3} updates"):
            aggregate.krum(updates, malicious)
        return
    for hostile in range(malicious):
        updates[hostile] = updates[hostile] + 50.0
    ours = aggregate.krum(updates, malicious, counts=counts)
    assert np.array_equal(ours, flower(Krum(num_malicious_nodes=malicious), updates, counts))
    results = [([u], c) for u, c in zip(updates, counts, strict=True)]
    assert np.array_equal(ours, old.aggregate_krum(results, malicious, 0)[0])
    assert aggregate.krum_order(updates, malicious)[0] not in range(malicious)
    keep = max(1, n - malicious - 2)
    several = aggregate.krum(updates, malicious, keep, counts)
    theirs = flower(MultiKrum(num_malicious_nodes=malicious, num_nodes_to_select=keep), updates, counts)
    np.testing.assert_allclose(several, theirs, 1e-13)


@pytest.mark.parametrize("strategy", ["mean", "weighted_mean", "trimmed_mean", "median", "krum"])
def test_flower_s_strategy_of_our_options_does_what_our_rule_does(strategy: Any) -> None:
    config = FederatedConfig(strategy=strategy, malicious=1 if strategy == "krum" else 0)
    updates, counts = made(6)
    ours = {
        "mean": lambda: aggregate.mean(updates),
        "weighted_mean": lambda: aggregate.weighted_mean(updates, counts),
        "trimmed_mean": lambda: aggregate.trimmed_mean(updates, 0.2),
        "median": lambda: aggregate.median(updates),
        "krum": lambda: aggregate.krum(updates, 1),
    }[strategy]()
    np.testing.assert_allclose(ours, flower(make_strategy(config, 6), updates, counts), 1e-13)


def test_clipping_is_flower_s() -> None:
    updates, _ = made(3)
    base = updates[0]
    for limit in (0.5, 5.0, 1000.0):
        theirs = [updates[1].copy()]
        compute_clip_model_update(theirs, [base], limit)
        np.testing.assert_allclose(base + aggregate.clip_by_norm(updates[1] - base, limit), theirs[0], 1e-12)


def test_updates_past_one_block_are_the_same_numbers() -> None:
    size = (1 << 16) + 3
    updates, counts = made(5, size)
    assert np.array_equal(aggregate.median(updates), np.median(np.stack(updates), axis=0))
    assert aggregate.krum_order(updates, 1)[0] == int(
        np.argmin([np.sort([np.sum((a - b) ** 2) for b in updates])[1:3].sum() for a in updates])
    )
    np.testing.assert_allclose(aggregate.weighted_mean(updates, counts), np.average(updates, 0, counts), 1e-10, 1e-12)


def test_sums_are_kept_in_float64() -> None:
    """In float32 the thousandth addition of a thousandth to a thousand is lost."""
    updates = [np.array([2.0**24], np.float32), *[np.array([1.0], np.float32)] * 7]
    assert aggregate.mean(updates)[0] == (2**24 + 7) / 8
    assert aggregate.mean(updates).dtype == np.float64


_numbers = st.floats(-(2.0**100), 2.0**100, width=32)
_updates = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(_numbers, min_size=size, max_size=size), min_size=1, max_size=9)
)


@settings(max_examples=60, deadline=None)
@given(_updates)
def test_results_stay_between_the_smallest_and_the_largest(rows: list[list[float]]) -> None:
    updates = [np.array(row, np.float32) for row in rows]
    low, high = np.min(updates, axis=0).astype(np.float64), np.max(updates, axis=0).astype(np.float64)
    room = 1e-9 * np.maximum(np.abs(low), np.abs(high))
    for result in (
        aggregate.mean(updates),
        aggregate.trimmed_mean(updates, 0.3),
        aggregate.median(updates),
        aggregate.krum(updates),
    ):
        assert (result >= low - room).all() and (result <= high + room).all()


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([np.zeros(3), np.zeros(2)], id="lengths"),
        pytest.param([np.zeros((3, 1))], id="matrix"),
        pytest.param([np.array([1.0, np.nan])], id="nan"),
        pytest.param([np.array([np.inf, 1.0], np.float32)], id="infinity"),
        pytest.param([np.array([1, 2])], id="integers"),
        pytest.param([np.full(2, 1.7e308), np.full(2, -1.7e308)], id="past-float64"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(bad: list[Any]) -> None:
    if "1.7e+308" not in str(bad):
        for rule in (aggregate.mean, aggregate.trimmed_mean, aggregate.median, aggregate.krum):
            with pytest.raises(InvalidUpdate):
                rule(bad)
    else:
        with pytest.raises(InvalidUpdate, match="so large"):
            aggregate.krum(bad)


def test_none_is_insufficient_and_wrong_numbers_are_invalid() -> None:
    for rule in (aggregate.mean, aggregate.trimmed_mean, aggregate.median, aggregate.krum):
        with pytest.raises(InsufficientUpdates):
            rule([])
    one = [np.ones(2)]
    for counts in ([], [0], [1 << 41], [1, 1]):
        with pytest.raises(InvalidUpdate, match="samples"):
            aggregate.weighted_mean(one, counts)
    for cut in (-0.1, 0.5, float("nan")):
        with pytest.raises(InvalidUpdate, match="cut"):
            aggregate.trimmed_mean(one, cut)
    with pytest.raises(InvalidUpdate, match="keep"):
        aggregate.krum(one, keep=0)
    with pytest.raises(InsufficientUpdates, match="keep 2"):
        aggregate.krum(one, keep=2)


def test_clip_by_norm_keeps_directions_also_of_huge_and_zero_vectors() -> None:
    assert np.array_equal(aggregate.clip_by_norm(np.zeros(3), 1.0), np.zeros(3))
    np.testing.assert_allclose(aggregate.clip_by_norm(np.array([3.0, 4.0]), 1.0), [0.6, 0.8], 1e-15)
    assert aggregate.clip_by_norm(np.array([3.0, 4.0]), 5.0).tolist() == [3.0, 4.0]
    np.testing.assert_allclose(aggregate.clip_by_norm(np.array([1e300, 1e300]), 2.0), [2**0.5, 2**0.5], 1e-12)
    with pytest.raises(InvalidUpdate):
        aggregate.clip_by_norm(np.ones(2), 0.0)


def test_noise_has_its_deviation_and_follows_its_seed() -> None:
    noise = aggregate.gaussian_noise(100_000, 0.25, [7, 1])
    assert abs(noise.std() - 0.25) < 0.005 and abs(noise.mean()) < 0.005
    assert np.array_equal(noise, aggregate.gaussian_noise(100_000, 0.25, [7, 1]))
    assert not np.array_equal(noise[:50], aggregate.gaussian_noise(50, 0.25, [7, 2]))
    assert not np.array_equal(aggregate.gaussian_noise(50, 1.0), aggregate.gaussian_noise(50, 1.0))
