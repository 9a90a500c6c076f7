"""Headers of model files, well-formed and then not: seeds, and what happens to them.

`cases(kind, seed, count)` is the same for the same arguments, so that a case that fails is found again by its number.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

from tests.local.gguf_bytes import ARRAY, BOOL, STRING, UINT32, array, gguf, pair, small, string, tensor, text, u32

Kind = Literal["gguf", "safetensors"]
#: Numbers that overflow, wrap, or are one beside a limit.
NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 16, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60, (1 << 61) - 8, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32,
           (1 << 64) - 8, (1 << 64) - 1]  # fmt: skip
TEXTS = [
    "",
    "a",
    "general.alignment",
    "../x",
    "a\0b",
    "\x1b[2J",
    "ö",
    "\ufffd",
    "x" * 64,
    "x" * 70_000,
    "token_embd.weight",
]
DTYPES = ["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "f32", "", "F31"]


def cases(kind: Kind, seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` files: a third made of random parts, the others mutated from those."""
    rng = random.Random(f"{kind} {seed}")
    make: Callable[[random.Random], bytes] = _gguf if kind == "gguf" else _safetensors
    seeds = [small(), _tensors_only()] if kind == "gguf" else [_plain_safetensors()]
    for number in range(count):
        if number % 3 == 0:
            data = make(rng)
            if rng.random() < 0.2:
                seeds.append(data)
                del seeds[2 : -40 or None]
            yield data
        else:
            yield _mutated(rng, rng.choice(seeds))


def _tensors_only() -> bytes:
    return gguf([], [tensor(f"t{number}", [32], 8, number * 64) for number in range(20)], b"\0" * 64 * 20)


def _mutated(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(out) + 1) if out else 0
        # The header is where it matters.
        at = min(at, rng.choice([len(out), 64, 24]))
        choice = rng.randrange(9)
        if choice == 0:
            out[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif choice == 1:
            out[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        elif choice == 2:
            del out[at : at + rng.choice([1, 4, 8, 100])]
        elif choice == 3:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 8, 100]))
        elif choice == 4 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif choice == 5:
            del out[at:]
        elif choice == 6:
            other = rng.randrange(len(out) + 1)
            out[at:at] = out[other : other + rng.choice([8, 40, 300])]
        elif choice == 7:
            out[at : at + 1] = bytes([rng.randrange(256)])
        else:
            out += bytes(rng.choice([1, 8, 4096]))
    return bytes(out)


def _gguf(rng: random.Random) -> bytes:
    lying = rng.choice([0.0, 0.03, 0.3])  # how likely each part is not what it should be
    pairs: list[bytes] = []
    for number in range(rng.randrange(6)):
        key = f"k{number}" if rng.random() > lying else rng.choice(TEXTS)
        pairs.append(_pair(rng, key, lying))
    alignment = rng.choice([1, 8, 32, 32, 32, 64])
    if alignment != 32 or rng.random() < lying:
        stated = alignment if rng.random() > lying else rng.choice(NUMBERS) & 0xFFFFFFFF
        pairs.append(u32("general.alignment", stated))
    tensors: list[bytes] = []
    at = 0
    for number in range(rng.randrange(6)):
        kind, block, size = rng.choice([(0, 1, 4), (1, 1, 2), (8, 32, 34), (12, 256, 144), (30, 1, 2), (39, 32, 17)])
        dims = [block * rng.choice([1, 2, 3]), *[rng.choice([1, 2, 5]) for _ in range(rng.randrange(4))]]
        nbytes = math.prod(dims) // block * size
        if rng.random() < lying:
            dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
        count = None if rng.random() > lying else rng.choice(NUMBERS) & 0xFFFFFFFF
        offset = at if rng.random() > lying else rng.choice(NUMBERS)
        name = f"t{number}" if rng.random() > lying else rng.choice(["t0", *TEXTS])
        tensors.append(
            tensor(name, dims, kind if rng.random() > lying else rng.choice([4, 9999, 1 << 31]), offset, count)
        )
        at = -(-(at + nbytes) // alignment) * alignment
    lies: dict[str, Any] = {}
    for name, choices in (("n_tensors", NUMBERS), ("n_pairs", NUMBERS), ("version", [0, 1, 4, 3 << 24, 0xFFFFFFFF])):
        if rng.random() < lying / 3:
            lies[name] = rng.choice(choices)
    more = rng.choice([0, 1, 4096]) if rng.random() > lying else -1
    return gguf(pairs, tensors, bytes(max(0, at + more)), alignment=alignment, **lies)


def _pair(rng: random.Random, key: str, lying: float) -> bytes:
    if rng.random() < lying:
        form = rng.randrange(4)
        if form == 0:
            return pair(key, rng.choice([*range(14), 99, 1 << 31]), rng.randbytes(rng.choice([0, 1, 4, 8, 16])))
        if form == 1:
            return array(key, rng.choice([*range(14), 77]), rng.choice(NUMBERS), rng.randbytes(rng.randrange(64)))
        nested = struct.pack("<IQ", ARRAY, 1) * rng.randrange(1, 200)
        return array(key, ARRAY, 1, nested) if form == 2 else pair(key, BOOL, b"\2")
    form = rng.randrange(4)
    if form == 0:
        return u32(key, rng.choice(NUMBERS) & 0xFFFFFFFF)
    if form == 1:
        return string(key, rng.choice(TEXTS))
    if form == 2:
        count = rng.randrange(300)
        return array(key, UINT32, count, bytes(4 * count))
    words = [text(rng.choice(TEXTS)) for _ in range(rng.randrange(5))]
    return array(key, STRING, len(words), b"".join(words))


def _plain_safetensors() -> bytes:
    header = {"__metadata__": {"format": "pt"}, "a": _entry("F32", [2, 2], 0, 16), "b": _entry("I64", [], 16, 24)}
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(24)


def _entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _odd(rng: random.Random) -> Any:
    return rng.choice([None, True, -1, 1.5, "x", [], {}, [[]], 10**30, float("nan"), rng.choice(NUMBERS), "x" * 3000])


def _safetensors(rng: random.Random) -> bytes:
    lying = rng.choice([0.0, 0.02, 0.2])
    entries: list[tuple[str, Any]] = []
    at = 0
    for number in range(rng.randrange(7)):
        shape = [rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.randrange(4))]
        dtype = rng.choice(["F32", "F16", "BF16", "I64", "BOOL"])
        size = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}[dtype] * math.prod(shape)
        entry = _entry(dtype, shape, at, at + size)
        at += size
        for field in ("dtype", "shape", "data_offsets"):
            if rng.random() < lying:
                entry[field] = _odd(rng)
        if rng.random() < lying:
            entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(20))]
        if rng.random() < lying:
            entry["data_offsets"] = [rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 2, 2, 3]))]
        if rng.random() < lying:
            entry["dtype"] = rng.choice(DTYPES)
        if rng.random() < lying:
            entry[rng.choice(["more", "dtype "])] = 1
        name = f"t{number}" if rng.random() > lying else rng.choice(["t0", *TEXTS])
        entries.append((name, entry if rng.random() > lying else _odd(rng)))
    if rng.random() < 0.3:
        entries.append(("__metadata__", {"format": "pt"} if rng.random() > lying else _odd(rng)))
    rng.shuffle(entries)
    # By hand, since keys may come twice.
    raw = ("{" + ", ".join([f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries]) + "}").encode()
    if rng.random() < lying:
        odd = [raw[:-1], raw + b" " * 9, b" " + raw, raw.replace(b'"', b"'"), b"[" * 5000, b'{"a":' * 3000, raw * 2]
        raw = rng.choice(odd)
    length = len(raw) if rng.random() > lying else rng.choice(NUMBERS)
    more = 0 if rng.random() > lying else rng.choice([-1, 1, 100])
    return struct.pack("<Q", length) + raw + bytes(max(0, at + more))
