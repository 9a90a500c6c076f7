"""The coordinator of federated training: who takes part, this round's updates, and what they become.

Names and defaults are reference E's (`Coordinator`, `register_node`, `submit_update`, `aggregate`; 1 to 64 updates,
300 s). No network and no threads here: `service.py` brings messages to it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.training.federated import aggregate as rules
from windlass.training.federated.config import NODE_ID, FederatedConfig
from windlass.training.federated.errors import (
    DuplicateUpdate,
    FederatedError,
    InsufficientUpdates,
    InvalidUpdate,
    NodeExists,
    RoundFull,
    StaleUpdate,
    StateError,
    UnknownNode,
)
from windlass.training.federated.state import Keeper, Kept, KeptNode, KeptUpdate, digest_of

__all__ = ["Coordinator", "Receipt", "Update"]

#: Rounds whose metrics are remembered, and metrics of one update.
_HISTORY, _METRICS = 1000, 64
MAX_NODES = 10_000


class Update(Struct, frozen=True, kw_only=True):
    """What a node sends: `weights` (model_size,) floats, trained on `sample_count` samples.

    `step` counts the node's updates and grows from one to the next. `round` is the coordinator's when its weights were
    fetched; None does not say. `metrics` are numbers to be averaged and shown.
    """

    node_id: str
    step: int
    weights: NDArray[np.floating] | Sequence[float]
    sample_count: int = 1
    round: int | None = None
    metrics: dict[str, float] = {}


class Receipt(NamedTuple):
    """What became of an update: the round it is in, and how many updates that round has now."""

    round: int
    updates: int


class Coordinator:
    """Aggregates updates of registered nodes into global weights, round by round.

    `model_size` is the number of weights. `weights` (model_size,) are the first global ones, zeros by default. With
    `folder` every accepted update and every round is on disk before it is answered, and a coordinator that is made
    with the same folder goes on where the last one was killed; `weights` then count only for a new folder.

    Raises ConfigError for sizes and weights that do not fit, StateError for a folder that cannot be used.
    """

    def __init__(
        self,
        config: FederatedConfig | None = None,
        model_size: int = 128,
        *,
        weights: NDArray[np.floating] | Sequence[float] | None = None,
        folder: Path | str | None = None,
    ) -> None:
        self.config = config or FederatedConfig()
        if model_size < 1:
            raise ConfigError(f"model_size is {model_size}; it must be at least 1.")
        self.model_size = model_size
        with np.errstate(over="ignore"):
            first = np.zeros(model_size, np.float32) if weights is None else np.array(weights, np.float32)
        try:
            rules.check_vector(first, model_size, "The initial model")
        except InvalidUpdate as error:
            raise ConfigError(error.message, hint=error.hint) from None
        self._keeper = Keeper(Path(folder)) if folder is not None else None
        #: Whether an earlier coordinator's state was taken over.
        self.resumed = False
        self._refused: Counter[str] = Counter()
        self._counting = threading.Lock()
        # One attribute, so that who reads in another thread sees one state.
        self._state = self._open(first)

    def _open(self, first: NDArray[np.float32]) -> tuple[Kept, dict[str, NDArray[np.float32]]]:
        found = self._keeper.read() if self._keeper is not None else None
        if found is not None:
            if found[0].model_size != self.model_size:
                raise StateError(f"The folder keeps a model of {found[0].model_size} weights, not {self.model_size}.",
                                 hint="Name another folder, or the model's size.")  # fmt: skip
            self.resumed = True
            return found
        digest = digest_of(first)
        kept, vectors = Kept(model_size=self.model_size, weights=digest), {digest: first}
        if self._keeper is not None:
            self._keeper.write(kept, vectors)
        return kept, vectors

    def _commit(self, kept: Kept, new: dict[str, NDArray[np.float32]]) -> None:
        """Take a new state over, on disk first: what was answered is never taken back."""
        if self._keeper is not None:
            self._keeper.write(kept, new)
        vectors = {**self._state[1], **new}
        named = (kept.weights, *[each.digest for each in kept.updates])
        self._state = kept, {digest: vectors[digest] for digest in named}

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def _kept(self) -> Kept:
        return self._state[0]

    @property
    def round(self) -> int:
        """How many rounds were aggregated."""
        return self._kept.round

    @property
    def weights(self) -> NDArray[np.float32]:
        """The global weights, (model_size,) float32; a copy."""
        return self.current()[1]

    def current(self) -> tuple[int, NDArray[np.float32]]:
        """Return the round and the global weights that belong to it, also while another thread ends the round."""
        kept, vectors = self._state
        return kept.round, vectors[kept.weights].copy()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The registered nodes."""
        return tuple(self._kept.nodes)

    @property
    def counts(self) -> Counter[str]:
        """How often what happened: `accepted`, `stale`, `rounds`; and since it was made, each refusal by its code."""
        with self._counting:
            return Counter(self._kept.counts) + self._refused

    @property
    def history(self) -> list[dict[str, float]]:
        """Each round's metrics, averaged by sample counts, with `round` and `updates`; the newest 1000."""
        return [dict(entry) for entry in self._kept.history]

    def waiting(self) -> tuple[str, ...]:
        """Return the nodes whose updates are in this round and still fresh."""
        return tuple(each.node_id for each in self._fresh())

    def _fresh(self) -> list[KeptUpdate]:
        # By the wall clock, which goes on while no coordinator runs; one set back makes nothing older.
        oldest = clock.now_ns() - round(self.config.staleness_seconds * 1e9)
        return [each for each in self._kept.updates if each.received_ns >= oldest]

    # -- nodes -----------------------------------------------------------------------------------------------------

    def register_node(self, node_id: str, identity: KeptNode | None = None) -> KeptNode:
        """Let a node take part, and return what is known of it; again is the same as once.

        `identity` holds its key where it enrolled. Raises InvalidUpdate for a name that is not 1 to 64 letters, digits,
        dots, dashes and underscores, NodeExists when another holds it, RoundFull for more than 10 000 nodes.
        """
        if not NODE_ID.fullmatch(node_id):
            raise InvalidUpdate(f"{node_id[:80]!r} is no name of a node.", hint="Letters, digits, dots, dashes, _.")
        known = self._kept.nodes.get(node_id)
        if known is not None:
            if identity is None or known.node_nonce == identity.node_nonce:
                return known
            if known.node_nonce:
                raise NodeExists(f"A node {node_id!r} enrolled before with another key.",
                                 hint="Choose another name, or remove that node.")  # fmt: skip
            identity = replace(identity, last_step=known.last_step)
        elif len(self._kept.nodes) >= MAX_NODES:
            raise RoundFull(f"{MAX_NODES} nodes are registered, and no more are taken.")
        made = identity or KeptNode()
        self._commit(replace(self._kept, nodes={**self._kept.nodes, node_id: made}), {})
        return made

    def remove_node(self, node_id: str) -> bool:
        """Forget a node, its key and its update in this round; False when it was not registered."""
        if node_id not in self._kept.nodes:
            return False
        nodes = {name: node for name, node in self._kept.nodes.items() if name != node_id}
        updates = [each for each in self._kept.updates if each.node_id != node_id]
        self._commit(replace(self._kept, nodes=nodes, updates=updates), {})
        return True

    def node(self, node_id: str) -> KeptNode | None:
        """Return what is known of a node."""
        return self._kept.nodes.get(node_id)

    # -- rounds ----------------------------------------------------------------------------------------------------

    def submit_update(self, update: Update) -> Receipt:
        """Take a node's update into this round; with a folder it is on disk when this returns.

        Raises UnknownNode; InvalidUpdate for a wrong length, values that are not finite, a count below 1; StaleUpdate
        for another round, or a step that is not above the node's last; DuplicateUpdate for a second one of the node in
        this round (with `same` where it is the first one again); RoundFull past `max_updates`. Nothing is kept then.
        """
        try:
            return self._submit(update)
        except FederatedError as error:
            self.count(error.code)
            raise

    def _submit(self, update: Update) -> Receipt:
        kept = self._kept
        node = kept.nodes.get(update.node_id)
        if node is None:
            raise UnknownNode(f"The node {update.node_id[:80]!r} is not registered.", hint="Register it first.")
        vector = self._check(update)
        if update.round is not None and update.round != kept.round:
            raise StaleUpdate(f"The update is of round {update.round}, and this is round {kept.round}.",
                              hint="Fetch the weights and train from them.")  # fmt: skip
        made = KeptUpdate(update.node_id, update.step, update.sample_count, clock.now_ns(), digest_of(vector),
                          dict(update.metrics))  # fmt: skip
        fresh = self._fresh()
        held = next((each for each in kept.updates if each.node_id == update.node_id), None)
        if held is not None and held in fresh:
            same = replace(held, received_ns=made.received_ns) == made
            raise DuplicateUpdate(
                f"The node {update.node_id!r} has an update in round {kept.round} already.", same=same
            )
        # One that grew stale while the round waited may be made anew, with the step it had.
        if update.step < node.last_step or (update.step == node.last_step and held is None):
            raise StaleUpdate(f"Step {update.step} of {update.node_id!r} is not above its last, {node.last_step}.")
        if len(fresh) >= self.config.max_updates:
            raise RoundFull(f"Round {kept.round} has {len(fresh)} updates already.", hint="Wait for the next round.")
        counts = Counter(kept.counts)
        counts.update(accepted=1, stale=int(held is not None))
        nodes = {**kept.nodes, update.node_id: replace(node, last_step=update.step)}
        updates = [*[each for each in kept.updates if each is not held], made]
        self._commit(replace(kept, nodes=nodes, updates=updates, counts=dict(+counts)), {made.digest: vector})
        return Receipt(kept.round, len(fresh) + 1)

    def _check(self, update: Update) -> NDArray[np.float32]:
        try:
            weights = np.asarray(update.weights)
        except ValueError as error:
            raise InvalidUpdate(f"The update is no vector of weights: {error}.") from None
        if weights.dtype.kind in "iu":
            weights = weights.astype(np.float64)
        rules.check_vector(weights, self.model_size)
        with np.errstate(over="ignore"):
            vector = weights.astype(np.float32)
        rules.check_vector(vector, self.model_size)  # what float32 cannot hold is infinite now
        if not 1 <= update.sample_count <= rules.MAX_COUNT:
            raise InvalidUpdate(f"sample_count is {update.sample_count}; it must be from 1 to {rules.MAX_COUNT}.")
        if not 0 <= update.step < 1 << 62:
            raise InvalidUpdate(f"step is {update.step}; it must be at least 0.")
        bad = [name for name, value in update.metrics.items() if not math.isfinite(value) or len(name) > 64]
        if bad or len(update.metrics) > _METRICS:
            raise InvalidUpdate(f"At most {_METRICS} metrics with short names and finite values are taken: {bad[:3]}.")
        return vector

    def aggregate(self) -> NDArray[np.float32]:
        """End the round: make its fresh updates the new global weights and return them, (model_size,) float32.

        Raises InsufficientUpdates for none, or fewer than `min_updates` or the strategy needs; they stay. Raises
        InvalidUpdate when the sum is past float32.
        """
        kept, config, fresh = self._kept, self.config, self._fresh()
        if len(fresh) < config.min_updates:
            gone = len(kept.updates) - len(fresh)
            raise InsufficientUpdates(
                f"Round {kept.round} has {len(fresh)} of {config.min_updates} updates"
                f"{f', and {gone} grew stale' if gone else ''}."
            )
        vectors = [self._state[1][each.digest] for each in fresh]
        result = self.preview(vectors, [each.sample_count for each in fresh])
        digest = digest_of(result)
        counts = Counter(kept.counts)
        counts.update(rounds=1, stale=len(kept.updates) - len(fresh))
        entry = {"round": float(kept.round), "updates": float(len(fresh)), **_averages(fresh)}
        self._commit(
            replace(kept, round=kept.round + 1, weights=digest, updates=[], counts=dict(+counts),
                    history=[*kept.history, entry][-_HISTORY:]),
            {digest: result},
        )  # fmt: skip
        return result.copy()

    def preview(self, vectors: Sequence[NDArray[np.float32]], counts: Sequence[int]) -> NDArray[np.float32]:
        """Return what updates would make of the global weights, (model_size,) float32; nothing is changed.

        Order matters to the last bit: it is the order in which updates came. Raises as `aggregate` does.
        """
        config, base = self.config, self.current()[1].astype(np.float64)
        changes = config.update == "delta" or bool(config.clip)
        updates: list[NDArray[np.floating]] = list(vectors)
        if changes and config.update == "weights":
            updates = [vector - base for vector in updates]
        if config.clip:
            updates = [rules.clip_by_norm(vector, config.clip) for vector in updates]
        result = self._combine(updates, counts)
        if changes:
            result = base + result
        if config.noise:
            share = max(counts) / sum(counts) if config.strategy == "weighted_mean" else 1 / len(updates)
            seed = None if config.seed is None else [config.seed, self._kept.round]
            result += rules.gaussian_noise(self.model_size, config.noise * config.clip * share, seed)
        with np.errstate(over="ignore"):
            narrow = result.astype(np.float32)
        rules.check_vector(narrow, self.model_size, "The result")
        return narrow

    def _combine(self, updates: Sequence[NDArray[np.floating]], counts: Sequence[int]) -> NDArray[np.float64]:
        config = self.config
        if config.strategy == "mean":
            return rules.mean(updates)
        if config.strategy == "weighted_mean":
            return rules.weighted_mean(updates, counts)
        if config.strategy == "trimmed_mean":
            return rules.trimmed_mean(updates, config.trim)
        if config.strategy == "median":
            return rules.median(updates)
        return rules.krum(updates, config.malicious, config.keep, counts)

    def count(self, what: str) -> None:
        """Count a refusal. May be called from any thread."""
        with self._counting:
            self._refused[what] += 1

    def save(self, folder: Path | str) -> None:
        """Write a copy of the state to a folder, which `Coordinator(..., folder=...)` takes up. Raises StateError."""
        Keeper(Path(folder)).write(*self._state)


def _averages(updates: Sequence[KeptUpdate]) -> dict[str, float]:
    """Return the metrics that every update has, weighted by samples."""
    total = sum(each.sample_count for each in updates)
    names = set.intersection(*[set(each.metrics) for each in updates])
    return {name: sum(each.metrics[name] * each.sample_count for each in updates) / total for name in sorted(names)}
