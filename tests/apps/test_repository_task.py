"""A whole task in a real repository, with a model that decides from what it sees: as a program, and as a library."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import windlass
from tests.apps.helpers import Cli, Done, asked
from tests.apps.tasks_model import TASK, Brain, over_http, within
from tests.apps.tasks_repo import FILES, MENDED, TEST_COMMAND, digests, git, make_repository, own_tests
from windlass.agent.hooks import HookContext
from windlass.agent.session import Session
from windlass.core.events import (
    Event,
    FileChanged,
    MessageAdded,
    RunFinished,
    RunStarted,
    SessionCreated,
    SkillActivated,
    ToolFinished,
    ToolStarted,
    TurnStarted,
)
from windlass.core.messages import ToolResponse, response_text
from windlass.core.ports import Workspace
from windlass.core.request import Request
from windlass.stores.sqlite import SqliteStore
from windlass.testing.faults import FaultServer
from windlass.testing.scripted import ScriptedProvider
from windlass.workspaces.memory import MemoryWorkspace
from windlass.workspaces.sandbox import SandboxWorkspace

#: What the model is expected to do, turn by turn.
ROUNDS = [
    ["grep"],
    ["read_file", "read_file"],
    ["shell"],  # a test fails
    ["edit"],  # too much
    ["shell"],  # another one fails
    ["edit"],
    ["shell"],  # they pass
    ["skills_use"],
    ["read_file"],
    ["edit"],
    ["shell"],
]
#: Where no command may write: it belongs to root, who runs these tests in a container, so that only a sandbox refuses.
OUTSIDE = "/usr/windlass-was-here"


class Repository(Cli):
    """The program in a fresh repository, and all that lies around it."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.top, self.started = top, top / "mcp-server-was-started"
        # Programs on PATH that need a home (pyenv's) would be looked for in the one of this test.
        self.env["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        make_repository(self.folder, self.started)
        self.around = digests(top, self.folder, self.home)
        self.git_folder = digests(self.folder / ".git")

    def untouched(self) -> bool:
        """Tell whether the repository is as it was committed, and nothing around it or in .git has changed."""
        same = digests(self.folder / ".git") == self.git_folder and digests(self.top, self.folder, self.home)
        return same == self.around and not git(self.folder, "status", "--porcelain", "--ignored")

    def sessions(self) -> SqliteStore:
        """Open what the program has kept."""
        return SqliteStore(self.home / "sessions.db")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    made = Repository(tmp_path)
    monkeypatch.setenv("PATH", made.env["PATH"])  # for agents in this process, too
    return made


def rounds(events: list[Event]) -> list[list[str]]:
    """Return the tools that started in each turn of the topmost run, by name."""
    out: list[list[str]] = []
    for event in events:
        if event.parent_run_id is None:
            if isinstance(event, TurnStarted):
                out.append([])
            elif isinstance(event, ToolStarted):
                out[-1].append(event.name)
    return [sorted(names) for names in out if names]


def in_order(events: list[Event]) -> None:
    """Check what every stream of events promises."""
    seqs: dict[str, list[int]] = {}
    for event in events:
        seqs.setdefault(event.run_id, []).append(event.seq)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seqs.values())
    started = {_call(event): place for place, event in enumerate(events) if isinstance(event, ToolStarted)}
    finished = {_call(event): place for place, event in enumerate(events) if isinstance(event, ToolFinished)}
    counts = Counter([_call(event) for event in events if isinstance(event, (ToolStarted, ToolFinished))])
    assert started.keys() == finished.keys() and set(counts.values()) == {2}
    assert all(place < finished[each] for each, place in started.items())
    for place, event in enumerate(events):
        if isinstance(event, FileChanged):
            assert started[_call(event)] < place < finished[_call(event)]
    assert isinstance(events[-1], RunFinished)


def _call(event: ToolStarted | ToolFinished | FileChanged) -> tuple[str, str]:
    return event.run_id, event.call_id


def told(events: list[Event], name: str) -> list[str]:
    """Return what the calls of a tool came to."""
    return [str(event.response) for event in events if isinstance(event, ToolFinished) and event.name == name]


def session_of(events: list[Event]) -> str:
    (session,) = [event.session_id for event in events if isinstance(event, RunStarted) and event.parent_run_id is None]
    return session


async def run(repository: Repository, *options: str, brain: Brain | None = None, prompt: str = TASK) -> Done:
    """Run the program with the model on a real socket."""
    async with FaultServer(lambda received: over_http(brain or Brain(), received)) as server:
        repository.use(server)
        return await repository("run", *options, prompt)


async def test_a_task_from_reading_to_passing_tests(repository: Repository) -> None:
    assert not own_tests(repository.folder)
    done = await run(repository, "--yes", "--output", "stream-json")
    assert done.code == 0, done.err
    events = done.events()
    in_order(events)
    assert [type(event) for event in events[:2]] == [SessionCreated, RunStarted]
    assert rounds(events) == ROUNDS
    assert [event.name for event in events if isinstance(event, SkillActivated)] == ["changelog"]
    first, second, third, last = told(events, "shell")
    assert "FAIL: test_touching" in first and "FAIL: test_a_gap_stays" in second
    assert third.endswith("OK") and last.endswith("OK")
    changed = [(event.path, event.status) for event in events if isinstance(event, FileChanged)]
    assert changed == [("spans/merging.py", "done")] * 2 + [("CHANGELOG.md", "done")]
    ended = events[-1]
    assert isinstance(ended, RunFinished) and ended.stop_reason == "end_turn" and ended.turns == len(ROUNDS) + 1

    assert own_tests(repository.folder)
    assert digests(repository.folder / ".git") == repository.git_folder
    assert digests(repository.top, repository.folder, repository.home) == repository.around
    diff = git(repository.folder, "diff", "--unified=0")
    assert [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "+- Mended: spans that touch are joined.", "+",
        "-        if out and start < out[-1][1]:", "+        if out and start <= out[-1][1]:",
    ]  # fmt: skip
    assert git(repository.folder, "status", "--porcelain").splitlines() == [" M CHANGELOG.md", " M spans/merging.py"]


async def test_what_lies_in_the_repository_neither_runs_nor_connects(repository: Repository) -> None:
    """Its instructions and skills are read; its MCP server is not started, in any mode, before somebody trusts it."""
    async with FaultServer(lambda received: over_http(Brain(), received)) as server:
        repository.use(server)
        for options in (("--yes",), ("--yes", "--sandbox", "none")):
            done = await repository("run", *options, TASK)
            assert done.code == 0 and ".mcp.json of this folder: not run before you trust it" in done.err
            git(repository.folder, "checkout", "-q", ".")
        first = asked(server, 0)
    system = first["messages"][0]["content"]
    assert TEST_COMMAND in system and "<name>changelog</name>" in system
    assert not any("mcp" in tool["function"]["name"] for tool in first["tools"])
    assert not (repository.folder / "spy-ran").exists() and not repository.started.exists()


async def test_once_trusted_the_server_is_started_and_confined(repository: Repository) -> None:
    """The other side of the test above: its command runs then, and may still not write outside."""
    assert (await repository("trust", "grant")).code == 0
    done = await run(repository, "--yes")
    assert done.code == 0 and "not run before you trust it" not in done.err
    assert (repository.folder / "spy-ran").exists() and not repository.started.exists()


async def test_commands_are_confined(repository: Repository) -> None:
    """They can write in the repository; not outside it, not to its .git, not to the network, not to the session."""
    async with asyncio.timeout(60), FaultServer(lambda received: over_http(brain, received)) as server:
        brain = Brain(probes=(
            f"echo x > {OUTSIDE}",
            f"echo x > {repository.top}/beside; cat {repository.top}/beside",
            "git config user.name Someone",
            f"python3 -c \"import socket; socket.create_connection(('127.0.0.1', {server.port}), 3)\"",
            "curl -sS --max-time 5 http://example.org",
            f"ls {repository.home}",
            "echo made > made.txt; cat made.txt; rm made.txt",
        ))  # fmt: skip
        repository.use(server)
        done = await repository("run", "--yes", "--output", "stream-json", TASK)
        connections = server.connections
    assert done.code == 0, done.err
    results = dict(zip(brain.probes, told(done.events(), "shell"), strict=False))
    outside, beside, settings, loopback, network, ours, inside = results.values()
    assert "Read-only file system" in outside and not Path(OUTSIDE).exists()
    # /tmp and the home are private ones: what is written there is nowhere else.
    assert beside.startswith(("x", "Exit code 1"))
    assert settings.startswith("Exit code") and "could not" in settings
    assert loopback.startswith("Exit code 1") and "Error" in loopback
    assert network.startswith("Exit code") and "Could not resolve" in network
    assert ours.startswith("Exit code 2") and "sessions.db" not in ours
    assert inside == "made"
    # One connection is the program's own; the command that wanted one came to no one.
    assert connections == 1
    assert digests(repository.top, repository.folder, repository.home) == repository.around
    assert digests(repository.folder / ".git") == repository.git_folder
    assert own_tests(repository.folder)


async def test_the_session_goes_on_and_is_undone(repository: Repository) -> None:
    first = await run(repository, "--yes", "--output", "stream-json")
    session = session_of(first.events())
    again = await run(repository, "-c", "--output", "stream-json", prompt="What did you change?")
    assert again.code == 0 and session_of(again.events()) == session
    plain = await run(repository, "-r", session, prompt="What did you change?")
    assert plain.out == f"You asked: {TASK} I changed CHANGELOG.md and spans/merging.py.\n"

    store = repository.sessions()
    agent = windlass.Agent(ScriptedProvider([]), tools="coding", workspace=str(repository.folder))
    kept = await Session(agent, session, store).load()
    assert await kept.undo(1) == ["CHANGELOG.md"]
    assert own_tests(repository.folder), "only the last change is taken back"
    assert await kept.undo(2) == ["spans/merging.py"]
    assert not own_tests(repository.folder)
    assert git(repository.folder, "status", "--porcelain") == ""
    assert sorted(await kept.redo(3)) == sorted(MENDED)
    assert {path: (repository.folder / path).read_text() for path in MENDED} == MENDED
    await agent.destroy()
    await store.close()


async def test_a_sub_agent_reviews(repository: Repository) -> None:
    done = await run(repository, "--yes", "--output", "stream-json", brain=Brain(review=True))
    assert done.code == 0, done.err
    events = done.events()
    in_order(events)
    assert rounds(events) == [*ROUNDS, ["spawn"]]
    (child,) = [event for event in events if isinstance(event, RunStarted) and event.parent_run_id is not None]
    own = [event for event in events if event.run_id == child.run_id]
    assert {event.parent_run_id for event in own} == {events[-1].run_id}
    assert [event.name for event in own if isinstance(event, ToolStarted)] == ["read_file"]
    prompts = [event.message.text for event in own if isinstance(event, MessageAdded) and event.source == "prompt"]
    assert prompts == ["Review spans/merging.py: do spans that touch become one?"]
    assert child.session_id.startswith(f"{session_of(events)}.")
    (answer,) = told(events, "spawn")
    assert answer.endswith("Reviewed: it is right.")
    ended = events[-1]
    # Both were asked on the same socket, and what the child used is in its parent's sum: 20 tokens a request.
    assert isinstance(ended, RunFinished) and ended.usage.input_tokens == 20 * (len(ROUNDS) + 2 + 2)
    store = repository.sessions()
    assert {info.id for info in await store.list()} == {session_of(events), child.session_id}
    await store.close()


@pytest.mark.parametrize("options", [("--mode", "plan"), ("--mode", "plan", "--yes"), ("--mode", "ask"), ()])
async def test_without_leave_nothing_changes(repository: Repository, options: tuple[str, ...]) -> None:
    """In plan mode, and where there is nobody to ask: it reads, is refused once, and says what it would do (R13)."""
    done = await run(repository, *options, "--output", "stream-json")
    assert done.code == 3
    events = done.events()
    assert rounds(events) == ROUNDS[:2]
    (refused,) = told(events, "shell")
    assert refused.startswith("Blocked: plan mode" if "plan" in options else "Blocked: it needs permission")
    plain = await run(repository, *options)
    assert plain.code == 3 and "windlass: refused: shell." in plain.err
    assert plain.out == "I may not do that here. I would let merge() join spans that touch.\n"
    assert repository.untouched() and not repository.started.exists()


# -- as a library ------------------------------------------------------------------------------------------------------


def instructed() -> dict[str, Any]:
    """Return the preset with the repository's instructions, which only an assembled agent finds by itself."""
    return {**windlass.coding, "system": f"{windlass.coding['system']}\n\n{FILES['AGENTS.md']}"}


def thinking(brain: Brain) -> ScriptedProvider:
    def step(request: Request) -> Any:
        return within(brain, request)

    return ScriptedProvider([step], repeat=True)


def results_of(provider: ScriptedProvider) -> list[str]:
    """Return every tool result that the model was ever given."""
    last = provider.requests[-1].messages
    return [response_text(part) for message in last for part in message.parts if isinstance(part, ToolResponse)]


async def test_the_same_on_a_memory_workspace() -> None:
    """The same options on files that are nowhere: there is no shell, so it reads the tests in place of running them."""
    provider = thinking(Brain())
    agent = windlass.Agent(provider, **windlass.coding, workspace=MemoryWorkspace(FILES))
    async with agent.run(TASK) as running:
        events = [event async for event in running]
    result = await running
    in_order(events)
    assert result.stop_reason == "end_turn" and result.text.startswith("merge() joins spans that touch now.")
    assert result.files == {**FILES, **MENDED}
    space = agent.workspace
    assert isinstance(space, MemoryWorkspace) and space.changed == MENDED
    await agent.destroy()


@pytest.mark.parametrize("kind", ["sandbox", "memory"])
async def test_both_ways_come_to_the_same_files(repository: Repository, kind: str) -> None:
    """The disk under the program's sandbox, and files in memory: what differs is only how it is checked."""
    space: Workspace = SandboxWorkspace(repository.folder) if kind == "sandbox" else MemoryWorkspace(FILES)
    provider = thinking(Brain())
    agent = windlass.Agent(provider, **instructed(), workspace=space)
    result = await agent.run(TASK)
    assert result.stop_reason == "end_turn", result.text
    assert {path: (await space.read(path)).decode() for path in MENDED} == MENDED
    ran = [text for text in results_of(provider) if "Ran 4 tests" in text]
    assert len(ran) == (4 if kind == "sandbox" else 0)
    await agent.destroy()
    await space.close()


async def test_a_hook_redacts_before_the_model_and_the_ledger(repository: Repository) -> None:
    """What a hook takes out of a result is in no request, no result and no row; the work goes on."""
    secret = "tok-5c1e77"
    (repository.folder / "spans" / "__init__.py").write_text(f'"""Spans."""\n\nTOKEN = "{secret}"\n')
    space = SandboxWorkspace(repository.folder)
    brain = Brain(probes=("cat spans/__init__.py", "grep -rn TOKEN ."))
    provider, store = thinking(brain), windlass.MemoryStore()
    seen: list[Event] = []
    agent = windlass.Agent(provider, **instructed(), workspace=space, sinks=[seen.append])

    @agent.hook("tool:transform")
    def redact(ctx: HookContext) -> None:  # pyright: ignore[reportUnusedFunction]
        ctx.result = str(ctx.result).replace(secret, "[token]")

    session = Session(agent, "redacted", store)
    result = await session.run(TASK)
    assert result.stop_reason == "end_turn", result.text
    assert 'TOKEN = "[token]"' in results_of(provider)[0]
    everything = [str(request.messages) for request in provider.requests]
    rows = [row.data.decode() for row in await store.read("redacted")]
    finished = [str(event) for event in seen if isinstance(event, ToolFinished)]
    assert len(rows) > 20 and sum("[token]" in text for text in finished) == 2
    assert [text for text in (*everything, *rows, *finished) if secret in text] == []
    # What a running command prints is shown while it runs, before any hook sees its result.
    assert any(secret in msgspec.json.encode(event).decode() for event in seen if not isinstance(event, ToolFinished))
    assert own_tests(repository.folder)
    await agent.destroy()
    await space.close()


def test_the_tasks_own_check_can_fail(tmp_path: Path) -> None:
    """The fault is there, its mending mends it, and what is too much does not: else the tests above show nothing."""
    make_repository(tmp_path, tmp_path / "started")
    source = tmp_path / "spans" / "merging.py"
    assert not own_tests(tmp_path)
    source.write_text(MENDED["spans/merging.py"])
    assert own_tests(tmp_path)
    source.write_text(FILES["spans/merging.py"].replace("start < out[-1][1]", "start <= out[-1][1] + 1"))
    assert not own_tests(tmp_path)
