"""How a model is loaded by the engine, and what the engine is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from windlass.local.gguf import GgufInfo

__all__ = ["DEFAULT_CONTEXT", "Adapter", "EngineOptions", "engine_parameters"]

#: Tokens of context when neither the caller nor the model states fewer: memory grows with it.
DEFAULT_CONTEXT: Final = 4096
_SILENT, _ERRORS_ONLY = -1, 1
_SMALL: Final = 64 << 20


class Adapter(Struct, frozen=True):
    """A LoRA adapter to put on a model: a GGUF file, and how much of it is added (1.0: all, 0.0: none)."""

    path: str
    scale: float = 1.0


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How a model is loaded.

    `context` is in tokens per slot (None: the model's own, at most 4096); `slots` how many answers are made at a time,
    further requests wait; `threads` of computation (None: the processors this process may use, one for a file below 64
    MiB, where more would only wait for each other). `gpu_layers` is -1 for
    all that the installed engine can offload. `memory_map` reads the file page by page when it is used; without it a
    file that is cut while it runs cannot harm. `log` lets the engine write its errors to stderr. `batch` is how many
    tokens of a prompt are read at a time: a cancelled request ends at the next batch. `embedding` makes an engine that
    gives vectors and no text, `pooling` (mean, cls, last, rank; empty: the model's own) how a text's are made one.
    `cache` is the type of keys and values: f16, q8_0, or f32, which also computes attention in float32.
    """

    context: int | None = None
    slots: int = 1
    threads: int | None = None
    gpu_layers: int = -1
    memory_map: bool = True
    log: bool = False
    batch: int = 512
    embedding: bool = False
    pooling: str = ""
    cache: Literal["f16", "f32", "q8_0"] = "f16"
    adapters: tuple[Adapter, ...] = ()


def engine_parameters(library: Any, info: GgufInfo, context: int, slots: int, options: EngineOptions) -> Any:
    """Return xllamacpp's `CommonParams` for a file whose header was read; `library` is the module."""
    threads = options.threads or (1 if info.size < _SMALL else _processors())
    params: Any = library.CommonParams()
    params.model.path = info.path
    params.model_alias = {Path(info.path).stem}
    params.n_ctx, params.n_parallel = context * slots, slots
    params.n_batch = params.n_ubatch = options.batch
    params.lora_adapters = [library.CommonAdapterLoraInfo(a.path, a.scale) for a in options.adapters]
    params.cache_type_k = params.cache_type_v = library.ggml_type[f"GGML_TYPE_{options.cache.upper()}"]
    if options.cache == "f32":
        params.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if options.embedding:
        params.embedding = True
        # Else texts of unequal length that are read together are cut, and only their last piece is pooled.
        params.kv_unified = True
        params.n_batch = params.n_ubatch = context  # a text must be read at once
        if options.pooling:
            params.pooling_type = library.llama_pooling_type[f"LLAMA_POOLING_TYPE_{options.pooling.upper()}"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = options.gpu_layers
    modes = library.llama_load_mode
    params.load_mode = modes.LLAMA_LOAD_MODE_AUTO if options.memory_map else modes.LLAMA_LOAD_MODE_NONE
    params.use_jinja = True
    params.warmup = params.fit_params = False
    params.cache_ram_mib = 0  # its default keeps up to 8 GiB of old prompts
    params.verbosity = _ERRORS_ONLY if options.log else _SILENT
    return params


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
