"""Our training loop beside Hugging Face's Trainer and a loop in nanoGPT's manner: tokens per second, in one run.

    python bench/training/run.py [--rounds 5] [--steps 12] [--threads 1 2] [--precision fp32 bf16]

All train the same `Llama` of 9.4 million parameters on the same tokens with the same AdamW (fused), clipping and torch;
`hf-llama` is Hugging Face's Trainer with its own Llama of the same sizes. Every lap is a process of its own; laps take
turns, and a ratio is the median over rounds of two laps that followed each other. Read the ratios: the machine's own
speed is in every figure. `--cpu` counts the processor's time of all threads, for a machine that has other work. Peers
are installed under `.build/bench/training`, beside this environment's torch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUILD = Path(__file__).parents[2] / ".build" / "bench" / "training"
PEERS = ["transformers==5.23.0", "accelerate==1.15.0"]
LOOPS = ("windlass", "nanogpt", "hf", "hf-llama")
VOCAB, WIDTH, LAYERS, HEADS, FEED, SEQ, BATCH = 4096, 256, 8, 4, 1024, 256, 8
WARM = 3


def python() -> str:
    """Return the peers' interpreter, installing them first; it sees this environment's torch."""
    done = BUILD / ".done"
    if not done.exists():
        print(f"installing {' '.join(PEERS)} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(BUILD)], check=True)
        (site,) = BUILD.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
        subprocess.run([str(BUILD / "bin" / "python"), "-m", "pip", "install", "-q", *PEERS], check=True)
        done.touch()
    return str(BUILD / "bin" / "python")


def main() -> None:
    """Run all laps and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--precision", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--only", nargs="*", default=list(LOOPS))
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--lap", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lap:
        name, threads, precision, data = options.lap
        if options.cpu:
            time.perf_counter = time.process_time
        print(json.dumps(lap(name, int(threads), precision, Path(data), options.steps)))
        return
    interpreter = python()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tokens.bin"
        write_tokens(data)
        for precision in options.precision:
            for threads in options.threads:
                compare(interpreter, options, precision, threads, data)


def compare(interpreter: str, options: argparse.Namespace, precision: str, threads: int, data: Path) -> None:
    """Let the loops take turns and print each one's speed and ours as a multiple of it."""
    speeds: dict[str, list[float]] = {name: [] for name in options.only}
    for number in range(options.rounds):
        # The order turns round, so that nobody always comes after the same other one.
        for name in options.only if number % 2 == 0 else reversed(options.only):
            command = [
                interpreter,
                __file__,
                *(["--cpu"] if options.cpu else []),
                "--steps",
                str(options.steps),
                "--lap",
                name,
                str(threads),
                precision,
            ]
            done = subprocess.run([*command, str(data)], capture_output=True, text=True, env=environment())
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            speeds[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, found in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds["windlass"], found, strict=True)]
        print(
            f"{precision} {threads} thread(s)  {name:<9} {statistics.median(found):8.0f} tokens/s   windlass is "
            f"{statistics.median(ratios):.3f}x of it ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def environment() -> dict[str, str]:
    """Return an environment in which nobody reports anything."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **quiet, "WANDB_MODE": "disabled"}


def write_tokens(path: Path) -> None:
    """Write half a million random tokens: what they are does not matter to the speed."""
    import numpy as np

    np.random.default_rng(0).integers(0, VOCAB, 2048 * SEQ + 1).astype("<u4").tofile(path)


# -- the loops ---------------------------------------------------------------------------------------------------------


def lap(name: str, threads: int, precision: str, data: Path, steps: int) -> float:
    """Return the tokens per second of `steps` steps, after some to warm up."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    runs = {"windlass": windlass_run, "nanogpt": nanogpt_run, "hf": hf_run, "hf-llama": hf_run}
    times = list(runs[name](data, precision, WARM + steps, name == "hf-llama"))
    return steps * BATCH * SEQ / (times[-1] - times[WARM - 1])


def our_model() -> Any:
    """Return the model that all train."""
    from windlass.local.llama import Llama, LlamaConfig

    shape = LlamaConfig(
        vocab_size=VOCAB, width=WIDTH, layers=LAYERS, heads=HEADS, kv_heads=HEADS, feed_forward=FEED, context=SEQ
    )
    return Llama(shape)


def windlass_run(data: Path, precision: str, steps: int, _: bool) -> Iterator[float]:
    """Train with the Trainer as anyone would, JSON lines and all."""
    from windlass.training import TokenSource, TrainConfig, Trainer

    with tempfile.TemporaryDirectory() as logs:
        chosen: Any = precision
        config = TrainConfig(batch_size=BATCH, max_steps=steps, precision=chosen, device="cpu", log_dir=logs)
        source = TokenSource(data, SEQ, vocab_size=VOCAB)
        for event in Trainer(config, model=our_model(), source=source).run():
            if hasattr(event, "metrics"):
                yield time.perf_counter()


def nanogpt_run(data: Path, precision: str, steps: int, _: bool) -> Iterator[float]:
    """Train as nanoGPT's train.py does: batches at random places of a memory-mapped file, one loop, no abstractions."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    model, tokens = our_model(), np.memmap(data, "<u4", "r")
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), fused=True)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.randint(len(tokens) - SEQ, (BATCH,))
        x = torch.stack([torch.from_numpy(tokens[i : i + SEQ].astype(np.int64)) for i in at])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + SEQ].astype(np.int64)) for i in at])
        return x, y

    x, y = batch()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
        x, y = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter()


def hf_run(data: Path, precision: str, steps: int, theirs: bool) -> Iterator[float]:
    """Train with transformers' Trainer, over our model or its own of the same sizes."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    tokens = np.memmap(data, "<u4", "r")

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return (len(tokens) - 1) // SEQ

        def __getitem__(self, n: int) -> dict[str, Any]:
            row = torch.from_numpy(tokens[n * SEQ : (n + 1) * SEQ + 1].astype(np.int64))
            return {"input_ids": row[:-1], "labels": row[:-1] if theirs else row[1:]}

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = our_model()

        def forward(self, input_ids: Any, labels: Any) -> dict[str, Any]:
            logits = self.inner(input_ids)
            return {"loss": F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1))}

    times: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    shape = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=FEED, max_position_embeddings=SEQ, tie_word_embeddings=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-3,
            weight_decay=0.01, logging_steps=10, save_strategy="no", report_to=[], use_cpu=True,
            bf16=precision == "bf16", optim="adamw_torch_fused", disable_tqdm=True,
        )  # fmt: skip
        model = LlamaForCausalLM(shape) if theirs else Wrapped()
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Watch()]).train()
    yield from times


if __name__ == "__main__":
    main()
