"""Read safetensors files, their header checked before anything is believed, and write them whole or not at all.

The format (github.com/huggingface/safetensors): a length in 8 bytes, a JSON object that says where each tensor lies,
the tensors. Nothing in it is code. Tensors are read one by one with `pread`; the file is never mapped, so that one
that is cut while it is read is an error and not a bus error.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.failures import InvalidModelFormat
from windlass.local.model_files import new_file, read_at, refused_kind

__all__ = [
    "BITS",
    "LazyTensor",
    "SafeTensor",
    "SafetensorsFile",
    "SafetensorsInfo",
    "read_safetensors",
    "write_safetensors",
]

#: dtype -> bits of an element, in the official library's order.
BITS: Final[dict[str, int]] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_NUMPY: Final[dict[str, str]] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "C64": "<c8", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_OF_NUMPY: Final = {np.dtype(form): name for name, form in _NUMPY.items()}
_TORCH: Final[dict[str, str]] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
    "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_OF_TORCH: Final = {f"torch.{name}": dtype for dtype, name in _TORCH.items()}

# The official reader takes 100 MB; a header of 100 000 tensors, more than any model has, is some 15 MB.
_MAX_HEADER: Final = 32 << 20
_MAX_TENSORS: Final = 1 << 17
_MAX_PARTS: Final = 16 * _MAX_TENSORS  # all values in the JSON: what is decoded takes no more than some 200 MB
_MAX_DIMS: Final = 16
_MAX_NAME: Final = 1024
_LONGEST: Final = 400  # of what an error says
_PIECE: Final = 16 << 20
_FIELDS: Final = {"dtype", "shape", "data_offsets"}


class SafeTensor(Struct, frozen=True):
    """One tensor: `shape` with the outermost dimension first, `offset` in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsInfo(Struct, frozen=True):
    """What the header of a safetensors file says; `size` is the file's, `data_offset` where tensors begin, in bytes."""

    path: str
    size: int
    data_offset: int
    metadata: dict[str, str]
    tensors: tuple[SafeTensor, ...]

    @property
    def parameters(self) -> int:
        """The number of elements in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsInfo:
    """Read and check the header of the safetensors file at `path`.

    The length is compared with the file before anything is read; names and the JSON's own keys must be unique; dtype,
    shape and offsets must agree; the tensors must fill the file from the header to its end without hole or overlap.
    Raises LocalModelError that says what is wrong with which tensor. Blocking: some 10 ms for 1000 tensors.
    """
    with SafetensorsFile(path) as file:
        return file.info


class SafetensorsFile:
    """An open safetensors file whose header has been checked; `info` is what it says. Use it in a `with` block."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        where = os.fspath(path)
        self._fd = -1
        try:
            if not stat.S_ISREG(Path(where).stat().st_mode):
                raise LocalModelError(f"{where} is not a regular file.", path=where, hint="Name a .safetensors file.")
            self._fd = os.open(where, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self.info: SafetensorsInfo = _Header(where, os.fstat(self._fd).st_size, self._fd).read()
        except (OSError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise LocalModelError(f"{where} cannot be read: {reason}.", path=where) from error
        except BaseException:
            self.close()
            raise
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

    def __iter__(self) -> Iterator[str]:
        """Yield the tensors' names, in the order in which they lie in the file."""
        return iter(self._tensors)

    def tensor(self, name: str) -> SafeTensor:
        """Return a tensor's description. Raises UnknownNameError."""
        if name not in self._tensors:
            raise UnknownNameError("tensor", name, self._tensors)
        return self._tensors[name]

    def raw(self, name: str) -> bytes:
        """Return a tensor's bytes. Raises LocalModelError when the file has become shorter."""
        tensor = self.tensor(name)
        return read_at(self._fd, tensor.offset, tensor.nbytes, self.info.path)

    def numpy(self, name: str) -> NDArray[Any]:
        """Return a tensor as a numpy array; BF16, which numpy has not, as float32 (exactly).

        Raises ConfigError for dtypes that numpy has not (8 bits and fewer): `torch` has most of them.
        """
        tensor = self.tensor(name)
        if tensor.dtype == "BF16":
            halves = np.frombuffer(self.raw(name), "<u2").astype(np.uint32)
            return (halves << 16).view(np.float32).reshape(tensor.shape)
        if tensor.dtype not in _NUMPY:
            raise ConfigError(f"The tensor {name!r} is {tensor.dtype}, which numpy has not.", hint="Use torch().")
        return np.frombuffer(self.raw(name), _NUMPY[tensor.dtype]).reshape(tensor.shape)

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a matrix in pieces of whole rows, as `numpy` has it, so that a large one needs little memory."""
        tensor = self.tensor(name)
        if len(tensor.shape) != 2 or tensor.nbytes <= _PIECE or (tensor.dtype not in _NUMPY and tensor.dtype != "BF16"):
            yield self.numpy(name)
            return
        width = tensor.nbytes // tensor.shape[0]
        step = max(1, _PIECE // width)
        for first in range(0, tensor.shape[0], step):
            count = min(step, tensor.shape[0] - first)
            data = read_at(self._fd, tensor.offset + first * width, count * width, self.info.path)
            if tensor.dtype == "BF16":
                piece = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                piece = np.frombuffer(data, _NUMPY[tensor.dtype])
            yield piece.reshape(count, tensor.shape[1])

    def torch(self, name: str) -> Any:
        """Return a tensor as a torch tensor on the CPU, in its own dtype and memory of its own.

        Raises ConfigError when torch is not installed or has no such dtype.
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ConfigError("Torch is not installed.", hint="pip install 'windlass[train]'") from error
        tensor = self.tensor(name)
        dtype = getattr(torch, _TORCH.get(tensor.dtype, "-"), None)
        if dtype is None:
            raise ConfigError(f"The tensor {name!r} is {tensor.dtype}, which torch has not.")
        if not tensor.nbytes:
            return torch.empty(tensor.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.raw(name)), dtype=dtype).reshape(tensor.shape)


class _Header:
    """Read the header of a file of known size; every number is compared with the bytes that are there."""

    def __init__(self, path: str, size: int, descriptor: int) -> None:
        self.path, self.size, self._fd = path, size, descriptor

    def fail(self, problem: str) -> NoReturn:
        if len(problem) > _LONGEST:
            problem = f"{problem[: _LONGEST - 100]} … {problem[-100:]}"  # names in it are the file's
        raise InvalidModelFormat(
            f"{self.path} is not a usable safetensors file: {problem}.",
            path=self.path,
            hint="Fetch the file again, or use another one.",
        )

    def read(self) -> SafetensorsInfo:
        head = read_at(self._fd, 0, min(self.size, 512), self.path)
        if len(head) < 9 or head[8:9] != b"{":
            what = refused_kind(self.path, head)
            self.fail(f"it is {what}" if what else "it does not start with a length and a JSON object")
        (length,) = struct.unpack("<Q", head[:8])
        if length > self.size - 8:
            self.fail(f"its header of {length} bytes does not fit into the {self.size - 8} bytes there are")
        if length > _MAX_HEADER:
            self.fail(f"its header of {length} bytes is longer than {_MAX_HEADER}")
        entries = self._decode(read_at(self._fd, 8, length, self.path))
        metadata = self._metadata(entries.pop("__metadata__", {}))
        if len(entries) > _MAX_TENSORS:
            self.fail(f"{len(entries)} tensors are more than {_MAX_TENSORS}")
        start = 8 + length
        tensors = sorted([self._tensor(name, entry) for name, entry in entries.items()], key=_place)
        end = 0
        for tensor in tensors:
            if tensor.offset != end:
                problem = "overlaps the one before it" if tensor.offset < end else f"leaves a hole from {end}"
                self.fail(f"tensor {tensor.name!r} at {tensor.offset} of the data {problem}")
            end = tensor.offset + tensor.nbytes
        if end != self.size - start:
            kind = "are missing" if end > self.size - start else "follow the last tensor"
            self.fail(f"{abs(self.size - start - end)} bytes {kind}")
        placed = [SafeTensor(t.name, t.dtype, t.shape, start + t.offset, t.nbytes) for t in tensors]
        return SafetensorsInfo(self.path, self.size, start, metadata, tuple(placed))

    def _decode(self, header: bytes) -> dict[str, Any]:
        if header.count(b",") + header.count(b"[") + header.count(b"{") > _MAX_PARTS:
            self.fail(f"its header has more than {_MAX_PARTS} parts")

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                seen: set[str] = set()
                twice = next(key for key, _ in pairs if key in seen or seen.add(key))
                self.fail(f"the key {twice[:80]!r} appears twice in its header")
            return found

        try:
            loaded = json.loads(header.decode(), object_pairs_hook=unique, parse_constant=self._constant)
        except (ValueError, RecursionError) as error:
            self.fail(f"its header is not JSON ({str(error)[:100]})")
        if not isinstance(loaded, dict):
            self.fail("its header is not a JSON object")
        return loaded

    def _constant(self, text: str) -> NoReturn:
        self.fail(f"its header holds {text}")

    def _metadata(self, loaded: Any) -> dict[str, str]:
        if not isinstance(loaded, dict) or not all(isinstance(value, str) for value in loaded.values()):
            self.fail("__metadata__ is not an object of strings")
        return loaded

    def _tensor(self, name: str, entry: Any) -> SafeTensor:
        """Return a tensor with its offset in the data, its numbers checked against each other."""
        if not name or len(name) > _MAX_NAME or not name.isprintable() or "../" in name or "..\\" in name:
            self.fail(f"a tensor is called {name[:80]!r}, which is not a name")
        if not isinstance(entry, dict) or entry.keys() != _FIELDS:
            self.fail(f"tensor {name!r} has not exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            self.fail(f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
        if not _naturals(shape) or len(shape) > _MAX_DIMS:
            self.fail(f"tensor {name!r} has the shape {str(shape)[:80]}, not up to {_MAX_DIMS} sizes")
        if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self.fail(f"tensor {name!r} has the offsets {str(offsets)[:80]}, not a begin and an end")
        begin, end = offsets
        if end > self.size:
            self.fail(f"tensor {name!r} ends at {end} of the data, past the end of the file")
        # Python's integers do not wrap, those of other readers do: a size of zero must not hide the others.
        if math.prod([size for size in shape if size]) * BITS[dtype] >= 1 << 63:
            self.fail(f"tensor {name!r} has the shape {str(shape)[:80]}, which takes more than any file")
        bits = math.prod(shape) * BITS[dtype]
        if bits != 8 * (end - begin):
            self.fail(
                f"tensor {name!r} of {str(shape)[:80]} {dtype} takes {bits // 8} bytes, its offsets {end - begin}"
            )
        return SafeTensor(name, dtype, tuple(shape), begin, end - begin)


def _place(tensor: SafeTensor) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes  # an empty tensor comes before what begins where it ends


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


class LazyTensor(NamedTuple):
    """A tensor that is made when it is written: its dtype (`F32`, `BF16`...), shape, and what yields its bytes."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> SafetensorsInfo:
    """Write tensors to a safetensors file, whole, durably and at once, laid out as the official writer does.

    They are numpy arrays, torch tensors on any device, or `LazyTensor`s; one is copied at a time. Large elements come
    first, then by name, and the header is padded to 8 bytes, so that every tensor is aligned. What was at `path` stays
    when this fails. Blocking. Raises ConfigError for dtypes and names that the format has not, LocalModelError when the
    file cannot be written.
    """
    described = {name: (*_described(name, tensor), tensor) for name, tensor in tensors.items()}
    rank = {dtype: number for number, dtype in enumerate(BITS)}
    order = sorted(described, key=lambda name: (-rank[described[name][0]], name))
    header: dict[str, Any] = {}
    if metadata is not None:
        if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
            raise ConfigError("The metadata of a safetensors file are strings by strings.")
        header["__metadata__"] = dict(metadata)
    at = 0
    for name in order:
        dtype, shape, _ = described[name]
        end = at + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with new_file(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in order:
            begin = file.tell()
            for piece in _pieces(described[name][2]):
                file.write(piece)
            first, last = header[name]["data_offsets"]
            if file.tell() - begin != last - first:
                raise ConfigError(f"The pieces of the tensor {name!r} are not the {last - first} bytes of its shape.")
        file.flush()
        info = read_safetensors(file.name)
    return SafetensorsInfo(os.fspath(path), info.size, info.data_offset, info.metadata, info.tensors)


def _described(name: str, tensor: Any) -> tuple[str, tuple[int, ...]]:
    kind = tensor.dtype
    if isinstance(tensor, LazyTensor):
        known = tensor.dtype if tensor.dtype in BITS else None
    elif isinstance(kind, np.dtype):
        known = _OF_NUMPY.get(kind.newbyteorder("<"))
    else:
        known = _OF_TORCH.get(str(kind))
    if known is None:
        raise ConfigError(f"The tensor {name!r} has the dtype {kind}, which safetensors has not.")
    if not name or name == "__metadata__" or not name.isprintable() or "../" in name or len(name) > _MAX_NAME:
        raise ConfigError(f"{name[:80]!r} cannot be a tensor's name.")
    return known, tuple(tensor.shape)


def _pieces(tensor: Any) -> Iterator[memoryview]:
    if isinstance(tensor, LazyTensor):
        for piece in tensor.pieces():
            yield _bytes(piece)
    else:
        yield _bytes(tensor)


def _bytes(tensor: Any) -> memoryview:
    if isinstance(tensor, np.ndarray):
        array = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
        return array.reshape(-1).view(np.uint8).data
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
