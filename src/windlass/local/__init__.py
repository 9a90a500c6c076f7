"""A model in this process: GGUF reader, engine over llama.cpp, embeddings, scheduler."""

from __future__ import annotations

from windlass.core.lazy import face

#: Module -> the names it gives. `__init__.pyi` says the same to type checkers.
_FACE = {
    "windlass.local.answers": "ChatAnswer",
    "windlass.local.backend": "Backend Generation ModelInfo",
    "windlass.local.backend_native": "NativeBackend",
    "windlass.local.backend_server": "ServerBackend ServerProcess",
    "windlass.local.backend_torch": "TorchBackend",
    "windlass.local.convert": "gguf_to_hf hf_to_gguf load_hf",
    "windlass.local.convert_bert": "bert_to_gguf",
    "windlass.local.embedded": "EmbeddedModel embedded_model",
    "windlass.local.embedder": "Encoder GgufEmbedder",
    "windlass.local.engine": "Adapter",
    "windlass.local.failures": "InvalidModelFormat OutOfMemory UnsupportedQuantization",
    "windlass.local.gguf": "GgufInfo TensorInfo read_header",
    "windlass.local.gguf_data": "GgufFile",
    "windlass.local.gguf_edit": "edit_metadata",
    "windlass.local.gguf_write": "GgufFileWriter",
    "windlass.local.llama": "Llama LlamaConfig",
    "windlass.local.llama_gguf": "load_gguf",
    "windlass.local.model": "InferenceConfig Model TokenStream",
    "windlass.local.model_files": "kind_of",
    "windlass.local.planning": "MemoryPlan plan_memory",
    "windlass.local.quantize": "quantize_model",
    "windlass.local.safetensors": "SafetensorsFile read_safetensors write_safetensors",
    "windlass.local.streaming": "StreamState StreamingConfig StreamingResponse StreamingStats TokenEvent",
    "windlass.local.templates": "TemplateLimits TemplateRenderer render_chat",
}
__all__ = sorted(name for names in _FACE.values() for name in names.split())  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = face(__name__, _FACE, "local", {"torch": "train", "tokenizers": "train"})
