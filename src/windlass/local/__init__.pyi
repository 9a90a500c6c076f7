from windlass.local.answers import ChatAnswer
from windlass.local.backend import Backend, Generation, ModelInfo
from windlass.local.backend_native import NativeBackend
from windlass.local.backend_server import ServerBackend, ServerProcess
from windlass.local.backend_torch import TorchBackend
from windlass.local.convert import gguf_to_hf, hf_to_gguf, load_hf
from windlass.local.convert_bert import bert_to_gguf
from windlass.local.embedded import EmbeddedModel, embedded_model
from windlass.local.embedder import Encoder, GgufEmbedder
from windlass.local.engine import Adapter
from windlass.local.failures import InvalidModelFormat, OutOfMemory, UnsupportedQuantization
from windlass.local.gguf import GgufInfo, TensorInfo, read_header
from windlass.local.gguf_data import GgufFile
from windlass.local.gguf_edit import edit_metadata
from windlass.local.gguf_write import GgufFileWriter
from windlass.local.llama import Llama, LlamaConfig
from windlass.local.llama_gguf import load_gguf
from windlass.local.model import InferenceConfig, Model, TokenStream
from windlass.local.model_files import kind_of
from windlass.local.planning import MemoryPlan, plan_memory
from windlass.local.quantize import quantize_model
from windlass.local.safetensors import SafetensorsFile, read_safetensors, write_safetensors
from windlass.local.streaming import StreamingConfig, StreamingResponse, StreamingStats, StreamState, TokenEvent
from windlass.local.templates import TemplateLimits, TemplateRenderer, render_chat

__all__ = [
    "Adapter",
    "Backend",
    "ChatAnswer",
    "EmbeddedModel",
    "Encoder",
    "Generation",
    "GgufEmbedder",
    "GgufFile",
    "GgufFileWriter",
    "GgufInfo",
    "InferenceConfig",
    "InvalidModelFormat",
    "Llama",
    "LlamaConfig",
    "MemoryPlan",
    "Model",
    "ModelInfo",
    "NativeBackend",
    "OutOfMemory",
    "SafetensorsFile",
    "ServerBackend",
    "ServerProcess",
    "StreamState",
    "StreamingConfig",
    "StreamingResponse",
    "StreamingStats",
    "TemplateLimits",
    "TemplateRenderer",
    "TensorInfo",
    "TokenEvent",
    "TokenStream",
    "TorchBackend",
    "UnsupportedQuantization",
    "bert_to_gguf",
    "edit_metadata",
    "embedded_model",
    "gguf_to_hf",
    "hf_to_gguf",
    "kind_of",
    "load_gguf",
    "load_hf",
    "plan_memory",
    "quantize_model",
    "read_header",
    "read_safetensors",
    "render_chat",
    "write_safetensors",
]
