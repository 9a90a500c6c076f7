"""Parity with Hugging Face: the same weights in `transformers`, the same adapters in `peft`, and back.

Run it in an environment that has both, beside what Windlass needs for training:

    python -m venv peers && peers/bin/pip install -e '.[train]' transformers peft
    peers/bin/python bench/training/parity_hf.py

Prints a line of JSON per comparison: the largest difference of logits in float32. Exits with 1 when one is above 1e-4.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM

from windlass.local.convert import load_hf
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.export import export_hf
from windlass.training.lora import LoraConfig, add_lora, lora_layers
from windlass.training.lora_files import load_lora, save_lora
from windlass.training.tokenizer import Tokenizer

MOST = 1e-4
TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "naïve café: 你好 🙂\n\n", "x = 1\n\ty += 2\n"]


def small(vocab_size: int, *, tied: bool, theta: float) -> Llama:
    """Make a model whose logits spread as a trained one's do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, width=64, layers=3, heads=4, kv_heads=2, feed_forward=128, context=256, tied=tied,
        rope_theta=theta,
    )  # fmt: skip
    model = Llama(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=0.1)
    return model


def spread(model: Any) -> None:
    """Give adapters' B, which is zero at first, something to do."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or name.endswith("lora_b"):
                weight.normal_(std=0.1)


def compare(folder: Path, *, tied: bool, theta: float) -> dict[str, float]:
    """Return the largest differences by what was compared."""
    tokenizer = Tokenizer.train(TEXTS * 3, 300)
    ours = small(tokenizer.vocab_size, tied=tied, theta=theta)
    export_hf(ours, folder / "model", tokenizer)
    theirs = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder / "model")
    tokens = torch.tensor([tokenizer.encode("".join(TEXTS))])
    assert words("".join(TEXTS), add_special_tokens=False).input_ids == tokens[0].tolist()

    def apart(one: Any, other: Any) -> float:
        with torch.no_grad():
            return float((one(tokens) - other(tokens).logits).abs().max())

    found = {"our model in transformers": apart(ours, theirs)}
    theirs.save_pretrained(folder / "saved")
    found["transformers' folder here"] = apart(load_hf(folder / "saved"), theirs)
    before = ours(tokens)
    add_lora(ours, LoraConfig(rank=4, alpha=8.0))
    spread(ours)
    assert float((ours(tokens) - before).detach().abs().max()) > 0.1
    assert len(list(lora_layers(ours))) == 21
    save_lora(ours, folder / "adapter", base=str(folder / "model"))
    found["our adapter in peft"] = apart(ours, PeftModel.from_pretrained(theirs, folder / "adapter").eval())
    plain = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    made = get_peft_model(plain, PeftConfig(r=6, lora_alpha=9, target_modules=["q_proj", "k_proj", "down_proj"]))
    spread(made)
    made.save_pretrained(folder / "theirs")
    again = load_hf(folder / "model")
    load_lora(again, folder / "theirs")
    found["peft's adapter here"] = apart(again, made.eval())
    return found


def main() -> int:
    """Compare two models and print the differences."""
    worst = 0.0
    for tied, theta in ((True, 10000.0), (False, 500000.0)):
        with tempfile.TemporaryDirectory() as folder:
            for what, value in compare(Path(folder), tied=tied, theta=theta).items():
                worst = max(worst, value)
                print(json.dumps({"what": what, "tied": tied, "rope_theta": theta, "largest difference": value}))
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
