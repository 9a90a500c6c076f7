"""Measure the store of vectors: 100,000 vectors of 384 numbers, exact searches against a brute force in long floats.

    python bench/local/vectors.py [--count 100000] [--dimensions 384] [--queries 100] [--backend numpy|sqlite-vec]

Prints how long writing, the first search (which reads the file), and further searches take, and the recall of the ten
nearest, which is 1.0 or the run fails. Vectors are random directions around 200 centres, as texts have topics.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from windlass.core.memory import Entry, Hit
from windlass.stores.vectors import VectorStore

LIMIT = 10


def percentiles(seconds: list[float]) -> str:
    """Return median, 95th percentile and the worst, in milliseconds."""
    ordered = sorted([each * 1000 for each in seconds])
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.95)]
    return f"p50 {at[0]:7.2f} ms   p95 {at[1]:7.2f} ms   max {ordered[-1]:7.2f} ms"


async def timed(count: int, search: Callable[[int], Awaitable[list[Hit]]]) -> tuple[list[float], list[list[Hit]]]:
    """Run searches one after the other."""
    seconds: list[float] = []
    found: list[list[Hit]] = []
    for number in range(count):
        since = time.perf_counter()
        found.append(await search(number))
        seconds.append(time.perf_counter() - since)
    return seconds, found


async def run(options: argparse.Namespace, folder: str) -> int:
    """Write, search and compare; returns 1 where anything was missed."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((200, options.dimensions))
    rows: Any = centres[rng.integers(0, 200, options.count)] + 0.7 * rng.standard_normal(
        (options.count, options.dimensions)
    )
    rows = rows.astype(np.float32)
    queries: Any = (rows[rng.integers(0, options.count, options.queries)] + 0.3 * rng.standard_normal(
        (options.queries, options.dimensions))).astype(np.float32)  # fmt: skip
    words = [f"topic{n % 97} item{n % 1013} text number {n}" for n in range(options.count)]
    store = VectorStore(Path(folder) / "vectors.db", backend=options.backend)
    since = time.perf_counter()
    for at in range(0, options.count, 10_000):
        batch = rows[at : at + 10_000].tolist()
        await store.upsert(
            [Entry(id=str(at + n), text=words[at + n], vector=v, metadata={"n": at + n}) for n, v in enumerate(batch)]
        )
    written = time.perf_counter() - since
    size = store.path.stat().st_size / 1e6
    print(f"write   {options.count} x {options.dimensions}: {written:.1f} s, {size:.0f} MB")
    since = time.perf_counter()
    await store.search(queries[0].tolist(), limit=LIMIT)
    print(f"first   search, which reads the file: {time.perf_counter() - since:.2f} s")
    vectors = [query.tolist() for query in queries]
    seconds, found = await timed(options.queries, lambda n: store.search(vectors[n], limit=LIMIT))
    print(f"vector  {percentiles(seconds)}")
    wide: Any = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    hits = 0
    for query, listed in zip(queries.astype(np.float64), found, strict=True):
        exact = (wide @ query) / lengths / np.linalg.norm(query)
        hits += len(set(np.argsort(-exact, kind="stable")[:LIMIT].tolist()) & {int(hit.id) for hit in listed})
    recall = hits / (LIMIT * options.queries)
    print(f"recall  of the {LIMIT} nearest against a brute force in 64-bit floats: {recall:.4f}")
    some = {"n": {"$lt": options.count // 100}}
    for name, search in {
        "filter": lambda n: store.search(vectors[n], limit=LIMIT, where=some),
        "words": lambda n: store.search(text=words[n], limit=LIMIT),
        "both": lambda n: store.search(vectors[n], words[n], limit=LIMIT),
    }.items():
        seconds, _ = await timed(options.queries, search)
        print(f"{name:7} {percentiles(seconds)}")
    since = time.perf_counter()
    await store.delete(["1"])
    print(f"delete  of one, for good: {time.perf_counter() - since:.2f} s")
    await store.close()
    return 0 if recall == 1.0 else 1


def main() -> int:
    """Run the measurement in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--backend", choices=("numpy", "sqlite-vec"), default="numpy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(options, folder))


if __name__ == "__main__":
    sys.exit(main())
