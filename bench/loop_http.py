"""A long conversation through the whole stack: loop, Anthropic wire, `core/http`, a loopback upstream.

Prints the time of turn 10 and turn 500 and their ratio. The upstream is a process of its own, written on asyncio's
protocols, that answers every request with the same tool call.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import windlass

TURNS = 505
RESULT = ("result " * 29)[:200]


def frames(number: int) -> bytes:
    """Return the event stream of one answer: a call of `lookup`."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    head = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    block = {"type": "tool_use", "id": f"toolu_{number}", "name": "lookup", "input": {}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": head},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": f'{{"q": "item {number}"}}'},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return b"".join([f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events])


class Upstream(asyncio.Protocol):
    """Counts the bytes of a request's body and answers; nothing else."""

    number = 0

    def connection_made(self, transport: Any) -> None:
        self.transport, self.head, self.left = transport, b"", -1

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = self.head[:end].lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            self.left = length - (len(self.head) - end - 4)
        else:
            self.left -= len(data)
        if self.left <= 0:
            Upstream.number += 1
            body = frames(Upstream.number)
            head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.head, self.left = b"", -1


async def serve() -> None:
    """Serve until killed; the first line of output is the port."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@windlass.tool
async def lookup(q: str) -> str:
    """Look up an item."""
    return RESULT


async def measure(port: int) -> list[float]:
    """Return the seconds of every turn of one long run."""
    environ = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}", "ANTHROPIC_API_KEY": "k"}
    config = windlass.Config.from_environment(environ)
    agent = windlass.Agent("anthropic:m", tools=[lookup], config=config, max_turns=TURNS)
    ends: list[float] = []
    agent.on(windlass.TurnFinished, lambda _: ends.append(time.perf_counter()))
    await agent.run("Look things up.")
    await agent.destroy()
    return [after - before for before, after in itertools.pairwise(ends)]


def main() -> None:
    """Run it a few times and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as upstream:
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        try:
            rounds = [asyncio.run(measure(port)) for _ in range(options.rounds)]
        finally:
            upstream.kill()
    ten = statistics.median([statistics.median(r[5:15]) for r in rounds]) * 1e6
    last = statistics.median([statistics.median(r[495:504]) for r in rounds]) * 1e6
    print(f"through core/http: turn 10 {ten:,.0f} µs, turn 500 {last:,.0f} µs, ratio {last / ten:.2f}")


if __name__ == "__main__":
    main()
