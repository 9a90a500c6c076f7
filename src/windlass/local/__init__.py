"""A model in this process: GGUF reader, engine over llama.cpp, embeddings, scheduler."""

from __future__ import annotations

from windlass.core.lazy import face

#: Module -> the names it gives. `__init__.pyi` says the same to type checkers.
_FACE = {
    "windlass.local.embedded": "EmbeddedModel embedded_model",
    "windlass.local.gguf": "GgufInfo TensorInfo read_header",
    "windlass.local.llama": "Llama LlamaConfig",
}
__all__ = sorted(name for names in _FACE.values() for name in names.split())  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = face(__name__, _FACE, "local")
