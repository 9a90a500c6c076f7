"""Rows out of texts: several in one row where they fit, none of which sees the others.

A row has room for `seq_len` predictions, that is `seq_len + 1` tokens. A longer text goes on in further pieces, each of
which begins with the last token of the one before, so that every token but a text's first is predicted once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.training.data import Row
from windlass.training.files import DataError

__all__ = ["PackedSource", "Packing", "Texts", "TokenStream", "best_fit", "in_order"]

#: best-fit: as few rows as can be; greedy: texts stay in their order; none: each piece is a row of its own.
Packing = Literal["best-fit", "greedy", "none"]
_SCAN: Final = 1 << 22


class Texts(Struct, frozen=True):
    """Texts as tokens, in memory or in files: text i is tokens `ends[i - 1]` to `ends[i]`.

    `tokens(start, count)` and `marks(start, count)` read some; a mark is 1 where a token counts in the loss. `marks`
    None: all do. `skipped` counts texts that were left out.
    """

    name: str
    vocab_size: int
    ends: NDArray[np.int64]
    tokens: Callable[[int, int], NDArray[np.uint32]]
    marks: Callable[[int, int], NDArray[np.uint8]] | None = None
    skipped: int = 0

    @property
    def total(self) -> int:
        """Return how many tokens there are."""
        return int(self.ends[-1]) if len(self.ends) else 0


def checked(texts: Texts, start: int, count: int) -> NDArray[np.int32]:
    """Return tokens of texts as a row has them. Raises DataError for one outside the vocabulary."""
    found = texts.tokens(start, count)
    if count and int(found.max()) >= texts.vocab_size:
        at = start + int(found.argmax())
        raise DataError(
            f"{texts.name}: token {at} is {int(found.max())}, outside the vocabulary of {texts.vocab_size}.",
            hint="It was made with another tokenizer.",
        )
    return found.astype(np.int32)


def _capacity(seq_len: int) -> int:
    if not 1 <= seq_len <= 1 << 22:
        raise ConfigError(f"seq_len is {seq_len}; it must be from 1 to {1 << 22}.")
    return seq_len + 1


class PackedSource:
    """Rows of whole texts (`windlass.training.data.Source`); the same texts give the same rows.

    A row of several texts numbers them from 1 in `segments`. `weights` is given where not all tokens count. Pieces in
    which nothing is to be learned are left out.
    """

    def __init__(self, texts: Texts, seq_len: int, *, packing: Packing = "best-fit") -> None:
        if packing not in ("best-fit", "greedy", "none"):
            raise ConfigError(f"packing is {packing!r}; it is best-fit, greedy or none.")
        self.texts, self.seq_len = texts, seq_len
        size = _capacity(seq_len)
        starts, lengths = _cut(texts.ends, size)
        if texts.marks is not None and len(starts):
            keep = _learned(texts.marks, starts, lengths) > 0
            starts, lengths = starts[keep], lengths[keep]
        if packing == "none":
            row_of = np.arange(len(starts), dtype=np.int64)
        else:
            row_of = best_fit(lengths, size) if packing == "best-fit" else in_order(lengths, size)
        by_row = np.argsort(row_of, kind="stable")
        self._starts, self._lengths = starts[by_row], lengths[by_row]
        rows = int(row_of.max()) + 1 if len(row_of) else 0
        self._first = np.concatenate(([0], np.cumsum(np.bincount(row_of, minlength=rows)))).astype(np.int64)

    @property
    def name(self) -> str:
        """Return what the data is called."""
        return self.texts.name

    @property
    def vocab_size(self) -> int:
        """Return how many tokens there can be."""
        return self.texts.vocab_size

    def __len__(self) -> int:
        return len(self._first) - 1

    def row(self, index: int) -> Row:
        """Return row `index`. Raises IndexError, and DataError for a token outside the vocabulary."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        own = slice(int(self._first[index]), int(self._first[index + 1]))
        spans = list(zip(self._starts[own].tolist(), self._lengths[own].tolist(), strict=True))
        tokens = np.concatenate([checked(self.texts, start, count) for start, count in spans])
        weights = segments = None
        if self.texts.marks is not None:
            weights = np.concatenate([self.texts.marks(start, count) for start, count in spans]).astype(np.float32)
        if len(spans) > 1:
            segments = np.repeat(np.arange(1, len(spans) + 1, dtype=np.int32), [count for _, count in spans])
        return Row(tokens, weights, segments)


class TokenStream:
    """Windows over one long line of tokens (`windlass.training.data.Source`), as a TokenBin or WDBX dataset holds.

    Window n begins with the last token of window n - 1. With `end`, the id that ends a text, texts in a window do not
    see each other.
    """

    def __init__(self, texts: Texts, seq_len: int, *, end: int | None = None) -> None:
        self.texts, self.seq_len, self._end = texts, seq_len, end
        _capacity(seq_len)

    @property
    def name(self) -> str:
        """Return what the data is called."""
        return self.texts.name

    @property
    def vocab_size(self) -> int:
        """Return how many tokens there can be."""
        return self.texts.vocab_size

    def __len__(self) -> int:
        return -(-max(self.texts.total - 1, 0) // self.seq_len)

    def row(self, index: int) -> Row:
        """Return window `index`. Raises IndexError, and DataError for a token outside the vocabulary."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.seq_len
        tokens = checked(self.texts, start, min(self.seq_len + 1, self.texts.total - start))
        if self._end is None:
            return Row(tokens)
        ended = np.concatenate(([0], np.cumsum(tokens[:-1] == self._end))).astype(np.int32)
        return Row(tokens, None, ended + 1 if ended[-1] else None)


def highest(texts: Texts) -> int:
    """Return the highest token id (-1: there are none), reading all tokens once."""
    starts = range(0, texts.total, _SCAN)
    return max([int(texts.tokens(at, min(_SCAN, texts.total - at)).max()) for at in starts], default=-1)


def _cut(ends: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where pieces of at most `size` tokens begin and how long they are, at least 2."""
    begins = np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[:-1]))
    counts = np.maximum(-(-(ends - begins - 1) // (size - 1)), 0)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + within * (size - 1)
    return starts, np.minimum(size, np.repeat(ends, counts) - starts)


def _learned(
    marks: Callable[[int, int], NDArray[np.uint8]], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many tokens of each piece are predicted and count. Pieces come in the order of the file."""
    out = np.zeros(len(starts), np.int64)
    first = 0
    stops = starts + lengths
    while first < len(starts):
        at = int(starts[first])
        after = max(int(np.searchsorted(stops, at + _SCAN, "right")), first + 1)
        sums = np.concatenate(([0], np.cumsum(marks(at, int(stops[after - 1]) - at), dtype=np.int64)))
        out[first:after] = sums[stops[first:after] - at] - sums[starts[first:after] + 1 - at]
        first = after
    return out


def best_fit(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the row of each piece: the longest first, each where it leaves the least room (Ding et al. 2024).

    No length may be above `size`. Takes about a microsecond for each piece (arXiv:2404.10830).
    """
    row_of = np.zeros(len(lengths), np.int64)
    # Rows by the room that is left in them, and a bit for each room that some row has.
    rooms: dict[int, list[int]] = {}
    free, rows = 0, 0
    plain = lengths.tolist()
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = plain[piece]
        if above := free >> length:
            room = length + (above & -above).bit_length() - 1
            row = rooms[room].pop()
            if not rooms[room]:
                free ^= 1 << room
        else:
            room, row = size, rows
            rows += 1
        row_of[piece] = row
        if (left := room - length) > 1:
            rooms.setdefault(left, []).append(row)
            free |= 1 << left
    return row_of


def in_order(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the row of each piece: the one of the piece before it while there is room, else the next."""
    row_of = np.zeros(len(lengths), np.int64)
    row, used = 0, 0
    for piece, length in enumerate(lengths.tolist()):
        if used and used + length > size:
            row, used = row + 1, 0
        row_of[piece] = row
        used += length
    return row_of
