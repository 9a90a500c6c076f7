"""Measure the ledger: microseconds per append, for one writer and for fifty at once, and bytes per tool turn.

    python bench/ledger.py [appends]

Each append is one row of 300 bytes that is awaited before the next of its session. `fsync` is one 4 kB write with
fsync to the same folder: the floor under FULL. Bytes are those of 400 tool turns with 200-character results after a
clean close, against the canonical JSON of their messages, one per line.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from windlass.core.json import dumps_stored
from windlass.core.ports import Row, Store
from windlass.stores.memory import MemoryStore
from windlass.stores.sqlite import SqliteStore

WRITERS = 50
START = 1_760_000_000_000_000_000
DATA = dumps_stored({"call_id": "call_000001", "name": "read_file", "response": "x" * 230})


async def _write(store: Store, session: str, count: int) -> list[float]:
    spent: list[float] = []
    for pos in range(count):
        row = Row(pos, "tool.finished", 0, START + pos, DATA)
        begin = time.perf_counter()
        await store.append(session, [row], pos)
        spent.append(time.perf_counter() - begin)
    return spent


async def measure(store: Store, count: int, writers: int) -> tuple[float, float]:
    """Return seconds per append over all writers, and the median wait of one append."""
    await _write(store, "warm", 20)
    begin = time.perf_counter()
    spent = await asyncio.gather(*[_write(store, f"s{n}", count // writers) for n in range(writers)])
    total = time.perf_counter() - begin
    await store.close()
    return total / (count // writers * writers), statistics.median([one for each in spent for one in each])


def fsync_floor(folder: Path, count: int = 200) -> float:
    """Return the median seconds of one 4 kB write with fsync."""
    spent: list[float] = []
    with (folder / "floor").open("wb", buffering=0) as file:
        for _ in range(count):
            begin = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


async def size_of_tool_turns(path: Path, turns: int = 400) -> tuple[int, int, int]:
    """Return the file's bytes after a clean close, those of the rows' data, those of the messages' canonical JSON."""
    store, canonical, stored, pos = SqliteStore(path, synchronous="NORMAL"), 0, 0, 0
    for turn in range(turns):
        call_id, result = f"call_{turn:06d}", (f"{turn} " + "lorem ipsum dolor " * 12)[:200]
        call = {"type": "tool_call", "id": call_id, "name": "read_file", "arguments": {"path": f"src/part_{turn}.py"}}
        message = {"role": "assistant", "parts": [call], "finish_reason": "tool_calls"}
        added = {"message": message, "usage": {"input_tokens": 900 + turn, "output_tokens": 31}, "started": True}
        done = {"call_id": call_id, "name": "read_file", "response": result, "output_bytes": 200, "duration_ns": 81_234}
        part = {"type": "tool_call_response", "id": call_id, "response": result}
        canonical += len(dumps_stored(message)) + len(dumps_stored({"role": "tool", "parts": [part]})) + 2
        for kind, data in (("message.added", dumps_stored(added)), ("tool.finished", dumps_stored(done))):
            await store.append("s", [Row(pos, kind, 0, START + pos * 1_234_567_891, data)], pos)
            stored += len(data)
            pos += 1
    await store.close()
    return path.stat().st_size, stored, canonical


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores: dict[str, Callable[[int], Store]] = {
            "memory": lambda _: MemoryStore(),
            "sqlite NORMAL": lambda n: SqliteStore(folder / f"normal{n}.db", synchronous="NORMAL"),
            "sqlite FULL": lambda n: SqliteStore(folder / f"full{n}.db"),
        }
        print(f"fsync floor {fsync_floor(folder) * 1e6:8.1f} us")
        print(f"{'us per append':16}{'1 writer':>10}{f'{WRITERS} writers':>12}{'median wait':>14}")
        for label, make in stores.items():
            one, _ = asyncio.run(measure(make(1), count, 1))
            many, wait = asyncio.run(measure(make(WRITERS), count, WRITERS))
            print(f"{label:16}{one * 1e6:10.1f}{many * 1e6:12.1f}{wait * 1e6:14.1f}")
        size, stored, canonical = asyncio.run(size_of_tool_turns(folder / "size.db"))
        print(f"400 tool turns: {size} bytes on disk, {stored} of row data, {canonical} of canonical messages")
        print(f"{size / canonical:.3f} of the messages, {size / stored:.3f} of the rows")


if __name__ == "__main__":
    main()
