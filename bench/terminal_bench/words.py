"""What both harnesses are told: how to start Windlass in a task's container, with what, and what came of it.

Nothing here imports Windlass: the harness runs in an environment of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["PROGRAM", "SETUP", "Totals", "environment", "model_name", "run_command", "totals"]

SETUP = Path(__file__).with_name("setup.sh")
#: Where the script leaves the program, for a shell.
PROGRAM = '"${WINDLASS_PREFIX:-$HOME/.local/share/windlass-bench}/bin/windlass"'
#: Variables of a vendor begin with its name; these have another one as well.
_PREFIXES = {
    "gemini": ("GEMINI", "GOOGLE"),
    "google": ("GEMINI", "GOOGLE"),
    "bedrock": ("BEDROCK", "AWS"),
    "huggingface": ("HUGGINGFACE", "HF"),
    "together_ai": ("TOGETHER",),
    "fireworks_ai": ("FIREWORKS",),
}
_ENDINGS = (
    "API_KEY", "BASE_URL", "TOKEN", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "DEFAULT_REGION",
)  # fmt: skip
#: The names that litellm, which the harnesses follow, has for vendors that are called otherwise here.
_VENDORS = {"google": "gemini", "together_ai": "together", "fireworks_ai": "fireworks"}


def model_name(name: str) -> str:
    """Return Windlass's name of a harness's model: `anthropic/claude-x` is `anthropic:claude-x`.

    >>> model_name("openrouter/qwen/qwen3"), model_name("ollama:qwen3:8b")
    ('openrouter:qwen/qwen3', 'ollama:qwen3:8b')
    """
    vendor, slash, rest = name.partition("/")
    if not slash or ":" in vendor:
        return name
    return f"{_VENDORS.get(vendor, vendor)}:{rest}"


def environment(model: str, find: Callable[[str], str | None]) -> dict[str, str]:
    """Return the variables that the model's vendor needs in the container, each as `find` knows it, and no others."""
    vendor = model.partition("/")[0].partition(":")[0]
    prefixes = _PREFIXES.get(vendor, (vendor.upper().replace("-", "_"),))
    names = [f"{before}{prefix}_{ending}" for before in ("", "WINDLASS_") for prefix in prefixes for ending in _ENDINGS]
    return {name: value for name in names if (value := find(name))}


def run_command(
    instruction: str,
    model: str,
    *,
    logs: str,
    sandbox: str = "none",
    max_turns: int = 200,
    seconds: float | None = None,
    options: str = "",
) -> str:
    """Return the shell line that does a task; events go to `windlass.ndjson` in `logs`, messages to `windlass.err`.

    Nobody is there to be asked and the container is the bound, so nothing is asked; `sandbox` may name a further one.
    A limit that was reached and a refused call are a result, not a failure of the agent: their exit codes become 0.
    """
    words = [
        "run", "--yolo", "--sandbox", sandbox, "--output", "stream-json", "--max-turns", str(max_turns),
        "--model", model_name(model), *shlex.split(options), "--", instruction,
    ]  # fmt: skip
    variables = [
        'container="${container:-terminal-bench}"',
        f"WINDLASS_STORE=sqlite:{shlex.quote(f'{logs}/sessions.db')}",
        *([f"WINDLASS_RUN_SECONDS={seconds:g}"] if seconds is not None else []),
    ]
    folder, out, err = [shlex.quote(each) for each in (logs, f"{logs}/windlass.ndjson", f"{logs}/windlass.err")]
    # In a subshell: the line may be typed into the task's own terminal, which a bare `exit` would end.
    return (
        f"mkdir -p {folder}; ({' '.join(variables)} {PROGRAM} {shlex.join(words)} </dev/null >{out} 2>{err}; "
        f"code=$?; case $code in 3|4) exit 0;; esac; cat {err} >&2; exit $code)"
    )


class Totals:
    """What a task took: tokens (`cached` is a part of `input`), dollars (None: a price is not known), and its end."""

    def __init__(self) -> None:
        self.input = self.output = self.cached = self.turns = 0
        self.cost: float | None = None
        self.stop_reason: str | None = None
        self.session = ""


def totals(lines: Iterable[str]) -> Totals:
    """Read a stream of events, also one that was cut off: then what its answers used is summed up."""
    found = Totals()
    nano: int | None = 0
    for line in lines:
        event = _event(line)
        kind = event.get("kind")
        if kind == "run.started" and not event.get("parent_run_id"):
            found.session = str(event.get("session_id", ""))
        elif kind == "turn.finished":
            # Also those of sub-agents, whose events are in the same stream.
            found.turns += 1
            _add(found, event.get("usage", {}))
            cost = event.get("cost")
            nano = None if nano is None or cost is None else nano + int(cost)
        elif kind == "run.finished" and not event.get("parent_run_id"):
            found.stop_reason = str(event.get("stop_reason"))
            found.input = found.output = found.cached = 0
            _add(found, event.get("usage", {}))
            nano = event.get("cost")
    found.cost = None if nano is None or not found.turns else nano / 1e9
    return found


def _add(found: Totals, usage: Mapping[str, Any]) -> None:
    found.input += int(usage.get("input_tokens", 0))
    found.output += int(usage.get("output_tokens", 0))
    found.cached += int(usage.get("cache_read_tokens", 0))


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}  # the last line of a program that was killed
    return event if isinstance(event, dict) else {}
