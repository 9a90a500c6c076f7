"""Read what a GGUF file holds beyond its header: whole arrays of metadata, and tensors as numbers.

Everything is read with `pread` at places that `read_header` has checked; nothing is mapped, so that a file that is cut
while it is read is an error and not a bus error. Tensors come in pieces of rows: a large model needs little memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.gguf import SCALARS, TENSOR_TYPES, GgufArray, GgufInfo, TensorInfo, read_header
from windlass.local.model_files import read_at

__all__ = ["GgufFile", "from_float", "to_float"]

#: Elements that are read and converted at a time.
PIECE: Final = 1 << 22
_BLOCKS: Final = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
_PLAIN: Final[dict[str, str]] = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip


class GgufFile:
    """An open GGUF file whose header has been checked; `info` is what it says. Use it in a `with` block.

    Raises LocalModelError when the file is not usable, at opening or when it becomes shorter while it is read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.info: GgufInfo = read_header(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise LocalModelError(f"{path} cannot be read: {error.strerror}.", path=os.fspath(path)) from error
        self._tensors = {tensor.name: tensor for tensor in self.info.tensors}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; again is nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's description. Raises UnknownNameError."""
        if name not in self._tensors:
            raise UnknownNameError("tensor", name, self._tensors)
        return self._tensors[name]

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`."""
        return read_at(self._fd, offset, size, self.info.path)

    def value(self, key: str) -> Any:
        """Return a metadata value, arrays whole: numbers, bool, str, or a list of these. Raises UnknownNameError.

        Strings must be UTF-8 here. Blocking: some 200 ms for a vocabulary of 128 000 tokens.
        """
        raw = self.raw_value(key)
        try:
            if isinstance(raw, bytes):
                return raw.decode()
            if isinstance(raw, list) and raw and isinstance(raw[0], bytes):
                return [item.decode() for item in raw]
        except UnicodeDecodeError as error:
            raise LocalModelError(
                f"The metadata of {self.info.path} are not usable: {key!r} is not UTF-8.", path=self.info.path
            ) from error
        return raw

    def raw_value(self, key: str) -> Any:
        """Return a metadata value, arrays whole and strings as the bytes that they are."""
        metadata = self.info.metadata
        if key not in metadata:
            raise UnknownNameError("metadata key", key, metadata)
        value, start = metadata[key], self.info.starts[key]
        if isinstance(value, str):
            (length,) = struct.unpack("<Q", self.read(start, 8))
            return self.read(start + 8, min(length, self.info.data_offset))
        if not isinstance(value, GgufArray):
            return value
        if value.type == "string":
            return self._strings(key, start, value.count)
        form = SCALARS[value.type]
        numbers = [item[0] for item in form.iter_unpack(self.read(start, form.size * value.count))]
        return [bool(number) for number in numbers] if value.type == "bool" else numbers

    def _strings(self, key: str, start: int, count: int) -> list[bytes]:
        # What was checked lies before the tensors, so that this reads no more than the header.
        data = self.read(start, self.info.data_offset - start if self.info.tensors else self.info.size - start)
        found: list[bytes] = []
        at, unpack = 0, struct.Struct("<Q").unpack_from
        for _ in range(count):
            end = at + 8 + unpack(data, at)[0] if at + 8 <= len(data) else len(data) + 1
            if end > len(data):
                raise LocalModelError(f"{self.info.path} changed while {key!r} was read.", path=self.info.path)
            found.append(data[at + 8 : end])
            at = end
        return found

    def raw(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Yield a tensor's bytes in pieces of whole rows, (rows, bytes of a row)."""
        tensor = self.tensor(name)
        block, size = _BLOCKS[tensor.type]
        row = tensor.dims[0] // block * size
        rows = tensor.nbytes // row
        step = max(1, PIECE // tensor.dims[0])
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = self.read(tensor.offset + first * row, count * row)
            yield np.frombuffer(data, np.uint8).reshape(count, row)

    def floats(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor's numbers in pieces of whole rows, (rows, numbers of a row). Raises as `to_float`."""
        kind = self.tensor(name).type
        for piece in self.raw(name):
            yield to_float(piece, kind)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32, outermost dimension first: the shape is `dims` reversed."""
        pieces = list(self.floats(name))
        shape = self.tensor(name).dims[::-1]
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(shape)


def to_float(rows: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return rows of bytes (n, bytes) of the type named `kind` as float32 (n, numbers).

    Raises ConfigError for a type that the gguf package cannot decode.
    """
    if kind in _PLAIN:
        return rows.view(_PLAIN[kind]).astype(np.float32)
    try:
        return quants.dequantize(rows, GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError) as error:
        raise ConfigError(f"Tensors of type {kind} cannot be turned into numbers by the installed gguf.") from error


def from_float(rows: NDArray[Any], kind: str) -> NDArray[np.uint8]:
    """Return rows of numbers (n, numbers) as bytes (n, bytes) of the type named `kind`, by the gguf package.

    Raises ConfigError for a type that it cannot write, for rows that blocks do not divide, and for numbers that the
    type cannot hold: infinities and what is not a number in quantised types, more than 65504 in F16.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    if kind == "F32":
        return rows.view(np.uint8)
    block = _BLOCKS[kind][0] if kind in _BLOCKS else 1
    if rows.shape[-1] % block:
        raise ConfigError(f"Rows of {rows.shape[-1]} numbers cannot be cut into the blocks of {block} of {kind}.")
    largest = float(np.abs(rows).max(initial=0.0))
    if kind not in ("F16", "BF16") and not np.isfinite(largest):
        raise ConfigError(f"The weights hold infinities or what is not a number: {kind} cannot keep them.")
    if kind == "F16":
        if 65504 < largest < np.inf:
            raise ConfigError(f"The weights reach {largest:g}; F16 ends at 65504.", hint="Use BF16.")
        return rows.astype("<f2").view(np.uint8)
    try:
        return quants.quantize(rows, GGMLQuantizationType[kind]).view(np.uint8)
    except (KeyError, NotImplementedError) as error:
        raise ConfigError(f"The gguf package cannot write {kind}.") from error
