"""The coordinator alone: registration, rounds, staleness, and what is on disk when it is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.testing.clock import FakeClock
from windlass.training.federated import (
    Coordinator,
    DuplicateUpdate,
    FederatedConfig,
    InsufficientUpdates,
    InvalidUpdate,
    NodeExists,
    RoundFull,
    StaleUpdate,
    StateError,
    UnknownNode,
    Update,
    aggregate,
    state,
)


def update(node: str, *weights: float, step: int = 1, count: int = 1, **more: Any) -> Update:
    return Update(node_id=node, step=step, weights=np.array(weights, np.float32), sample_count=count, **more)


def coordinator(nodes: str = "a b c", size: int = 2, folder: Path | None = None, **config: Any) -> Coordinator:
    made = Coordinator(FederatedConfig(**config), size, folder=folder)
    for node in nodes.split():
        made.register_node(node)
    return made


def test_the_names_and_defaults_are_reference_e_s() -> None:
    made = Coordinator(FederatedConfig(), 128)
    config = made.config
    assert (config.min_updates, config.max_updates, config.staleness_seconds, config.strategy) == (1, 64, 300.0, "mean")
    assert (made.model_size, Coordinator().model_size, len(made.weights)) == (128, 128, 128)
    assert update("node-a", 0.0).sample_count == 1


def test_reference_e_s_example_is_an_invalid_update() -> None:
    """It sends 2 weights to a model of 128, which its own code refuses."""
    made = Coordinator(FederatedConfig(), 128)
    made.register_node("node-a")
    with pytest.raises(InvalidUpdate, match=r"holds 2 weights, and the model has 128\."):
        made.submit_update(update("node-a", 0.1, 0.2))
    with pytest.raises(InsufficientUpdates, match="0 of 1"):
        made.aggregate()
    assert made.counts == {"invalid_update": 1}
    made.submit_update(Update(node_id="node-a", step=1, weights=[0.1, 0.2] * 64))
    assert made.aggregate().tolist() == [np.float32(0.1), np.float32(0.2)] * 64


def test_mean_counts_nodes_and_weighted_mean_samples() -> None:
    for strategy, expected in (("mean", [2.0, 3.0]), ("weighted_mean", [2.5, 4.0])):
        made = coordinator(strategy=strategy)
        made.submit_update(update("a", 1.0, 1.0, count=1))
        made.submit_update(update("b", 3.0, 5.0, count=3))
        assert made.aggregate().tolist() == expected
        assert (made.round, made.waiting(), made.weights.tolist()) == (1, (), expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"strategy": "trimmed_mean", "trim": 0.2}, [2.0, 2.0]),
        ({"strategy": "median"}, [2.0, 2.0]),
        ({"strategy": "krum", "malicious": 1}, [2.0, 2.0]),
    ],
    ids=["trimmed", "median", "krum"],
)
def test_robust_strategies_stand_up_to_one_hostile_node(config: dict[str, Any], expected: list[float]) -> None:
    made = coordinator("a b c d evil", **config)
    for node, value in (("a", 1.0), ("b", 2.0), ("c", 2.0), ("d", 2.0), ("evil", 1e9)):
        made.submit_update(update(node, value, value))
    assert made.aggregate().tolist() == expected


def test_deltas_are_added_and_clipping_bounds_what_changes() -> None:
    delta = coordinator(update="delta")
    for round_ in range(2):
        delta.submit_update(update("a", 1.0, -1.0, step=round_ + 1))
        delta.aggregate()
    assert delta.weights.tolist() == [2.0, -2.0]
    start = np.array([10.0, 10.0])
    for kind in ("weights", "delta"):
        made = Coordinator(FederatedConfig(clip=5.0, update=kind), 2, weights=start)
        made.register_node("a")
        made.register_node("b")
        base = 10.0 if kind == "weights" else 0.0
        made.submit_update(update("a", base + 30.0, base + 40.0))
        made.submit_update(update("b", base, base + 1.0))
        assert made.aggregate().tolist() == [11.5, 12.5], kind


def test_noise_is_the_seed_s_scaled_by_clip_and_the_largest_share() -> None:
    for strategy, share in (("mean", 1 / 2), ("weighted_mean", 3 / 4)):
        made = coordinator("a b", 64, strategy=strategy, clip=2.0, noise=0.5, seed=9)
        for node, count in (("a", 1), ("b", 3)):
            made.submit_update(Update(node_id=node, step=1, weights=np.zeros(64), sample_count=count))
        expected = aggregate.gaussian_noise(64, 0.5 * 2.0 * share, [9, 0])
        np.testing.assert_allclose(made.aggregate(), expected, 1e-6)
    unseeded = [coordinator("a", 8, clip=1.0, noise=1.0) for _ in range(2)]
    for made in unseeded:
        made.submit_update(Update(node_id="a", step=1, weights=np.zeros(8)))
    assert not np.array_equal(unseeded[0].aggregate(), unseeded[1].aggregate())


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        pytest.param(update("a", 1.0), "holds 1 weights", id="short"),
        pytest.param(update("a", 1.0, 2.0, 3.0), "holds 3 weights", id="long"),
        pytest.param(update("a", 1.0, float("nan")), "NaN", id="nan"),
        pytest.param(update("a", float("inf"), 0.0), "infinity", id="infinity"),
        pytest.param(Update(node_id="a", step=1, weights=[1e39, 0.0]), "infinity", id="past-float32"),
        pytest.param(Update(node_id="a", step=1, weights=np.zeros((2, 1))), "2x1 weights", id="matrix"),
        pytest.param(Update(node_id="a", step=1, weights=["x", "y"]), "not floating", id="text"),  # pyright: ignore[reportArgumentType]
        pytest.param(update("a", 1.0, 2.0, count=0), "sample_count", id="no-samples"),
        pytest.param(update("a", 1.0, 2.0, step=-1), "step", id="negative-step"),
        pytest.param(update("a", 1.0, 2.0, metrics={"loss": float("nan")}), "metrics", id="metric-nan"),
        pytest.param(update("a", 1.0, 2.0, metrics={f"m{i}": 1.0 for i in range(65)}), "64 metrics", id="metrics"),
    ],
)
def test_updates_that_cannot_be_are_refused_and_nothing_is_kept(sent: Update, says: str) -> None:
    made = coordinator()
    with pytest.raises(InvalidUpdate, match=says):
        made.submit_update(sent)
    assert (made.waiting(), made.counts) == ((), {"invalid_update": 1})
    made.submit_update(update("a", 1.0, 2.0))


def test_unknown_nodes_other_rounds_and_old_steps_are_refused() -> None:
    made = coordinator("a")
    with pytest.raises(UnknownNode):
        made.submit_update(update("b", 1.0, 2.0))
    made.submit_update(update("a", 1.0, 2.0, step=5, round=0))
    made.aggregate()
    with pytest.raises(StaleUpdate, match="round 0, and this is round 1"):
        made.submit_update(update("a", 1.0, 2.0, step=6, round=0))
    with pytest.raises(StaleUpdate, match="round 2, and this is round 1"):
        made.submit_update(update("a", 1.0, 2.0, step=6, round=2))
    for step in (4, 5):
        with pytest.raises(StaleUpdate, match="not above its last, 5"):
            made.submit_update(update("a", 9.0, 9.0, step=step))
    assert made.weights.tolist() == [1.0, 2.0]
    assert made.counts == {"accepted": 1, "rounds": 1, "unknown_node": 1, "stale_update": 4}


def test_a_second_update_of_a_node_in_a_round_is_refused_and_the_same_one_told_apart() -> None:
    made = coordinator()
    first = update("a", 1.0, 2.0, step=3)
    made.submit_update(first)
    with pytest.raises(DuplicateUpdate) as same:
        made.submit_update(first)
    with pytest.raises(DuplicateUpdate) as other:
        made.submit_update(update("a", 9.0, 9.0, step=4))
    assert (same.value.same, other.value.same) == (True, False)
    assert made.aggregate().tolist() == [1.0, 2.0]


def test_too_few_and_too_many_updates() -> None:
    made = coordinator("a b c", min_updates=2, max_updates=2)
    made.submit_update(update("a", 1.0, 1.0))
    with pytest.raises(InsufficientUpdates, match="1 of 2"):
        made.aggregate()
    made.submit_update(update("b", 3.0, 3.0))
    with pytest.raises(RoundFull):
        made.submit_update(update("c", 5.0, 5.0))
    assert made.aggregate().tolist() == [2.0, 2.0]


def test_krum_with_too_few_updates_keeps_them() -> None:
    made = coordinator("a b c d e", strategy="krum", malicious=1)
    for node in "abcd":
        made.submit_update(update(node, 1.0, 1.0))
    with pytest.raises(InsufficientUpdates, match="needs 5 updates"):
        made.aggregate()
    made.submit_update(update("e", 1.0, 1.0))
    assert made.aggregate().tolist() == [1.0, 1.0]


def test_updates_grow_stale_by_the_clock_and_may_be_made_anew() -> None:
    with clock.use(fake := FakeClock()):
        made = coordinator("a b", min_updates=2)
        made.submit_update(update("a", 1.0, 1.0))
        fake.elapsed += 299.0
        assert made.waiting() == ("a",)
        fake.elapsed += 2.0
        made.submit_update(update("b", 3.0, 3.0))
        with pytest.raises(InsufficientUpdates, match="1 of 2 updates, and 1 grew stale"):
            made.aggregate()
        made.submit_update(update("a", 5.0, 5.0))
        assert made.aggregate().tolist() == [4.0, 4.0]
        assert made.counts == {"accepted": 3, "stale": 1, "rounds": 1}
        fake.jump(-1e6)
        made.submit_update(update("a", 7.0, 7.0, step=2))
        assert made.waiting() == ("a",), "a clock set back makes nothing stale"


def test_nodes_are_named_registered_once_and_forgotten() -> None:
    made = coordinator("a")
    assert made.register_node("a") == made.node("a")
    for bad in ("", "a b", "x" * 65, "../a", "a\n", "@operator", "ä"):
        with pytest.raises(InvalidUpdate, match="no name"):
            made.register_node(bad)
    made.register_node("k", state.KeptNode(key="00", node_nonce="n1"))
    assert made.register_node("k", state.KeptNode(key="ff", node_nonce="n1")).key == "00"
    with pytest.raises(NodeExists):
        made.register_node("k", state.KeptNode(key="ff", node_nonce="n2"))
    made.submit_update(update("a", 1.0, 1.0))
    assert (made.remove_node("a"), made.remove_node("a"), made.waiting(), made.nodes) == (True, False, (), ("k",))


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "sum"},
        {"update": "gradient"},
        {"min_updates": 0},
        {"min_updates": 3, "max_updates": 2},
        {"staleness_seconds": -1.0},
        {"staleness_seconds": float("nan")},
        {"trim": 0.5},
        {"noise": 1.0},
        {"noise": 1.0, "clip": 1.0, "strategy": "median"},
        {"seed": -1},
        {"strategy": "krum", "malicious": 31},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FederatedConfig(**options)


def test_initial_weights_must_fit() -> None:
    for size, weights in ((0, None), (2, [1.0]), (2, [1.0, float("nan")]), (2, [1e39, 0.0])):
        with pytest.raises(ConfigError):
            Coordinator(None, size, weights=weights)


# -- state -----------------------------------------------------------------------------------------------------------


def test_a_killed_coordinator_goes_on_with_its_round(tmp_path: Path) -> None:
    first = coordinator("a b", min_updates=2, folder=tmp_path / "s")
    first.submit_update(update("a", 1.0, 1.0, metrics={"loss": 2.0}))
    del first
    second = Coordinator(FederatedConfig(min_updates=2), 2, folder=tmp_path / "s")
    assert (second.resumed, second.nodes, second.waiting(), second.round) == (True, ("a", "b"), ("a",), 0)
    with pytest.raises(DuplicateUpdate) as same:
        second.submit_update(update("a", 1.0, 1.0, metrics={"loss": 2.0}))
    assert same.value.same
    second.submit_update(update("b", 3.0, 3.0, count=3, metrics={"loss": 1.0, "more": 1.0}))
    assert second.aggregate().tolist() == [2.0, 2.0]
    third = Coordinator(FederatedConfig(), 2, folder=tmp_path / "s")
    assert (third.round, third.weights.tolist(), third.waiting()) == (1, [2.0, 2.0], ())
    assert third.history == [{"round": 0.0, "updates": 2.0, "loss": 1.25}]
    assert third.counts == {"accepted": 2, "rounds": 1}
    assert len(list((tmp_path / "s").iterdir())) == 2, "state.json and the global weights, nothing else"


def _crash_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Make the number-th durable step (a write, a rename, a sync) the last that ever happens."""
    left = number

    def dying(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return step

    patch.setattr(os, "fsync", dying(os.fsync))
    patch.setattr(os, "replace", dying(os.replace))
    patch.setattr(os, "rename", dying(os.rename))
    patch.setattr(Path, "unlink", dying(Path.unlink))


@pytest.mark.parametrize("what", ["submit", "aggregate"])
def test_dying_at_any_step_of_a_write_leaves_the_old_state_or_the_new(what: str, tmp_path: Path) -> None:
    outcomes: set[int] = set()
    for number in range(12):
        folder = tmp_path / str(number)
        made = coordinator("a b", folder=folder)
        made.submit_update(update("a", 1.0, 1.0))
        with pytest.MonkeyPatch.context() as patch:
            _crash_at(number, patch)
            try:
                made.submit_update(update("b", 3.0, 3.0)) if what == "submit" else made.aggregate()
                died = False
            except (KeyboardInterrupt, StateError):
                died = True
        after = Coordinator(FederatedConfig(), 2, folder=folder)
        if what == "submit":
            done = "b" in after.waiting()
            assert "a" in after.waiting(), "what was acknowledged stays"
        else:
            done = after.round == 1
            assert after.weights.tolist() == ([1.0, 1.0] if done else [0.0, 0.0])
            assert after.waiting() == (() if done else ("a",))
        assert done or died, "what was acknowledged is kept"
        outcomes.add(int(done))
        if what == "submit" and not done:
            after.submit_update(update("b", 3.0, 3.0))
        if after.round == 0:
            after.aggregate()
        assert after.weights.tolist() == ([2.0, 2.0] if what == "submit" else [1.0, 1.0])
    assert outcomes == {0, 1}


def test_damaged_and_foreign_state_is_refused(tmp_path: Path) -> None:
    made = coordinator("a", folder=tmp_path / "s")
    made.submit_update(update("a", 1.0, 1.0))
    files = {path: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    assert {oct(path.stat().st_mode & 0o077) for path in files if path.name == "state.json"} == {"0o0"}
    with pytest.raises(StateError, match="2 weights, not 3"):
        Coordinator(None, 3, folder=tmp_path / "s")
    for path, data in files.items():
        for broken in (b"", data[:-1], data[: len(data) // 2], data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]):
            path.write_bytes(broken)
            with pytest.raises(StateError):
                Coordinator(None, 2, folder=tmp_path / "s")
        path.write_bytes(data)
    text = files[tmp_path / "s" / "state.json"]
    for broken in (text.replace(b'"version":1', b'"version":2'), text.replace(b'"round":0', b'"round":0,"x":1'),
                   text.replace(b'"weights":"', b'"weights":"../')):  # fmt: skip
        assert broken != text
        (tmp_path / "s" / "state.json").write_bytes(broken)
        with pytest.raises(StateError):
            Coordinator(None, 2, folder=tmp_path / "s")


def test_save_makes_a_copy_that_goes_on_by_itself(tmp_path: Path) -> None:
    made = coordinator("a b")
    made.submit_update(update("a", 1.0, 1.0))
    made.save(tmp_path / "copy")
    made.submit_update(update("b", 3.0, 3.0))
    copy = Coordinator(None, 2, folder=tmp_path / "copy")
    assert (copy.waiting(), copy.aggregate().tolist()) == (("a",), [1.0, 1.0])
    assert made.aggregate().tolist() == [2.0, 2.0]


class Rounds(RuleBasedStateMachine):
    """Any order of registering, sending, waiting and aggregating against a few lines that say what should be."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeClock()
        self.made = Coordinator(FederatedConfig(min_updates=2, max_updates=3), 1)
        self.registered: set[str] = set()
        self.here: dict[str, tuple[float, float]] = {}
        self.steps: dict[str, int] = {}
        self.rounds, self.weights = 0, 0.0

    def fresh(self) -> dict[str, float]:
        return {node: value for node, (value, at) in self.here.items() if self.fake.elapsed - at <= 300}

    @rule(node=st.sampled_from("abcd"))
    def register(self, node: str) -> None:
        self.made.register_node(node)
        self.registered.add(node)

    @rule(node=st.sampled_from("abcd"), value=st.integers(-8, 8), step=st.integers(0, 6))
    def submit(self, node: str, value: int, step: int) -> None:
        expected: type[Exception] | None = None
        if node not in self.registered:
            expected = UnknownNode
        elif node in self.fresh():
            expected = DuplicateUpdate
        elif step < self.steps.get(node, -1) or (step == self.steps.get(node, -1) and node not in self.here):
            expected = StaleUpdate
        elif len(self.fresh()) >= 3:
            expected = RoundFull
        with clock.use(self.fake):
            if expected is not None:
                with pytest.raises(expected):
                    self.made.submit_update(update(node, float(value), step=step))
                return
            self.made.submit_update(update(node, float(value), step=step))
        self.here[node], self.steps[node] = (float(value), self.fake.elapsed), step

    @rule(seconds=st.sampled_from([1.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.fake.elapsed += seconds

    @rule()
    def aggregate(self) -> None:
        fresh = self.fresh()
        with clock.use(self.fake):
            if len(fresh) < 2:
                with pytest.raises(InsufficientUpdates):
                    self.made.aggregate()
                return
            self.made.aggregate()
        self.rounds, self.weights, self.here = self.rounds + 1, sum(fresh.values()) / len(fresh), {}

    @invariant()
    def agrees(self) -> None:
        with clock.use(self.fake):
            assert set(self.made.waiting()) == set(self.fresh())
        assert self.made.round == self.rounds
        assert self.made.weights[0] == np.float32(self.weights) or abs(self.made.weights[0] - self.weights) < 1e-6


Rounds.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestRounds = Rounds.TestCase
