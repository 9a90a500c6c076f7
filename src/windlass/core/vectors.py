"""Arithmetic on vectors that are sequences of floats: for a few of them, without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["cosine_similarity", "dot", "norm", "normalize"]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the inner product, rounded once. Raises ValueError when the lengths differ.

    >>> dot((1.0, 2.0), (3.0, 4.0))
    11.0
    """
    if len(a) != len(b):
        raise ValueError(f"A vector of {len(a)} numbers and one of {len(b)} cannot be compared.")
    return math.fsum([x * y for x, y in zip(a, b, strict=True)])


def norm(vector: Sequence[float]) -> float:
    """Return the Euclidean length.

    >>> norm((3.0, 4.0))
    5.0
    """
    return math.hypot(*vector)


def normalize(vector: Sequence[float]) -> tuple[float, ...]:
    """Return the vector of the same direction and length 1; the zero vector stays as it is.

    >>> normalize((0.0, 2.0)), normalize((0.0,))
    ((0.0, 1.0), (0.0,))
    """
    length = norm(vector)
    return tuple([x / length for x in vector]) if length else tuple(vector)


def cosine_similarity(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle, -1 to 1; 0 where one of them is the zero vector.

    Raises ValueError when the lengths differ.

    >>> cosine_similarity((1.0, 0.0), (2.0, 0.0)), cosine_similarity((1.0,), (-0.5,)), cosine_similarity((0.0,), (1.0,))
    (1.0, -1.0, 0.0)
    """
    # Each divided by its own length: the product of two lengths may be too large or too small for a float.
    return max(-1.0, min(1.0, dot(normalize(a), normalize(b))))
