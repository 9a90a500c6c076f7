"""Vectors of texts without a model: hashed words and pieces of words."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from windlass.core.errors import BadRequestError
from windlass.core.estimate import estimate_text
from windlass.core.ports import Embeddings
from windlass.core.threads import run_in_thread
from windlass.core.usage import Usage

__all__ = ["HashingEmbedder"]

_NAME: Final = "hashing"
#: Numbers of a vector where nobody says otherwise.
DIMENSIONS: Final = 512
_MAX_DIMENSIONS: Final = 65_536
#: Letters of a piece of a word.
_PIECES: Final = (3, 4, 5)
#: A longer run of letters has no end that a person would call a word's: only so much of it is cut into pieces.
_LONGEST_WORD: Final = 64
#: Words of so many letters or more count fully: short ones are mostly those that every text has.
_FULL_WORD: Final = 6
_WORDS: Final = re.compile(r"\w+|[^\w\s]")
#: Characters of texts that are embedded on the event loop; more go to a thread.
_AT_ONCE: Final = 16_384


class HashingEmbedder:
    """Embed texts by the words they are made of: no model, no download, the same vector everywhere and always.

    It sees **likeness of letters only**: "colour" is near "colours" and far from "hue", and a sentence is as near to
    its negation as it can be. Use a model where meaning counts; use this where there is none, and together with a
    search by words.

    Each word and each piece of it of 3 to 5 letters (with its ends marked, as in Bojanowski et al. 2017,
    arxiv.org/abs/1607.04606) adds or takes away its share at one of `dimensions` places, both by a hash of it
    (Weinberger et al. 2009, arxiv.org/abs/0902.2206). A word that comes n times counts sqrt(n), less below 6 letters,
    and its pieces together as much as the word. Vectors have length 1; that of a text without a letter or sign is
    zero. Case and Unicode forms (NFKC) make no difference. Raises BadRequestError for `dimensions` outside 1 to 65536.
    """

    name = _NAME

    def __init__(self, dimensions: int | str = DIMENSIONS) -> None:
        self.dimensions = _checked(dimensions)

    def encode(self, text: str, *, dimensions: int | None = None) -> tuple[float, ...]:
        """Return the vector of one text."""
        size = self.dimensions if dimensions is None else _checked(dimensions)
        out = [0.0] * size
        for word, count in Counter(_WORDS.findall(_plain(text))).items():
            # The square root is the same on every machine, a logarithm is not.
            weight = math.sqrt(count) * min(len(word), _FULL_WORD) / _FULL_WORD
            pieces = _pieces(word)
            share = weight / math.sqrt(len(pieces)) if pieces else 0.0
            for feature, value in ((f"w{word}", weight), *[(f"p{piece}", share) for piece in pieces]):
                place, sign = _hashed(feature)
                out[place % size] += value if sign else -value
        # Sum and root are rounded rightly, and once: the last bit is the same everywhere.
        length = math.sqrt(math.fsum([x * x for x in out]))
        return tuple([x / length for x in out]) if length else tuple(out)

    async def embed(self, texts: Sequence[str], model: str = "", *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts, in their order; `model` makes no difference. Raises BadRequestError."""
        del model
        if isinstance(texts, str):
            raise BadRequestError("The texts to embed are one text; give a list of them.", provider=_NAME)
        size = self.dimensions if dimensions is None else _checked(dimensions)

        def encode_all() -> tuple[tuple[float, ...], ...]:
            return tuple([self.encode(text, dimensions=size) for text in texts])

        few = sum([len(text) for text in texts]) <= _AT_ONCE
        vectors = encode_all() if few else await run_in_thread(encode_all)
        tokens = sum([estimate_text(text) for text in texts])
        return Embeddings(vectors, f"{_NAME}-{size}", Usage(tokens, estimated=True))


def _checked(dimensions: int | str) -> int:
    try:
        size = int(dimensions)
    except ValueError:
        size = 0
    if not 1 <= size <= _MAX_DIMENSIONS:
        raise BadRequestError(
            f"A hashed vector has 1 to {_MAX_DIMENSIONS} dimensions, not {dimensions!r}.", provider=_NAME
        )
    return size


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _pieces(word: str) -> list[str]:
    if not word[0].isalnum() and word[0] != "_":
        return []
    marked = f"<{word[:_LONGEST_WORD]}>"
    return [marked[at : at + size] for size in _PIECES for at in range(len(marked) - size + 1)]


def _hashed(feature: str) -> tuple[int, bool]:
    """Return a number and a sign that depend on the feature alone, on every machine."""
    digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    return value >> 1, bool(value & 1)
