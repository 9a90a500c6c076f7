"""What a run writes: its events while it goes, its result at the end."""

from __future__ import annotations

import argparse
import base64
import errno
import sys
from typing import Any

from windlass.agent.plan import RunResult
from windlass.agent.run import Run
from windlass.apps.cli.common import ERROR, INTERRUPTED, LIMIT, OK, REFUSED, colored, quiet, say
from windlass.core import json
from windlass.core.events import Event
from windlass.core.ports import Sink
from windlass.core.usage import format_cost
from windlass.sinks.console import Console, Ndjson

__all__ = ["Display", "print_json", "print_result", "result_code"]


class Display:
    """The sink that writes to stdout and stderr as `--output` asks.

    Where they cannot be written the run is stopped: nobody follows it any more. `failed` is then the reason.
    """

    def __init__(self, options: argparse.Namespace, *, structured: bool, verbatim: bool) -> None:
        self.run: Run | None = None
        self.failed: OSError | None = None
        self._sink: Sink = Ndjson()
        if options.output != "stream-json":
            show_text = options.output == "text" and not structured
            self._sink = Console(color=colored(), verbose=options.verbose, verbatim=verbatim, show_text=show_text)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self.failed is None:
            try:
                self._sink(event)
            except OSError as error:
                self.failed = error
                if self.run is not None:
                    self.run.abort("the output cannot be written")

    def give_up(self) -> int:
        """Return the exit code of a run whose output could not be written; a reader that left is no error."""
        code = OK
        if self.failed is not None and self.failed.errno == errno.EIO:
            code = INTERRUPTED  # the terminal was closed, and its SIGHUP is on its way
        elif not isinstance(self.failed, BrokenPipeError):
            say(f"windlass: cannot write the output: {self.failed.strerror if self.failed else ''}.")
            code = ERROR
        quiet()
        return code


def print_json(value: Any) -> None:
    """Write a value as one line of JSON to stdout."""
    sys.stdout.write(json.dumps(value).decode() + "\n")
    sys.stdout.flush()


def print_result(result: RunResult, options: argparse.Namespace, model: str, notice: str) -> None:
    """Write how a run ended: everything as JSON, or what the events did not show yet."""
    changed, deleted = _changed(result)
    if options.output == "json":
        print_json(
            {
                "session_id": result.session_id,
                "run_id": result.run_id,
                "model": model,
                **({"notice": notice} if notice else {}),
                "text": result.text,
                "output": result.output,
                "stop_reason": result.stop_reason,
                "detail": result.detail,
                "usage": result.usage,
                "cost": None if result.stats.cost is None else format_cost(result.stats.cost)[1:],
                "turns": result.stats.turns,
                "refused": result.refused,
                "files": changed,
                "deleted": deleted,
            }
        )
        return
    if options.output == "text" and result.output is not None:
        print_json(result.output)
    if changed or deleted:
        say(f"changed in memory: {', '.join([*changed, *[f'{path} (deleted)' for path in deleted]])}")
    if result.detail:
        say(f"windlass: {result.detail}")
    if result.refused:
        say(
            f"windlass: refused: {', '.join(result.refused)}."
            + ("" if options.yes or options.yolo or options.mode == "plan" else " Allow with --yes.")
        )


def _changed(result: RunResult) -> tuple[dict[str, Any], list[str]]:
    """Return what a virtual workspace has otherwise than at the start; bytes that are no text as base64."""
    changed: dict[str, str | bytes] = getattr(result.workspace, "changed", {})
    shown = {
        path: {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else data
        for path, data in changed.items()
    }
    return shown, list(getattr(result.workspace, "deleted", []))


def result_code(result: RunResult) -> int:
    """Return the exit code of a run that came to its end."""
    if result.refused:
        return REFUSED
    if result.stop_reason in ("max_turns", "max_tokens", "budget", "loop"):
        return LIMIT
    return ERROR if result.stop_reason in ("error", "refusal") else OK
