"""`make bench`: Windlass beside its peers, everything in one run on one machine; read the ratios.

Peers are installed with pinned versions into environments of their own under `.build/bench`. Every (library, test) runs
in a process of its own. `--tests` and `--only` choose; `--peers none` measures Windlass and the bare loop alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parent / ".build" / "bench"
#: adapter -> what pip installs. Versions are pinned: a figure without them says nothing.
PEERS: dict[str, list[str]] = {
    "pai": ["pydantic-ai-slim==2.62.0"],
    "oai": ["openai-agents==0.24.0"],
    "lg": ["langgraph==1.2.22", "langchain==1.4.7", "langgraph-checkpoint-sqlite", "aiosqlite"],
    "smol": ["smolagents==1.26.0"],
    "mini": ["mini-swe-agent==2.4.6", "mcp"],
}
TESTS = ("loop", "plain", "growth", "concurrent", "stream", "persist", "import", "cli", "local")


def python_of(name: str) -> str:
    """Return the interpreter of an adapter, installing its peer first."""
    if name in ("windlass_", "bare"):
        return sys.executable
    folder = BUILD / name
    done = folder / ".done"
    if not done.exists():
        print(f"installing {' '.join(PEERS[name])} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *PEERS[name]], check=True)
        done.touch()
    return str(folder / "bin" / "python")


def run_test(name: str, test: str, runs: int) -> dict[str, Any]:
    """Run one test of one adapter; an error is part of the result, never left out."""
    python = python_of(name)
    if test == "import":
        return import_time(python, meta(name)[2])
    if test == "cli":
        command = meta(name)[3]
        return cli_time([str(Path(python).parent / command[0]), *command[1:]]) if command else {}
    command = [
        python,
        "run_one.py",
        "--adapter",
        name,
        "--test",
        test,
        "--runs",
        str(1 if test == "concurrent" else runs),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE / "loop", timeout=600)
    for line in done.stdout.splitlines():
        if "JSON {" in line:
            return json.loads(line[line.index("JSON {") + 5 :])
    return {"error": (done.stderr or done.stdout)[-300:]}


def meta(name: str) -> tuple[Any, ...]:
    """Read NAME, DISTS, IMPORT, CLI, SYNC without importing the library."""
    source = (HERE / "loop" / "adapters" / f"{name}.py").read_text()
    found = re.search(r"^NAME, DISTS, IMPORT, CLI, SYNC = (\([\s\S]*?\n\)|.*)$", source, re.MULTILINE)
    assert found is not None, name
    return eval(found[1])


def _median_ms(commands: dict[str, list[str]], rounds: int = 9) -> dict[str, float]:
    """Time whole processes, interleaved, so that a drift of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    # With compiled files, as an installed package has them.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for command in commands.values():
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    for _ in range(rounds):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
            times[name].append((time.perf_counter() - begun) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def import_time(python: str, statement: str) -> dict[str, Any]:
    """Time the first statement a user writes against a bare start of the same interpreter."""
    got = _median_ms({"bare": [python, "-c", "pass"], "import": [python, "-c", statement]})
    return {"bare_ms": got["bare"], "ms": got["import"], "ratio": got["import"] / got["bare"]}


def cli_time(command: list[str]) -> dict[str, Any]:
    """Time the command line's help against a bare start of its interpreter."""
    got = _median_ms({"bare": [str(Path(command[0]).parent / "python"), "-c", "pass"], "cli": command})
    return {"ms": got["cli"], "bare_ms": got["bare"], "ratio": got["cli"] / got["bare"]}


ROWS: list[tuple[str, str, str, str]] = [
    ("loop, 50 tool turns: µs per model request", "loop", "us_per_request.median", "{:,.0f}"),
    ("one answer without tools: µs", "plain", "us_per_run.median", "{:,.0f}"),
    ("turn 10: µs", "growth", "turn10_us.median", "{:,.0f}"),
    ("turn 500: µs", "growth", "turn500_us.median", "{:,.0f}"),
    ("turn 500 / turn 10", "growth", "ratio_500_10", "{:.2f}"),
    ("1,000 sessions x 10 turns: s", "concurrent", "wall_s", "{:.2f}"),
    ("memory per live session: KiB", "concurrent", "kb_per_session_at_barrier", "{:.0f}"),
    ("streaming: µs per delta", "stream", "us_per_delta.median", "{:.2f}"),
    ("durable, 400 turns: µs per request", "persist", "n400_us_per_request.median", "{:,.0f}"),
    ("durable, 400 turns: KiB on disk", "persist", "n400_bytes", "kib"),
    ("first import: times a bare start", "import", "ratio", "{:.1f}"),
    ("command line --help: times a bare start", "cli", "ratio", "{:.1f}"),
]


def pick(data: Any, path: str) -> Any:
    """Follow a dotted path; None where it ends early."""
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table, a library per column."""
    names = list(results)
    titles = []
    for name in names:
        versions = next((r["versions"] for r in results[name].values() if r.get("versions")), {})
        titles.append(f"{meta(name)[0]} {next(iter(versions.values()), '')}".strip())
    out = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(names)]
    for label, test, path, form in ROWS:
        cells = []
        for name in names:
            value = pick(results[name].get(test), path)
            cells.append("–" if value is None else f"{value / 1024:,.0f}" if form == "kib" else form.format(value))
        out.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Run everything and print the table; `--json FILE` keeps the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", default=",".join(TESTS))
    parser.add_argument("--only", help="adapters, with commas")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name in PEERS]
    names = options.only.split(",") if options.only else ["windlass_", "bare", *peers]
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    tests = options.tests.split(",")
    for test in tests:
        if test == "local":  # beside the engine's own timings, not beside the agents' peers
            subprocess.run([sys.executable, str(HERE / "local" / "run.py")], check=True)
            continue
        for name in names:
            results[name][test] = run_test(name, test, options.runs)
            print(f"{test:<11} {name:<10} {json.dumps(results[name][test])[:160]}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    print("\n" + table(results))


if __name__ == "__main__":
    main()
