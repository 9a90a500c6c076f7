"""Write GGUF files, well-formed or not, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

UINT32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def text(value: str | bytes) -> bytes:
    """Encode a string: its length as uint64, then its bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """Encode a metadata entry."""
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    """Encode a uint32 entry."""
    return pair(key, UINT32, struct.pack("<I", value))


def string(key: str, value: str | bytes) -> bytes:
    """Encode a string entry."""
    return pair(key, STRING, text(value))


def array(key: str, kind: int, count: int, data: bytes) -> bytes:
    """Encode an array entry; `count` need not be true."""
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + data)


def tensor(name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0, ndims: int | None = None) -> bytes:
    """Encode a tensor description; `ndims` need not be true."""
    count = len(dims) if ndims is None else ndims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    alignment: int = 32,
    **lies: Any,
) -> bytes:
    """Put a file together; `lies` may give `magic`, `version`, `n_tensors` and `n_pairs`."""
    head = lies.get("magic", b"GGUF") + struct.pack(
        "<IQQ", lies.get("version", 3), lies.get("n_tensors", len(tensors)), lies.get("n_pairs", len(pairs))
    )
    body = head + b"".join(pairs) + b"".join(tensors)
    return body + b"\0" * (-len(body) % alignment) + data


def small() -> bytes:
    """Return a well-formed file with every kind of value and two tensors."""
    scalars = [(0, "<B", 7), (1, "<b", -7), (2, "<H", 7), (3, "<h", -7), (5, "<i", -7), (6, "<f", 0.5)]
    scalars += [(10, "<Q", 1 << 60), (11, "<q", -(1 << 60)), (12, "<d", 0.25)]
    return gguf(
        [
            string("general.architecture", "llama"),
            u32("llama.context_length", 128),
            pair("flag", BOOL, b"\1"),
            *[pair(f"scalar.{kind}", kind, struct.pack(form, value)) for kind, form, value in scalars],
            array("tokens", STRING, 3, text("a") + text("") + text("ccc")),
            array("scores", 6, 2, struct.pack("<2f", 1.0, 2.0)),
            string("tokenizer.chat_template", "{{ messages }}"),
        ],
        [tensor("a.weight", [32, 2], 8, 0), tensor("b.weight", [3], 0, 96)],
        b"\1" * 68 + b"\0" * 28 + b"\2" * 12,
    )
