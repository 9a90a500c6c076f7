"""Our trainer against a nanoGPT-style loop, on the same model, in one run: tokens/s, memory, share of the card's peak.

    python bench/training/gpu.py                   # 100 million parameters on a GPU
    python bench/training/gpu.py --size small      # a proof that it works, on any CPU, in seconds

The peer is a loop as in nanoGPT's train.py (autocast, fused AdamW, clipping, batches of random windows from pinned
memory), over the same `Llama`. The two take turns, so that a warming card treats both alike; the median turn counts.
A token costs 6 N + 12 L W T floating-point operations (Chowdhery et al. 2022, arXiv:2204.02311, appendix B; N without
the embedding where it is not the output matrix too). Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from windlass.core.events import TrainStep
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.sources import TokenSource
from windlass.training.trainer import Trainer

SIZES = {
    # 102.5 million parameters, 24.6 of them in the tied embedding.
    "100m": (LlamaConfig(vocab_size=32000, width=768, layers=11, heads=12, kv_heads=12, feed_forward=2048), 32),
    "small": (LlamaConfig(vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, feed_forward=160, context=128), 4),
}
#: Dense bfloat16 TFLOP/s from the vendor's data sheets, by a part of the card's name.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0}
LR = 3e-4


def flops_per_token(config: LlamaConfig) -> float:
    """Return what a forward and a backward pass cost per token."""
    learned = config.parameters - (0 if config.tied else config.vocab_size * config.width)
    return 6.0 * learned + 12.0 * config.layers * config.width * config.context


def fresh(config: LlamaConfig) -> Llama:
    """Make the model from one seed."""
    torch.manual_seed(0)
    return Llama(config)


def ours(config: LlamaConfig, batch: int, tokens: np.ndarray, options: argparse.Namespace) -> Iterator[float]:
    """Yield the loss of each step of our trainer."""
    chosen = TrainConfig(
        batch_size=batch, seq_len=config.context, lr=LR, min_lr=LR, schedule="constant", weight_decay=0.1, beta2=0.95,
        precision="bf16" if options.device == "cuda" else "fp32", compile=options.compile, device=options.device,
        epochs=1_000_000, early_stopping_patience=0, log_interval=1_000_000,
    )  # fmt: skip
    source = TokenSource(tokens, config.context, vocab_size=config.vocab_size)
    for event in Trainer(chosen, model=fresh(config), source=source).run():
        if isinstance(event, TrainStep):
            yield event.metrics["loss"]


def nanogpt(config: LlamaConfig, batch: int, tokens: np.ndarray, options: argparse.Namespace) -> Iterator[float]:
    """Yield the loss of each step of the peer's loop; it asks for it as often as ours does, every step."""
    cuda = options.device == "cuda"
    plain = fresh(config).to(options.device)
    matrices = [weight for weight in plain.parameters() if weight.dim() > 1]
    others = [weight for weight in plain.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
    model: Any = torch.compile(plain) if options.compile else plain
    draw = torch.Generator().manual_seed(0)

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.randint(len(tokens) - config.context - 1, (batch,), generator=draw)
        pieces = [torch.from_numpy(tokens[i : i + config.context + 1].astype(np.int64)) for i in at.tolist()]
        rows = torch.stack(pieces)
        if cuda:
            rows = rows.pin_memory().to("cuda", non_blocking=True)
        return rows[:, :-1], rows[:, 1:]

    x, y = get_batch()
    while True:
        with torch.autocast(options.device, torch.bfloat16, enabled=cuda):
            logits = model(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        x, y = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def measure(steps: Iterator[float], count: int, device: str) -> float:
    """Return the seconds that `count` steps take."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> int:
    """Measure both and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="100m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=0, help="rows per step (0: the size's own)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak", type=float, default=0.0, help="the card's dense TFLOP/s (0: by its name)")
    options = parser.parse_args()
    config, batch = SIZES[options.size]
    batch = options.batch or batch
    if options.device == "cuda":
        torch.set_float32_matmul_precision("high")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 4_000_000 if options.size == "100m" else 60_000)
    # A pattern to learn, so that losses say that both learn the same.
    tokens = np.where(np.arange(len(tokens)) % 2, np.roll(tokens, 1), tokens).astype(np.uint32)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    peak = options.peak or next((value for name, value in PEAKS.items() if name in card), 0.0)
    per_step, found = batch * config.context, {}
    for name, loop in (("windlass", ours), ("nanogpt-style", nanogpt)):
        # Alone first, for its memory and to have it compiled.
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        steps = loop(config, batch, tokens, options)
        losses = [next(steps) for _ in range(5)]
        memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
        found[name] = {"steps": steps, "first": losses[0], "memory": memory, "seconds": []}
    for _ in range(options.turns):
        for each in found.values():
            each["seconds"].append(measure(each["steps"], options.steps, options.device))
    for name, each in found.items():
        rate = per_step * options.steps / statistics.median(each["seconds"])
        told = {
            "loop": name, "card": card, "parameters": config.parameters, "batch": batch, "context": config.context,
            "compile": options.compile, "tokens/s": round(rate),
            "share of peak": round(rate * flops_per_token(config) / (peak * 1e12), 4) if peak else None,
            "memory GB": round(each["memory"] / 1e9, 2) if each["memory"] else None,
            "first loss": round(each["first"], 3), "loss now": round(next(each["steps"]), 3),
        }  # fmt: skip
        print(json.dumps(told))
    ratio = [b / a for a, b in zip(found["windlass"]["seconds"], found["nanogpt-style"]["seconds"], strict=True)]
    print(json.dumps({"windlass / nanogpt-style": round(statistics.median(ratio), 3), "turns": sorted(ratio)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
