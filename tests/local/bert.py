"""A tiny random BERT of sentence-transformers' layout, and what it computes, in numpy: the oracle of the conversion.

The computation is that of github.com/huggingface/transformers, models/bert/modeling_bert.py; the tokenizer here only
knows words that are in the vocabulary, in small letters, with pieces.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from windlass.local.safetensors import write_safetensors

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "##s", "##ting", "walk", ",", ".", "!", "日", "本", "naive", "x"]
VOCABULARY = [*SPECIAL, *WORDS]
WIDTH, HEADS, LAYERS, FEED, POSITIONS = 32, 4, 2, 64, 40
CONFIG: dict[str, Any] = {
    "model_type": "bert", "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "intermediate_size": FEED, "max_position_embeddings": POSITIONS, "vocab_size": len(VOCABULARY) + 2,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip


def weights(seed: int = 1) -> dict[str, Any]:
    """Return random weights under the names of the older files, some as `gamma` and `beta`."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    out = {
        "embeddings.word_embeddings.weight": matrix(CONFIG["vocab_size"], WIDTH),
        "embeddings.position_embeddings.weight": matrix(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": matrix(2, WIDTH),
        "embeddings.LayerNorm.gamma": 1 + matrix(WIDTH), "embeddings.LayerNorm.beta": matrix(WIDTH),
        "embeddings.position_ids": np.arange(POSITIONS, dtype=np.int64)[None],
        "pooler.dense.weight": matrix(WIDTH, WIDTH), "pooler.dense.bias": matrix(WIDTH),
    }  # fmt: skip
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        sizes = {
            "attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (FEED, WIDTH), "output.dense": (WIDTH, FEED),
        }  # fmt: skip
        for name, shape in sizes.items():
            out[f"{at}.{name}.weight"], out[f"{at}.{name}.bias"] = matrix(*shape), matrix(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            out[f"{at}.{name}.weight"], out[f"{at}.{name}.bias"] = 1 + matrix(WIDTH), matrix(WIDTH)
    return out


def make_folder(folder: Path, pooling: str = "mean_tokens", prefix: str = "bert.", **config: Any) -> dict[str, Any]:
    """Write the model to `folder` and return its weights."""
    made = weights()
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps([
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]))  # fmt: skip
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH, **{f"pooling_mode_{mode}": mode == pooling for mode in modes}})
    )
    write_safetensors(folder / "model.safetensors", {prefix + name: value for name, value in made.items()})
    return made


def token_ids(text: str) -> list[int]:
    """Return the tokens of a text of known words, with the marks."""
    out = ["[CLS]"]
    for word in text.split():
        pieces: list[str] = []
        rest, head = word, ""
        while rest:
            length = next((n for n in range(len(rest), 0, -1) if head + rest[:n] in VOCABULARY), 0)
            if not length:
                # A word with one unknown piece is unknown as a whole.
                pieces, rest = ["[UNK]"], ""
            else:
                pieces.append(head + rest[:length])
                rest, head = rest[length:], "##"
        out += pieces
    return [VOCABULARY.index(token) for token in [*out, "[SEP]"]]


def states(made: dict[str, Any], ids: list[int]) -> Any:
    """Return the last hidden states, (tokens, WIDTH)."""
    w = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): v.astype(np.float64) for name, v in made.items()}

    def norm(x: Any, at: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(x: Any, at: str) -> Any:
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{name}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(WIDTH // HEADS)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), WIDTH)
        x = norm(x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        wide = linear(x, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x
