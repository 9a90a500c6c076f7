"""The harnesses of Terminal-Bench as far as an agent sees them, and a task that needs no container.

The packages need a later Python than these tests run on. What is here has the shape of harbor 0.24 and terminal-bench
0.2.18; a folder stands for the container, in which the agent's commands really run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from windlass.core import clock

__all__ = ["Container", "Context", "Task", "stand_in"]


@dataclass
class Executed:
    """harbor.environments.base.ExecResult."""

    stdout: str
    stderr: str
    return_code: int


@dataclass
class Context:
    """harbor.models.agent.context.AgentContext."""

    n_input_tokens: int | None = None
    n_cache_tokens: int | None = None
    n_output_tokens: int | None = None
    cost_usd: float | None = None
    metadata: dict[str, Any] | None = None


class Container:
    """A folder for a container: `/app`, `/logs` and the others are below it, and so are the agent's own places."""

    default_user = None

    def __init__(self, top: Path, variables: Mapping[str, str]) -> None:
        self.top, self.variables = top, dict(variables)
        self.ran: list[tuple[str, dict[str, str]]] = []
        for name in ("app", "logs/agent", "logs/verifier", "home"):
            (top / name).mkdir(parents=True)

    def inside(self, text: str) -> str:
        """Return a path or a command of the container's as one of this machine's."""
        return text.replace("/installed-agent", f"{self.top}/installed-agent").replace("/logs/", f"{self.top}/logs/")

    async def exec(
        self, command: str, cwd: str | None = None, env: Mapping[str, str] | None = None,
        timeout_sec: int | None = None, user: str | None = None,
    ) -> Executed:  # fmt: skip
        self.ran.append((command, dict(env or {})))
        given = {name: self.inside(value) for name, value in (env or {}).items()}
        always = {"PATH": os.environ["PATH"], "HOME": str(self.top / "home"), "LANG": "C.UTF-8"}
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", self.inside(command), cwd=cwd or self.top / "app", env={**always, **self.variables, **given},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with clock.deadline(timeout_sec or 90):
            out, err = await process.communicate()
        return Executed(out.decode(), err.decode(), process.returncode or 0)

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        target = Path(self.inside(target_path))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source_path, target)


class Task:
    """A task in Terminal-Bench 2's form: an instruction, files to begin with, and a script that writes the reward."""

    instruction = "Add up the column `amount` of sales.csv and write the sum, and nothing else, to it's-total.txt."
    files: Mapping[str, str] = {"sales.csv": "day,amount\nmon,12\ntue,30\nwed,-5\n"}
    #: Like theirs it runs after the agent, where the agent has worked.
    test_sh = """#!/bin/bash
if [ "$(cat "it's-total.txt" 2>/dev/null)" = 37 ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
"""

    def __init__(self, container: Container) -> None:
        self.container = container
        for name, text in self.files.items():
            (container.top / "app" / name).write_text(text)

    async def reward(self) -> int:
        """Run the check and return what it gives."""
        await self.container.exec(self.test_sh)
        return int((self.container.top / "logs" / "verifier" / "reward.txt").read_text())


class _Base:
    """harbor.agents.installed.base.BaseInstalledAgent."""

    def __init__(
        self, logs_dir: Path, prompt_template_path: str | None = None, version: str | None = None,
        extra_env: Mapping[str, str] | None = None, *, model_name: str | None = None,
        environment_logs_dir: str = "/logs/agent", **kwargs: Any,
    ) -> None:  # fmt: skip
        assert not kwargs, f"an agent gets only what it does not take itself: {kwargs}"
        self.logs_dir, self.model_name, self.environment_logs_dir = logs_dir, model_name, environment_logs_dir
        self._extra_env, self._version, self._template = dict(extra_env or {}), version, prompt_template_path

    def version(self) -> str | None:
        return self._version

    def render_instruction(self, instruction: str) -> str:
        return instruction if self._template is None else self._template.replace("{{ instruction }}", instruction)

    def _get_env(self, key: str) -> str | None:
        return self._extra_env.get(key, os.environ.get(key))

    async def setup(self, environment: Container) -> None:
        await environment.exec("[ -d /installed-agent ] || mkdir -p /installed-agent")
        me: Any = self
        await me.install(environment)
        if self._version is None and (command := me.get_version_command()):
            result = await environment.exec(command)
            if result.return_code == 0 and result.stdout:
                self._version = me.parse_version(result.stdout)

    async def exec_as_agent(
        self, environment: Container, command: str, env: Mapping[str, str] | None = None, cwd: str | None = None,
        timeout_sec: int | None = None,
    ) -> Executed:  # fmt: skip
        result = await environment.exec(f"set -o pipefail; {command}", cwd, env, timeout_sec)
        if result.return_code:
            raise RuntimeError(f"Command failed (exit {result.return_code}): {command}\nstderr: {result.stderr}")
        return result


def _with_prompt_template(run: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(self: _Base, instruction: str, *args: Any, **kwargs: Any) -> Any:
        return await run(self, self.render_instruction(instruction), *args, **kwargs)

    return wrapper


class _FirstBase:
    """terminal_bench's AbstractInstalledAgent; a session of its terminal is a `Container` here."""

    CONTAINER_AGENT_LOGS_PATH = "/logs/agent"

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def perform_task(self, instruction: str, session: Any, logging_dir: Path | None = None) -> str:
        me: Any = self
        script = Path(me._install_agent_script_path).read_text()
        exports = "\n".join([f"export {name}='{value}'" for name, value in me._env.items()])
        lines = [command.command for command in me._run_agent_commands(instruction)]
        # Typed into one shell, one after the other, as into the tmux session of the real one.
        session.typed = "\n".join([exports, script, *lines, "echo the terminal goes on"])
        return "done"


@dataclass
class _Command:
    command: str
    min_timeout_sec: float = 0.0
    max_timeout_sec: float = 180.0
    block: bool = False
    append_enter: bool = True


_MODULES: dict[str, dict[str, Any]] = {
    "harbor.agents.installed.base": {"BaseInstalledAgent": _Base, "with_prompt_template": _with_prompt_template},
    "harbor.environments.base": {"BaseEnvironment": Container},
    "harbor.models.agent.context": {"AgentContext": Context},
    "terminal_bench.agents.base_agent": {"AgentResult": str},
    "terminal_bench.agents.installed_agents.abstract_installed_agent": {"AbstractInstalledAgent": _FirstBase},
    "terminal_bench.terminal.models": {"TerminalCommand": _Command},
    "terminal_bench.terminal.tmux_session": {"TmuxSession": Container},
}


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Put these in the place of both packages."""
    for name, values in _MODULES.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules or end == len(parts):
                patch.setitem(sys.modules, path, ModuleType(path))
        for key, value in values.items():
            setattr(sys.modules[name], key, value)
