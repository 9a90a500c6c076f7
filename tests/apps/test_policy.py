"""`windlass policy`, the diffs that a person is shown at a terminal, and what `--yolo` takes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.apps.helpers import Cli
from windlass.agent.permission import Question
from windlass.agent.policy import call_hash
from windlass.apps.cli.approve import TerminalApprover
from windlass.apps.cli.hunks import hunks, merged, preview_lines
from windlass.apps.cli.policy import protected_in, yolo_allowed, yolo_record
from windlass.core import clock
from windlass.core.errors import PermissionRefused
from windlass.core.events import DURABLE, ConfigChanged, Log
from windlass.core.ports import Preview

USER = """
[policy]
mode = "auto-edit"

[[policy.rules]]
action = "allow"
tool = "shell"
command = ["git", "status"]

[[policy.rules]]
action = "deny"
arguments = { path = "secret/**" }
reason = "keys lie there"
"""


# -- the command -------------------------------------------------------------------------------------------------------


async def explained(cli: Cli, *args: str) -> dict[str, Any]:
    done = await cli("policy", "explain", "--json", *args)
    assert done.code == 0, done.err
    return json.loads(done.out)


async def test_explain_tells_the_layer_the_rule_and_what_would_allow_it(cli: Cli) -> None:
    cli.user_config(USER)
    (cli.folder / "windlass.toml").write_text(
        '[policy]\nmode = "ask"\n[[policy.rules]]\naction = "allow"\n[[policy.rules]]\naction = "ask"\ntool = "edit"\n'
    )
    told = await cli("policy", "explain", "shell", "git status; rm x")
    assert told.code == 0
    assert told.out.splitlines()[:3] == [
        "ask: it runs a command",
        "mode: ask",
        "kind: runs commands, without a sandbox",
    ]
    assert "user: allow 'shell' command 'git status' is not used: the line is not proven" in told.out
    assert "windlass.toml: allow '*' is ignored: a project's file may only tighten." in told.out
    assert "what would allow it: a person's answer" in told.out
    for args, action in (
        (("shell", "command=git status -s"), "allow"),
        (("shell", '{"command": "git status"}'), "allow"),
        (("shell", "git status", "--mode", "plan"), "deny"),
        (("shell", "make", "--mode", "sandboxed-auto"), "ask"),
        (("shell", "make", "--mode", "sandboxed-auto", "--sandboxed"), "allow"),
        (("write_file", "path=a", "content=x"), "ask"),
        (("write_file", "path=a", "content=x", "--mode", "auto-edit"), "allow"),
        (("write_file", "path=.git/config", "content=x", "--mode", "auto-edit"), "ask"),
        (("write_file", "path=secret/a", "content=x"), "deny"),
        (("read_file", "./secret/../secret/a"), "deny"),
        (("read_file", "a", ), "allow"),
        (("mcp_mail_send", "to=a"), "ask"),
    ):  # fmt: skip
        found = await explained(cli, *args)
        assert found["action"] == action, (args, found)
        assert found["sha256"] == call_hash(found["tool"], found["input"])
        assert found["explanation"][0] == f"{action}: {found['reason']}"


async def test_show_lists_layers_and_what_is_ignored(cli: Cli, tmp_path: Path) -> None:
    assert (await cli("policy", "show")).out == (
        "mode: ask\nrule of two: on\nno rules: see docs/permissions.md for [policy]\n"
    )
    cli.user_config(USER)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "windlass.toml").write_text('[policy]\nrule_of_two = false\ndefault = "ask"\n')
    shown = (await cli("policy", "show", "--folder", str(elsewhere))).out
    assert "  deny '*' path='secret/**'  (keys lie there)" in shown and "rule of two: on" in shown
    assert f"project: {elsewhere}/windlass.toml, default ask" in shown
    assert "rule_of_two = false is ignored: a project's file may only tighten." in shown


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("explain",), "explain needs the name of a tool"),
        (("explain", "shell", "a=b", "c=d"), "'a=b' is no argument of shell. It takes: command, timeout."),
        (("explain", "shell", "{"), "The arguments are not JSON"),
        (("explain", "shell", '{"command": 3, "timeout": "x"}'), "shell: "),
        (("explain", "shell", "x", "--mode", "yolo"), "invalid choice: 'yolo'"),
        (("show", "--folder", "nowhere"), "There is no folder nowhere."),
        (("frob",), "invalid choice"),
    ],
)
async def test_wrong_uses(cli: Cli, args: tuple[str, ...], complaint: str) -> None:
    done = await cli("policy", *args)
    assert done.code == 2 and complaint in done.err


async def test_a_broken_rule_names_its_file(cli: Cli) -> None:
    path = cli.user_config('[policy]\n[[policy.rules]]\naction = "permit"\n')
    done = await cli("policy", "show")
    assert done.code == 2 and f"{path}: [policy]: " in done.err and "permit" in done.err


def test_s12_protected_files_are_found_behind_links(tmp_path: Path) -> None:
    (tmp_path / ".git/hooks").mkdir(parents=True)
    (tmp_path / "innocent").symlink_to(".git/hooks")
    (tmp_path / "src").mkdir()
    protected = protected_in(tmp_path)
    assert protected("innocent/pre-commit") == protected(".git/hooks/x") == protected(str(tmp_path / ".git/x"))
    assert protected("src/a") is protected("a\0b") is None


# -- --yolo ------------------------------------------------------------------------------------------------------------


def test_s120_yolo_needs_a_sandbox_or_a_container_and_is_on_record(tmp_path: Path) -> None:
    with pytest.raises(PermissionRefused, match="needs something that bounds it"):
        yolo_allowed({}, False, root=tmp_path)
    assert yolo_allowed({}, True, root=tmp_path) == "the sandbox"
    assert (
        yolo_allowed({"container": "systemd-nspawn\x1b"}, False, root=tmp_path) == r"a container (systemd-nspawn\x1b)"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert yolo_allowed({}, False, root=tmp_path) == "a container (Podman)"
    (tmp_path / ".dockerenv").touch()
    assert yolo_allowed({}, False, root=tmp_path) == "a container (Docker)"
    kept, told = yolo_record("the sandbox")
    assert isinstance(kept, ConfigChanged) and type(kept) in DURABLE
    assert kept.value == {"mode": "yolo", "bounded_by": "the sandbox"}
    assert isinstance(told, Log) and told.level == "warning" and "the sandbox" in told.message


# -- diffs -------------------------------------------------------------------------------------------------------------

texts = st.none() | st.lists(st.sampled_from([b"a\n", b"b\n", b"c\r\n", b"d", b"\x0c\n", b"\n"]), max_size=30).map(
    b"".join
)


@given(before=texts, after=texts, data=st.data())
def test_accepted_hunks_make_exactly_what_was_shown(before: bytes | None, after: bytes | None, data: Any) -> None:
    preview = Preview("p", before, after)
    found = hunks(preview)
    assert merged(preview, found, [True] * len(found)) == after or before == after
    assert merged(preview, found, [False] * len(found)) == before or not found
    if before is not None and after is not None:
        accepted = data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
        part = merged(preview, found, accepted)
        # Taking the rest afterwards leads to the same as taking all at once.
        assert part is not None and len(hunks(Preview("p", part, after))) <= len(found)
        left = hunks(Preview("p", part, after))
        assert merged(Preview("p", part, after), left, [True] * len(left)) == after


def test_s20_a_diff_shows_what_hides() -> None:
    before = b"one\ntwo\nthree\n"
    after = "one\ntwo\u202e\x1b[2K\nthree\u200b\np\u0430y\r\n".encode() + b"\xff\n"
    preview = Preview("a\nb/\u202ex", before, after)
    text = "\n".join(preview_lines(preview, hunks(preview)))
    assert text.isascii() and "\x1b" not in text and "\r" not in text
    for line in (
        r"change a\nb/\u202ex",
        "  -two",
        r"  +two\u202e\x1b[2K",
        r"  +three\u200b",
        r"  +p\u0430y\x0d",
        r"  +\xff",
    ):
        assert line in text
    new = Preview("n", None, b"x")
    assert "  \\ no newline at the end" in preview_lines(new, hunks(new))


# -- the approver on a terminal ----------------------------------------------------------------------------------------


class Screen:
    """A person at the other end of a pseudo-terminal."""

    def __init__(self) -> None:
        self.mine, theirs = pty.openpty()
        os.set_blocking(self.mine, False)
        self.approver = TerminalApprover(theirs)
        self.shown = ""

    async def until(self, text: str) -> str:
        begin = len(self.shown)
        async with clock.deadline(30):
            while text not in self.shown[begin:]:
                try:
                    self.shown += os.read(self.mine, 65536).decode()
                except BlockingIOError:
                    await asyncio.sleep(0.01)
        return self.shown[begin:]

    def type(self, text: str) -> None:
        os.write(self.mine, text.encode())

    def close(self) -> None:
        self.approver.close()
        os.close(self.mine)


@pytest.fixture
def screen() -> Generator[Screen]:
    made = Screen()
    yield made
    made.close()


OLD = b"".join([b"line %d\n" % number for number in range(40)])
NEW = OLD.replace(b"line 2\n", b"LINE 2\n").replace(b"line 20\n", b"LINE 20\n").replace(b"line 38\n", b"")
ARGS = {"path": "a", "content": "..."}
CHANGES = [Preview("a", OLD, NEW)]
ASK = "[y]es, [n]o, [a]lways this exact call, [h]unk by hunk: "
EACH = "[y]es, [n]o, [a]ll that follow, [q] none that follow: "


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("y", "allow_once"), ("a", "allow_always"), ("n", "reject_once"), ("", "reject_once"), ("sure", "reject_once")],
)
async def test_a_whole_change(screen: Screen, typed: str, expected: str) -> None:
    asking = asyncio.create_task(screen.approver.approve_changes("write_file", ARGS, "it changes files", CHANGES))
    shown = await screen.until(ASK)
    assert f"Allow write_file? (it changes files) #{call_hash('write_file', ARGS)[:12]}\r\n  change a\r\n" in shown
    for line in ("  @@ -1,6 +1,6 @@", "  -line 2", "  +LINE 2", "  -line 20", "  +LINE 20", "  -line 38"):
        assert f"{line}\r\n" in shown
    assert "line 10" not in shown
    screen.type(typed + "\n")
    assert await asking == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("yny", OLD.replace(b"line 2\n", b"LINE 2\n").replace(b"line 38\n", b"")),
        ("nq", "reject_once"),
        ("na", NEW.replace(b"LINE 2\n", b"line 2\n")),
        ("a", "allow_once"),
        ("yyy", "allow_once"),
        ("yq", OLD.replace(b"line 2\n", b"LINE 2\n")),
    ],
)
async def test_hunk_by_hunk(screen: Screen, typed: str, expected: Any) -> None:
    asking = asyncio.create_task(screen.approver.approve_changes("write_file", ARGS, "why", CHANGES))
    await screen.until(ASK)
    screen.type("h\n")
    for number, key in enumerate(typed, 1):
        assert f"  a, hunk {number} of 3\r\n" in await screen.until(EACH)
        screen.type(key + "\n")
    answer = await asking
    assert answer == (expected if isinstance(expected, str) else {"a": expected})


async def test_files_that_come_and_go_in_part(screen: Screen) -> None:
    changes = [Preview("new", None, b"n\n"), Preview("gone", b"g\n", None), Preview("kept", b"k\n", None)]
    asking = asyncio.create_task(screen.approver.approve_changes("apply_patch", {}, "why", changes))
    assert "  create new\r\n" in await screen.until(ASK)
    screen.type("h\n")
    for key in "nyn":
        await screen.until(EACH)
        screen.type(key + "\n")
    assert await asking == {"gone": None}


async def test_s117_a_batch_at_the_terminal(screen: Screen) -> None:
    questions = [
        Question("shell", {"command": "ls"}, "it runs a command"),
        Question("write_file", ARGS, "it changes files", tuple(CHANGES)),
    ]
    for typed, expected in (("y", ["allow_once"] * 2), ("n", ["reject_once"] * 2), ("", ["reject_once"] * 2)):
        asking = asyncio.create_task(screen.approver.approve_batch(questions))
        shown = await screen.until("[y]es to all, [n]o to all, ask about [e]ach: ")
        assert "Allow these 2 calls?" in shown and "  1. shell? (it runs a command) #" in shown
        assert "    command: ls\r\n" in shown and "  +LINE 2\r\n" in shown
        screen.type(typed + "\n")
        assert await asking == expected
    asking = asyncio.create_task(screen.approver.approve_batch(questions))
    await screen.until("[e]ach: ")
    screen.type("e\n")
    await screen.until("[a]lways this exact call: ")
    screen.type("n\n")
    await screen.until(ASK)
    screen.type("y\n")
    assert await asking == ["reject_once", "allow_once"]


async def test_s92_the_prompt_comes_when_nobody_types(screen: Screen) -> None:
    asking = asyncio.create_task(screen.approver.approve("shell", {"command": "rm x"}, "why"))
    await screen.until("command: rm x")
    # A paste goes on, with line ends that would be answers.
    for _ in range(8):
        screen.type("y\ny")
        await asyncio.sleep(0.1)
        assert not asking.done() and "[y]es" not in screen.shown
    await screen.until("[a]lways this exact call: ")
    assert not asking.done()
    screen.type("n\n")
    assert await asking == "reject_once"


async def test_s20_a_long_change_can_be_seen_whole(screen: Screen) -> None:
    changes = [Preview("a", None, b"".join([b"line %d\n" % number for number in range(100)]))]
    asking = asyncio.create_task(screen.approver.approve_changes("write_file", {}, "why", changes))
    shown = await screen.until("[v]iew all: ")
    assert "line 99" not in shown and "[62 more lines]" in shown
    screen.type("v\n")
    assert "  +line 99\r\n" in await screen.until("[v]iew all: ")
    screen.type("y\n")
    assert await asking == "allow_once"


async def test_a_terminal_that_hangs_up_is_a_no(screen: Screen) -> None:
    asking = asyncio.create_task(screen.approver.approve("shell", {"command": "ls"}, "why"))
    await screen.until("command: ls")
    os.close(screen.mine)
    assert await asking == "reject_once"
    screen.mine = os.open(os.devnull, os.O_RDONLY)
