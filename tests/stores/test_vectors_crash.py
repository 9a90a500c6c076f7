"""Processes that are killed while they write vectors: what was acknowledged is there, and no batch is there in part."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

from windlass.stores.vectors import VectorStore

WRITER = """
import asyncio, sys
from windlass.core.memory import Entry
from windlass.stores.vectors import VectorStore

async def main(path, name):
    store = VectorStore(path)
    for batch in range(100_000):
        rows = [
            Entry(id=f"{batch}.{n}", text=f"batch{batch}", vector=[batch + 1.0, n + 1.0], metadata={"batch": batch})
            for n in range(10)
        ]
        await store.upsert(rows, namespace=name)
        print(batch, flush=True)
        if batch % 5 == 4:
            await store.delete(where={"batch": batch - 4}, namespace=name)
            print(-(batch - 4), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def killed(path: Path, name: str, after: float) -> list[int]:
    """Run a writer, kill it, and return what it had acknowledged."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), name, stdout=pipe)
    assert process.stdout is not None
    lines = [await process.stdout.readline()]
    reading = asyncio.create_task(process.stdout.read())
    await asyncio.sleep(after)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    return [int(line) for line in b"".join([*lines, await reading]).split()]


async def test_kill_9_loses_no_acknowledged_batch_and_halves_none(tmp_path: Path) -> None:
    """Two writers on one file, killed at random moments, three times."""
    path, moments = tmp_path / "v.db", random.Random(11)
    for round_ in range(3):
        names = [f"w{round_}a", f"w{round_}b"]
        said = await asyncio.gather(*[killed(path, name, moments.uniform(0.02, 0.35)) for name in names])
        store = VectorStore(path)
        assert await store.check() == []
        for name, acknowledged in zip(names, said, strict=True):
            last = max(acknowledged)
            gone = {-each for each in acknowledged if each < 0} | ({0} if acknowledged.count(0) > 1 else set[int]())
            maybe = {last - 4} if last % 5 == 4 else set[int]()  # a deletion that nobody heard of
            for batch in range(last + 2):
                count = await store.count(where={"batch": batch}, namespace=name)
                hits = await store.search([batch + 1.0, 1.0], f"batch{batch}", limit=1000, namespace=name)
                mine = [hit for hit in hits if hit.metadata["batch"] == batch]
                # Entries, words and vectors agree.
                assert len(mine) == count == len([hit for hit in mine if hit.words and hit.similarity is not None])
                if batch in gone:
                    assert count == 0
                elif batch <= last and batch not in maybe:
                    assert count == 10
                else:
                    assert count in (0, 10)
        await store.close()
