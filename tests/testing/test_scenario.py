"""Scenarios: what they accept, and that each matcher can fail with words that help."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.agent.agent import Agent
from windlass.agent.policy import Policy, Rule
from windlass.core.errors import OutputError, OverloadedError
from windlass.providers.echo import EchoProvider
from windlass.testing.scenario import (
    Matcher,
    Scenario,
    answered,
    called,
    failed,
    not_called,
    responded,
    run_scenario,
    stopped,
    wrote,
)
from windlass.testing.scripted import call, turn

SCRIPT: list[Any] = [
    turn(call("edit", path="lib.py", old_string="def f", new_string="def g"), text="I will."),
    call("read_file", path="none.py"),
    "Renamed f to g.",
]
RENAME = Scenario(
    prompt="Rename f to g in lib.py",
    files={"lib.py": "def f(): ...\n"},
    tools="files",
    script=SCRIPT,
)


def starts_as_definition(text: str) -> bool:
    return text.startswith("def")


def expecting(*matchers: Matcher, **changes: Any) -> Scenario:
    fields = {name: getattr(RENAME, name) for name in ("prompt", "files", "tools", "script")}
    return Scenario(**{**fields, **changes}, expect=matchers)


async def test_a_scenario_that_holds() -> None:
    outcome = await run_scenario(
        expecting(
            called("edit", path="lib.py", old_string=starts_as_definition),
            called("read_file"),
            not_called("write_file"),
            responded("edit", "1 replacement", status="ok"),
            responded("read_file", "not found", status="error"),
            answered("f to g"),
            stopped("end_turn"),
            wrote("lib.py", "def g(): ...\n"),
        )
    )
    assert outcome.calls("edit")[0]["new_string"] == "def g" and outcome.error is None
    assert [status for status, _ in outcome.responses("read_file")] == ["error"]


@pytest.mark.parametrize(
    ("matcher", "found"),
    [
        (called("edit", path="other.py"), "called edit.*its calls were .*lib.py"),
        (called("grep"), "called grep.*it never ran"),
        (not_called("edit"), "not called edit: it ran with"),
        (responded("edit", "2 replacements"), "edit responded.*1 replacement"),
        (responded("edit", "1 replacement", status="error"), r"edit responded .*\(error\)"),
        (answered("done"), "answered 'done': it was 'Renamed"),
        (stopped("loop"), "stopped loop: it was end_turn"),
        (failed(OutputError), "failed with OutputError: its error was None"),
        (wrote("lib.py", "x"), "wrote lib.py: it holds 'def g"),
        (wrote("new.py"), r"wrote new.py: there is no such file among \['lib.py'\]"),
    ],
)
async def test_each_matcher_can_fail_and_the_transcript_says_what_happened(matcher: Matcher, found: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{found}.*What happened:\n  called edit.*end_turn"):
        await run_scenario(expecting(matcher))


async def test_every_broken_expectation_is_listed_and_so_is_a_script_not_played_out() -> None:
    with pytest.raises(AssertionError, match=r"(?s)stopped loop.*answered 'x'.*4 steps; 3 were asked for"):
        await run_scenario(expecting(stopped("loop"), answered("x"), script=[*SCRIPT, "More."]))


async def test_a_failing_run_and_a_refused_tool() -> None:
    outcome = await run_scenario(
        Scenario("Hi", [OverloadedError("busy")], [failed(OverloadedError), stopped("error"), answered("")])
    )
    assert "OverloadedError" in outcome.transcript()
    policy = Policy(rules=(Rule("deny", "edit", "frozen"),))
    await run_scenario(
        expecting(
            not_called("edit"),
            responded("edit", "Blocked: frozen", status="blocked"),
            wrote("lib.py", "def f(): ...\n"),
            options={"policy": policy},
        )
    )


async def test_any_provider_and_any_agent_may_play() -> None:
    made: list[Agent] = []

    def make(*args: Any, **options: Any) -> Agent:
        made.append(Agent(*args, **options))
        return made[0]

    heard: list[Any] = []
    scenario = Scenario("Hi", EchoProvider(), [answered("Echo: Hi")], options={"sinks": [heard.append]})
    outcome = await run_scenario(scenario, agent=make)
    assert made and heard == list(outcome.events)
