"""Embeddings as files: JSON, raw binary and CSV, in either direction.

What is read and written:

- json: `{"embedding": [...]}` for one vector without a name (reference E's form), `{"embeddings": [[...], ...]}` for
  several, `[{"id": "...", "embedding": [...]}, ...]` for named ones. A bare list of numbers, a list of lists, and an
  answer of an OpenAI-compatible server (`{"data": [{"embedding": [...]}]}`) are read too.
- binary: 32-bit floats, little-endian, one vector after the other, and nothing else: names are lost, and the reader
  must be told the dimension.
- csv: a line for each vector; with names, these come first in each line, and the first line is `id,0,1,2...`. A first
  line of other titles is read too.

Numbers are written so that reading gives the same 32 bits. NaN and infinities are refused in either direction. A name
that a spreadsheet would take for a formula gets an apostrophe before it, which reading takes away (OWASP, CSV
Injection).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from windlass.core import json
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.training.files import DataFile, InvalidFormat, PayloadTooLarge, replacing

__all__ = ["Format", "Vectors", "convert_embeddings", "escape_cell", "read_embeddings", "write_embeddings"]

Format: TypeAlias = Literal["json", "binary", "csv"]
_SUFFIXES: Final[dict[str, Format]] = {".json": "json", ".bin": "binary", ".f32": "binary", ".csv": "csv"}
#: Bytes of a file that are read.
MAX_BYTES: Final = 512 << 20
_F32: Final = np.dtype("<f4")
#: A title of the first column that says that it holds names.
_NAMED: Final = ("id", "name", "text")
#: What makes a spreadsheet compute; the apostrophe itself, so that taking it away is exact.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")


class Vectors(NamedTuple):
    """Vectors (count, dimension) and their names, which are all there or none."""

    vectors: NDArray[np.float32]
    names: tuple[str, ...] = ()


def escape_cell(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet takes for a formula: an apostrophe goes before one that could be.

    >>> escape_cell("=1+1"), escape_cell("a=b")
    ("'=1+1", 'a=b')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unescape(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def read_embeddings(
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    dimension: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Vectors:
    """Read vectors. The format is that of the name's ending (.json, .bin, .f32, .csv) if none is given.

    `dimension` cuts a binary file into vectors (0: it holds one) and is checked in the others. Raises InvalidFormat
    for what is none of the forms above, vectors of several lengths and numbers that are not finite; PayloadTooLarge
    over `max_bytes` (512 MiB); DataError; ConfigError.
    """
    format = format_of(path) if format is None else format
    with DataFile(path) as file:
        if file.size > max_bytes:
            raise PayloadTooLarge(f"{path} has {file.size} bytes; at most {max_bytes} are read.", path=path)
        data = file.read(0, file.size, "its vectors")
    try:
        if format == "binary":
            found = _from_binary(data, dimension)
        elif format == "json":
            found = _from_json(json.loads(data))
        else:
            found = _from_csv(data.decode("utf-8-sig"))
        if dimension and found.vectors.shape[1] != dimension:
            raise ValueError(f"its vectors have {found.vectors.shape[1]} numbers, not {dimension}")
        if not np.isfinite(found.vectors).all():
            raise ValueError("it holds a number that is not finite in 32 bits")
    except UnicodeDecodeError as error:
        raise InvalidFormat(f"{path}: byte {error.start} is not UTF-8.", path=path) from None
    except (ValueError, OverflowError, csv.Error) as error:
        raise InvalidFormat(f"{path}: {error}.", path=path) from None
    return found


def write_embeddings(
    path: str | os.PathLike[str], embeddings: Vectors, *, format: Format | None = None, overwrite: bool = False
) -> None:
    """Write vectors, whole or not at all; see `read_embeddings` for the format.

    Raises ConfigError for vectors that are not (count, dimension) or not finite, for names that are not as many, and
    when `path` is there already and `overwrite` is not set.
    """
    format = format_of(path) if format is None else format
    vectors = np.asarray(embeddings.vectors, np.float32)
    if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise ConfigError("Embeddings are finite numbers, as many in each vector.")
    if embeddings.names and len(embeddings.names) != len(vectors):
        raise ConfigError(f"{len(embeddings.names)} names for {len(vectors)} vectors.")
    for name in embeddings.names:
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise ConfigError(f"The name {name!r} holds half a character, which UTF-8 cannot carry.")
    write = {"json": _to_json, "csv": _to_csv, "binary": _to_binary}.get(format)
    if write is None:
        raise UnknownNameError("format", format, ("json", "binary", "csv"))
    with replacing(path, overwrite=overwrite) as file:
        for piece in write(vectors, embeddings.names):
            file.write(piece)


def convert_embeddings(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: Format,
    dimension: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Read vectors in the format of the name's ending and write them in another; returns (count, dimension)."""
    found = read_embeddings(source, dimension=dimension)
    write_embeddings(target, found, format=format, overwrite=overwrite)
    return found.vectors.shape[0], found.vectors.shape[1]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that a file's name tells. Raises ConfigError."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"{path}: its ending tells no format.", hint=f"Use one of {', '.join(_SUFFIXES)}.")
    return _SUFFIXES[suffix]


def _from_binary(data: bytes, dimension: int) -> Vectors:
    if dimension < 0 or not data or len(data) % (4 * max(1, dimension)):
        raise ValueError(f"{len(data)} bytes are no whole number of vectors of 32-bit floats")
    return Vectors(np.frombuffer(data, _F32).astype(np.float32).reshape(-1, dimension or len(data) // 4))


def _from_json(value: Any) -> Vectors:
    if isinstance(value, dict):
        for key in ("embedding", "embeddings", "data"):
            if key in value:
                value = value[key]
                break
    if not isinstance(value, list) or not value:
        raise ValueError('it holds no list of numbers; {"embedding": [...]} is the simplest form')
    if all(isinstance(item, dict) and "embedding" in item for item in value):
        named = [item.get("id") for item in value]
        names = tuple([name for name in named if isinstance(name, str)])
        if names and len(names) != len(value):
            raise ValueError("some vectors have names and some have none")
        return Vectors(_rows([item["embedding"] for item in value]), names)
    return Vectors(_rows(value if isinstance(value[0], list) else [value]))


def _rows(rows: Sequence[Any]) -> NDArray[np.float32]:
    """Return lists of numbers as an array."""
    size = len(rows[0]) if isinstance(rows[0], list) else 0
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or not row or len(row) != size:
            raise ValueError(f"vector {number} is not a list of {size} numbers, as the first is")
        if not all(type(item) in (int, float) for item in row):
            raise ValueError(f"vector {number} holds what is no number")
    with np.errstate(over="ignore"):
        return np.array([[float(item) for item in row] for row in rows], np.float64).astype(np.float32)


def _from_csv(text: str) -> Vectors:
    names: list[str] = []
    rows: list[list[float]] = []
    titles: list[str] = []
    for line, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), 1):
        if not cells:
            continue
        if not rows and not titles and _is_title(cells[0]):
            titles = cells
            continue
        if titles and titles[0].lower() in _NAMED:
            names.append(_unescape(cells.pop(0)))
        rows.append([_number(cell, line) for cell in cells])
    if not rows:
        raise ValueError("it is empty")
    return Vectors(_rows(rows), tuple(names))


def _is_title(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _number(cell: str, line: int) -> float:
    try:
        if "_" not in cell:
            return float(cell)
    except ValueError:
        pass
    raise ValueError(f"line {line} holds {cell[:40]!r}, which is no number")


def _words(vector: NDArray[np.float32]) -> list[str]:
    """Return numbers in the fewest digits that give the same 32 bits again."""
    return vector.astype(str).tolist()


def _to_json(vectors: NDArray[np.float32], names: tuple[str, ...]) -> list[bytes]:
    rows = [f"[{','.join(_words(vector))}]".encode() for vector in vectors]
    if names:
        named = [b'{"id":%b,"embedding":%b}' % (json.dumps(name), row) for name, row in zip(names, rows, strict=True)]
        return [b"[", b",\n".join(named), b"]\n"]
    if len(rows) == 1:
        return [b'{"embedding":', rows[0], b"}\n"]
    return [b'{"embeddings":[', b",\n".join(rows), b"]}\n"]


def _to_csv(vectors: NDArray[np.float32], names: tuple[str, ...]) -> list[bytes]:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    if names:
        writer.writerow(["id", *range(vectors.shape[1])])
    for number, vector in enumerate(vectors):
        # A number may begin with "-": it is one, and only names could be formulas.
        writer.writerow([*([escape_cell(names[number])] if names else []), *_words(vector)])
    return [out.getvalue().encode()]


def _to_binary(vectors: NDArray[np.float32], names: tuple[str, ...]) -> list[bytes]:
    if names:
        raise ConfigError("Binary embeddings have no room for names.", hint="Write json or csv.")
    return [vectors.astype(_F32).tobytes()]
