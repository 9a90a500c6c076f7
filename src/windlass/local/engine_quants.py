"""The engine's own quantiser, for the types that the gguf package cannot write (K-quants).

xllamacpp has no Python function for it, but its library exports ggml's C function `ggml_quantize_chunk` (ggml.h), the
same that llama.cpp's `llama-quantize` calls for every tensor. It is called here through ctypes; that its answer is
right is checked once, by decoding a block with the gguf package.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.local.gguf import TENSOR_TYPES
from windlass.local.gguf_data import to_float

__all__ = ["ENGINE_TYPES", "engine_quantizer"]

#: What only the engine writes. Types that need a matrix of importances (IQ1, IQ2) abort without it: they are left out.
ENGINE_TYPES: Final = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
_BLOCKS: Final = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
#: Root of the mean squared error of quantised normal numbers; the worst of the types has 0.3.
_TOLERABLE: Final = 0.4

Quantizer = Callable[[NDArray[Any], str], NDArray[np.uint8]]


@functools.cache
def engine_quantizer() -> Quantizer | None:
    """Return a function (rows of float32 (n, numbers), type name) -> bytes (n, bytes), or None where there is none.

    None: the engine is not installed, its library does not export the function, or what it wrote could not be read
    back. The function raises ConfigError for rows that blocks do not divide and for infinite numbers.
    """
    try:
        chunk = ctypes.CDLL(importlib.import_module("xllamacpp.xllamacpp").__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError):
        return None
    # size_t ggml_quantize_chunk(enum ggml_type, const float *, void *, int64_t start, nrows, n_per_row, const float *)
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(rows: NDArray[Any], kind: str) -> NDArray[np.uint8]:
        block, size = _BLOCKS[kind]
        rows = np.ascontiguousarray(rows, np.float32)
        count, width = rows.shape
        if kind not in ENGINE_TYPES or width % block:
            raise ConfigError(f"Rows of {width} numbers cannot be written as {kind} (blocks of {block}).")
        if not np.isfinite(rows).all():
            raise ConfigError(f"The weights hold infinities or what is not a number: {kind} cannot keep them.")
        out = np.zeros((count, width // block * size), np.uint8)
        written = chunk(int(GGMLQuantizationType[kind]), rows.ctypes.data, out.ctypes.data, 0, count, width, None)
        if written != out.nbytes:
            raise ConfigError(f"The engine wrote {written} bytes of {kind}, not {out.nbytes}.")
        return out

    return quantize if _works(quantize) else None


def _works(quantize: Quantizer) -> bool:
    """Whether a library of another version still means the same by the same numbers."""
    rows = np.sin(np.arange(512, dtype=np.float32) ** 1.5).reshape(2, 256)
    error = to_float(quantize(rows, "Q4_K"), "Q4_K") - rows
    return bool(np.sqrt(np.mean(error**2)) < _TOLERABLE)
