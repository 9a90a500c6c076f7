"""Real coding agents, unchanged, on models that do not speak their dialect; their tool runs on this machine.

The agents come from npm, in the versions that stand here, into a folder that git ignores; no script of a package runs.
Each has a home of its own, is told not to report or update itself, and what it asks of anybody but the gateway is
refused and fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Serve, Served
from tests.server.matrix import CACHED, INPUT, OUTPUT
from tests.server.matrix_base import Said, Vendor
from tests.server.matrix_openai import OpenAIResponses
from tests.server.matrix_upstreams import Anthropic, Gemini
from windlass.testing.faults import FaultServer, Reply

CACHE = Path(__file__).parents[2] / ".build" / "agents"
INSTALL_SECONDS, RUN_SECONDS = 300, 90
#: What stands in for a Node that is too old.
NODE = (20, f"node-linux-{'arm64' if platform.machine() == 'aarch64' else 'x64'}", "22.23.3")
PROMPT = "Write the word windlass into the file made.txt."
COMMAND = "printf windlass > made.txt && printf 'it is %s' written"
RESULT = "it is written"
DONE = "The file made.txt is there, Käpt'n."


@dataclass(frozen=True)
class Agent:
    """One agent: its package and the file in it that starts it, its settings, and the call that the model makes.

    `{url}` and `{key}` in `environ` and `files` (in its home) stand for the gateway and a key of it. `guard` is how it
    is kept from the network: it heeds the proxy that it is given, or is a Node program whose sockets can be watched.
    """

    package: str
    version: str
    entry: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    tool: str
    call: Mapping[str, Any]
    endpoint: str
    vendor: type[Vendor]
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    guard: str = "proxy"


CODEX = """
model = "coder"
model_provider = "windlass"
check_for_update_on_startup = false

[model_providers.windlass]
name = "Windlass"
base_url = "{url}/v1"
env_key = "WINDLASS_KEY"
wire_api = "responses"

[analytics]
enabled = false

[features]
plugins = false
apps = false
"""
QWEN = '{"privacy": {"usageStatisticsEnabled": false}, "general": {"enableAutoUpdate": false}}'
AGENTS = {
    "claude": Agent(
        "@anthropic-ai/claude-code", "2.1.197", "cli-wrapper.cjs", ("-p", PROMPT, "--allowedTools", "Bash"),
        {
            "ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_AUTH_TOKEN": "{key}", "ANTHROPIC_MODEL": "coder",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "coder", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        "Bash", {"command": COMMAND, "description": "Write the file"}, "anthropic", OpenAIResponses,
    ),
    "codex": Agent(
        "@openai/codex", "0.169.0", "bin/codex.js",
        ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", PROMPT),
        {"WINDLASS_KEY": "{key}"},
        "exec_command", {"cmd": COMMAND}, "openai-responses", Gemini, {".codex/config.toml": CODEX},
    ),
    "qwen": Agent(
        "@qwen-code/qwen-code", "0.15.10", "cli.js", ("--yolo", "--auth-type", "openai", "-p", PROMPT),
        {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_API_KEY": "{key}", "OPENAI_MODEL": "coder"},
        "run_shell_command", {"command": COMMAND, "description": "Write the file", "is_background": False},
        "openai-chat", Anthropic,
        {".qwen/settings.json": QWEN},
        "node",
    ),
}  # fmt: skip
#: Loaded by Node before the program: writes down who is asked that is not on this machine, and refuses.
GUARD = """
const net = require("net"), fs = require("fs"), connect = net.Socket.prototype.connect;
const local = new Set([undefined, null, "localhost", "127.0.0.1", "::1"]);
net.Socket.prototype.connect = function (...args) {
  const first = Array.isArray(args[0]) ? args[0][0] : args[0];
  const host = typeof first === "object" && first !== null ? first.host : args[1];
  if (!local.has(host)) {
    fs.appendFileSync(process.env.OUTSIDE, host + "\\n");
    throw new Error("not on this machine: " + host);
  }
  return connect.apply(this, args);
};
"""


def installed(package: str, version: str) -> Path:
    """Return the folder of a package, fetched from npm unless it is there already."""
    kept = CACHE / f"{package.rpartition('/')[2]}-{version}"
    if not kept.exists():
        npm = shutil.which("npm")
        assert npm, "npm is needed to fetch the agents: install nodejs and npm"
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as folder:
            asked = [npm, "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund",
                     "--no-update-notifier", f"{package}@{version}"]  # fmt: skip
            done = subprocess.run(
                asked, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS
            )
            assert done.returncode == 0, f"npm could not fetch {package}@{version}: {done.stdout}{done.stderr}"
            with contextlib.suppress(OSError):  # somebody else was first
                Path(folder).rename(kept)
        assert kept.exists(), f"{kept} cannot be written"
    return kept / "node_modules" / package


def node() -> str:
    """Return a Node that is new enough for the agents."""
    least, package, version = NODE
    found = shutil.which("node")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30).stdout
        if int(said.removeprefix("v").partition(".")[0]) >= least:
            return found
    return str(installed(package, version) / "bin" / "node")


def _scripted(row: Agent, bodies: list[str]) -> Vendor:
    """Return a vendor whose model makes one call of the agent's tool, and is done once it has seen the result."""
    vendor: Vendor

    def play(body: dict[str, Any]) -> Said:
        bodies.append(json.dumps(body, ensure_ascii=False))
        if RESULT in bodies[-1]:
            return Said(DONE)
        # What it asks besides (a title for the conversation) it asks without tools.
        return Said("I write it.", calls=[(row.tool, json.dumps(row.call))] if row.tool in vendor.tools(body) else [])

    vendor = row.vendor(play)
    return vendor


async def _run(row: Agent, served: Served, key: str, home: Path, proxy: str) -> tuple[int | None, str, str]:
    """Run the agent in `home/work`; returns its exit code and what it said on both streams."""

    def filled(text: str) -> str:
        return text.replace("{url}", served.url).replace("{key}", key)

    work = home / "work"
    work.mkdir(parents=True)
    for name, text in row.files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(filled(text))
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "TERM": "dumb", "LANG": "C.UTF-8"}
    environ |= {name: filled(value) for name, value in row.environ.items()}
    if row.guard == "node":
        (home / "guard.cjs").write_text(GUARD)
        environ |= {"NODE_OPTIONS": f"--require={home / 'guard.cjs'}", "OUTSIDE": str(home / "outside")}
    else:
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        environ |= {**dict.fromkeys(names, proxy), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    program = await asyncio.to_thread(lambda: [node(), str(installed(row.package, row.version) / row.entry)])
    process = await asyncio.create_subprocess_exec(
        *program, *row.arguments, cwd=work, env=environ, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RUN_SECONDS):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out.decode(), err.decode()


def _new_key(served: Served) -> tuple[str, str]:
    """Return the id and the secret of a new key, made over HTTP as an administrator does."""
    token = (served.home / "admin-token").read_text().strip()
    made = httpx.post(
        f"{served.url}/v1/keys", json={"name": "agent"}, headers={"authorization": f"Bearer {token}"}
    ).json()
    return made["id"], made["secret"]


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_works_on_a_model_of_another_dialect(name: str, serve: Serve, tmp_path: Path) -> None:
    row = AGENTS[name]
    bodies: list[str] = []
    vendor = _scripted(row, bodies)
    async with FaultServer(vendor.step) as upstream, FaultServer([Reply(403)]) as proxy:
        config = f'[providers.up]\nbase_url = "{upstream.url}"\ndialect = "{vendor.table["dialect"]}"\napi_key = "sk"\n'
        served = await asyncio.to_thread(serve, f'{config}[routes]\ncoder = "up:big"\n')
        key_id, key = await asyncio.to_thread(_new_key, served)
        home = tmp_path / "agent"
        code, out, err = await _run(row, served, key, home, proxy.url)
        told = f"{name} ended with {code}:\n{out}\n{err}"
        assert code == 0 and DONE in out, told
        assert (home / "work" / "made.txt").read_text() == "windlass", told
        # The model got the call, then what the tool had printed; the vendor would have taken every request.
        with_tools = [body for body in bodies if row.tool in body]
        assert [RESULT in body for body in with_tools] == [False, True] and vendor.problems == []
        assert proxy.requests == [] and not (home / "outside").exists(), "it asked others than the gateway"
        assert await asyncio.to_thread(served.stop) == 0
    with contextlib.closing(sqlite3.connect(served.home / "accounts.db")) as tables:
        asked = "SELECT endpoint, route, target, status, outcome, input_tokens, cache_read_tokens, output_tokens"
        rows = tables.execute(f"{asked} FROM account_requests WHERE key_id = ?", (key_id,)).fetchall()
    assert rows == [(row.endpoint, "coder", "up:big", 200, "ok", INPUT, CACHED, OUTPUT)] * len(bodies)


def test_the_page_of_clients_says_how_the_agents_are_set_up() -> None:
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
    for row in AGENTS.values():
        assert row.version.rpartition(".")[0] in page
        assert [name for name in row.environ if name not in page] == []
    told = [line.partition(" = ")[0] for line in CODEX.splitlines() if " = " in line]
    assert [name for name in (*told, "usageStatisticsEnabled") if name not in page] == []
