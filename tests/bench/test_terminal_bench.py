"""Dry runs of the Terminal-Bench adapters: a task in a folder, the real scripts and program, a scripted model."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bench.terminal_bench import words

from tests.apps.helpers import calls, hanging, says
from tests.bench.harness import Container, Context, Task, stand_in
from windlass.testing.faults import FaultServer, Received, Reply, Step

#: Where this Windlass is installed already: the script finds it there.
PREFIX = str(Path(sys.executable).parents[1])
SUM = "awk -F, 'NR > 1 { sum += $2 } END { print sum }' sales.csv > \"it's-total.txt\"; cat \"it's-total.txt\""


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The agent classes of both harnesses, on what stands in for these."""
    stand_in(monkeypatch)
    found: dict[str, Any] = {}
    for name in ("agent", "first"):
        monkeypatch.delitem(sys.modules, f"bench.terminal_bench.{name}", raising=False)
        found[name] = importlib.import_module(f"bench.terminal_bench.{name}").WindlassAgent
    return found


def solving(received: Received) -> Step:
    """Do what the instruction says, and look at the result."""
    told = [str(each["content"]) for each in json.loads(received.body)["messages"] if each["role"] == "tool"]
    return says("The sum is 37.") if told and told[-1].strip() == "37" else calls(("shell", {"command": SUM}))


def variables(server: FaultServer) -> dict[str, str]:
    """What the harness's user has set: an address and a key of the model's vendor, and what is nobody's business."""
    return {"GROQ_API_KEY": "gk", "WINDLASS_GROQ_BASE_URL": f"{server.url}/v1", "ANTHROPIC_API_KEY": "another"}


@asynccontextmanager
async def dry_run(
    tmp_path: Path, made: Any, script: Any, **options: Any
) -> AsyncGenerator[tuple[Any, Container, Task, FaultServer]]:
    async with FaultServer(script) as server:
        container = Container(tmp_path, {"WINDLASS_HOME": str(tmp_path / "home" / "windlass")})
        agent = made(
            tmp_path / "logs" / "agent", model_name="groq/test-model", prefix=PREFIX, extra_env=variables(server),
            sandbox="auto", **options,
        )  # fmt: skip
        await agent.setup(container)
        yield agent, container, Task(container), server


async def test_a_task_is_done_and_rewarded(agents: Mapping[str, Any], tmp_path: Path) -> None:
    async with dry_run(tmp_path, agents["agent"], solving) as (agent, container, task, server):
        assert agent.name() == "windlass" and agent.version() == words_version()
        assert await task.reward() == 0, "it is not done before"
        context = Context()
        await agent.run(task.instruction, container, context)
        agent.populate_context_post_run(context)
        assert await task.reward() == 1
        body = json.loads(server.requests[0].body)
        assert body["model"] == "test-model" and server.requests[0].headers["authorization"] == "Bearer gk"
    assert [each["content"] for each in body["messages"] if each["role"] == "user"] == [task.instruction]
    assert (context.n_input_tokens, context.n_output_tokens, context.n_cache_tokens) == (40, 6, 0)
    assert context.cost_usd is None, "an unknown price is not zero"
    assert context.metadata is not None and context.metadata["stop_reason"] == "end_turn"
    assert context.metadata["turns"] == 2 and len(context.metadata["session_id"]) == 26
    # The keys of other vendors stay where they are.
    assert [sorted(env) for command, env in container.ran if " run " in command] == [
        ["GROQ_API_KEY", "WINDLASS_GROQ_BASE_URL"]
    ]
    kept = {path.name for path in (tmp_path / "logs" / "agent").iterdir()}
    assert {"windlass.ndjson", "windlass.err", "sessions.db"} <= kept


def words_version() -> str:
    return importlib.import_module("windlass.core.version").__version__


async def test_a_task_that_is_given_up_is_no_failure_of_the_agent(agents: Mapping[str, Any], tmp_path: Path) -> None:
    """A limit and a refusal end the program with 4 and 3: the verifier decides what the work is worth."""
    more = [calls(("shell", {"command": "true"}))]
    async with dry_run(tmp_path, agents["agent"], more, max_turns="2") as (agent, container, task, _):
        context = Context()
        await agent.run(task.instruction, container, context)
        agent.populate_context_post_run(context)
        assert await task.reward() == 0
    assert context.metadata is not None and context.metadata["stop_reason"] == "max_turns"


async def test_a_vendor_that_refuses_is_a_failure_with_its_words(agents: Mapping[str, Any], tmp_path: Path) -> None:
    refused = Reply(401, b'{"error": {"message": "Invalid API key"}}', {"content-type": "application/json"})
    async with dry_run(tmp_path, agents["agent"], [refused]) as (agent, container, task, _):
        with pytest.raises(RuntimeError, match=r"exit 5[\s\S]*Invalid API key"):
            await agent.run(task.instruction, container, Context())


async def test_what_a_task_took_is_known_when_its_time_is_over(agents: Mapping[str, Any], tmp_path: Path) -> None:
    """The harness kills it in the middle of an answer; the events up to there are counted."""
    script = [calls(("shell", {"command": "echo begun > begun.txt"})), hanging("I am")]
    async with dry_run(tmp_path, agents["agent"], script) as (agent, container, task, server):
        context = Context()
        line = agent.run(task.instruction, _Killed(container, server), context)
        with pytest.raises(RuntimeError, match="exit 137"):
            await line
        agent.populate_context_post_run(context)
    assert (tmp_path / "app" / "begun.txt").exists()
    assert (context.n_input_tokens, context.n_output_tokens) == (20, 3)
    assert context.metadata is not None and context.metadata["stop_reason"] is None and context.metadata["turns"] == 1


class _Killed:
    """A container whose agent is killed once the model's second answer has begun."""

    def __init__(self, container: Container, server: FaultServer) -> None:
        self.container, self.server = container, server

    async def exec(self, command: str, *rest: Any) -> Any:
        pipe = self.container.top / "enough"
        os.mkfifo(pipe)
        kill = "pkill -KILL -P $child; kill -KILL $child; exit 137"
        running = asyncio.ensure_future(
            self.container.exec(f"({command}) & child=$!; read -r _ < {pipe}; {kill}", *rest)
        )
        await self.server.wait(requests=2)
        pipe.write_text("\n")
        return await running


async def test_prompts_keep_their_quotes_and_dashes(agents: Mapping[str, Any], tmp_path: Path) -> None:
    """S90: an instruction is never read as options or by the shell; a harness's prompt template is applied."""
    text = "--yes $(touch hacked) `touch hacked` 'a' \"b\"\nsecond line; touch hacked"
    template = "Do this: {{ instruction }}"
    async with dry_run(tmp_path, agents["agent"], [says("No.")], prompt_template_path=template) as made:
        agent, container, _, server = made
        await agent.run(text, container, Context())
        (asked,) = [each for each in json.loads(server.requests[0].body)["messages"] if each["role"] == "user"]
    assert asked["content"] == f"Do this: {text}" and not (tmp_path / "app" / "hacked").exists()


async def test_the_first_harness_types_it_into_the_tasks_terminal(
    agents: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is typed installs, runs, and leaves the terminal as it was."""
    async with FaultServer(solving) as server:
        for name, value in {**variables(server), "OPENAI_API_KEY": "another"}.items():
            monkeypatch.setenv(name, value)
        container = Container(tmp_path, {"WINDLASS_PREFIX": PREFIX})
        agent = agents["first"](model_name="groq/test-model", sandbox="auto", version="1")
        task = Task(container)
        assert agent.perform_task(task.instruction, container) == "done"
        typed: str = vars(container)["typed"]
        assert "another" not in typed
        done = await container.exec(typed)
        assert await task.reward() == 1
    assert done.return_code == 0 and done.stdout.endswith("the terminal goes on\n")
    assert f"windlass {words_version()}" in done.stdout


class _Session:
    """A terminal of the first harness, as far as files are copied into its container."""

    def __init__(self) -> None:
        self.copied: list[tuple[Path, str]] = []
        self.typed = ""

    def copy_to_container(self, paths: Path, container_dir: str) -> None:
        self.copied.append((paths, container_dir))


def test_a_wheel_of_this_machine_goes_into_the_container(agents: Mapping[str, Any], tmp_path: Path) -> None:
    session = _Session()
    agent = agents["first"](model_name="openai/x", package="/here/windlass-1-py3-none-any.whl")
    agent.perform_task("Do it.", session)
    assert session.copied == [(Path("/here/windlass-1-py3-none-any.whl"), "/installed-agent")]
    assert "export WINDLASS_PACKAGE='/installed-agent/windlass-1-py3-none-any.whl'" in session.typed


@pytest.mark.slow
async def test_the_script_installs_a_wheel_where_there_is_none(agents: Mapping[str, Any], tmp_path: Path) -> None:
    """A real wheel into a real environment, without an index: what it needs is not asked for here."""
    root, dist = str(Path(__file__).parents[2]), str(tmp_path / "dist")
    build = [sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", dist, root]
    subprocess.run(build, check=True, timeout=300, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    container = Container(tmp_path / "container", offline)
    agent = agents["agent"](tmp_path / "logs", model_name="groq/x", package=str(wheel))
    await agent.setup(container)
    assert agent.version() == words_version()
    assert (container.top / "home/.local/share/windlass-bench/bin/windlass").exists()


@pytest.mark.slow
async def test_an_installation_that_fails_says_so(agents: Mapping[str, Any], tmp_path: Path) -> None:
    container = Container(tmp_path, {"PIP_NO_INDEX": "1"})
    agent = agents["agent"](tmp_path / "logs" / "agent", model_name="groq/x", package="windlass-that-is-not-there")
    with pytest.raises(RuntimeError, match="windlass-that-is-not-there"):
        await agent.setup(container)


def test_words() -> None:
    assert doctest.testmod(words).failed == 0
    assert words.model_name("google/gemini-x") == "gemini:gemini-x"
    have = {"GEMINI_API_KEY": "g", "GOOGLE_API_KEY": "h", "WINDLASS_GEMINI_BASE_URL": "u", "OPENAI_API_KEY": "o"}
    assert words.environment("google/gemini-x", have.get) == {key: have[key] for key in have if "OPENAI" not in key}
    found = words.totals(
        ["", "not json", '"text"', '{"kind": "turn.finished", "usage": {"input_tokens": 3}, "cost": 2000000000}']
    )
    assert (found.input, found.cost, found.turns, found.stop_reason) == (3, 2.0, 1, None)
