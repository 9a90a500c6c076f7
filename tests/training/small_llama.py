"""A small fresh model, its tokenizer, and the engine asked for numbers instead of text."""

from __future__ import annotations

import importlib
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from windlass.local.engine import EngineOptions, Kind, Native
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.tokenizer import Tokenizer

#: It has no types of its own.
_library: Any = importlib.import_module("xllamacpp")

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n",
    "Übergröße, naïve café: 你好, мир! 🙂\n\n",
    "x = 1\n\ty += 2  # 3\n",
]


def tokenizer(size: int = 300) -> Tokenizer:
    """Train a tokenizer with two special tokens and a fixed one."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Tokenizer.train(TEXTS * 3, size, special=special, fixed=("<tool_call>",))


def llama(vocab_size: int, *, seed: int = 0, tied: bool = True, spread: float = 0.08, context: int = 256) -> Llama:
    """Make a model of two layers whose logits differ from each other as a trained one's do."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, width=64, layers=2, heads=4, kv_heads=2, feed_forward=128, context=context, tied=tied
    )
    model = Llama(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=spread)
    return model


def log_probabilities(model: Llama, tokens: list[int]) -> NDArray[np.float64]:
    """Return torch's log-probabilities of the next token, (vocab,)."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens]))[0, -1].double(), -1).numpy()


class Exact:
    """The engine with keys and values in float32 and without flash attention, as exact as it can be.

    Its default keeps them in float16. Numbers come as JSON with all digits of a float32.
    """

    def __init__(self, path: Path, *, exact: bool = True, adapter: Path | None = None) -> None:
        params: Any = _library.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = params.fit_params = params.ui = False
        params.verbosity, params.cache_ram_mib = -1, 0
        if exact:
            params.flash_attn_type = _library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = _library.ggml_type.GGML_TYPE_F32
        if adapter is not None:
            params.lora_adapters = [_library.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self._server: Any = _library.Server(params)

    def next(self, tokens: list[int], vocab_size: int, ascii_token: int) -> NDArray[np.float64]:
        """Return the log-probabilities of the next token, (vocab_size,).

        `ascii_token` is what the sampler is made to take (the numbers are those before it): for a part of a character
        the engine would hold the answer back.
        """
        body = {
            "prompt": tokens, "max_tokens": 1, "temperature": 0, "n_probs": vocab_size, "post_sampling_probs": False,
            "cache_prompt": False, "logit_bias": [[ascii_token, 1000.0]],
        }  # fmt: skip
        answer: Any = self._server.handle_completions(body)
        answer = msgspec.json.decode(answer) if isinstance(answer, str | bytes) else answer
        found = np.full(vocab_size, np.nan)
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found

    def close(self) -> None:
        """Unload the model."""
        self._server = None


def ask_native(native: Native, kind: Kind, body: dict[str, Any]) -> Any:
    """Return the one JSON answer to a request."""
    chunks: list[bytes] = []
    fault = native.answer(kind, body, lambda chunk: bool(chunks.append(chunk)))
    assert fault is None, fault
    return msgspec.json.decode(chunks[0])


def engine_tokens(native: Native, text: str, *, special: bool) -> list[int]:
    """Return the tokens the engine makes of a text."""
    return ask_native(native, "tokenize", {"content": text, "add_special": False, "parse_special": special})["tokens"]


def differences(path: Path, model: Llama, prompts: list[list[int]], ascii_token: int, **options: Any) -> float:
    """Return the largest difference between engine and torch over whole distributions."""
    with closing(Exact(path, **options)) as engine:
        size = model.config.vocab_size
        return max(
            float(np.abs(engine.next(tokens, size, ascii_token) - log_probabilities(model, tokens)).max())
            for tokens in prompts
        )


ONE_THREAD = EngineOptions(context=256, threads=1, gpu_layers=0, memory_map=False)
