"""Recordings: whole lines, only for their owner, and never the end of a run."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.agent.agent import Agent
from windlass.core.errors import ConfigError, SessionVersionError
from windlass.core.events import EVENT_SCHEMA, Event, Log, RunFinished, TextDelta, UnknownEvent
from windlass.sinks.record import Recorder, read_events, read_lines
from windlass.testing.scripted import ScriptedProvider, call

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


async def test_a_recorded_run_reads_back_as_it_was(tmp_path: Path) -> None:
    seen: list[Event] = []
    with Recorder(tmp_path / "r") as recorder:
        agent = Agent(ScriptedProvider([call("utc"), "ok"]), tools=["utc"], sinks=[recorder, seen.append])
        await agent.run("go")
    assert list(read_events(tmp_path / "r")) == seen
    assert (recorder.lines, recorder.lost) == (len(seen), 0)
    assert [number for number, _ in read_lines(tmp_path / "r")] == list(range(1, len(seen) + 1))


@given(data=st.dictionaries(st.text(), anything, max_size=3), text=st.text(st.characters()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_text_and_data_reads_back(tmp_path: Path, data: dict[str, Any], text: str) -> None:
    """Lone surrogates, NUL, line ends of Unicode, integers past 64 bits: each is one line, the next one whole."""
    events = [Log(message=text, data=data), TextDelta(text=text), Log(message="after")]
    with Recorder(tmp_path / "r") as recorder:
        for event in events:
            recorder(event)
    back = list(read_events(tmp_path / "r"))
    assert len(back) == 3 and back[2] == events[2]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Recorder(tmp_path / "new").close()
        (tmp_path / "old").write_text("left from before")
        (tmp_path / "old").chmod(0o644)
        Recorder(tmp_path / "old").close()
    finally:
        os.umask(before)
    for name in ("new", "old"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600 and (tmp_path / name).read_bytes() == b""


def test_every_event_is_on_disk_before_the_next(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r")
    for number in range(3):
        recorder(Log(message=str(number)))
        assert len((tmp_path / "r").read_bytes().splitlines()) == number + 1
    recorder.close()
    recorder.close()
    recorder(Log(message="too late"))
    assert recorder.lost == 1 and recorder.lines == 3


async def test_a_full_device_is_counted_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    with Recorder("/dev/full") as recorder:
        result = await Agent(ScriptedProvider(["hello"]), sinks=[recorder, seen.append]).run("go")
    assert result.text == "hello" and recorder.lines == 0 and recorder.lost == len(seen)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "Recording to /dev/full stopped: No space left on device."
    ]


async def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path) -> None:
    """The last write is taken in part: what was taken is given back."""
    seen: list[Event] = []
    recorder = Recorder(tmp_path / "r")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (777, limits[1]))
    try:
        await Agent(ScriptedProvider(["hello again"]), sinks=[recorder, seen.append]).run("go")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    recorder.close()
    raw = (tmp_path / "r").read_bytes()
    assert recorder.lines + recorder.lost == len(seen) and recorder.lost > 0 < recorder.lines
    assert raw.endswith(b"\n") and len(raw) <= 777 and list(read_events(tmp_path / "r")) == seen[: recorder.lines]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for place, why in ((tmp_path, "Is a directory"), (tmp_path / "no" / "r", "No such file or directory")):
        with pytest.raises(ConfigError, match=f"Cannot record to {place}: {why}"):
            Recorder(place)


def test_a_reader_says_which_line_is_no_event(tmp_path: Path) -> None:
    file = tmp_path / "r"
    good = b'{"v":1,"kind":"log","message":"x"}\n'
    for bad in (
        b"{",
        b"[]",
        b"5",
        b'{"kind":"text.delta"}',
        b'{"kind":"message.added","message":5}',
        b"\xff",
        b"[" * 9999,
    ):
        file.write_bytes(good + b"\n" + bad + b"\n" + good)
        events = read_events(file)
        assert next(events) == Log(message="x")
        with pytest.raises(ConfigError, match=r"r, line 3: not an event: "):
            next(events)
    for version in (str(EVENT_SCHEMA + 1), '"1"', "null", "1.0"):
        file.write_bytes(good + f'{{"v":{version},"kind":"log","message":"x"}}\n'.encode())
        with pytest.raises(SessionVersionError, match=r"r, line 2: events of schema .*upgrade windlass"):
            list(read_events(file))
    with pytest.raises(ConfigError, match=r"Cannot read the recording .*: No such file"):
        list(read_events(tmp_path / "none"))


def test_kinds_and_fields_of_later_versions_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "r"
    file.write_bytes(
        b'{"v":1,"kind":"log","message":"x","colour":"red"}\n{"v":1,"kind":"new.kind","run_id":"r","deep":[1]}\n'
    )
    first, second = read_events(file)
    assert first == Log(message="x")
    assert isinstance(second, UnknownEvent) and second.run_id == "r" and second.data["deep"] == [1]


async def test_two_recorders_of_one_run_hold_the_same_bytes(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a") as a, Recorder(tmp_path / "b") as b:
        await Agent(ScriptedProvider(["hello"]), sinks=[a, b]).run("go")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""
    assert isinstance(list(read_events(tmp_path / "a"))[-1], RunFinished)
