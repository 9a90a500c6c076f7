"""`windlass doctor --gateway`: the sixteen faults as a person runs them, and a judge that can say no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from windlass.apps.cli import campaign, doctor
from windlass.testing.catalogue import FAULTS

MODES = ("stream", "whole")
BEGUN = {"cut", "stalled", "malformed", "no-done", "error-event"}


def test_every_fault_is_rescued_or_told(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WINDLASS_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "windlass", "doctor", "--gateway", "--json"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    cases: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(case["fault"], case["mode"]) for case in cases] == [(name, mode) for name in FAULTS for mode in MODES]
    assert [case for case in cases if not case["ok"]] == []
    # A stream that broke amid its text was begun by one model and ended by another.
    both = {case["fault"] for case in cases if len(case["targets"]) == 2}
    assert both == BEGUN
    # It leaves nothing behind, and keeps nothing in the user's own folder.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoiled", ["retry", "text"])
async def test_what_only_looks_whole_is_bad(
    spoiled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What the client expects is another text than what the models say: nothing can hold then but what is an error.
    monkeypatch.setattr(campaign, "WHOLE", "one two")
    monkeypatch.setattr(campaign, "FAULTS", {name: FAULTS[name] for name in ("503", "no-done")})
    if spoiled == "retry":
        cases = [case async for case in campaign.run_campaign()]
        assert [case.ok for case in cases] == [False] * 4
        assert all("as if it were whole" in case.happened for case in cases)
    else:
        run = vars(doctor)["_gateway"]
        assert await run(as_json=False) == 1
        assert capsys.readouterr().out.count("BAD") == 4
