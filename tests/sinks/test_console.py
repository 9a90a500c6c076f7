"""What a person sees of a run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.agent.agent import Agent
from windlass.core.events import (
    BudgetExceeded,
    Event,
    FileChanged,
    Log,
    MessageAdded,
    PermissionResolved,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    RunFinished,
    StepStarted,
    TextDelta,
    ToolFinished,
    ToolStarted,
    decode_event,
)
from windlass.core.messages import Message, Text, assistant
from windlass.core.usage import Usage
from windlass.sinks.console import Console, Ndjson
from windlass.testing.scripted import ScriptedProvider, call

HOSTILE = "a\x1b[2J\x1b]52;c;eA==\x07b\x9b1mc\rd\x00\x08e"


def shown(*events: Event, **options: Any) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err, **options)
    for event in events:
        console(event)
    return out.getvalue(), err.getvalue()


SAMPLE: tuple[Event, ...] = (
    TextDelta(text="Look"),
    TextDelta(text="ing."),
    MessageAdded(message=assistant("Looking.")),
    ToolStarted(call_id="1", name="read_file", input={"path": "a.txt", "n": 3}),
    FileChanged(path="new", after="x"),
    FileChanged(path="old", before="x", after="y"),
    FileChanged(path="gone", before="x"),
    ToolFinished(call_id="1", name="read_file", response="one\ntwo\n"),
    ToolFinished(call_id="2", name="grep", response="no such thing", status="error"),
    RunFinished(stop_reason="end_turn", usage=Usage(1200, 34), cost=1_500_000, turns=2),
)


def test_the_answer_on_one_stream_and_a_line_for_each_thing_on_the_other() -> None:
    out, err = shown(*SAMPLE)
    assert out == "Looking.\n"
    assert err.splitlines() == [
        "→ read_file(path='a.txt', n='3')",
        "  created new",
        "  changed old",
        "  deleted gone",
        "← one…",
        "✗ error: no such thing",
        "[end_turn: 1200 in / 34 out, $0.0015, 2 turns]",
    ]


def test_colour_is_on_stderr_only_and_always_reset() -> None:
    out, err = shown(*SAMPLE, color=True)
    plain = shown(*SAMPLE)
    assert out == plain[0] and err != plain[1]
    assert err.replace("\x1b[2m", "").replace("\x1b[31m", "").replace("\x1b[0m", "") == plain[1]
    assert all(line.endswith("\x1b[0m") for line in err.splitlines()) and err.count("\x1b[31m") == 1


def test_verbatim_shows_results_whole_and_verbose_reasoning_too() -> None:
    events = (ReasoningDelta(text="hmm"), ReasoningDelta(text=" so"), TextDelta(text="A"), *SAMPLE[3:])
    assert "hmm" not in shown(*events, verbatim=True)[1]
    assert "← read_file\n  one\n  two\n" in shown(*events, verbatim=True)[1]
    out, err = shown(*events, verbose=True)
    assert out == "A\n" and err.startswith("hmm so\n→ read_file") and "  one\n  two\n" in err


def test_without_text_only_stderr_is_written() -> None:
    out, err = shown(*SAMPLE, show_text=False)
    assert out == "" and err == shown(*SAMPLE)[1]


def test_a_line_is_ended_before_another_stream_speaks() -> None:
    out, err = io.StringIO(), io.StringIO()

    class Both(io.StringIO):
        def __init__(self, other: io.StringIO) -> None:
            super().__init__()
            self.other = other

        def write(self, text: str, /) -> int:
            self.other.write(text)
            return super().write(text)

    joined = io.StringIO()
    console = Console(Both(joined), Both(joined), verbose=True)
    for event in (
        ReasoningDelta(text="think"),
        TextDelta(text="say"),
        ReasoningDelta(text="again\n"),
        TextDelta(text="more"),
        RunFinished(stop_reason="error", error={"message": "x"}),
    ):
        console(event)
    assert joined.getvalue() == "think\nsay\nagain\nmore\n" and out.getvalue() == err.getvalue() == ""


def test_notices_limits_and_refusals() -> None:
    _, err = shown(
        Retry(message="slow down", delay=2.5),
        Retry(message="again"),
        ProviderSwitched(message="other model"),
        Log(message="heads up", level="warning"),
        PermissionResolved(call_id="1", outcome="allow_once"),
        PermissionResolved(call_id="1", outcome="reject_once"),
        BudgetExceeded(what="turns", used=5, limit=5),
        StepStarted(name="iteration", index=1, total=8),
        StepStarted(name="phase", index=2),
        RunFinished(stop_reason="end_turn", turns=1),
    )
    assert err.splitlines() == [
        "! slow down (again in 2.5 s)",
        "! again",
        "! other model",
        "! heads up",
        "  reject once",
        "! limit reached: turns (5 of 5)",
        "[iteration 1/8]",
        "[phase 2]",
        "[end_turn: 0 in / 0 out, 1 turn]",
    ]


def test_what_failed_is_left_to_whoever_awaits_the_run() -> None:
    assert shown(TextDelta(text="par"), RunFinished(stop_reason="error", error={"message": "no"})) == ("par\n", "")


def test_children_s_words_are_not_the_answer() -> None:
    child: dict[str, Any] = {"parent_run_id": "p", "run_id": "c"}
    out, err = shown(
        TextDelta(text="mine"), TextDelta(text="theirs", **child), RunFinished(stop_reason="end_turn", **child)
    )
    assert out == "mine\n" and err == ""


def test_s91_everything_from_outside_is_neutralised() -> None:
    events = (
        TextDelta(text=HOSTILE),
        ReasoningDelta(text=HOSTILE),
        ToolStarted(call_id="1", name=HOSTILE, input={HOSTILE: HOSTILE}),
        ToolFinished(call_id="1", name=HOSTILE, response=HOSTILE),
        ToolFinished(call_id="1", name=HOSTILE, response=(Text(HOSTILE),), status="error"),
        FileChanged(path=HOSTILE),
        Retry(message=HOSTILE),
        ProviderSwitched(message=HOSTILE),
        Log(message=HOSTILE, level="error"),
        StepStarted(name="x", index=1),
    )
    for options in ({}, {"verbose": True}, {"verbatim": True}):
        text = "".join(shown(*events, **options))
        assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]


@given(st.lists(st.text(st.sampled_from("\x1b[]0;2Jm\x07\\\x9b\x9d\r\n\x08aé"), max_size=8), max_size=8))
def test_s91_sequences_split_over_deltas(pieces: list[str]) -> None:
    out, err = shown(
        *[TextDelta(text=piece) for piece in pieces], *[ReasoningDelta(text=p) for p in pieces], verbose=True
    )
    assert not [c for c in out + err if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]


def test_streams_default_to_the_program_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for event in SAMPLE:
        console(event)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == shown(*SAMPLE)


async def test_ndjson_is_every_event_of_a_run_in_order() -> None:
    raw = io.BytesIO()
    seen: list[Event] = []
    agent = Agent(ScriptedProvider(["caf\u00e9 \u2028 \ud83d"]), sinks=[Ndjson(io.TextIOWrapper(raw)), seen.append])
    await agent.run("go")
    lines = raw.getvalue().splitlines()
    assert [decode_event(line).seq for line in lines] == [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert all(line.startswith(b'{"v":1,"kind":"') for line in lines) and b"\xe2\x80\xa8" in raw.getvalue()


async def test_a_console_on_a_real_run() -> None:
    out, err = io.StringIO(), io.StringIO()
    agent = Agent(ScriptedProvider([call("utc"), "It is late."]), tools=["utc"], sinks=[Console(out, err)])
    await agent.run("what time is it?")
    assert out.getvalue() == "It is late.\n"
    assert [line[0] for line in err.getvalue().splitlines()] == ["→", "←", "["]
    assert isinstance(agent.messages[1], Message)
