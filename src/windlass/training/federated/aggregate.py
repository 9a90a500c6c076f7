"""Make one vector of weights from many: mean, weighted mean, trimmed mean, median, Krum; clipping and noise.

Sums are kept in float64 whatever comes in. The results are those of Flower's strategies FedAvg, FedTrimmedAvg,
FedMedian, Krum and MultiKrum (flower.ai, `flwr.serverapp.strategy`) on the same numbers in float64.

- weighted mean: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data"
- trimmed mean, median: Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv:1803.01498
- Krum: Blanchard et al. 2017, "Machine Learning with Adversaries", arXiv:1703.02757
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.training.federated.errors import InsufficientUpdates, InvalidUpdate

__all__ = [
    "Vector",
    "check_vector",
    "clip_by_norm",
    "gaussian_noise",
    "krum",
    "krum_order",
    "mean",
    "median",
    "trimmed_mean",
    "weighted_mean",
]

#: One model's weights, flat, in any floating type.
Vector = NDArray[np.floating[Any]]
#: Columns that are looked at together, so that the float64 copies of 64 large models are never all in memory.
_BLOCK = 1 << 16
#: A number of samples that no honest node reaches; the sum over all nodes stays exact in float64.
MAX_COUNT = 1 << 40


def check_vector(vector: Vector, size: int, whose: str = "The update") -> None:
    """Raise InvalidUpdate unless `vector` is (size,) finite floating point numbers."""
    if vector.ndim != 1 or len(vector) != size:
        shape = "x".join([str(n) for n in vector.shape])
        text = f"{whose} holds {shape} weights, and the model has {size}."
        raise InvalidUpdate(text, hint="Send every weight of the model, in the model's order.")
    if not np.issubdtype(vector.dtype, np.floating):
        raise InvalidUpdate(f"{whose} holds {vector.dtype}, not floating point numbers.")
    if not np.isfinite(vector).all():
        raise InvalidUpdate(f"{whose} holds a NaN or an infinity.", hint="Lower the learning rate, or clip gradients.")


def _checked(updates: Sequence[Vector]) -> int:
    if not updates:
        raise InsufficientUpdates("There is no update to aggregate.")
    for number, update in enumerate(updates):
        check_vector(update, len(updates[0]), f"Update {number}")
    return len(updates[0])


def _blocks(updates: Sequence[Vector], size: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    for at in range(0, size, _BLOCK):
        columns = slice(at, min(at + _BLOCK, size))
        yield columns, np.stack([update[columns] for update in updates]).astype(np.float64)


def _by_columns(
    updates: Sequence[Vector], reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    size = _checked(updates)
    out = np.empty(size, np.float64)
    for columns, block in _blocks(updates, size):
        out[columns] = reduce(block)
    return out


def _finite(result: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(result).all():
        raise InvalidUpdate("The updates are so large that their sum is not finite.", hint="Clip them.")
    return result


def mean(updates: Sequence[Vector]) -> NDArray[np.float64]:
    """Return the mean of n vectors (size,), each counted once, as (size,) float64.

    Raises InsufficientUpdates for none, InvalidUpdate for different lengths, NaN, infinities, or a sum past float64.
    """
    return weighted_mean(updates, [1] * len(updates))


def weighted_mean(updates: Sequence[Vector], counts: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean of n vectors (size,), each weighted by its number of samples: FedAvg.

    `counts` are at least 1. Raises like `mean`, and InvalidUpdate for counts that are not such.
    """
    size = _checked(updates)
    if len(counts) != len(updates) or any(not 1 <= count <= MAX_COUNT for count in counts):
        raise InvalidUpdate(f"Each update needs a number of samples from 1 to {MAX_COUNT}.")
    total = sum(counts)
    out = np.zeros(size, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for update, count in zip(updates, counts, strict=True):
            out += update.astype(np.float64) * (count / total)
    return _finite(out)


def trimmed_mean(updates: Sequence[Vector], cut: float = 0.2) -> NDArray[np.float64]:
    """Return, weight by weight, the mean without the int(cut * n) smallest and as many largest values.

    It stands up to fewer than that many hostile nodes. `cut` is in [0, 0.5). Raises like `mean`.
    """
    if not 0 <= cut < 0.5:
        raise InvalidUpdate(f"cut is {cut}; it must be at least 0 and below 0.5.")
    out = int(cut * len(updates))
    inner = slice(out, len(updates) - out)

    def reduce(block: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.mean(np.partition(block, (inner.start, inner.stop - 1), axis=0)[inner], axis=0)

    return _finite(_by_columns(updates, reduce))


def median(updates: Sequence[Vector]) -> NDArray[np.float64]:
    """Return, weight by weight, the median; of an even number of values the mean of the middle two.

    It stands up to fewer than half of the nodes. Raises like `mean`.
    """

    def reduce(block: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.median(block, axis=0)

    return _finite(_by_columns(updates, reduce))


def krum_order(updates: Sequence[Vector], malicious: int = 0) -> list[int]:
    """Return the numbers of the updates, best first, by Krum's score.

    The score is the sum of the squared distances to the n - malicious - 2 (at least 1) nearest others; of equal scores
    the earlier update is better. Raises like `mean`, and InsufficientUpdates for fewer than 2 * malicious + 3 updates
    where some may be malicious: below that Krum promises nothing.
    """
    size, n = _checked(updates), len(updates)
    if malicious < 0:
        raise InvalidUpdate(f"malicious is {malicious}; it must be at least 0.")
    if malicious and n < 2 * malicious + 3:
        text = f"Krum needs {2 * malicious + 3} updates to stand up to {malicious} malicious ones, and there are {n}."
        raise InsufficientUpdates(text)
    squared = np.zeros((n, n), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for _, block in _blocks(updates, size):
            for i in range(n):
                squared[i] += np.square(block - block[i]).sum(axis=1)
    _finite(squared)
    np.fill_diagonal(squared, -1)  # so that an update is its own nearest, also beside an equal one
    nearest = np.sort(squared, axis=1)[:, 1 : max(1, n - malicious - 2) + 1]
    return np.argsort(nearest.sum(axis=1), kind="stable").tolist()


def krum(
    updates: Sequence[Vector], malicious: int = 0, keep: int = 1, counts: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return the update that most others are near to; with `keep` > 1 the weighted mean of the best (Multi-Krum).

    `counts` (default: 1 each) weigh the kept ones. Raises like `krum_order`, and InsufficientUpdates when fewer than
    `keep` are there.
    """
    if keep < 1:
        raise InvalidUpdate(f"keep is {keep}; it must be at least 1.")
    best = krum_order(updates, malicious)[:keep]
    if len(best) < keep:
        raise InsufficientUpdates(f"Multi-Krum shall keep {keep} updates, and there are {len(updates)}.")
    shares = [1] * len(updates) if counts is None else list(counts)
    return weighted_mean([updates[i] for i in best], [shares[i] for i in best])


def clip_by_norm(update: Vector, limit: float) -> NDArray[np.float64]:
    """Return the vector, scaled down to an L2 norm of `limit` where it is longer. Raises InvalidUpdate as `mean` does.

    `limit` is above 0.
    """
    if not limit > 0:
        raise InvalidUpdate(f"The limit of a norm is {limit}; it must be above 0.")
    check_vector(update, len(update))
    vector = update.astype(np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0:
        return vector
    # Scaled first: squares of numbers past 1e154 would be infinite.
    scaled = vector / largest
    norm = float(np.linalg.norm(scaled))
    return vector if norm <= limit / largest else scaled * (limit / norm)


def gaussian_noise(size: int, deviation: float, seed: Sequence[int] | None = None) -> NDArray[np.float64]:
    """Return (size,) independent normal numbers with mean 0 and the given standard deviation.

    The generator is NumPy's PCG64, seeded with `seed` (numbers from 0) or with 256 bits of the system's randomness.

    What this gives: with a secret seed, updates clipped to norm c, and deviation z * c / n on the mean of n, one
    release of the mean is what the Gaussian mechanism makes of it (Dwork and Roth 2014, appendix A): whoever sees only
    the new global weights learns little about any one node's update. What it does not give: the coordinator sees
    every update as it came; no budget is kept over rounds, and privacy is spent in each (compose with a moments or
    Renyi accountant of your own); PCG64 is no cryptographic generator and doubles are not real numbers, which
    published attacks use (Mironov 2012); with a seed that anyone knows, the noise can be taken off again.
    """
    entropy = secrets.randbits(256) if seed is None else list(seed)
    return np.random.Generator(np.random.PCG64(entropy)).normal(0.0, deviation, size)
