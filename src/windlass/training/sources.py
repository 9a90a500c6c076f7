"""Rows cut from one long line of tokens: a file of them that is mapped into memory, or texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.training.data import Row
from windlass.training.tokenizer import Tokenizer

__all__ = ["TextSource", "TokenSource"]

_CHUNK = 1 << 22


class TokenSource:
    """Windows of `seq_len` predictions over tokens, one after the other: row n holds tokens n seq_len to (n+1) seq_len.

    `tokens` is an array (n,) of ids or the path of a file of little-endian u32 (TokenBin), which is mapped and never
    read as a whole. A last window is shorter; one without a prediction is left out. Without `vocab_size` the tokens
    are read through once for the highest. Raises ConfigError for a file that is no TokenBin or that has a token
    outside the vocabulary (found when its row is read).
    """

    def __init__(
        self, tokens: str | Path | NDArray[Any], seq_len: int, *, vocab_size: int | None = None, name: str | None = None
    ) -> None:
        self._tokens: NDArray[Any] = _mapped(Path(tokens)) if isinstance(tokens, (str, Path)) else tokens
        self.name = name or (str(tokens) if isinstance(tokens, (str, Path)) else "tokens")
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len}; it must be at least 1.")
        self.seq_len = seq_len
        self.vocab_size = vocab_size or self._highest() + 1

    def _highest(self) -> int:
        parts = range(0, len(self._tokens), _CHUNK)
        return max([int(self._tokens[at : at + _CHUNK].max()) for at in parts], default=0)

    def __len__(self) -> int:
        return -(-max(len(self._tokens) - 1, 0) // self.seq_len)

    def row(self, index: int) -> Row:
        """Return window `index`."""
        at = index * self.seq_len
        found = np.asarray(self._tokens[at : at + self.seq_len + 1])
        if int(found.max()) >= self.vocab_size or int(found.min()) < 0:
            raise ConfigError(f"{self.name}: row {index} has a token outside the vocabulary of {self.vocab_size}.")
        return Row(found.astype(np.int32))


class TextSource(TokenSource):
    """Windows over texts, each followed by the tokenizer's end of text, held in memory as tokens."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, seq_len: int, *, name: str = "text") -> None:
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        parts = [np.array(tokenizer.encode(text, special=False) + end, np.int32) for text in texts]
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        super().__init__(tokens, seq_len, vocab_size=tokenizer.vocab_size, name=name)


def _mapped(path: Path) -> NDArray[np.uint32]:
    try:
        size = path.stat().st_size
        if size % 4:
            raise ConfigError(f"{path} has {size} bytes, no multiple of 4: it is no file of u32 tokens.")
        return np.memmap(path, "<u4", "r") if size else np.zeros(0, np.uint32)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
