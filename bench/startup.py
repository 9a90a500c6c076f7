"""Measure how long the command line takes: medians of whole processes, interleaved, beside a bare start of Python.

    python bench/startup.py [--rounds 15] [--check]

Each row is a process from its start to its end; the model is a server on loopback in a process of its own that answers
at once, so a round with a tool is two requests. `beside` is what comes on top of `python -c pass`, `ratio` is the
whole against it. `--check` ends with 1 where a bound is passed: help within 3 times bare Python, one tool round
within 0.5 s beside it. `--imports ROW` shows what a row's process imported, the slowest modules first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windlass.testing.faults import FaultServer, Received, Step, Stream, sse

PYTHON = sys.executable
WINDLASS = str(Path(sys.executable).parent / "windlass")
#: row -> (command, what the model calls, a bound on the ratio, a bound on what comes on top in seconds)
Row = tuple[list[str], "tuple[str, dict[str, Any]] | None", "float | None", "float | None"]
READ: tuple[str, dict[str, Any]] = ("read_file", {"path": "a.txt"})
ROWS: dict[str, Row] = {
    "python -c pass": ([PYTHON, "-c", "pass"], None, None, None),
    "python -c 'import asyncio, argparse'": ([PYTHON, "-c", "import asyncio, argparse"], None, None, None),
    "windlass --help": ([WINDLASS, "--help"], None, 3.0, None),
    "windlass run: an answer (echo)": ([WINDLASS, "run", "-m", "echo", "hi"], None, None, 0.5),
    "windlass run: a file tool": ([WINDLASS, "run", "--yes", "go"], READ, None, 0.5),
    "windlass run: a file tool, no sandbox": ([WINDLASS, "run", "--yes", "--sandbox", "none", "go"], READ, None, 0.5),
    "windlass run: a command in the sandbox": (
        [WINDLASS, "run", "--yes", "go"], ("shell", {"command": "cat a.txt"}), None, 0.5,
    ),
}  # fmt: skip


def serve(call: tuple[str, dict[str, Any]]) -> None:
    """Answer with one tool call, then with text; the first line says where."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        return json.dumps({"id": "r", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def answer(received: Received) -> Step:
        if any(message["role"] == "tool" for message in json.loads(received.body)["messages"]):
            return Stream(sse(chunk({"content": "Done."}), chunk({}, "stop"), "[DONE]"))
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        delta = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
        return Stream(sse(chunk(delta), chunk({}, "tool_calls"), "[DONE]"))

    async def main() -> None:
        async with FaultServer(answer, keep=1) as server:
            print(server.url, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each row took, round by round; what is not timed is a first start of each."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, _Servers(Path(name)) as start:
        for number in range(rounds + 1):
            for row in ROWS:
                begun = time.perf_counter()
                start(row, [])
                if number:
                    times.setdefault(row, []).append(time.perf_counter() - begun)
    return times


class _Servers:
    """A model for each row, in a process of its own, and a folder with a home to work in."""

    def __init__(self, top: Path) -> None:
        self._home, self._work = top / "home", top / "work"
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._urls: dict[str, str] = {}

    def __enter__(self) -> Callable[[str, list[str]], subprocess.CompletedProcess[str]]:
        self._home.mkdir()
        self._work.mkdir()
        (self._work / "a.txt").write_text("hello\n")
        for row, (_, call, _, _) in ROWS.items():
            if call is not None:
                words = [PYTHON, __file__, "--serve", json.dumps(call)]
                server = self._running[row] = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
                assert server.stdout is not None
                self._urls[row] = server.stdout.readline().strip()
        return self._start

    def __exit__(self, *error: object) -> None:
        for server in self._running.values():
            server.terminate()
            server.communicate()

    def _start(self, row: str, before: list[str]) -> subprocess.CompletedProcess[str]:
        # With compiled files, as an installed package has them.
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("WINDLASS_", "PYTHONDONT"))}
        environ.update(
            HOME=str(self._home), WINDLASS_HOME=str(self._home), WINDLASS_MODEL="groq:m", WINDLASS_GROQ_API_KEY="any"
        )
        environ["WINDLASS_GROQ_BASE_URL"] = f"{self._urls.get(row, 'http://127.0.0.1:9')}/v1"
        done = subprocess.run(
            [*before, *ROWS[row][0]], cwd=self._work, env=environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{row}: exit code {done.returncode}\n{done.stderr}")
        return done


def table(times: dict[str, list[float]]) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and one for each bound that is passed."""
    bare = statistics.median(times["python -c pass"])
    lines = [f"{'':40}{'median':>9}{'best':>9}{'beside':>9}{'ratio':>8}"]
    passed: list[str] = []
    for row, values in times.items():
        median = statistics.median(values)
        beside, ratio = median - bare, median / bare
        lines.append(f"{row:40}{median * 1e3:7.0f}ms{min(values) * 1e3:7.0f}ms{beside * 1e3:7.0f}ms{ratio:8.1f}")
        _, _, most_ratio, most_beside = ROWS[row]
        if most_ratio is not None and ratio > most_ratio:
            passed.append(f"{row}: {ratio:.1f} times bare Python, at most {most_ratio:g}")
        if most_beside is not None and beside > most_beside:
            passed.append(f"{row}: {beside:.2f} s beside bare Python, at most {most_beside:g}")
    return lines, passed


def imports(row: str) -> list[tuple[int, str]]:
    """Return (microseconds by itself, module) of all that a row's process imported, what took longest first."""
    with tempfile.TemporaryDirectory() as name, _Servers(Path(name)) as start:
        start(row, [])
        told = start(row, [PYTHON, "-X", "importtime"]).stderr
    mark = "import time:"
    rows = [line.removeprefix(mark).split("|") for line in told.splitlines() if line.startswith(mark)]
    return sorted([(int(own), name.strip()) for own, _, name in rows if own.strip().isdigit()], reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--imports", metavar="ROW", choices=[row for row in ROWS if row.startswith("windlass")])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(json.loads(options.serve))
    if options.imports:
        took = imports(options.imports)
        print(f"{len(took)} modules, {sum([own for own, _ in took]) / 1e3:.0f} ms")
        print("\n".join([f"{own:7} µs {name}" for own, name in took[:40]]))
        return 0
    lines, passed = table(measure(options.rounds))
    print("\n".join([*lines, *passed]))
    return 1 if passed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
