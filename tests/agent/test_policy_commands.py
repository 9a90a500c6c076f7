"""Command lines: what is proven to be one plain command is what a shell reads, and nothing else is ever allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.agent.commands import MAX_LINE, could_hold, prefix_refused, read_command
from windlass.agent.policy import Policy, Rule
from windlass.core.request import ToolSpec

SHELL = ToolSpec("shell")
CORPUS = [
    (line[0], json.loads(line[2:]))
    for line in (Path(__file__).parent / "commands.txt").read_text().splitlines()
    if not line.startswith("#")
]
HOSTILE = [line for mark, line in CORPUS if mark == "-"]
PLAIN = [line for mark, line in CORPUS if mark == "+"]
SHELLS = [shell for shell in ("bash", "dash") if shutil.which(shell)]


def read_by(shell: str, lines: list[str]) -> list[list[str]]:
    """Ask a shell which words it makes of each line, in one process that runs none of them."""
    # The program's name becomes a function that prints its words, so that the shell itself takes the line apart.
    script = "show() { for word in \"$@\"; do printf '%s\\0' \"$word\"; done; printf '\\1\\0'; }\n"
    script += "".join([f"show {line}\n" for line in lines])
    done = subprocess.run(
        [shell, "-c", script], capture_output=True, check=True, timeout=60, env={"LC_ALL": "C.UTF-8"}, cwd="/nowhere"
        if Path("/nowhere").is_dir() else "/",
    )  # fmt: skip
    assert done.stderr == b""
    out: list[list[str]] = [[]]
    for word in done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        if word == "\1":
            out.append([])
        else:
            out[-1].append(word)
    return out[:-1]


def prefixes(line: str) -> list[tuple[str, ...]]:
    words = line.split()
    own = tuple(words[:2]) if words and words[0] == "git" else tuple(words[:1])
    return [("git", "status"), ("git",), ("ls",), own]


def test_s15_the_corpus_is_large() -> None:
    assert len(HOSTILE) > 300 and len(PLAIN) > 30 and len({line for _, line in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("line", HOSTILE)
def test_s15_no_allow_rule_takes_a_line_that_is_more_than_it_names(line: str) -> None:
    for prefix in prefixes(line):
        for default in ("ask", "deny"):
            policy = Policy(default, (Rule("allow", "shell", command=prefix),))
            decision = policy.decide(SHELL, {"command": line})
            assert decision.action == default, (prefix, decision)


@pytest.mark.parametrize("line", PLAIN)
def test_s15_plain_lines_are_allowed_by_their_prefix(line: str) -> None:
    words = read_command(line).argv
    assert words is not None
    prefix = words[:2] if words[0] == "git" else words[:1]
    policy = Policy("deny", (Rule("allow", "shell", command=prefix),))
    assert policy.decide(SHELL, {"command": line}).action == "allow"


@pytest.mark.parametrize("shell", SHELLS)
def test_s17_what_is_proven_is_what_a_shell_reads(shell: str) -> None:
    """Differential: for every line of the corpus that is proven, allowed or not, the shell has the very same words."""
    proven = [(line, argv) for _, line in CORPUS if (argv := read_command(line).argv) is not None]
    assert len(proven) > 150
    assert read_by(shell, [line for line, _ in proven]) == [list(argv) for _, argv in proven]


#: Characters with a meaning in some shell are as likely as letters.
_ANY = st.text(st.sampled_from("ab1 \t'\"\\$`*?[]{}~!#;&|<>()=-+:,.@%^_/\n\r\u00e9\u200b\x00\x1b"), max_size=25)


@given(st.lists(_ANY, min_size=20, max_size=40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_s17_generated_lines_are_read_as_bash_reads_them(tails: list[str]) -> None:
    lines = [f"ls {tail}" for tail in tails]
    proven = [(line, argv) for line in lines if (argv := read_command(line).argv) is not None]
    if proven:
        assert read_by("bash", [line for line, _ in proven]) == [list(argv) for _, argv in proven]


@given(_ANY)
def test_s16_any_text_is_read_without_an_error(text: str) -> None:
    reading = read_command(text)
    assert (reading.argv is None) == bool(reading.why)
    if reading.argv is not None:
        assert not set("\n\r\0$`;&|<>\\") & (set(text) - set("".join(reading.argv)))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("; ".join(["git status"] * 51), "it may hold several commands"),
        ("git status " + "a" * (1 << 20), f"it is longer than {MAX_LINE} characters"),
        ("git status '", "its quotes are not plain"),
        ("(" * 10_000, f"it is longer than {MAX_LINE} characters"),
        ("", "it is empty"),
        (" \t ", "it is empty"),
        ("echo a\nrm x", "it has more than one line"),
    ],
)
def test_s16_too_much_too_long_or_broken_fails_closed(line: str, why: str) -> None:
    assert read_command(line).argv is None and read_command(line).why == why
    allow = Rule("allow", "shell", command=["git", "status"])
    for default in ("ask", "deny"):
        assert Policy(default, (allow,)).decide(SHELL, {"command": line}).action == default
    # A rule that forbids something makes such a line one to ask about, even where everything else is allowed.
    decision = Policy("allow", (Rule("deny", "shell", command=["curl"]),)).decide(SHELL, {"command": line})
    assert decision.action == "ask" and why in decision.reason


def test_windows_lines_prove_nothing() -> None:
    assert read_command("git status", windows=True).argv is None


@pytest.mark.parametrize(
    "name",
    [
        *("bash", "sh", "python", "python3", "python3.12", "node", "env", "xargs", "find", "sed", "awk", "tar", "make"),
        *("ssh", "sudo", "PERL", "/usr/bin/ruby", "git", "cmd.exe/../bash", "lua5.4", "pip3", "npm", "./ls"),
    ],
)
def test_s22_interpreters_and_runners_are_never_allowed_by_a_prefix(name: str) -> None:
    assert prefix_refused([name], [name, "x"])
    rule = Rule("allow", "shell", command=[name])
    assert Policy("ask", (rule,)).decide(SHELL, {"command": f"{name} x"}).action == "ask"
    assert Policy("ask", (rule,)).decide(SHELL, {"command": name}).action == "ask"
    assert Policy("ask", (rule,)).decide(SHELL, {"command": [name, "x"]}).action == "ask"


def test_s22_a_whole_line_can_be_allowed_as_it_is() -> None:
    policy = Policy("ask", (Rule("allow", "shell", arguments={"command": "pytest -q"}),))
    assert policy.decide(SHELL, {"command": "pytest -q"}).action == "allow"
    for line in ("pytest -q x", "pytest -q; rm x", " pytest -q", "pytest -q\n"):
        assert policy.decide(SHELL, {"command": line}).action == "ask"
    for wide in ("pytest *", "*", "**", "pytest ?q"):
        policy = Policy("ask", (Rule("allow", "shell", arguments={"command": wide}),))
        assert policy.decide(SHELL, {"command": "pytest -q"}).action == "ask"


@pytest.mark.parametrize(
    "args",
    [
        {"command": "git status", "cwd": "/tmp"},
        {"command": "git status", "env": {"GIT_DIR": "x"}},
        {"command": "git status", "stdin": "x"},
        {"command": "git status", "args": ["; rm"], "shell": "bash"},
        {"command": ["git", 3]},
        {"command": None},
        {"command": {"git": "status"}},
        {},
    ],
)
def test_s17_what_else_changes_what_runs_proves_nothing(args: dict[str, object]) -> None:
    policy = Policy("ask", (Rule("allow", "shell", command=["git", "status"]),))
    assert policy.decide(SHELL, dict(args)).action == "ask"
    assert policy.decide(SHELL, {"command": "git status", "timeout": 5, "background": False}).action == "allow"
    assert policy.decide(SHELL, {"command": ["git", "status", "a; b"]}).action == "allow"
    assert policy.decide(SHELL, {"command": "git", "args": ["status"]}).action == "allow"


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("rm x", "deny"),
        ("/bin/rm x", "deny"),
        ("RM x", "deny"),
        ("ls; rm x", "deny"),
        ("ls && 'rm' x", "deny"),
        ("r''m x", "deny"),
        ("r\\m x", "deny"),
        ("bash -c 'rm x'", "deny"),
        ("xargs rm", "deny"),
        ("echo $(rm x)", "deny"),
        ("echo `rm x`", "deny"),
        ("A=1 rm x", "deny"),
        ("ls | sort", "ask"),
        ("$X y", "ask"),
        ("python x.py", "ask"),
        ("sh", "ask"),
        ("ls rmdir", "allow"),
        ("ls -la", "allow"),
    ],
)
def test_s16_a_deny_rule_finds_what_is_written_and_asks_where_it_cannot_tell(line: str, action: str) -> None:
    policy = Policy("allow", (Rule("deny", "shell", command=["rm"]),))
    assert policy.decide(SHELL, {"command": line}).action == action


def test_could_hold_is_about_words_not_letters() -> None:
    assert could_hold("x && git push -f", ["git", "push"])
    assert not could_hold("git pull && echo pushed", ["git", "push"])
    assert could_hold("git \\\n push", ["git", "push"])
