"""Hooks of MCP: which are asked when a call or a start fails, and with which fields; through a real server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from windlass.agent.agent import Agent
from windlass.agent.hooks import HOOKS, HookContext
from windlass.core.errors import WindlassError
from windlass.core.messages import ToolResponse
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.mcp import Mcp

RAW = str(Path(__file__).with_name("mcp_raw.py"))
NAMES = [name for name in HOOKS if name.startswith("mcp:")]


def raw(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "command": sys.executable, "args": [RAW, json.dumps(options)]}


async def test_a_call_and_a_start_that_fail_are_told_to_hooks_with_their_fields(tmp_path: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(ctx: HookContext) -> None:
        seen.append((ctx.hook, dict(ctx.__dict__)))

    mcp = Mcp([raw("raw"), raw("dead", die=True)], home=tmp_path / "home")
    script = [call("mcp_raw_die"), call("mcp_raw_fail"), "done"]
    hooks: Any = dict.fromkeys(NAMES, note)
    agent = Agent(ScriptedProvider(script), capabilities=[mcp], hooks=hooks)
    assert (await agent.run("go")).text == "done"
    responses = [part for m in agent.messages for part in m.parts if isinstance(part, ToolResponse)]
    await agent.destroy()

    by_name = {name: [fields for hook, fields in seen if hook == name] for name in NAMES}
    # What a server answers as an error is its answer; what never came is the error.
    assert [len(by_name[f"mcp:tool:{name}"]) for name in ("gate", "before", "error", "transform", "after")] == [
        2, 2, 1, 1, 1,
    ]  # fmt: skip
    failed = by_name["mcp:tool:error"][0]
    assert (failed["server"], failed["tool"], failed["input"]) == ("raw", "die", {})
    assert isinstance(failed["error"], WindlassError)
    assert failed["call_id"] == responses[0].id and failed["turn_id"].endswith(".1")
    assert str(responses[0].response).startswith("Tool error: ") and responses[1].response == "it went wrong"
    ends = {fields["name"]: fields for fields in by_name["mcp:bootstrap:end"]}
    assert ends["raw"]["ok"] is True and ends["raw"]["tool_count"] > 0 and "error" not in ends["raw"]
    assert ends["dead"]["ok"] is False and ends["dead"]["error"] and "tool_count" not in ends["dead"]
    for name, all_fields in by_name.items():
        for fields in all_fields:
            assert set(fields) <= set(HOOKS[name].fields), name
            assert set(HOOKS[name].fields) - set(fields) <= {"tool_count", "error"}, name
