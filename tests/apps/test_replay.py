"""`--record` and `windlass replay`."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, calls, ended, says
from windlass.core.events import EVENT_SCHEMA, RunFinished, ToolFinished, decode_event
from windlass.testing.faults import FaultServer


async def record(cli: Cli, name: str = "run.jsonl") -> Path:
    """Record a run with a tool; returns the file."""
    (cli.folder / "a.txt").write_text("caf\u00e9 \u2028 \x1b[2J\n")
    async with FaultServer(
        [calls(("read_file", {"path": "a.txt"}), text="Reading."), says("It says ", "so.")]
    ) as server:
        cli.use(server)
        done = await cli("run", "--record", name, "--output", "stream-json", "read it")
    assert done.code == 0
    assert (cli.folder / name).read_bytes() == done.raw
    return cli.folder / name


async def test_replay_gives_the_recording_byte_for_byte(cli: Cli) -> None:
    file = await record(cli)
    assert file.stat().st_mode & 0o777 == 0o600
    done = await cli("replay", file.name)
    assert (done.code, done.raw, done.err) == (0, file.read_bytes(), "")
    piped = await cli("replay", "/dev/stdin", piped=file.read_bytes())
    assert piped.raw == file.read_bytes()


async def test_replay_show_is_what_a_person_saw(cli: Cli) -> None:
    await record(cli)
    done = await cli("replay", "--show", "run.jsonl")
    assert done.out == "Reading.\nIt says so.\n"
    assert "\u2192 read_file(path='a.txt')" in done.err and "[end_turn: 40 in / 6 out, 2 turns]" in done.err
    assert "\x1b" not in done.out + done.err
    whole = await cli("replay", "--show", "-v", "run.jsonl")
    assert "caf\u00e9" in whole.err and "\x1b" not in whole.err


async def test_replay_asks_nobody_and_runs_nothing(cli: Cli) -> None:
    """The model is gone, and the file the tool read, too."""
    file = await record(cli)
    (cli.folder / "a.txt").unlink()
    assert (await cli("replay", file.name, WINDLASS_HOME="/nowhere", WINDLASS_MODEL="nosuch:x")).code == 0


Damage = Callable[[bytes], bytes]
DAMAGE: dict[str, Damage] = {
    "half": lambda line: line[: len(line) // 2],
    "no text": lambda line: b"\xff\xfe" + line,
    "list": lambda line: b'["list"]',
    "no message": lambda line: b'{"v":1,"kind":"message.added"}',
    "odd kind": lambda line: b'{"v":1,"kind":[]}',
    "deep": lambda line: b"[" * 5000,
    "newer": lambda line: line.replace(b'{"v":1', b'{"v":99', 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_or_newer_recording_gives_nothing_and_names_the_line(cli: Cli, kind: str) -> None:
    lines = [b'{"v":1,"kind":"log","message":"%d"}' % number for number in range(5)]
    lines[3] = DAMAGE[kind](lines[3])
    (cli.folder / "r.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code, complaint = (1, "events of schema 99") if kind == "newer" else (2, "not an event")
    for show in ((), ("--show",)):
        done = await cli("replay", *show, "r.jsonl")
        assert (done.code, done.out) == (code, "")
        assert f"r.jsonl, line 4: {complaint}" in done.err and "internal" not in done.err
        assert len(done.err.splitlines()) == 1


async def test_unknown_kinds_of_event_are_kept(cli: Cli) -> None:
    """A reader of today takes a recording of tomorrow whose schema has not changed."""
    data = b'{"v":1,"kind":"hologram.shown","run_id":"r","seq":1,"time":2,"depth":3}\n'
    (cli.folder / "r.jsonl").write_bytes(data)
    assert (await cli("replay", "r.jsonl")).raw == data


async def test_a_full_disk_ends_the_recording_and_not_the_run(cli: Cli) -> None:
    limit = 700
    program = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY})); "
        "sys.argv[0] = 'windlass'; runpy.run_module('windlass', run_name='__main__')"
    )
    cli.prefix = [sys.executable, "-c", program]
    argv = [*cli.prefix, "run", "-m", "echo", "--record", "r.jsonl", "one two three"]
    cli.argv = lambda *args: argv
    done = await ended(await cli.start(WINDLASS_STORE="memory"))
    assert (done.code, done.out) == (0, "Echo: one two three\n")
    assert done.err.count("Recording to r.jsonl stopped: File too large.") == 1
    kept = (cli.folder / "r.jsonl").read_bytes()
    # What is there is whole lines: it can be replayed.
    assert 0 < len(kept) <= limit and kept.endswith(b"\n")
    assert [decode_event(line).seq for line in kept.splitlines()] == list(range(1, kept.count(b"\n") + 1))


async def test_a_recording_that_cannot_be_made_is_said_before_anything_is_asked(cli: Cli) -> None:
    async with FaultServer([says("x")]) as server:
        cli.use(server)
        done = await cli("run", "--record", "no/such/folder/r", "hi")
        assert (done.code, done.out) == (2, "") and "Cannot record to no/such/folder/r" in done.err
        assert server.requests == []


async def test_stream_json_is_documented_by_its_schema(cli: Cli) -> None:
    file = await record(cli)
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert all(line["v"] == EVENT_SCHEMA and line["run_id"] == lines[0]["run_id"] for line in lines)
    events = [decode_event(line) for line in file.read_bytes().splitlines()]
    (result,) = [event for event in events if isinstance(event, ToolFinished)]
    assert result.status == "ok" and isinstance(events[-1], RunFinished)
