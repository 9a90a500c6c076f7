"""Write GGUF files (version 3, little-endian) through the gguf package, tensor by tensor and all or nothing.

The file is written beside its name, checked with our own reader, synchronised and renamed: nobody ever sees half a
model. A tensor may come as a function that yields its rows in pieces, so that a large model needs little memory.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from msgspec import structs
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.local.gguf import SCALARS, TENSOR_TYPES, GgufInfo, read_header
from windlass.local.gguf_data import PIECE, from_float
from windlass.local.model_files import new_file

__all__ = ["FILE_TYPES", "GgufFileWriter", "Rows", "file_type_of", "value_type"]

#: A tensor's numbers: an array, or a function that yields its rows (n, numbers of a row) piece by piece.
Rows = NDArray[Any] | Callable[[], Iterable[NDArray[Any]]]

#: llama.cpp's number of a model that is mostly of one type, `general.file_type`.
FILE_TYPES: Final[dict[str, int]] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
    "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
_TYPE_NAMES: Final = {
    name: kind for kind in GGUFValueType for name in [kind.name.lower()] if name in SCALARS or name == "string"
}
_SIZES: Final = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
#: Types that are no approximation of float32.
_WHOLE: Final = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
_MAX_NAME: Final = 63


class _Planned(NamedTuple):
    shape: tuple[int, ...]
    type: str
    nbytes: int
    rows: Rows
    raw: bool


class GgufFileWriter:
    """Collect metadata and tensors, then write them with `write`.

    `architecture` becomes `general.architecture`; `alignment` of the tensors is in bytes, a power of two. Raises
    ConfigError for a key or tensor that is given twice, for names and values that GGUF cannot hold, and LocalModelError
    when the file cannot be written.
    """

    def __init__(self, architecture: str = "llama", *, alignment: int = 32) -> None:
        if alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
            raise ConfigError(f"An alignment of {alignment} is not a power of two up to {1 << 20}.")
        self._alignment = alignment
        self._values: dict[str, tuple[str, Any]] = {}
        self._tensors: dict[str, _Planned] = {}
        self.add("general.architecture", architecture)
        if alignment != 32:
            self.add("general.alignment", alignment, "uint32")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def add(self, key: str, value: Any, kind: str | None = None) -> None:
        """Add a metadata value: bool, int, float, str, or a list of one of these.

        `kind` is GGUF's type of the value or of a list's elements (`uint32`, `float32`, `string`, ...); without it
        `value_type` decides. Strings may be bytes.
        """
        if not key or not key.isprintable() or len(key.encode()) > 65_535:
            raise ConfigError(f"{key[:80]!r} cannot be a metadata key.")
        if key in self._values:
            raise ConfigError(f"The metadata key {key!r} is given twice.", hint="Give each key once.")
        kind = kind or value_type(key, value)
        if kind not in _TYPE_NAMES:
            known = ", ".join(_TYPE_NAMES)
            raise ConfigError(f"The metadata key {key!r} has the unknown type {kind!r}.", hint=f"Known: {known}.")
        if isinstance(value, list | tuple) and not value:
            raise ConfigError(f"The metadata key {key!r} has an empty list, which the gguf package does not write.")
        for item in value if isinstance(value, list | tuple) else [value]:
            _check(key, kind, item)
        self._values[key] = kind, list(value) if isinstance(value, tuple) else value

    def add_all(self, values: Mapping[str, Any]) -> None:
        """Add several metadata values with types of `value_type`."""
        for key, value in values.items():
            self.add(key, value)

    def add_tensor(self, name: str, shape: Sequence[int], kind: str, rows: Rows, *, raw: bool = False) -> None:
        """Add a tensor of `shape` (outermost dimension first, as numpy has it) to be kept as `kind` (`F32`, `Q8_0`...).

        `rows` is what is converted to that type, in any float or integer dtype; with `raw` it is the type's own bytes
        (uint8), which are kept as they are. Functions are called when the file is written.
        """
        if not name or not name.isprintable() or "../" in name or len(name.encode()) > _MAX_NAME:
            raise ConfigError(f"{name[:80]!r} cannot be a tensor's name: 1 to {_MAX_NAME} bytes, printable.")
        if name in self._tensors:
            raise ConfigError(f"The tensor {name!r} is given twice.", hint="Give each tensor once.")
        dims = tuple([int(dim) for dim in shape])
        if not 1 <= len(dims) <= 4 or min(dims) < 1:
            raise ConfigError(f"The tensor {name!r} has the shape {dims}; GGUF has 1 to 4 dimensions of at least 1.")
        if kind not in _SIZES or kind not in GGMLQuantizationType.__members__:
            raise ConfigError(f"The tensor {name!r} has the unknown type {kind!r}.", hint=f"Known: {', '.join(_SIZES)}")
        block, size = _SIZES[kind]
        if dims[-1] % block:
            raise ConfigError(f"The tensor {name!r} has rows of {dims[-1]}, which blocks of {block} do not divide.")
        nbytes = math.prod(dims) // block * size
        if isinstance(rows, np.ndarray) and (rows.nbytes != nbytes if raw else rows.shape != dims):
            raise ConfigError(f"The tensor {name!r} has the shape {rows.shape}, not {dims} as {kind}.")
        self._tensors[name] = _Planned(dims, kind, nbytes, rows, raw)

    def write(self, path: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None) -> GgufInfo:
        """Write the file and return its header as our reader sees it. Blocking.

        `progress` is called with the bytes of tensors written so far and all of them, after each piece; what it raises
        ends the writing, and what was at `path` stays.
        """
        with new_file(path) as file:
            self._write_header(file.name)
            file.seek(0, os.SEEK_END)
            self._write_tensors(file, progress)
            file.flush()
            info = read_header(file.name)
        return structs.replace(info, path=os.fspath(path))

    def _write_header(self, path: str) -> None:
        # The package drops empty strings and only warns of what is given twice, but not through this door of it.
        writer = GGUFWriter(path, "")
        writer.data_alignment = self._alignment
        for key, (kind, value) in self._values.items():
            number = _TYPE_NAMES[kind]
            if isinstance(value, list):
                writer.add_key_value(key, value, GGUFValueType.ARRAY, number)
            else:
                writer.add_key_value(key, value, number)
        for name, tensor in self._tensors.items():
            number = GGMLQuantizationType[tensor.type]
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.nbytes, number)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()

    def _write_tensors(self, file: BinaryIO, progress: Callable[[int, int], object] | None) -> None:
        _pad(file, self._alignment)
        done, total = 0, sum([tensor.nbytes for tensor in self._tensors.values()])
        for name, tensor in self._tensors.items():
            end = done + tensor.nbytes
            for piece in _pieces(tensor):
                done += piece.nbytes
                if done > end:
                    break
                file.write(piece.data.cast("B") if piece.flags.c_contiguous else piece.tobytes())
                if progress is not None:
                    progress(done, total)
            if done != end:
                raise ConfigError(f"The rows of the tensor {name!r} are not the {tensor.nbytes} bytes of its shape.")
            _pad(file, self._alignment)


def value_type(key: str, value: Any) -> str:
    """Return the GGUF type for a Python value or a list's elements: `bool`, `string`, `float32`, or an integer type.

    Numbers are `uint32`, in lists `int32`, as llama.cpp has them; `int32`, `int64` or `uint64` where they must be.
    Raises ConfigError for other values, mixed or empty lists.
    """
    items: Any = value if isinstance(value, list | tuple) else [value]
    kinds = {"string" if isinstance(item, str | bytes) else type(item).__name__ for item in items}
    if kinds == {"int", "float"}:
        kinds = {"float"}
    if len(kinds) != 1 or not kinds <= {"bool", "int", "float", "string"}:
        given = " and ".join(sorted(kinds)) or "nothing"
        raise ConfigError(f"The metadata key {key!r} cannot hold {given}.", hint="Give one type, or say which.")
    kind = kinds.pop()
    if kind != "int":
        return {"float": "float32"}.get(kind, kind)
    low, high = min(items), max(items)
    order = ("int32", "uint32") if isinstance(value, list | tuple) or low < 0 else ("uint32",)
    for name in (*order, "int64", "uint64"):
        if _fits(name, low) and _fits(name, high):
            return name
    raise ConfigError(f"The metadata key {key!r} holds {low if low < 0 else high}, more than 64 bits.")


def file_type_of(tensors: Iterable[tuple[str, int]]) -> int | None:
    """Return `general.file_type` for tensors given as (type, bytes): that of most bytes. None when it has no number."""
    totals: dict[str, int] = {}
    for kind, nbytes in tensors:
        totals[kind] = totals.get(kind, 0) + nbytes
    return FILE_TYPES.get(max(totals, key=lambda kind: totals[kind])) if totals else None


def _pieces(tensor: _Planned) -> Iterable[NDArray[Any]]:
    """Yield the tensor's bytes, as they go into the file."""
    rows = tensor.rows
    if tensor.raw:
        yield from [rows] if isinstance(rows, np.ndarray) else rows()
        return
    width = tensor.shape[-1]
    step = max(1, PIECE // width)
    for part in [rows] if isinstance(rows, np.ndarray) else rows():
        flat = part.reshape(-1, width)
        for first in range(0, len(flat), step):
            piece = flat[first : first + step]
            yield _whole(piece, tensor.type) if tensor.type in _WHOLE else from_float(piece, tensor.type)


def _whole(rows: NDArray[Any], kind: str) -> NDArray[Any]:
    return np.ascontiguousarray(rows, _WHOLE[kind])


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(b"\0" * (-file.tell() % alignment))


def _fits(kind: str, value: Any) -> bool:
    try:
        SCALARS[kind].pack(value)
    except (struct.error, OverflowError):
        return False
    return True


def _check(key: str, kind: str, value: Any) -> None:
    if kind == "string":
        good = isinstance(value, str | bytes)
    elif kind == "bool":
        good = isinstance(value, bool | int) and value in (0, 1)
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and _fits(kind, value)
    if not good:
        raise ConfigError(f"The metadata key {key!r} is {str(value)[:80]!r}, which is not a {kind}.")
