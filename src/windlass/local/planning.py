"""Plan what a model will need before it is loaded: memory, and how many layers go to a GPU.

    needed = weights + keys and values (context x slots) + working buffers

The cache is exact for models of plain attention (GGUF's keys, 2 bytes a number, f16); buffers are an upper estimate of
what llama.cpp's graph takes for one batch. Layers are put on GPUs as ollama's llm/memory.go does, and with it
xllamacpp's `estimate_gpu_layers`, which would read the whole vocabulary once more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from windlass.core.errors import ConfigError
from windlass.local.engine import EngineOptions, require_engine
from windlass.local.failures import OutOfMemory
from windlass.local.gguf import GgufArray, GgufInfo

__all__ = ["MemoryPlan", "free_memory", "gpu_devices", "plan_memory"]

_CGROUP: Final = Path("/sys/fs/cgroup")
_PROCESS: Final = 16 << 20  # the engine itself and what its threads need
#: Bytes of a number in the cache (q8_0: 34 for 32).
_CACHE_BYTES: Final = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}
_PER_GPU: Final = 512 << 20  # what a driver and its libraries take
_NO_LIMIT: Final = 1 << 60


class MemoryPlan(Struct, frozen=True, kw_only=True):
    """What a model will need, in bytes; `free` is None where the system does not say.

    `gpu_layers` of `layers` go to `device` ("cpu": none), where they take `gpu` bytes of `gpu_free`.
    """

    name: str
    weights: int
    cache: int
    buffers: int
    free: int | None
    context: int
    slots: int
    layers: int = 0
    device: str = "cpu"
    gpu_layers: int = 0
    gpu: int = 0
    gpu_free: int = 0

    @property
    def needed(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.buffers

    @property
    def message(self) -> str:
        """One or two sentences for the user."""
        slots = f"{self.slots} x " if self.slots > 1 else ""
        text = (
            f"{self.name} needs about {_size(self.needed)}: weights {_size(self.weights)}, "
            f"cache for {slots}{self.context} tokens {_size(self.cache)}, buffers {_size(self.buffers)}"
        )
        text += f"; {_size(self.free)} are free." if self.free is not None else "."
        if self.gpu_layers:
            text += f" {self.gpu_layers} of {self.layers} layers go to {self.device}, with {_size(self.gpu)}."
        return text

    def check(self, path: str = "") -> None:
        """Raise OutOfMemory when more is needed than is free."""
        need = self.needed
        if self.gpu_layers:
            need -= (self.weights + self.cache) * self.gpu_layers // self.layers
        if self.free is not None and need > self.free:
            raise OutOfMemory(
                self.message,
                needed=need,
                free=self.free,
                path=path,
                hint="Use a smaller context, fewer slots or a smaller model, free memory, or say ignore_memory=True.",
            )


def plan_memory(
    info: GgufInfo,
    options: EngineOptions,
    *,
    use_gpu: bool = True,
    free: int | None = None,
    devices: Sequence[Mapping[str, Any]] | None = None,
) -> MemoryPlan:
    """Return what a model needs with these options. `options.gpu_layers` -1 means: as many as fit.

    `free` (bytes) and `devices` (xllamacpp's `get_device_info`) stand instead of what the system says. Blocking; no
    more than the header of the file is read without a GPU.
    """
    context = options.context or min(info.context_length or 4096, 4096)
    found = [d for d in (gpu_devices() if devices is None else devices) if _is_gpu(d)] if use_gpu else []
    gpu_layers = gpu = 0
    if found and options.gpu_layers != 0:
        gpu_layers, gpu = _gpu_share(info, options, context, found)
    first = found[0] if gpu_layers else {}
    return MemoryPlan(
        name=Path(info.path).stem,
        weights=sum([tensor.nbytes for tensor in info.tensors]),
        cache=int(_cache(info, context * options.slots) * _CACHE_BYTES[options.cache] / 2),
        buffers=_buffers(info, options, context * options.slots),
        free=free_memory() if free is None else free,
        context=context,
        slots=options.slots,
        layers=_layers(info),
        device=str(first.get("description") or first.get("name") or "cpu"),
        gpu_layers=gpu_layers,
        gpu=gpu,
        gpu_free=sum([int(d["memory_free"]) for d in found]),
    )


def free_memory() -> int | None:
    """Return how many bytes this process may still use, None where the system does not say.

    Linux: MemAvailable of /proc/meminfo, or less where a control group (version 2) allows less.
    """
    if sys.platform != "linux":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    available = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        left = _group_limit()
        available = left if available is None else min(available, left)
    return available


def _group_limit() -> int:
    """Return what the control group leaves; file pages that it can drop count as free."""
    limit = (_CGROUP / "memory.max").read_text().strip()
    if limit == "max":
        return _NO_LIMIT
    used = int((_CGROUP / "memory.current").read_text())
    with contextlib.suppress(OSError, ValueError):
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
    return max(0, int(limit) - used)


def gpu_devices() -> list[Mapping[str, Any]]:
    """Return the engine's devices that are GPUs, as xllamacpp's `get_device_info` tells them; empty without the engine.

    The first call loads the engine's library.
    """
    try:
        require_engine()
    except ConfigError:
        return []
    import xllamacpp

    devices: Any = getattr(xllamacpp, "get_device_info", list)()
    return [device for device in devices if _is_gpu(device)]


def _is_gpu(device: Mapping[str, Any]) -> bool:
    return "GPU" in str(getattr(device.get("type"), "name", device.get("type")))


def _gpu_share(
    info: GgufInfo, options: EngineOptions, context: int, devices: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """Return how many layers go to the GPUs, and the bytes they take there."""
    graph, cache = _graph(info, options, context)
    fitting, bytes_ = _fit(info, cache, graph, [int(device["memory_free"]) for device in devices])
    if 0 <= options.gpu_layers < fitting:
        return options.gpu_layers, bytes_ * options.gpu_layers // fitting
    return fitting, bytes_


def _graph(info: GgufInfo, options: EngineOptions, context: int) -> tuple[int, int]:
    """Return what the working graph takes on a GPU, and a layer's keys and values, in bytes."""
    import xllamacpp.memory

    # It asks of arrays how long they are, or for their largest and smallest number.
    told = {k: range(v.count) if not v.values else list(v.values) for k, v in info.metadata.items() if _is_array(v)}
    metadata = {key: {"value": value} for key, value in {**info.metadata, **told}.items()}
    graph_size: Any = xllamacpp.memory.graph_size
    try:
        cache, partial, full = graph_size(metadata, context * options.slots, options.batch, options.slots, "f16")
    except KeyError:  # a model that does not state its sizes
        return _buffers(info, options, context), _cache(info, context * options.slots) // max(1, _layers(info) - 1)
    return int(max(partial, full)), int(max(cache, default=0))


def _fit(info: GgufInfo, cache: int, graph: int, free: Sequence[int]) -> tuple[int, int]:
    """Return how many layers fit, from the last one on and the output after them, and what they take in all."""
    sizes = [cache] * (_layers(info) - 1)
    output = 0
    for tensor in info.tensors:
        block = tensor.name.split(".")
        if block[0] == "blk" and block[1].isdigit() and int(block[1]) < len(sizes):
            sizes[int(block[1])] += tensor.nbytes
        elif block[0] in ("output", "output_norm", "token_embd"):
            output += tensor.nbytes
    first = sizes[0] if sizes else 0
    # Each GPU keeps room for its driver, the graph and one layer more.
    room = [left - graph - _PER_GPU - first for left in free if left >= graph + _PER_GPU + 2 * first]
    placed = taken = 0
    used = [False] * len(room)
    waiting = list(range(len(room)))
    for size in [*reversed(sizes), output]:
        while waiting:
            device = waiting[placed % len(waiting)]
            if room[device] > size:
                room[device] -= size
                placed, taken, used[device] = placed + 1, taken + size, True
                break
            waiting.remove(device)
        else:
            break
    return placed, taken + sum(used) * (graph + _PER_GPU + first)


def _is_array(value: Any) -> bool:
    return isinstance(value, GgufArray)


def _layers(info: GgufInfo) -> int:
    return _number(info, "block_count") + 1  # the output counts as one


def _cache(info: GgufInfo, tokens: int) -> int:
    heads = info.metadata.get(f"{info.architecture}.attention.head_count_kv", _number(info, "attention.head_count"))
    layers, width = _number(info, "block_count"), _head_width(info)
    if isinstance(heads, GgufArray):  # stated per layer
        per_layer = sum([int(value) for value in heads.values])
    else:
        per_layer = layers * (heads if isinstance(heads, int) else 0)
    key, value = _number(info, "attention.key_length", width), _number(info, "attention.value_length", width)
    return 2 * tokens * per_layer * (key + value)


def _head_width(info: GgufInfo) -> int:
    return _number(info, "embedding_length") // max(1, _number(info, "attention.head_count"))


def _buffers(info: GgufInfo, options: EngineOptions, tokens: int) -> int:
    batch = min(options.batch, tokens) if not options.embedding else tokens
    width, inner = _number(info, "embedding_length"), _number(info, "feed_forward_length")
    known = info.metadata.get("tokenizer.ggml.tokens")
    vocabulary = known.count if isinstance(known, GgufArray) else 0
    # Logits of a whole batch or its widest layer, whichever is more, and the mask of its attention.
    return _PROCESS + 4 * batch * (max(vocabulary + width, 6 * width + 2 * inner) + tokens // max(1, options.slots))


def _number(info: GgufInfo, key: str, default: int = 0) -> int:
    value = info.metadata.get(f"{info.architecture}.{key}", default)
    if isinstance(value, GgufArray):
        return max([int(v) for v in value.values], default=default)
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else default


def _size(count: int) -> str:
    value, units = float(count), ("B", "KB", "MB", "GB", "TB")
    unit = 0
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {units[unit]}"
