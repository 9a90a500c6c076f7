"""Checkpoints of reference E's trainer: read, written, and brought over into safetensors or a windlass model.

All numbers are little-endian, weights are f32::

    ABIC   "ABIC", u16 1, u64 step, u64 time, u32 n, n weights
    ABLC   "ABLC", u16 1, u64 step, u32 epoch, u64 tokens, u64 time, u32 w, u32 m, u32 v, then w weights, m first and
           v second moments of Adam

Times are Unix seconds. The reference reads up to 64 MiB of ABIC and 256 MiB of ABLC; the bound here is an option.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from windlass.core.errors import ConfigError
from windlass.local.llama import LlamaConfig
from windlass.local.safetensors import write_safetensors
from windlass.training import checkpoint
from windlass.training.data import Place
from windlass.training.files import DataFile, InvalidFormat, PayloadTooLarge, UnsupportedVersion, replacing, vacant

__all__ = [
    "AbiCheckpoint",
    "LlmCheckpoint",
    "abi_shapes",
    "abi_to_checkpoint",
    "abi_to_safetensors",
    "read_abi",
    "split",
    "write_abi",
]

_HEAD: Final = struct.Struct("<4sH")
_ABIC: Final = struct.Struct("<4sHQQI")
_ABLC: Final = struct.Struct("<4sHQIQQIII")
_F32: Final = np.dtype("<f4")
#: Bytes of a file that are read by default.
MAX_BYTES: Final = 4 << 30
_MOST: Final = 0xFFFF_FFFF


class AbiCheckpoint(NamedTuple):
    """A generic checkpoint (ABIC): `weights` (n,) after `step` steps, written at `timestamp` (Unix seconds)."""

    weights: NDArray[np.float32]
    step: int = 0
    timestamp: int = 0


class LlmCheckpoint(NamedTuple):
    """A checkpoint of the LLM trainer (ABLC): weights, Adam's first and second moments, and how far it had come."""

    weights: NDArray[np.float32]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    step: int = 0
    epoch: int = 0
    tokens: int = 0
    timestamp: int = 0


def read_abi(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> AbiCheckpoint | LlmCheckpoint:
    """Read a checkpoint of either kind.

    Raises InvalidFormat for another file and for one whose counts are not what it holds, UnsupportedVersion,
    PayloadTooLarge over `max_bytes`, DataError when it cannot be read. Nothing is allocated before the counts are
    compared with the file's size.
    """
    with DataFile(path) as file:
        magic, version = _HEAD.unpack(file.read(0, _HEAD.size, "its header"))
        if magic not in (b"ABIC", b"ABLC"):
            raise file.invalid("it is no checkpoint of reference E", "Such a file begins with ABIC or ABLC.")
        if version != 1:
            raise UnsupportedVersion(f"{path}: {magic.decode()} version {version}; 1 is read.", path=path)
        layout = _ABIC if magic == b"ABIC" else _ABLC
        fields = layout.unpack(file.read(0, layout.size, "its header"))[2:]
        counts = fields[-1:] if layout is _ABIC else fields[-3:]
        if layout.size + 4 * sum(counts) != file.size:
            raise file.invalid(f"its {sum(counts)} numbers and header are not its {file.size} bytes")
        if file.size > max_bytes:
            raise PayloadTooLarge(f"{path} has {file.size} bytes; at most {max_bytes} are read.", path=path)
        arrays: list[NDArray[np.float32]] = []
        at = layout.size
        for count in counts:
            arrays.append(np.frombuffer(file.read(at, count * 4, "its weights"), _F32).astype(np.float32))
            at += count * 4
    if layout is _ABIC:
        return AbiCheckpoint(arrays[0], step=fields[0], timestamp=fields[1])
    step, epoch, tokens, timestamp = fields[:4]
    return LlmCheckpoint(*arrays, step=step, epoch=epoch, tokens=tokens, timestamp=timestamp)


def write_abi(
    path: str | os.PathLike[str], checkpoint: AbiCheckpoint | LlmCheckpoint, *, overwrite: bool = False
) -> None:
    """Write a checkpoint that the reference reads, whole or not at all.

    Raises PayloadTooLarge for more than 2^32 - 1 numbers, ConfigError for other numbers than the fields hold, and when
    `path` is there already and `overwrite` is not set.
    """
    if isinstance(checkpoint, AbiCheckpoint):
        arrays = [checkpoint.weights]
        fields: list[int] = [checkpoint.step, checkpoint.timestamp]
        layout, magic = _ABIC, b"ABIC"
    else:
        arrays = [checkpoint.weights, checkpoint.first, checkpoint.second]
        fields = [checkpoint.step, checkpoint.epoch, checkpoint.tokens, checkpoint.timestamp]
        layout, magic = _ABLC, b"ABLC"
    if any(array.size > _MOST for array in arrays):
        raise PayloadTooLarge(f"{path}: a checkpoint of reference E holds at most {_MOST} numbers.", path=path)
    try:
        head = layout.pack(magic, 1, *fields, *[array.size for array in arrays])
    except struct.error as error:
        raise ConfigError(f"Step, epoch, tokens and time must be unsigned numbers that fit: {error}.") from None
    with replacing(path, overwrite=overwrite) as file:
        file.write(head)
        for array in arrays:
            file.write(np.ascontiguousarray(array, _F32).reshape(-1).data)


def abi_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a llama in the order of the reference's flat array of weights.

    Names and shapes are those of `windlass.local.Llama` and of GGUF, from which the reference copies its own.
    """
    width, inner, keys = config.width, config.feed_forward, config.kv_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, width)}
    for layer in range(config.layers):
        block = {
            "attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width),
            "attn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner),
            "ffn_norm": (width,),
        }  # fmt: skip
        shapes.update({f"blk.{layer}.{name}.weight": shape for name, shape in block.items()})
    shapes["output_norm.weight"] = (width,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab_size, width)
    return shapes


def split(flat: NDArray[np.float32], shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Cut a flat array into tensors, in the order of `shapes` (`abi_shapes` gives those of a llama).

    Raises InvalidFormat when the array has more or fewer numbers.
    """
    sizes = [int(np.prod([int(n) for n in shape], dtype=object)) for shape in shapes.values()]
    if flat.ndim != 1 or sum(sizes) != flat.size or any(size < 0 for size in sizes):
        raise InvalidFormat(f"The tensors hold {sum(sizes)} numbers, the checkpoint {flat.size}.")
    out: dict[str, NDArray[np.float32]] = {}
    at = 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        out[name] = flat[at : at + size].reshape(tuple(shape))
        at += size
    return out


def abi_to_safetensors(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    overwrite: bool = False,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write a checkpoint as safetensors.

    Without `shapes` the tensors are `weights` and, of an ABLC file, `first` and `second`, all flat. With them the
    weights are cut and named so (`Llama.load_state_dict` takes a llama's), and the moments, where there are any, have
    `first.` and `second.` before the name. The header's metadata say step, epoch, tokens and timestamp.

    Raises as `read_abi`, `split` and `write_abi`.
    """
    found = read_abi(source, max_bytes=max_bytes)
    flat = {"weights": found.weights}
    told: dict[str, int] = {"step": found.step, "timestamp": found.timestamp}
    if isinstance(found, LlmCheckpoint):
        flat |= {"first": found.first, "second": found.second}
        told |= {"epoch": found.epoch, "tokens": found.tokens}
    tensors: dict[str, NDArray[np.float32]] = {}
    for part, array in flat.items():
        if shapes is None:
            tensors[part] = array
        elif array.size or part == "weights":
            before = "" if part == "weights" else f"{part}."
            tensors |= {before + name: tensor for name, tensor in split(array, shapes).items()}
    told_text = {name: str(value) for name, value in told.items()}
    write_safetensors(
        vacant(target, overwrite=overwrite), tensors, {"format": "pt", "source": type(found).__name__, **told_text}
    )


def abi_to_checkpoint(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], config: LlamaConfig, *, max_bytes: int = MAX_BYTES
) -> Path:
    """Write an ABLC file as a checkpoint of ours, from which a run of a llama of that `config` is resumed.

    Weights, Adam's moments, step, tokens and epoch (from its beginning) are taken over; moments that the file has not
    begin at zero. `folder` is the one of a run's checkpoints; what is returned is the new one in it. An ABIC file has
    no moments. Raises as `read_abi` and `split`, and CheckpointError when it cannot be written.
    """
    found = read_abi(source, max_bytes=max_bytes)
    shapes = abi_shapes(config)
    model = {name: torch.from_numpy(array.copy()) for name, array in split(found.weights, shapes).items()}
    memory: dict[str, Tensor] = {}
    state = checkpoint.State(step=found.step, shape=msgspec.to_builtins(config), source=os.fspath(source))
    if isinstance(found, LlmCheckpoint):
        state = msgspec.structs.replace(state, tokens=found.tokens, place=Place(found.epoch, 0))
        if found.first.size and found.second.size:
            for key, flat in (("exp_avg", found.first), ("exp_avg_sq", found.second)):
                memory |= {f"{name}|{key}": torch.from_numpy(part.copy()) for name, part in split(flat, shapes).items()}
            memory |= {f"{name}|step": torch.tensor(float(found.step)) for name in shapes}
    with checkpoint.Folder(Path(folder)) as kept:
        kept.expect(found.step)
        return kept.save(state, model, memory, {})
