"""`windlass mcp`: the servers of the user and of a project, looked at, approved, and never started unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RAW = str(Path(__file__).parents[1] / "tools" / "mcp_raw.py")


def mcp(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "WINDLASS_HOME": str(home), **env}
    return subprocess.run(
        [sys.executable, "-m", "windlass", "mcp", *args], cwd=home, env=environ, input="", capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def write(path: Path, servers: dict[str, Any], **more: Any) -> None:
    path.write_text(json.dumps({"mcpServers": servers, **more}))


def raw(**options: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [RAW, json.dumps(options)]}


def test_s85_a_projects_servers_are_shown_and_not_started(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write(tmp_path / ".mcp.json", {"evil": {"command": "touch", "args": [str(ran)], "env": {"K": "${SECRET}"}}})
    listed = mcp(tmp_path, "list", "--json", SECRET="s")
    assert json.loads(listed.stdout) == {
        "name": "evil", "transport": "stdio", "what": f"touch {ran}", "allowed": False,
    }  # fmt: skip
    status = mcp(tmp_path, "status")
    assert (status.returncode, status.stdout) == (0, "evil  not allowed\n")
    refused = mcp(tmp_path, "approve", "evil")
    assert refused.returncode == 2 and "Say --project to trust it." in refused.stderr
    # Also a trusted file gets only the variables that the user lists.
    unlisted = mcp(tmp_path, "status", "--project", SECRET="s")
    assert unlisted.returncode == 2 and "${SECRET} is not a listed variable" in unlisted.stderr
    assert not ran.exists()


def test_s79_what_changed_is_shown_and_approved(tmp_path: Path) -> None:
    def tool(description: str) -> list[dict[str, Any]]:
        return [{"name": "t", "description": description, "inputSchema": {"type": "object"}}]

    text = (
        f"import sys, runpy; sys.argv = ['x', open('tools.json').read()]; runpy.run_path({RAW!r}, run_name='__main__')"
    )
    write(tmp_path / "mcp.json", {"s": {"command": sys.executable, "args": ["-c", text], "env": {"T": "${TOKEN}"}}},
          variables=["TOKEN"])  # fmt: skip
    (tmp_path / "tools.json").write_text(json.dumps({"tools": tool("Adds.")}))
    assert mcp(tmp_path, "status", TOKEN="t").stdout == "s  ready, 1 tools\n"
    (tmp_path / "tools.json").write_text(json.dumps({"tools": tool("Adds. \x1b[31mAnd more.")}))
    status = mcp(tmp_path, "status", TOKEN="t")
    assert status.stdout == "s  ready, 1 switched off\ns/t is changed: windlass mcp approve s\n"
    asked = mcp(tmp_path, "approve", "s", TOKEN="t")
    assert asked.returncode == 1 and "nothing was approved" in asked.stderr
    assert "-description: Adds.\n" in asked.stdout and "+description: Adds. \\x1b[31mAnd more.\n" in asked.stdout
    agreed = mcp(tmp_path, "approve", "s", "--yes", TOKEN="t")
    assert agreed.returncode == 0 and "approved t" in agreed.stderr
    assert mcp(tmp_path, "status", TOKEN="t").stdout == "s  ready, 1 tools, 1 flagged\n"
    assert "nothing has changed" in mcp(tmp_path, "approve", "s", TOKEN="t").stderr


def test_a_broken_server_a_local_one_and_an_unknown_one_are_told(tmp_path: Path) -> None:
    write(tmp_path / "mcp.json", {"dead": raw(die=True)})
    status = mcp(tmp_path, "status", "--json")
    assert status.returncode == 1 and "no licence" in json.loads(status.stdout)["status"]
    login = mcp(tmp_path, "login", "dead")
    assert login.returncode == 2 and "there is nothing to log in to" in login.stderr
    unknown = mcp(tmp_path, "login", "ded")
    assert unknown.returncode == 2 and "dead" in unknown.stderr
    port = mcp(tmp_path, "serve", "--http", "0")
    assert port.returncode == 2 and "WINDLASS_MCP_TOKEN" in port.stderr
