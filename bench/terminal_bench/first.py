"""Windlass on the first Terminal-Bench, whose harness is the package terminal-bench (written against 0.2.18).

    pip install terminal-bench  # Python 3.12 and Docker
    PYTHONPATH=. tb run -d terminal-bench-core==0.1.1 --agent-import-path bench.terminal_bench.first:WindlassAgent \\
        -m anthropic/claude-sonnet-4-5 --agent-kwarg package=dist/windlass-0.1.0-py3-none-any.whl

The options are those of `bench.terminal_bench.agent`, by `--agent-kwarg`. This harness has no place for what an agent
in the container used; the events are in its folder for logs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.terminal_bench.words import SETUP, environment, run_command
from terminal_bench.agents.base_agent import AgentResult
from terminal_bench.agents.installed_agents.abstract_installed_agent import AbstractInstalledAgent
from terminal_bench.terminal.models import TerminalCommand
from terminal_bench.terminal.tmux_session import TmuxSession

__all__ = ["WindlassAgent"]

_HERE = "/installed-agent"


class WindlassAgent(AbstractInstalledAgent):
    """An installed agent: a script that is sourced in the task's terminal, then one command."""

    def __init__(
        self,
        model_name: str,
        package: str = "windlass",
        sandbox: str = "none",
        max_turns: int = 200,
        seconds: float | None = None,
        options: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._model, self._package = model_name, package
        self._how: dict[str, Any] = {
            "sandbox": sandbox, "max_turns": int(max_turns), "seconds": None if seconds is None else float(seconds),
            "options": options,
        }  # fmt: skip

    @staticmethod
    def name() -> str:
        """Return the name that results are kept under."""
        return "windlass"

    @property
    def _env(self) -> dict[str, str]:
        package = f"{_HERE}/{Path(self._package).name}" if self._package.endswith(".whl") else self._package
        return {"WINDLASS_PACKAGE": package, **environment(self._model, os.environ.get)}

    @property
    def _install_agent_script_path(self) -> Path:
        return SETUP

    def _run_agent_commands(self, instruction: str) -> list[TerminalCommand]:
        line = run_command(instruction, self._model, logs=str(self.CONTAINER_AGENT_LOGS_PATH), **self._how)
        return [TerminalCommand(command=line, max_timeout_sec=float("inf"), block=True)]

    def perform_task(self, instruction: str, session: TmuxSession, logging_dir: Path | None = None) -> AgentResult:
        """Copy a wheel of this machine's into the container, then install and run."""
        if self._package.endswith(".whl"):
            session.copy_to_container(Path(self._package), container_dir=_HERE)
        return super().perform_task(instruction, session, logging_dir)
