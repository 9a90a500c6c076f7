"""What is learned when no data is given: a task that is made up as it is read, and a network of the size asked for."""

from __future__ import annotations

from typing import Final

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from windlass.local.llama import LlamaConfig
from windlass.training.data import Row
from windlass.training.tokenizer import END, Tokenizer

__all__ = ["Counting", "shape_of"]

_BASE: Final = 10
_DIGITS: Final = 12
_STEPS: Final = (1, 2, 3)


class Counting:
    """Rows of 12 digits that go up by 1, 2 or 3, modulo 10, and an end: `791357913579`.

    By how much, one must see from the first two. Row n is drawn from the seed and n alone; `offset` gives other rows of
    the same kind. The second digit can only be guessed among three, everything else can be known: the least mean loss
    is log(3) / 12, 0.09 nats, and the loss of one who knows nothing log(11), 2.4.
    """

    vocab_size = _BASE + 1
    name = "counting up by 1, 2 or 3, modulo 10"

    def __init__(self, rows: int, seed: int = 0, offset: int = 0) -> None:
        self._rows, self._seed, self._offset = rows, seed, offset

    def __len__(self) -> int:
        return self._rows

    def row(self, index: int) -> Row:
        """Return row `index`, (13,): a digit's token is its number, the end's is 10."""
        draw = np.random.Generator(np.random.PCG64([self._seed, 1, self._offset + index]))
        start, by = draw.integers(_BASE), draw.choice(_STEPS)
        digits = (start + by * np.arange(_DIGITS)) % _BASE
        return Row(np.append(digits, _BASE).astype(np.int32))

    @staticmethod
    def tokenizer() -> Tokenizer:
        """Return the tokenizer that reads digits as this task's tokens."""
        backend = Backend(models.BPE({str(digit): digit for digit in range(_BASE)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        backend.add_special_tokens([END])
        return Tokenizer(backend, eos=END)


def shape_of(parameters: int, vocab_size: int, context: int) -> LlamaConfig:
    """Return the sizes of a llama of about `parameters` numbers, with proportions near the usual ones.

    For small vocabularies it is within some per cent from 64 parameters on; embeddings alone may be more than was
    asked for with a large one, then the result is the narrowest model.
    """
    best: tuple[float, LlamaConfig] | None = None
    for width in (2, 4, 6, 8, 12, 16, 24, 32, 48, *range(64, 1025, 32), *range(1152, 4097, 128)):
        heads = max(1, width // 64) if width >= 64 else 1 if width < 16 else 2
        while width % (2 * heads):
            heads -= 1
        for layers in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            bare = LlamaConfig(
                vocab_size=vocab_size, width=width, layers=layers, heads=heads, kv_heads=heads, feed_forward=1,
                context=context,
            )  # fmt: skip
            more = (parameters - bare.parameters) / (3 * width * layers)
            feed = max(1, 1 + round(more))
            made = LlamaConfig(
                vocab_size=vocab_size, width=width, layers=layers, heads=heads, kv_heads=heads, feed_forward=feed,
                context=context,
            )  # fmt: skip
            off = abs(made.parameters - parameters) / parameters
            # A wrong size is worst; then a feed-forward far from 8/3 of the width, then too flat or too deep.
            cost = 20 * off + abs(np.log(feed / (8 / 3 * width))) + 0.3 * abs(np.log(64 * layers / (width + 32)))
            if best is None or cost < best[0]:
                best = cost, made
    assert best is not None
    return best[1]
