"""Measure what our edge costs beside the engine's own timings: tokens per second of prompts and answers, streamed.

Usage: python bench/local/run.py [--model FILE] [--rounds N] [--tokens N] [--prompt N] [--threads 1,2] [--json FILE]

Everything runs in one go, the ways in turns, so that a busy moment falls on all of them; medians of the rounds. Ratios
say how much of the engine's own speed arrives where an answer is read:

- `prefill`: prompt tokens by the time from the call to the first event, over the engine's own prompt time;
- `decode`: tokens of the answer by the time from that event to the last token, over the engine's own time for them;
- `whole`: milliseconds of the whole answer; beside it stands `bare`, the same engine asked with a callback that keeps
  nothing, which is a loop in C++.

With llama-cpp-python installed (`--peer PYTHON` names an interpreter that has it) its own streaming is measured too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from windlass.local import Model, StreamingConfig
from windlass.local.backend_native import NativeBackend, completion_body
from windlass.local.embedded import embedded_model
from windlass.local.options import EngineOptions

PEER = Path(__file__).parent / "peer.py"


class Round:
    """One answer: seconds until the prompt was read, until the last token, and what the engine says of both."""

    def __init__(self, prompt: int, tokens: int, first: float, rest: float, engine: tuple[float, float]) -> None:
        self.prefill, self.decode = prompt / first, tokens / rest if rest else 0.0
        self.engine_prefill = prompt / engine[0] if engine[0] else 0.0
        self.engine_decode = tokens / engine[1] if engine[1] else 0.0
        self.whole = first + rest


def config(tokens: int) -> StreamingConfig:
    """Return greedy options for exactly so many tokens."""
    return StreamingConfig(max_tokens=tokens, temperature=0.0, repetition_penalty=1.0, ignore_end=True)


def prompts(model: Model, count: int, rounds: int) -> list[list[int]]:
    """Return prompts of `count` tokens that share no beginning: the engine would not read that again."""
    known = model.info.vocabulary
    plain = [token for token in range(known) if token not in model.info.end_tokens][known // 4 : known // 2]
    return [[plain[(start * 7919 + at * 31) % len(plain)] for at in range(count)] for start in range(rounds)]


def bare(model: Model, prompt: list[int], tokens: int) -> Round:
    """Ask the engine itself, with a callback that keeps nothing but the times."""
    times: list[float] = []
    last: list[bytes] = []

    class Line:
        closed = False

        def put(self, chunk: bytes) -> bool:
            times.append(time.perf_counter())
            last[:] = [chunk]
            return False

        def finish(self, error: BaseException | None = None) -> None:
            done.append(error)

        def close(self) -> None: ...

    done: list[BaseException | None] = []
    native: Any = model.backend
    engine = native.chat_engine()
    body = {**completion_body(config(tokens).asked(tuple(prompt))), "verbose": False, "return_progress": False}
    begun = time.perf_counter()
    engine.submit("completion", body, Line())
    while not done:
        time.sleep(0.0005)
    timings = msgspec.json.decode(last[0])["timings"]
    own = timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3
    # It says nothing between prompt and first token: the first token stands for the prompt.
    return Round(len(prompt), timings["predicted_n"], times[0] - begun, times[-1] - times[0], own)


def pulled(model: Model, prompt: list[int], tokens: int) -> Round:
    """Read an answer with `next()`."""
    return _read(model, prompt, tokens, _drain)


def awaited(model: Model, prompt: list[int], tokens: int) -> Round:
    """Read an answer with `async for`."""
    import asyncio

    async def read(response: Any) -> None:
        async for _ in response:
            pass

    return _read(model, prompt, tokens, lambda response: asyncio.run(read(response)))


def _drain(response: Any) -> None:
    while response.next() is not None:
        pass


def _read(model: Model, prompt: list[int], tokens: int, read: Callable[[Any], None]) -> Round:
    response = model.respond(prompt, config(tokens))
    read(response)
    stats = response.stats
    own = stats.engine_prefill_ns / 1e9, stats.engine_generation_ns / 1e9
    first, rest = stats.prefill_time_ns / 1e9, stats.generation_time_ns / 1e9
    return Round(stats.prompt_tokens, stats.tokens_generated, first, rest, own)


def measure(path: Path, threads: int, rounds: int, prompt: int, tokens: int) -> dict[str, list[Round]]:
    """Return the rounds of every way."""
    options = EngineOptions(context=prompt + tokens + 64, threads=threads, gpu_layers=0)
    backends = {name: NativeBackend(path, options, in_process=name == "here") for name in ("here", "worker")}
    here, worker = (Model(backends[name]) for name in ("here", "worker"))
    ways: dict[str, Callable[[list[int]], Round]] = {
        "bare": lambda asked: bare(here, asked, tokens),
        "next()": lambda asked: pulled(here, asked, tokens),
        "async for": lambda asked: awaited(here, asked, tokens),
        "worker": lambda asked: pulled(worker, asked, tokens),
    }
    found: dict[str, list[Round]] = {name: [] for name in ways}
    try:
        for model in (here, worker):
            model.generate("warm", max_tokens=4)
        asked = prompts(here, prompt, rounds * len(ways))
        for number in range(rounds):
            for at, (name, way) in enumerate(ways.items()):
                found[name].append(way(asked[number * len(ways) + at]))
    finally:
        here.close()
        worker.close()
    return found


def summary(rounds: list[Round]) -> dict[str, float]:
    """Return the medians."""
    fields = ("prefill", "decode", "engine_prefill", "engine_decode", "whole")
    return {name: statistics.median([getattr(each, name) for each in rounds]) for name in fields}


def ratios(rounds: list[Round]) -> tuple[float, float]:
    """Return the medians of each round's own ratios, which a busy machine disturbs least."""
    return (
        statistics.median([each.prefill / each.engine_prefill for each in rounds]),
        statistics.median([each.decode / each.engine_decode for each in rounds]),
    )


def peer(python: str, path: Path, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the medians of llama-cpp-python's streaming, from a process of its own."""
    command = [
        python,
        str(PEER),
        str(path),
        str(threads),
        str(options.rounds),
        str(options.prompt),
        str(options.tokens),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": 1.0}


def main() -> None:
    """Run everything and print a table per number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=embedded_model().path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    kept: dict[str, Any] = {"model": options.model.name}
    for threads in [int(text) for text in options.threads.split(",")]:
        found = measure(options.model, threads, options.rounds, options.prompt, options.tokens)
        print(f"\n{options.model.name}, {threads} threads: {options.prompt} tokens in, {options.tokens} out")
        print(f"| {'way':<16} | prefill t/s | of engine | decode t/s | of engine | whole ms |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, rounds in found.items():
            got, (prefill, decode) = summary(rounds), ratios(rounds)
            print(
                f"| {name:<16} | {got['prefill']:11,.0f} | {prefill:9.3f} | {got['decode']:10,.0f} | {decode:9.3f} "
                f"| {got['whole'] * 1e3:8.1f} |"
            )
            kept[f"{threads} {name}"] = {**got, "prefill_ratio": prefill, "decode_ratio": decode}
        if options.peer:
            got = peer(options.peer, options.model, threads, options)
            kept[f"{threads} llama-cpp-python"] = got
            print(f"| llama-cpp-python | {got.get('prefill', 0):11,.0f} | | {got.get('decode', 0):10,.0f} | | |")
    if options.json:
        Path(options.json).write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
