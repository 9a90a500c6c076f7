"""The exact nearest vectors: one matrix product in 32-bit floats finds the candidates, 64-bit floats put them in order.

A product of 32-bit floats is wrong by no more than a bound that is known (Higham, "Accuracy and Stability of Numerical
Algorithms", 3.1): whatever comes within twice that bound of the last place is computed again, so that nothing that
belongs to the best is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from windlass.core.errors import ConfigError, StoreError

try:
    import numpy as np
    from numpy.typing import NDArray
except ModuleNotFoundError as error:
    raise ConfigError(
        "A store of vectors needs numpy, which is not installed.", hint="pip install 'windlass[vectors]'"
    ) from error

__all__ = [
    "MAX_DIMENSIONS",
    "METRICS",
    "Floats",
    "Matrix",
    "Metric",
    "Nearest",
    "as_row",
    "as_rows",
    "blocks",
    "from_blob",
    "numbers",
    "scan",
    "scores",
]

Metric = Literal["cosine", "dot", "l2"]
METRICS: Final[tuple[Metric, ...]] = ("cosine", "dot", "l2")
MAX_DIMENSIONS: Final = 16_384
Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]
#: Lengths between which products of two vectors stay within what 32-bit floats can hold.
_SHORTEST, _LONGEST = 1e-15, 1e15
_BLOCK: Final = 8192
_HALF_ULP: Final = 2.0**-24


class Nearest(NamedTuple):
    """An entry's number and how near it is; larger is nearer."""

    no: int
    score: float


def as_rows(vectors: Sequence[Sequence[float]]) -> Floats:
    """Return vectors as rows of 32-bit floats. Raises StoreError for what is no vector, NaN, or out of range."""
    try:
        wide = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        lengths = {len(vector) for vector in vectors if hasattr(vector, "__len__")}
        why = f"they have {' and '.join(map(str, sorted(lengths)[:4]))} numbers" if len(lengths) > 1 else str(error)
        raise StoreError(f"These vectors cannot be used: {why}.", hint="All need the same length.") from None
    if wide.ndim != 2 or not 1 <= wide.shape[1] <= MAX_DIMENSIONS:
        raise StoreError(f"A vector is a row of 1 to {MAX_DIMENSIONS} numbers.")
    if not np.isfinite(wide).all():
        raise StoreError(
            "A vector holds NaN or an infinity.", hint="Its model or its text is broken; nothing was kept."
        )
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.sqrt((wide * wide).sum(axis=1))
        rows = wide.astype("<f4")
    if not ((lengths == 0) | ((lengths >= _SHORTEST) & (lengths <= _LONGEST))).all():
        raise StoreError(f"A vector's length is neither 0 nor between {_SHORTEST:g} and {_LONGEST:g}.")
    return rows


def as_row(vector: Sequence[float]) -> Floats:
    """Return one vector as a row of 32-bit floats. Raises as `as_rows`."""
    return as_rows([vector])[0]


def from_blob(blob: bytes) -> Floats:
    """Return a kept vector."""
    return np.frombuffer(blob, dtype="<f4")


def numbers(found: Iterable[tuple[int]]) -> Numbers:
    """Return the first column of some rows."""
    return np.array([no for (no,) in found], np.int64)


def scores(rows: Floats, query: Floats, metric: Metric) -> Doubles:
    """Return how near each row is, in 64-bit floats: the cosine (0 for a zero vector), the product, or -distance."""
    wide, asked = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return -np.sqrt(((wide - asked) ** 2).sum(axis=1))
    product: Doubles = wide @ asked
    if metric == "dot":
        return product
    lengths = np.sqrt((wide * wide).sum(axis=1)) * np.sqrt(asked @ asked)
    return np.clip(np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0), -1.0, 1.0)


def _best(nos: Numbers, found: Doubles, limit: int) -> list[Nearest]:
    """Return the best, and of equals the older first."""
    order = np.lexsort((nos, -found))[:limit]
    return [Nearest(int(no), float(score)) for no, score in zip(nos[order], found[order], strict=True)]


class Matrix:
    """The vectors of one namespace in memory, by the numbers of their entries in rising order.

    `version` is that of the namespace when it was last brought up to date.
    """

    def __init__(self, dimensions: int, capacity: int = 0) -> None:
        self.version = -1
        self.dimensions = dimensions
        self._rows: Floats = np.zeros((capacity, dimensions), np.float32)
        self._nos: Numbers = np.zeros(capacity, np.int64)
        self._lengths: Floats = np.zeros(capacity, np.float32)
        self._alive: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._used = 0

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return int(self._rows.nbytes + self._nos.nbytes + self._lengths.nbytes + self._alive.nbytes)

    @property
    def count(self) -> int:
        """How many vectors there are."""
        return int(np.count_nonzero(self._alive[: self._used]))

    def put(self, nos: Numbers, rows: Floats) -> None:
        """Take in vectors that are new or changed, by rising numbers; new ones have larger numbers than all before."""
        places = np.searchsorted(self._nos[: self._used], nos)
        known = np.zeros(len(nos), np.bool_)
        inside = places < self._used
        known[inside] = self._nos[places[inside]] == nos[inside]
        self._set(places[known], rows[known])
        fresh = int(np.count_nonzero(~known))
        if fresh:
            self._grow(self._used + fresh)
            at = np.arange(self._used, self._used + fresh)
            self._nos[at] = nos[~known]
            self._used += fresh
            self._set(at, rows[~known])

    def _set(self, places: Numbers, rows: Floats) -> None:
        self._rows[places] = rows
        wide = rows.astype(np.float64)
        self._lengths[places] = np.sqrt((wide * wide).sum(axis=1))
        self._alive[places] = True

    def _grow(self, needed: int) -> None:
        if needed <= len(self._nos):
            return
        # A quarter more than asked for, once something is there: then a row at a time costs little.
        size = needed + (needed >> 2 if self._used else 0)
        for name in ("_rows", "_nos", "_lengths", "_alive"):
            old: NDArray[Any] = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: self._used] = old[: self._used]
            setattr(self, name, new)

    def keep(self, nos: Numbers) -> None:
        """Drop all whose numbers are not among these, which rise."""
        here = self._nos[: self._used]
        at = np.minimum(np.searchsorted(nos, here), max(len(nos) - 1, 0))
        self._alive[: self._used] &= nos[at] == here if len(nos) else False
        self._rows[: self._used][~self._alive[: self._used]] = 0
        if self.count * 4 < self._used * 3:
            left = self._alive[: self._used].nonzero()[0]
            for name in ("_rows", "_nos", "_lengths", "_alive"):
                setattr(self, name, getattr(self, name)[left])
            self._used = len(left)

    def nearest(self, query: Floats, limit: int, metric: Metric, allowed: Numbers | None = None) -> list[Nearest]:
        """Return the nearest entries; `allowed`, rising, leaves only those. `query` is a row of this length."""
        used = self._used
        alive = self._alive[:used]
        if allowed is not None:
            places = np.searchsorted(self._nos[:used], allowed)
            allowed, places = allowed[places < used], places[places < used]
            places = places[(self._nos[places] == allowed) & alive[places]]
        elif alive.all():
            places = None
        else:
            places = alive.nonzero()[0]
        if places is not None and len(places) * 8 < used:
            rows, lengths, nos = self._rows[places], self._lengths[places], self._nos[places]
            kept = None
        else:
            rows, lengths, nos = self._rows[:used], self._lengths[:used], self._nos[:used]
            kept = places
        near = self._candidates(rows, lengths, query, limit, metric, kept)
        return _best(nos[near], _in_blocks(rows, near, query, metric), limit)

    def _candidates(
        self, rows: Floats, lengths: Floats, query: Floats, limit: int, metric: Metric, kept: Numbers | None
    ) -> Numbers:
        """Return the places of all rows that may be among the best."""
        asked = float(np.sqrt((query.astype(np.float64) ** 2).sum()))
        longest = float(lengths.max()) if len(lengths) else 0.0
        error = (self.dimensions + 16) * _HALF_ULP
        found: Floats = rows @ query
        if metric == "cosine":
            # A zero vector's product is 0, and so is its cosine.
            found /= np.where(lengths > 0, lengths, np.float32(1)) * np.float32(asked or 1.0)
        elif metric == "dot":
            error *= asked * longest
        else:
            found *= 2
            found -= lengths * lengths
            error *= 2 * (asked + longest) ** 2
        if kept is not None:
            found = found[kept]
        if limit < len(found):
            last = np.partition(found, len(found) - limit)[len(found) - limit]
            places = (found >= last - 2 * error).nonzero()[0]
        else:
            places = np.arange(len(found))
        return places if kept is None else kept[places]


def _in_blocks(rows: Floats, places: Numbers, query: Floats, metric: Metric) -> Doubles:
    if not len(places):
        return np.empty(0, np.float64)
    parts = [places[at : at + _BLOCK] for at in range(0, len(places), _BLOCK)]
    return np.concatenate([scores(rows[part], query, metric) for part in parts])


def scan(found: Iterable[tuple[int, bytes]], query: Floats, limit: int, metric: Metric) -> list[Nearest]:
    """Return the nearest of (number, kept vector), reading them once and keeping only a block of them in memory."""
    nos, best = np.empty(0, np.int64), np.empty(0, np.float64)
    for block, rows in blocks(found, len(query)):
        nos, best = np.concatenate((nos, block)), np.concatenate((best, scores(rows, query, metric)))
        order = np.lexsort((nos, -best))[:limit]
        nos, best = nos[order], best[order]
    return _best(nos, best, limit)


def blocks(found: Iterable[tuple[int, bytes]], dimensions: int) -> Iterator[tuple[Numbers, Floats]]:
    """Yield numbers and rows of kept vectors, some thousands at a time."""
    cursor = iter(found)
    while batch := list(islice(cursor, _BLOCK)):
        rows = np.frombuffer(b"".join([blob for _, blob in batch]), dtype="<f4").reshape(-1, dimensions)
        yield np.array([no for no, _ in batch], np.int64), rows
