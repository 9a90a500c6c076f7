"""Hashed vectors: the same everywhere, of length 1, near where letters are alike."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import BadRequestError
from windlass.core.hashing import DIMENSIONS, HashingEmbedder
from windlass.core.ports import Embedder
from windlass.core.usage import Usage
from windlass.core.vectors import cosine_similarity, dot, norm, normalize

TEXT = "The quick brown fox — naïve, 日本語, x = f(x); x x"
EMBED = f"""
import hashlib, struct
from windlass.core.hashing import HashingEmbedder
vector = HashingEmbedder().encode({TEXT!r})
print(hashlib.sha256(struct.pack(f"<{{len(vector)}}d", *vector)).hexdigest())
"""
#: Of the bytes of the vector of TEXT: an index that was built with it is worth nothing once this changes.
DIGEST = "a7a65e0fa6a593e3cd9da6229bc316bc927d14fbb61b5ed26bed530cbf2f4567"


def digest(vector: tuple[float, ...]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(vector)}d", *vector)).hexdigest()


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_vector_is_the_same_in_every_process(seed: str) -> None:
    environ = {**os.environ, "PYTHONHASHSEED": seed}
    out = subprocess.run([sys.executable, "-c", EMBED], env=environ, capture_output=True, text=True, check=True).stdout
    assert out.strip() == digest(HashingEmbedder().encode(TEXT)) == DIGEST


@given(st.text(max_size=300), st.integers(1, 700))
def test_any_text_has_a_finite_vector_of_length_one_or_zero(text: str, dimensions: int) -> None:
    vector = HashingEmbedder(dimensions).encode(text)
    assert len(vector) == dimensions and all(map(math.isfinite, vector))
    length = norm(vector)
    assert length == 0 or length == pytest.approx(1)
    if not text.strip():
        assert length == 0


def test_likeness_is_of_letters_and_not_of_meaning() -> None:
    encode = HashingEmbedder().encode
    asked = encode("Which colours does the user like?")
    assert cosine_similarity(asked, encode("The user likes these colors: green, blue")) > 0.3
    assert cosine_similarity(asked, encode("Staging runs on port 5433")) < 0.2
    assert cosine_similarity(encode("hue"), encode("colour")) < 0.1
    assert cosine_similarity(encode("It is so"), encode("It is not so")) > 0.7


@pytest.mark.parametrize(("a", "b"), [("Straße", "STRASSE"), ("ﬁne", "fine"), ("a\u0308", "ä"), ("a  b", "b\na")])
def test_case_unicode_form_order_and_spaces_make_no_difference(a: str, b: str) -> None:
    encode = HashingEmbedder().encode
    assert encode(a) == pytest.approx(encode(b), abs=1e-15)


async def test_the_port_batches_usage_and_dimensions() -> None:
    embedder = HashingEmbedder()
    assert isinstance(embedder, Embedder) and embedder.name == "hashing"
    made = await embedder.embed(["one", "", "two words"], "whatever", dimensions=64)
    assert [len(vector) for vector in made.vectors] == [64, 64, 64]
    assert (made.model, made.usage) == ("hashing-64", Usage(1 + 0 + 3, estimated=True))
    assert (await embedder.embed([])).vectors == ()
    assert len(HashingEmbedder("128").encode("x")) == 128 and len(embedder.encode("x")) == DIMENSIONS


async def test_a_large_batch_leaves_the_loop_free() -> None:
    texts = ["word " * 2000] * 40
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    made = await HashingEmbedder().embed(texts)
    ticking.cancel()
    assert len(made.vectors) == 40 and ticks > 1


@pytest.mark.parametrize("dimensions", [0, -1, 65_537, "many"])
def test_dimensions_out_of_range_are_refused(dimensions: int | str) -> None:
    with pytest.raises(BadRequestError, match="1 to 65536 dimensions"):
        HashingEmbedder(dimensions)


async def test_one_bare_text_is_refused() -> None:
    with pytest.raises(BadRequestError, match="list"):
        await HashingEmbedder().embed("text")


# -------------------------------------------------------------------------------------------------- arithmetic

numbers = st.floats(-1e6, 1e6)
pairs = st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2))


@given(pairs)
def test_the_cosine_is_symmetric_and_between_minus_one_and_one(pair: tuple[list[float], list[float]]) -> None:
    a, b = pair
    assert -1 <= cosine_similarity(a, b) <= 1
    assert cosine_similarity(a, b) == cosine_similarity(b, a)
    assert norm(normalize(a)) == pytest.approx(1 if any(a) else 0)


def test_lengths_neither_overflow_nor_vanish() -> None:
    assert cosine_similarity([1e300, 0], [1e300, 1e300]) == pytest.approx(math.sqrt(0.5))
    assert cosine_similarity([1e-300, 0], [1e-300, 1e-300]) == pytest.approx(math.sqrt(0.5))
    assert norm([3e200, 4e200]) == pytest.approx(5e200)


def test_vectors_of_different_lengths_are_refused() -> None:
    for function in (dot, cosine_similarity):
        with pytest.raises(ValueError, match="2 numbers and one of 1"):
            function([1.0, 2.0], [1.0])
