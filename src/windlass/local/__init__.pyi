from windlass.local.embedded import EmbeddedModel, embedded_model
from windlass.local.gguf import GgufInfo, TensorInfo, read_header
from windlass.local.llama import Llama, LlamaConfig

__all__ = ["EmbeddedModel", "GgufInfo", "Llama", "LlamaConfig", "TensorInfo", "embedded_model", "read_header"]
