"""What a session is built with: the folder's settings, the command line's, and what the client names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from acp import RequestError
from acp.schema import AcpMcpServer, EnvVariable, HttpHeader, HttpMcpServer, McpServerStdio, SseMcpServer

from tests.apps.acp.editor import Editor
from windlass.apps.acp.approver import ClientApprover
from windlass.apps.acp.build import Built, Options, build, config_for, servers_of
from windlass.apps.acp.updates import View
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.events import PermissionRequested
from windlass.core.request import ToolSpec
from windlass.tools.mcp_config import read_servers


def made(tmp_path: Path, options: Options) -> Built:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    config = config_for(options, str(tmp_path), {"WINDLASS_HOME": str(home), "HOME": str(home)})
    approver: Any = None
    return build(options, config, str(tmp_path), (), approver, lambda workspace: workspace)


async def test_the_command_line_wins_over_the_user_s_file(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "windlass.toml").write_text('model = "echo"\nmax_turns = 3\n[policy]\nmode = "auto-edit"\n')
    built = made(tmp_path, Options(sandbox="none"))
    assert (built.agent.model_name, built.permissions.mode, built.agent.behavior.max_turns) == ("echo", "auto-edit", 3)
    assert built.agent.behavior.require_read_before_edit and "shell" in built.agent.tools
    built = made(tmp_path, Options(model="echo:x", mode="plan", tools="read_file, grep", sandbox="none"))
    assert (built.agent.model_name, built.permissions.mode) == ("echo:x", "plan")
    assert list(built.agent.tools) == ["read_file", "grep"]
    with pytest.raises(UnknownNameError):
        made(tmp_path, Options(model="echo", tools="no-such-tool"))
    with pytest.raises(ConfigError):
        made(tmp_path, Options(model="echo", sandbox="no-such-sandbox"))


async def test_the_project_s_file_can_only_tighten(tmp_path: Path) -> None:
    (tmp_path / "windlass.toml").write_text(
        '[policy]\nmode = "sandboxed-auto"\n[[policy.rules]]\ntool = "shell"\naction = "allow"\n'
        '[[policy.rules]]\ntool = "edit"\naction = "deny"\n'
    )
    built = made(tmp_path, Options(model="echo", sandbox="none"))
    spec = {name: bound.spec for name, bound in built.agent.tools.items()}
    assert built.permissions.mode == "ask"
    assert built.permissions.decide(spec["shell"], {"command": "x"}).action == "ask"
    assert built.permissions.decide(spec["edit"], {"path": "x"}).action == "deny"
    assert any("only tighten" in notice for notice in built.notices)


async def test_the_embedded_model_gets_no_shell(tmp_path: Path) -> None:
    built = made(tmp_path, Options())
    assert "shell" not in built.agent.tools and "read_file" in built.agent.tools
    assert built.permissions.decide(ToolSpec("write_file"), {"path": "x"}).action == "ask"
    assert any("demonstration" in notice for notice in built.notices)


def test_mcp_servers_of_a_client_are_ours() -> None:
    servers = servers_of(
        [
            McpServerStdio(name="a", command="/bin/a", args=["-x"], env=[EnvVariable(name="K", value="v")]),
            HttpMcpServer(type="http", name="b", url="https://b/mcp", headers=[HttpHeader(name="h", value="w")]),
            SseMcpServer(type="sse", name="c", url="http://127.0.0.1/sse", headers=[]),
        ]
    )
    read = {server.name: server for server in read_servers(servers)}
    assert (read["a"].transport, read["a"].command, read["a"].args, dict(read["a"].env)) == (
        "stdio", "/bin/a", ("-x",), {"K": "v"}
    )  # fmt: skip
    assert read["b"].transport == "http" and dict(read["b"].headers) == {"h": "w"} and read["c"].transport == "sse"
    assert all(server.allowed and not server.trusted for server in read.values())
    with pytest.raises(RequestError):
        servers_of([AcpMcpServer(type="acp", name="d", server_id="1")])


# -- asking ------------------------------------------------------------------------------------------------------------


async def test_a_question_waits_until_the_client_heard_of_its_call() -> None:
    editor = Editor()
    editor.updates.append(("s", type("Update", (), {"tool_call_id": "c7", "session_update": "tool_call"})()))
    approver = ClientApprover(editor, "s", View("/w"), lambda: None)  # pyright: ignore[reportArgumentType]
    event = PermissionRequested(call_id="c7", name="shell", input={"command": "x"}, reason="it runs")
    approver.heard(event)
    approver.heard(event)
    asking = asyncio.create_task(approver.approve("shell", {"command": "x"}, "it runs"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert editor.asked == []
    approver.told(event)
    assert await asking == "allow_once" and [each.tool_call_id for each in editor.asked] == ["c7"]


@pytest.mark.parametrize(("answer", "status"), [("allow_once", "completed"), ("reject_always", "failed")])
async def test_a_question_without_a_call_brings_one(answer: str, status: str) -> None:
    editor = Editor(answer)
    approver = ClientApprover(editor, "s", View("/w"), lambda: None)  # pyright: ignore[reportArgumentType]
    assert await approver.approve("server asks", {"what": "your name"}, "a server wants to know") == answer
    (row,) = editor.calls().values()
    assert row["statuses"] == ["pending", status] and editor.asked[0].title == "server asks what=your name"


async def test_a_client_that_goes_away_ends_the_prompt() -> None:
    class Gone(Editor):
        async def request_permission(self, *_: Any, **__: Any) -> Any:
            raise ConnectionError("gone")

    lost: list[bool] = []
    approver = ClientApprover(Gone(), "s", View("/w"), lambda: lost.append(True))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConnectionError):
        await approver.approve("x", {}, "")
    assert lost == [True]
