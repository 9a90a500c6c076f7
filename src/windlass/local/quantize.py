"""Turn a GGUF model into one of another type, tensor by tensor, with little memory.

F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are written by the gguf package; the K-quants by the engine's own
function where the installed engine exports it, else by a `llama-quantize` program on the PATH.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.engine_quants import ENGINE_TYPES, Quantizer, engine_quantizer
from windlass.local.gguf import TENSOR_TYPES, GgufInfo, TensorInfo, read_header
from windlass.local.gguf_data import GgufFile, from_float
from windlass.local.gguf_edit import copy_metadata
from windlass.local.gguf_write import FILE_TYPES, GgufFileWriter, file_type_of
from windlass.local.model_files import new_file

__all__ = ["MODEL_TYPES", "Quantized", "quantize_model"]

#: What `quantize_model` can make.
MODEL_TYPES: Final = tuple(FILE_TYPES)
_FLOATS: Final = ("F32", "F16", "BF16")
_WHOLE: Final = {"I8", "I16", "I32", "I64"}
#: llama.cpp's choice where rows are not divided by blocks of 256, then where not by 32 either.
_INSTEAD: Final = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_BLOCKS: Final = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION
_EXTERNAL: Final = "llama-quantize"
_MIXES: Final = ("Q3_K", "Q4_K", "Q5_K")  # which llama.cpp names by a mix, `Q4_K_M`
_LONGEST: Final = 24 * 60 * 60.0


class Quantized(Struct, frozen=True):
    """What was made: the new header, sizes in bytes, and how many tensors are of which type.

    `instead` names tensors whose rows the blocks of the type do not divide, with the type that they got.
    """

    info: GgufInfo
    before: int
    after: int
    types: dict[str, int]
    instead: dict[str, str]


def quantize_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str,
    *,
    again: bool = False,
    output_kind: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Quantized:
    """Write the GGUF model `source` to `target` with its matrices as `kind`, one of `MODEL_TYPES`.

    Vectors, norms and routers of experts stay F32. `output_kind` is for `output.weight` and `token_embd.weight` (None:
    `kind`). A source that is quantised already loses precision twice: only with `again`, or into F32, F16, BF16.
    `progress(done, total)` is called in bytes of the target; what it raises ends the work, and the target is as before.
    Blocking: some 20 s per 1e9 weights, K-quants a minute. Raises UnknownNameError for a type, ConfigError where it
    cannot be made, LocalModelError for the files.
    """
    kind, output_kind = kind.upper(), (output_kind or kind).upper()
    for name in (kind, output_kind):
        if name not in FILE_TYPES:
            raise UnknownNameError("tensor type", name, MODEL_TYPES)
    engine = engine_quantizer() if {kind, output_kind} & {*ENGINE_TYPES} else None
    with GgufFile(source) as file:
        _check_source(file.info, kind, again)
        if {kind, output_kind} & {*ENGINE_TYPES} and engine is None:
            info, instead = _by_program(source, target, kind, output_kind, again), {}
        else:
            info, instead = _write(file, target, (kind, output_kind), engine, progress)
        before = file.info.size
    types: dict[str, int] = {}
    for tensor in info.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    return Quantized(info, before, info.size, types, instead)


def _check_source(info: GgufInfo, kind: str, again: bool) -> None:
    if "split.count" in info.metadata:
        raise LocalModelError(
            f"{info.path} is one part of a model in several files.", path=info.path, hint="Merge the parts first."
        )
    low = sorted({tensor.type for tensor in info.tensors} - {*_FLOATS, "F64"} - _WHOLE)
    if low and kind not in _FLOATS and not again:
        raise ConfigError(
            f"{info.path} holds {', '.join(low)} already: to quantise it again loses more than to do it once.",
            hint="Start from the F32, F16 or BF16 file, or ask for it with again=True (--again).",
        )


def _write(
    file: GgufFile,
    target: str | os.PathLike[str],
    kinds: tuple[str, str],
    engine: Quantizer | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[GgufInfo, dict[str, str]]:
    info, instead = file.info, dict[str, str]()
    writer = GgufFileWriter(info.architecture, alignment=info.alignment)
    planned: list[tuple[TensorInfo, str]] = []
    for tensor in info.tensors:
        wanted = _wanted(tensor, *kinds)
        found = _possible(tensor, wanted)
        if found != wanted:
            instead[tensor.name] = found
        planned.append((tensor, found))
    number = file_type_of([(kind, _size(tensor, kind)) for tensor, kind in planned if len(tensor.dims) > 1])
    if number is not None:
        writer.add("general.file_type", number, "uint32")
    writer.add("general.quantization_version", _QUANTIZATION_VERSION, "uint32")
    copy_metadata(file, writer)
    for tensor, kind in planned:
        shape = tensor.dims[::-1]
        if kind == tensor.type:
            writer.add_tensor(tensor.name, shape, kind, partial(file.raw, tensor.name), raw=True)
        else:
            writer.add_tensor(tensor.name, shape, kind, partial(_converted, file, tensor.name, kind, engine), raw=True)
    return writer.write(target, progress=progress), instead


def _converted(file: GgufFile, name: str, kind: str, engine: Quantizer | None) -> Iterator[NDArray[np.uint8]]:
    for piece in file.floats(name):
        try:
            yield engine(piece, kind) if engine is not None and kind in ENGINE_TYPES else from_float(piece, kind)
        except ConfigError as error:
            raise ConfigError(f"The tensor {name!r} cannot be {kind}: {error.message}", hint=error.hint) from error


def _wanted(tensor: TensorInfo, kind: str, output_kind: str) -> str:
    if tensor.type in _WHOLE:
        return tensor.type
    matrix = len(tensor.dims) > 1 and tensor.dims[1] > 1 and tensor.name.endswith(".weight")
    if not matrix or "norm" in tensor.name or "ffn_gate_inp" in tensor.name:
        return "F32"
    return output_kind if tensor.name in ("output.weight", "token_embd.weight") else kind


def _possible(tensor: TensorInfo, kind: str) -> str:
    for name in (kind, _INSTEAD.get(kind, "F16"), "F16"):
        if tensor.dims[0] % _BLOCKS[name][0] == 0:
            return name
    return "F16"


def _size(tensor: TensorInfo, kind: str) -> int:
    block, size = _BLOCKS[kind]
    return math.prod(tensor.dims) // block * size


def _by_program(
    source: str | os.PathLike[str], target: str | os.PathLike[str], kind: str, output_kind: str, again: bool
) -> GgufInfo:
    """Have llama.cpp's own program do it: the engine that is installed here does not export its quantiser."""
    program = shutil.which(_EXTERNAL)
    if program is None:
        raise ConfigError(
            f"{kind} is written by the engine, and the installed one does not offer it.",
            hint=f"pip install 'windlass[local]', put llama.cpp's {_EXTERNAL} on the PATH, or choose Q8_0 or Q4_0.",
        )
    options = ["--allow-requantize"] if again else []
    options += ["--pure", "--output-tensor-type", output_kind, "--token-embedding-type", output_kind]
    with new_file(target) as file:
        done = subprocess.run(
            [program, *options, str(Path(source).absolute()), file.name, f"{kind}_M" if kind in _MIXES else kind],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST,
        )
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise LocalModelError(f"{program} failed with status {done.returncode}: {said}", path=os.fspath(source))
        read_header(file.name)
    return read_header(target)
