"""Stream answers from llama-cpp-python and print the medians as JSON; `run.py` starts it.

Usage: python peer.py MODEL THREADS ROUNDS PROMPT TOKENS
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from typing import Any


def main() -> None:
    """Ask greedily for exactly so many tokens after prompts that share no beginning."""
    path, (threads, rounds, prompt, tokens) = sys.argv[1], [int(text) for text in sys.argv[2:6]]
    library: Any = importlib.import_module("llama_cpp")
    model = library.Llama(
        path, n_ctx=prompt + tokens + 64, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
    )
    known, end = model.n_vocab(), model.token_eos()
    plain = [token for token in range(known) if token != end][known // 4 : known // 2]
    read: list[float] = []
    written: list[float] = []
    for start in range(rounds + 1):
        asked = [plain[(start * 7919 + at * 31) % len(plain)] for at in range(prompt)]
        times = [time.perf_counter()]
        for _ in model.generate(asked, temp=0.0, repeat_penalty=1.0, reset=True):
            times.append(time.perf_counter())
            if len(times) > tokens:
                break
        if start:  # the first one warms up
            read.append(prompt / (times[1] - times[0]))
            written.append((tokens - 1) / (times[-1] - times[1]))
    print(json.dumps({"prefill": statistics.median(read), "decode": statistics.median(written)}))


if __name__ == "__main__":
    main()
