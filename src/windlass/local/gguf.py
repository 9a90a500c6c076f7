"""Read the header of a GGUF file, checking every number against the file's size before anything is done with it.

Model files come from strangers, and other readers trust what a header says (gguf-py loads offsets that wrap, the
engine may abort). `read_header` runs before any of them opens the file. It allocates no more than the file holds and
never maps it: a file that shrinks while it is read is an error, not a bus error. Source: github.com/ggml-org/ggml,
docs/gguf.md; block sizes from ggml-common.h.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from msgspec import Struct

from windlass.core.errors import LocalModelError
from windlass.local.failures import InvalidModelFormat, UnsupportedQuantization
from windlass.local.model_files import refused_kind

__all__ = ["SCALARS", "TENSOR_TYPES", "GgufArray", "GgufInfo", "TensorInfo", "read_header"]

#: ggml type id -> (name, elements in a block, bytes of a block).
TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# Metadata value types: id -> (name, struct format); 8 is a string, 9 an array.
_SCALARS: Final[dict[int, tuple[str, struct.Struct]]] = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<B")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
#: Metadata value type -> how one value is packed.
SCALARS: Final[dict[str, struct.Struct]] = dict(_SCALARS.values())
_U32, _U64 = _SCALARS[4][1], _SCALARS[10][1]
_BOOL, _STRING, _ARRAY = 7, 8, 9
_ARRAY_HEAD = 4 + 4 + 8  # its own type, that of its elements, and how many they are

_WINDOW = 1 << 18
_MAX_PAIRS, _MAX_TENSORS = 1 << 16, 1 << 17  # real files have some 50 and, with unmerged experts, some 50 000
_MAX_TEXT = 64 << 20  # all strings that are kept; the longest real one is a chat template of some 100 kB
_MAX_STRINGS = 8 << 20  # in all arrays together; the largest vocabularies have 262 144 tokens
_MAX_KEY = 65_535  # docs/gguf.md
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NAME = 63  # GGML_MAX_NAME less its NUL
_MAX_ALIGNMENT = 1 << 20
_KEPT_ELEMENTS = 256
_LONGEST = 400  # of what an error says
_SMALLEST_PAIR, _SMALLEST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8


class GgufArray(Struct, frozen=True):
    """An array value: its element type and length; `values` holds up to 256 numbers and is empty for all else."""

    type: str
    count: int
    values: tuple[int | float, ...] = ()


class TensorInfo(Struct, frozen=True):
    """One tensor: `dims` with the fastest-moving first, `offset` in bytes from the start of the file."""

    name: str
    dims: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GgufInfo(Struct, frozen=True):
    """What the header of a GGUF file says. `size` is the file's, `data_offset` where tensor data begin, in bytes.

    `types` says by key what type a value has (`array` for arrays, whose `GgufArray` has the elements'), `starts` at
    which byte of the file it begins: a string at its length, an array at its first element.
    """

    path: str
    version: int
    size: int
    alignment: int
    data_offset: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    types: dict[str, str] = {}
    starts: dict[str, int] = {}

    @property
    def architecture(self) -> str:
        """`general.architecture`, empty when it is not stated."""
        return self.text("general.architecture")

    @property
    def context_length(self) -> int | None:
        """The number of tokens the model was made for; None when it is not stated."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def chat_template(self) -> str:
        """The Jinja template of the conversation, empty when there is none."""
        return self.text("tokenizer.chat_template")

    @property
    def parameters(self) -> int:
        """The number of elements in all tensors."""
        total = 0
        for tensor in self.tensors:
            count = 1
            for dim in tensor.dims:
                count *= dim
            total += count
        return total

    def text(self, key: str) -> str:
        """Return a string value, empty when the key is missing or holds something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def read_header(path: str | os.PathLike[str]) -> GgufInfo:
    """Read and check the header of the GGUF file (version 2 or 3, little-endian) at `path`.

    Every count, length, offset, type and dimension is compared with the bytes that are really there; tensors must be
    aligned, inside the file and apart from each other; keys and names must be unique. Raises LocalModelError that
    names the file, the field and the byte where it stands. Blocking: some 100 ms for a vocabulary of 128 000 tokens.
    """
    where = os.fspath(path)
    try:
        # A pipe would block at open; a folder or device has no size to compare with.
        if not stat.S_ISREG(Path(where).stat().st_mode):
            raise LocalModelError(f"{where} is not a regular file.", path=where, hint="Name a .gguf file.")
        with Path(where).open("rb", buffering=0) as file:
            return _read(_Cursor(file, os.fstat(file.fileno()).st_size, where))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "Check the path." if isinstance(error, FileNotFoundError) else ""
        raise LocalModelError(f"{where} cannot be read: {reason}.", path=where, hint=hint) from error


class _Cursor:
    """Walk through a file of known size; nothing is read or skipped that the size does not cover."""

    def __init__(self, file: BinaryIO, size: int, path: str) -> None:
        self.size, self.path = size, path
        self._file = file
        self._window, self._start, self._at = b"", 0, 0
        self._strings_left, self._text_left = _MAX_STRINGS, _MAX_TEXT

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self.size - self.position

    @property
    def seen(self) -> bytes:
        """What was read last."""
        return self._window

    def fail(self, problem: str, kind: type[LocalModelError] = InvalidModelFormat) -> NoReturn:
        if len(problem) > _LONGEST:
            problem = f"{problem[: _LONGEST - 100]} … {problem[-100:]}"  # keys and texts in it are the file's
        raise kind(
            f"{self.path} is not a usable GGUF file: {problem}, at byte {self.position} of {self.size}.",
            path=self.path,
            hint="Fetch the file again, or use another one.",
        )

    def need(self, count: int, what: str) -> None:
        if count > self.left:
            self.fail(f"{what} needs {count} bytes, {self.left} are left")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        if self._at + count > len(self._window):
            self._fill(count, what)
        at = self._at
        self._at = at + count
        return self._window[at : at + count]

    def _fill(self, count: int, what: str) -> None:
        start = self.position
        self._file.seek(start)
        wanted, pieces = min(max(count, _WINDOW), self.size - start), list[bytes]()
        while wanted > 0 and (piece := self._file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        self._window, self._start, self._at = b"".join(pieces), start, 0
        if len(self._window) < count:
            self.fail(f"the file became shorter while {what} was read")

    def number(self, form: struct.Struct, what: str) -> Any:
        return form.unpack(self.take(form.size, what))[0]

    def text(self, what: str, limit: int) -> bytes:
        length: int = self.number(_U64, f"the length of {what}")
        self.need(length, what)
        self._text_left -= length
        if length > limit or self._text_left < 0:
            self.fail(f"{what} is {length} bytes long, more than {min(limit, self._text_left + length)}")
        return self.take(length, what)

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self._at += count
        if self._at > len(self._window):
            self._window, self._start, self._at = b"", self.position, 0

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over `count` strings: the hot loop, half a million turns for a large vocabulary."""
        self.need(count * 8, what)
        self._strings_left -= count
        if self._strings_left < 0:
            self.fail(f"{what} brings the strings in arrays above {_MAX_STRINGS}")
        unpack = _U64.unpack_from
        for index in range(count):
            if self._at + 8 > len(self._window):
                self.need(8, what)
                self._fill(8, what)
            length: int = unpack(self._window, self._at)[0]
            self._at += 8
            if self._at + length <= len(self._window):
                self._at += length
            else:
                self.skip(length, f"{what}, string {index},")


def _read(cursor: _Cursor) -> GgufInfo:
    if cursor.left < 4 or cursor.take(4, "the magic number") != b"GGUF":
        what = refused_kind(cursor.path, cursor.seen)
        cursor.fail("it does not start with GGUF" + (f" but is {what}" if what else ""))
    version: int = cursor.number(_U32, "the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.fail(
            "it is big-endian, which is not supported"
            if swapped in (2, 3)
            else f"version {version} is not supported, only 2 and 3"
        )
    tensors = _count(cursor, "tensors", _SMALLEST_TENSOR, _MAX_TENSORS)
    pairs = _count(cursor, "metadata entries", _SMALLEST_PAIR, _MAX_PAIRS)
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    starts: dict[str, int] = {}
    for index in range(pairs):
        key = _name(cursor, f"metadata key {index}", _MAX_KEY)
        if key in metadata:
            cursor.fail(f"the metadata key {key!r} appears twice")
        at = cursor.position
        types[key], value = _value(cursor, f"the value of {key!r}")
        metadata[key] = value
        starts[key] = at + (_ARRAY_HEAD if isinstance(value, GgufArray) else 4)
    alignment = _alignment(cursor, metadata)
    # What the metadata used up is no longer there for tensors.
    cursor.need(tensors * _SMALLEST_TENSOR, f"{tensors} tensor descriptions")
    described = [_tensor(cursor, index) for index in range(tensors)]
    data_offset = -(-cursor.position // alignment) * alignment
    return GgufInfo(
        path=cursor.path,
        version=version,
        size=cursor.size,
        alignment=alignment,
        data_offset=data_offset,
        metadata=metadata,
        types=types,
        tensors=_placed(cursor, described, data_offset, alignment),
        starts=starts,
    )


def _count(cursor: _Cursor, what: str, smallest: int, limit: int) -> int:
    count: int = cursor.number(_U64, f"the number of {what}")
    if count > limit:
        cursor.fail(f"{count} {what} are more than {limit}")
    if count > cursor.left // smallest:
        cursor.fail(f"{count} {what} cannot fit into the {cursor.left} bytes left")
    return count


def _name(cursor: _Cursor, what: str, limit: int) -> str:
    raw = cursor.text(what, limit)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        cursor.fail(f"{what} is not UTF-8")
    if not name or not name.isprintable() or "../" in name or "..\\" in name:
        cursor.fail(f"{what} is {name[:80]!r}, which is not a name")
    return name


def _value(cursor: _Cursor, what: str) -> tuple[str, Any]:
    """Return the type and the value."""
    kind: int = cursor.number(_U32, f"the type of {what}")
    if kind == _STRING:
        return "string", cursor.text(what, _MAX_TEXT).decode("utf-8", "replace")
    if kind == _ARRAY:
        return "array", _array(cursor, what)
    if kind not in _SCALARS:
        cursor.fail(f"{what} has the unknown type {kind}")
    name, form = _SCALARS[kind]
    value = cursor.number(form, what)
    if kind != _BOOL:
        return name, value
    if value > 1:
        cursor.fail(f"{what} is a bool of {value}")
    return name, bool(value)


def _array(cursor: _Cursor, what: str) -> GgufArray:
    kind: int = cursor.number(_U32, f"the element type of {what}")
    count: int = cursor.number(_U64, f"the length of {what}")
    if kind == _STRING:
        cursor.skip_strings(count, what)
        return GgufArray("string", count)
    if kind not in _SCALARS:
        nested = "another array, which no engine reads" if kind == _ARRAY else f"the unknown type {kind}"
        cursor.fail(f"{what} is an array of {nested}")
    name, form = _SCALARS[kind]
    if count > _KEPT_ELEMENTS:
        cursor.skip(count * form.size, what)
        return GgufArray(name, count)
    raw = cursor.take(count * form.size, what)
    return GgufArray(name, count, tuple([item[0] for item in form.iter_unpack(raw)]))


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        cursor.fail(f"general.alignment is {str(value)[:40]!r}, not a power of two up to {_MAX_ALIGNMENT}")
    return value


def _tensor(cursor: _Cursor, index: int) -> TensorInfo:
    name = _name(cursor, f"the name of tensor {index}", _MAX_NAME)
    ndims: int = cursor.number(_U32, f"the number of dimensions of {name!r}")
    if not 1 <= ndims <= _MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {ndims} dimensions, not 1 to {_MAX_DIMS}")
    dims: tuple[int, ...] = struct.unpack(f"<{ndims}Q", cursor.take(8 * ndims, f"the dimensions of {name!r}"))
    kind: int = cursor.number(_U32, f"the type of {name!r}")
    offset: int = cursor.number(_U64, f"the offset of {name!r}")
    if kind not in TENSOR_TYPES:
        cursor.fail(f"tensor {name!r} has the unknown type {kind}", UnsupportedQuantization)
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    elements = 1
    for dim in dims:
        elements *= dim  # Python's integers do not wrap: the product is compared as it is
    if elements == 0:
        cursor.fail(f"tensor {name!r} has a dimension of zero in {dims}")
    if dims[0] % block:
        cursor.fail(f"tensor {name!r} has rows of {dims[0]}, which {type_name} blocks of {block} do not divide")
    nbytes = elements // block * block_bytes
    if nbytes > cursor.size:
        cursor.fail(f"tensor {name!r} of {dims} {type_name} takes {nbytes} bytes, more than the file has")
    return TensorInfo(name, dims, type_name, offset, nbytes)


def _placed(cursor: _Cursor, tensors: list[TensorInfo], data_offset: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Return the tensors with offsets from the start of the file; they must be aligned, inside it, and disjoint."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            cursor.fail(f"the tensor name {tensor.name!r} appears twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            cursor.fail(f"tensor {tensor.name!r} starts at {tensor.offset}, which is not aligned to {alignment}")
        if tensor.offset + tensor.nbytes > cursor.size - data_offset:
            cursor.fail(
                f"tensor {tensor.name!r} ends {tensor.offset + tensor.nbytes} bytes into the data, past the end"
            )
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda item: item.offset):
        if tensor.offset < end:
            cursor.fail(f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.nbytes, tensor.name
    return tuple([TensorInfo(t.name, t.dims, t.type, data_offset + t.offset, t.nbytes) for t in tensors])
