"""Say what an agent should do, and check that it did: a prompt, a scripted model, and what to expect.

    await run_scenario(
        Scenario(
            prompt="Rename f to g in lib.py",
            files={"lib.py": "def f(): ...\\n"},
            tools="files",
            script=[call("edit", path="lib.py", old_string="f", new_string="g"), "Renamed."],
            expect=[called("edit", path="lib.py"), wrote("lib.py", "def g(): ...\\n"), answered("Renamed")],
        )
    )

The loop, the tools and the workspace are the real ones; the model alone plays a script, or is any provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from windlass.core import registry
from windlass.core.errors import WindlassError
from windlass.core.events import Event, RunFinished, ToolFinished, ToolStarted
from windlass.core.messages import ToolResponse, response_text
from windlass.core.ports import Provider
from windlass.testing.scripted import ScriptedProvider, Step

__all__ = [
    "Matcher",
    "Outcome",
    "Scenario",
    "answered",
    "called",
    "failed",
    "not_called",
    "responded",
    "run_scenario",
    "stopped",
    "wrote",
]


@dataclass(frozen=True)
class Outcome:
    """What happened: the text and reason of the end, every event, the files, and the error of a run that failed."""

    text: str
    stop_reason: str
    events: Sequence[Event]
    files: Mapping[str, str | bytes]
    output: Any = None
    error: BaseException | None = None

    def calls(self, name: str) -> list[dict[str, Any]]:
        """Return the checked arguments of every call of a tool that ran, in order."""
        return [event.input for event in self.events if isinstance(event, ToolStarted) and event.name == name]

    def responses(self, name: str) -> list[tuple[str, str]]:
        """Return (status, text) of every response to a tool's calls, in order; refused calls have one too."""
        return [
            (event.status, response_text(ToolResponse(event.call_id, event.response, event.status)))
            for event in self.events
            if isinstance(event, ToolFinished) and event.name == name
        ]

    def transcript(self) -> str:
        """Return what happened, a line each, for people."""
        lines: list[str] = []
        for event in self.events:
            if isinstance(event, ToolStarted):
                lines.append(f"  called {event.name}({event.input})")
            elif isinstance(event, ToolFinished):
                lines.append(f"  {event.name}: {event.status}: {str(event.response)[:200]!r}")
        return "\n".join(
            [*lines, f"  {self.stop_reason}: {self.text[:500]!r}", *([repr(self.error)] if self.error else [])]
        )


@dataclass(frozen=True)
class Matcher:
    """One expectation: `name` says it in words, `check` returns None, or what was there instead."""

    name: str
    check: Callable[[Outcome], str | None]


@dataclass(frozen=True)
class Scenario:
    """A prompt, how the model plays its part, and what must come of it.

    `script` holds the steps of a ScriptedProvider, or is a provider itself. `files` (path -> content) fill a virtual
    workspace; with `workspace` the tools act there instead. `options` are further keywords of `Agent`.
    """

    prompt: str
    script: Sequence[Step] | Provider
    expect: Sequence[Matcher] = ()
    tools: Any = None
    files: Mapping[str, str | bytes] | None = None
    workspace: Any = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


async def run_scenario(scenario: Scenario, *, agent: Callable[..., Any] | None = None) -> Outcome:
    """Run a scenario and return what happened.

    `agent` makes the agent (default: `windlass.Agent`). A script that is not played to its end is a broken
    expectation too. Raises AssertionError that lists every expectation that was not met, and what happened.
    """
    make: Callable[..., Any] = agent or registry.load("windlass.agent.agent:Agent")
    script = scenario.script
    provider: Provider = script if isinstance(script, Provider) else ScriptedProvider(script)
    space = scenario.workspace
    if space is None and scenario.files is not None:
        space = registry.resolve("workspaces", "memory")(scenario.files)
    events: list[Event] = []
    subject = make(
        provider,
        tools=scenario.tools,
        workspace=space,
        **{**scenario.options, "sinks": [*scenario.options.get("sinks", ()), events.append]},
    )
    error: BaseException | None = None
    try:
        await subject.run(scenario.prompt)
    except WindlassError as raised:
        error = raised
    finally:
        await subject.destroy()
    outcome = _outcome(subject, events, space, error)
    problems = [f"{matcher.name}: {problem}" for matcher in scenario.expect if (problem := matcher.check(outcome))]
    if isinstance(provider, ScriptedProvider) and not provider.repeat and len(provider.requests) < len(provider.script):
        problems.append(f"the script has {len(provider.script)} steps; {len(provider.requests)} were asked for")
    if problems:
        raise AssertionError("\n".join([*problems, "What happened:", outcome.transcript()]))
    return outcome


def _outcome(agent: Any, events: list[Event], space: Any, error: BaseException | None) -> Outcome:
    end = next((e for e in reversed(events) if isinstance(e, RunFinished) and e.parent_run_id is None), None)
    last = next((m.text for m in reversed(agent.messages) if m.role == "assistant"), "")
    reason = end.stop_reason if end is not None else "error"
    files = dict(getattr(space, "files", {}))
    return Outcome(last, reason, tuple(events), files, end.output if end is not None else None, error)


def called(name: str, /, **arguments: Any) -> Matcher:
    """Expect a call of a tool that ran with these arguments among its own; a function as a value is asked."""

    def check(outcome: Outcome) -> str | None:
        calls = outcome.calls(name)
        if any(all(_fits(wanted, args.get(key)) for key, wanted in arguments.items()) for args in calls):
            return None
        return f"its calls were {calls}" if calls else "it never ran"

    return Matcher(f"called {name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})", check)


def not_called(name: str) -> Matcher:
    """Expect that a tool never ran (it may have been asked for and refused)."""

    def check(outcome: Outcome) -> str | None:
        return f"it ran with {calls}" if (calls := outcome.calls(name)) else None

    return Matcher(f"not called {name}", check)


def responded(name: str, text: str, *, status: str | None = None) -> Matcher:
    """Expect a response to a tool's call that contains `text`, with this status if one is given."""

    def check(outcome: Outcome) -> str | None:
        found = outcome.responses(name)
        if any(text in said and status in (None, how) for how, said in found):
            return None
        return f"its responses were {found}"

    return Matcher(f"{name} responded {text!r}" + (f" ({status})" if status else ""), check)


def answered(text: str) -> Matcher:
    """Expect a last answer that contains `text`."""
    return Matcher(f"answered {text!r}", lambda outcome: None if text in outcome.text else f"it was {outcome.text!r}")


def stopped(reason: str) -> Matcher:
    """Expect this stop reason: end_turn, max_tokens, max_turns, refusal, cancelled, error, budget or loop."""
    return Matcher(
        f"stopped {reason}", lambda outcome: None if outcome.stop_reason == reason else f"it was {outcome.stop_reason}"
    )


def failed(kind: type[BaseException]) -> Matcher:
    """Expect that the run raised an error of this kind."""
    return Matcher(
        f"failed with {kind.__name__}",
        lambda outcome: None if isinstance(outcome.error, kind) else f"its error was {outcome.error!r}",
    )


def wrote(path: str, content: str | bytes | None = None) -> Matcher:
    """Expect a file in the virtual workspace at the end, with this content if one is given."""

    def check(outcome: Outcome) -> str | None:
        if path not in outcome.files:
            return f"there is no such file among {sorted(outcome.files)}"
        found = outcome.files[path]
        return None if content is None or found == content else f"it holds {found!r:.300}"

    return Matcher(f"wrote {path}", check)


def _fits(wanted: Any, got: Any) -> bool:
    return bool(wanted(got)) if callable(wanted) else wanted == got
