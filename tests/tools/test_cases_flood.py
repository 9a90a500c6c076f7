"""S29: a command that floods the folder with files: it is ended, told, and what it left does not flood the model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from windlass.agent.agent import Agent
from windlass.agent.policy import Policy
from windlass.core.messages import ToolResponse
from windlass.testing.scripted import ScriptedProvider, call

_FLOOD = f"""{sys.executable} -c '
import itertools, os
for number in itertools.count():
    os.close(os.open(f"many/more{{number}}.py", os.O_CREAT))
'"""


async def test_s29_a_flood_of_files_is_ended_and_shown_in_bounds(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1500):  # so many that it is a flood on any machine
        (tmp_path / "many" / f"file{number}.py").touch()
    script = [
        call("shell", command=_FLOOD, timeout=1),
        call("list_files", path="many"),
        call("glob", pattern="**/*.py"),
        call("grep", pattern="anything", path="many"),
        "Too many.",
    ]
    agent = Agent(ScriptedProvider(script), tools="coding", workspace=str(tmp_path), policy=Policy("allow"))
    result = await agent.run("go")
    await agent.destroy()
    told = [part for m in agent.messages for part in m.parts if isinstance(part, ToolResponse)]
    texts = [str(part.response) for part in told]
    assert result.text == "Too many." and [part.status for part in told] == ["timeout", "ok", "ok", "ok"]
    assert texts[0].startswith("Timed out after 1 s; it was stopped.")
    assert len(os.listdir(tmp_path / "many")) > 1500
    assert all(len(text.encode()) <= 70_000 for text in texts)
    assert texts[1].count("\n") <= 1001 and texts[1].splitlines()[-1].startswith("[") and "left out" in texts[1]
    assert texts[2].count("\n") <= 1001 and texts[2].splitlines()[-1].startswith("[")
