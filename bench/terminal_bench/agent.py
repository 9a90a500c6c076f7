"""Windlass on Terminal-Bench 2, whose harness is Harbor (https://harborframework.com; written against 0.24).

    pip install harbor          # Python 3.12 and Docker
    PYTHONPATH=. harbor run -d terminal-bench@2.0 -a bench.terminal_bench.agent:WindlassAgent \\
        -m anthropic/claude-sonnet-4-5 --ak package=dist/windlass-0.1.0-py3-none-any.whl

Windlass is installed in the container (`setup.sh`) and does the task as `windlass run` would for a person. Options, by
`--ak NAME=VALUE`: `package` (a requirement, or a wheel on this machine), `sandbox` (`none`: the container is one),
`max_turns`, `seconds`, `options` (further words for `windlass run`), `prefix` (where it is, in an image that has it).
Its events are in the trial's `agent` folder.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from bench.terminal_bench.words import PROGRAM, SETUP, environment, run_command, totals
from harbor.agents.installed.base import BaseInstalledAgent, with_prompt_template
from harbor.environments.base import BaseEnvironment
from harbor.models.agent.context import AgentContext

__all__ = ["WindlassAgent"]

_HERE = "/installed-agent"


class WindlassAgent(BaseInstalledAgent):
    """An installed agent: set up by a script, run by one command, read back from its stream of events."""

    def __init__(
        self,
        logs_dir: Path,
        *args: Any,
        package: str = "windlass",
        sandbox: str = "none",
        max_turns: int = 200,
        seconds: float | None = None,
        options: str = "",
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(logs_dir, *args, **kwargs)
        self._package, self._prefix = package, prefix
        # What `--ak` gives is text.
        self._how: dict[str, Any] = {
            "sandbox": sandbox, "max_turns": int(max_turns), "seconds": None if seconds is None else float(seconds),
            "options": options,
        }  # fmt: skip

    @staticmethod
    def name() -> str:
        """Return the name that results are kept under."""
        return "windlass"

    def get_version_command(self) -> str | None:
        """Return what prints the version that was installed."""
        return f"{self._where()}{PROGRAM} --version"

    def parse_version(self, stdout: str) -> str:
        """Return the last word of `windlass 0.1.0`."""
        return stdout.strip().rpartition(" ")[2]

    async def install(self, environment: BaseEnvironment) -> None:
        """Put the script, and a wheel of this machine's, into the container and run it. Raises RuntimeError."""
        package = self._package
        if package.endswith(".whl"):
            wheel = Path(package)
            package = f"{_HERE}/{wheel.name}"
            await environment.upload_file(wheel, package)
        await environment.upload_file(SETUP, f"{_HERE}/setup.sh")
        env = {"WINDLASS_PACKAGE": package, **({"WINDLASS_PREFIX": self._prefix} if self._prefix else {})}
        await self.exec_as_agent(environment, command=f"bash {_HERE}/setup.sh", env=env)

    @with_prompt_template
    async def run(self, instruction: str, environment: BaseEnvironment, context: AgentContext) -> None:
        """Do the task. Raises what the harness has for a command that failed."""
        if not self.model_name:
            raise ValueError("A model is needed: -m provider/model.")
        line = run_command(instruction, self.model_name, logs=str(self.environment_logs_dir), **self._how)
        await self.exec_as_agent(environment, command=f"{self._where()}{line}", env=self._variables())

    def populate_context_post_run(self, context: AgentContext) -> None:
        """Read what the task took from its events, also after it ran out of time."""
        path = self.logs_dir / "windlass.ndjson"
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            found = totals(lines)
        context.n_input_tokens, context.n_output_tokens = found.input, found.output
        context.n_cache_tokens, context.cost_usd = found.cached, found.cost
        context.metadata = {"stop_reason": found.stop_reason, "turns": found.turns, "session_id": found.session}

    def _where(self) -> str:
        return f"export WINDLASS_PREFIX={shlex.quote(self._prefix)}; " if self._prefix else ""

    def _variables(self) -> dict[str, str]:
        return environment(self.model_name or "", self._get_env)
