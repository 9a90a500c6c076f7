"""The parts by themselves: Markdown as it streams, diffs, questions, files, notices, lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from windlass.agent.agent import Agent
from windlass.agent.permission import Question as Call
from windlass.agent.policy import Permissions, Policy, call_hash
from windlass.agent.session import Session
from windlass.apps.cli.hunks import hunks
from windlass.apps.tui.asking import Asker
from windlass.apps.tui.attach import attach, pasted_image
from windlass.apps.tui.complete import InputCompleter
from windlass.apps.tui.diffs import painted, title
from windlass.apps.tui.files import FileIndex, matching, walked
from windlass.apps.tui.markdown import Markdown, settled
from windlass.apps.tui.modes import mode_of, next_mode, set_mode
from windlass.apps.tui.notes import noted
from windlass.apps.tui.notify import notice
from windlass.apps.tui.paint import Painter, clip
from windlass.apps.tui.pick import ago, kept_sessions, rows
from windlass.apps.tui.screen import reflows
from windlass.apps.tui.status import Status, Waiting, amount, money
from windlass.apps.tui.surface import Question
from windlass.apps.tui.themes import THEMES, choose_theme
from windlass.apps.tui.toollines import ToolLines, summary
from windlass.apps.tui.transcript import Transcript
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.events import ContextCompacted, FileChanged, Log, Retry, TextDelta, ToolFinished, ToolStarted
from windlass.core.messages import Blob, Text
from windlass.core.ports import Preview
from windlass.core.usage import Usage
from windlass.stores.memory import MemoryStore
from windlass.testing.scripted import ScriptedProvider
from windlass.workspaces.memory import MemoryWorkspace

PLAIN = THEMES["mono"]


def painter(width: int = 40, theme: str = "mono") -> Painter:
    return Painter(THEMES[theme], lambda: width)


def rendered(text: str, *, width: int = 40, size: int | None = None) -> str:
    markdown = Markdown(painter(width))
    pieces = [text] if size is None else [text[at : at + size] for at in range(0, len(text), size)]
    return "".join([markdown.feed(piece) for piece in pieces]) + markdown.end()


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_markdown_reads_well_without_its_marks() -> None:
    source = (
        "# Title\n\nSome **bold** and *soft* `code` [label](http://x) ~~gone~~ \\*plain\\*\n"
        "- one\n  - two\n3. three\n- [x] done\n> quoted\n---\n"
        "```python\nif x:\n    **y**\n```\nsnake_case_name 2 * 3 * 4\n"
    )
    assert rendered(source, width=70) == (
        "Title\n\nSome bold and soft code label (http://x) gone *plain*\n"
        "• one\n  • two\n3. three\n• ☑ done\n│ quoted\n" + "─" * 40 + "\n"
        "```python\nif x:\n    **y**\n```\nsnake_case_name 2 * 3 * 4\n"
    )


def test_a_table_is_shown_when_it_is_whole() -> None:
    markdown = Markdown(painter())
    assert markdown.feed("| a | b |\n|---|---|\n| 1 | **2** |\n") == ""
    shown = markdown.feed("after\n").splitlines()
    assert [shown[0].split(), shown[2].split(), shown[3]] == [["a", "b"], ["1", "2"], "after"]
    assert set(shown[1]) == {"─", " "} or set(shown[1]) == {"─"}
    assert rendered("| no | table |\nafter\n") == "| no | table |\nafter\n"


def test_a_long_paragraph_is_printed_row_by_row() -> None:
    markdown = Markdown(painter(20))
    first = markdown.feed("The quick brown fox jumps over")
    assert first == "The quick brown fox\n" and markdown.tail == "jumps over" and markdown.open
    assert markdown.feed(" the **lazy dog") == "jumps over the\n"  # what comes next may change its looks
    assert markdown.feed("** again and again.\n") == "lazy dog again and\nagain.\n"
    assert not markdown.open


def test_items_hang_and_code_is_left_alone() -> None:
    assert rendered("- a long item that needs two rows\n", width=20) == "• a long item that\n  needs two rows\n"
    long = "x = '" + "y" * 100 + "'"
    assert rendered(f"```\n{long}\n```\n", width=20) == f"```\n{long}\n```\n"


MARKDOWN = st.text(st.sampled_from("ab* _`~[](|-#>1.\\\n é日"), max_size=120)


@settings(max_examples=150, deadline=None)
@given(MARKDOWN, st.integers(1, 9), st.integers(10, 60))
@example("a **b\nc** d", 1, 10)
def test_how_a_stream_was_cut_changes_no_word(text: str, size: int, width: int) -> None:
    """Rows may end elsewhere; letters and their order are the same, whatever was open when they were printed."""

    def letters(shown: str) -> str:
        return "".join([char for char in shown if char in "abé日"])

    whole, cut = rendered(text, width=width), rendered(text, width=width, size=size)
    assert letters(whole) == letters(cut) == letters(text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("x\x1b[2J\x9b\x07]0;\r\n\u202e"), max_size=60), st.integers(1, 5))
def test_s91_no_escape_of_the_model_s_gets_through(text: str, size: int) -> None:
    shown = rendered(text, size=size)
    assert not set(shown) & set("\x1b\x9b\x07\r")


def test_emphasis_is_settled_only_when_it_is_closed() -> None:
    assert settled("a **b** `c*` d") and settled(r"2 \* 3")
    assert not settled("a **b") and not settled("a `b") and not settled("see [this") and not settled("*a")


def test_clip_counts_cells() -> None:
    assert (clip("日本語", 6), clip("日本語", 5), clip("abcdef", 4, end=True)) == ("日本語", "日本…", "…def")


# -- diffs and questions -----------------------------------------------------------------------------------------------


def test_words_that_changed_are_marked() -> None:
    preview = Preview("f", b"keep\nthe old name\nend\n", b"keep\nthe new name\nend\n")
    found = hunks(preview)
    text = painted(painter(80, "dark"), found[0])
    assert title(preview, found) == "change f (+1 -1)"
    assert "\x1b[7;31mold\x1b[0m" in text and "\x1b[7;32mnew\x1b[0m" in text
    assert painted(painter(), found[0]).splitlines()[1:] == [" keep", "-the old name", "+the new name", " end"]


def test_s20_diffs_hide_nothing() -> None:
    preview = Preview("f\x1b[2J\n", None, b"a\x1b[1Ab\r\n\xe2\x80\xaec\n")
    found = hunks(preview)
    text = title(preview, found) + painted(painter(), found[0])
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b[1A" in text and r"\u202e" in text
    assert len(painted(painter(), hunks(Preview("f", None, b"x\n" * 500))[0], 10).splitlines()) == 11


class Answers:
    """A surface that answers from a list and keeps what it was shown."""

    width = 80

    def __init__(self, *answers: str) -> None:
        self.answers, self.shown, self.asked, self.rung = list(answers), "", list[Question](), 0

    def write(self, text: str) -> None:
        self.shown += text

    def changed(self) -> None: ...
    def say(self, text: str) -> None: ...
    def put_back(self, text: str) -> None: ...
    def leave(self, code: int) -> None: ...

    def attention(self, _what: str, /) -> None:
        self.rung += 1

    async def ask(self, question: Question) -> str:
        self.asked.append(question)
        return self.answers.pop(0)

    async def choose(self, title: str, rows: Sequence[str]) -> int | None:
        return None


def asker(*answers: str) -> tuple[Asker, Answers, ToolLines]:
    surface, lines = Answers(*answers), ToolLines(painter(80))
    return Asker(surface, painter(80), lines), surface, lines


OLD = b"".join([b"line %d\n" % at for at in range(30)])
NEW = OLD.replace(b"line 3\n", b"three\n").replace(b"line 25\n", b"x\n")


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        (("y",), "allow_once"),
        (("n",), "reject_once"),
        (("a",), "allow_always"),
        (("h", "y", "y"), "allow_once"),
        (("h", "q"), "reject_once"),
        (("h", "a"), "allow_once"),
        (("h", "n", "y"), {"f": OLD.replace(b"line 25\n", b"x\n")}),
    ],
)
async def test_changes_are_taken_whole_or_in_part(answers: tuple[str, ...], outcome: Any) -> None:
    person, surface, _ = asker(*answers)
    assert await person.approve_changes("edit", {"path": "f"}, "it changes", [Preview("f", OLD, NEW)]) == outcome
    assert surface.answers == [] and surface.rung == 1


async def test_the_digest_shown_is_the_digest_that_runs() -> None:
    person, surface, lines = asker("y")
    call = {"command": "ls"}
    assert await person.approve("shell", call, "it may") == "allow_once"
    digest = f"#{call_hash('shell', call)[:8]}"
    assert digest in surface.shown
    assert digest in lines.started(ToolStarted(call_id="1", name="shell", input=call))
    assert "#" not in lines.started(ToolStarted(call_id="2", name="shell", input={"command": "ls -a"}))


async def test_calls_of_one_message_are_asked_about_together() -> None:
    calls = [Call("shell", {"command": "a"}, "why"), Call("edit", {"path": "f"}, "why", (Preview("f", b"1", b"2"),))]
    for answers, outcome in (
        (("y",), ["allow_once", "allow_once"]),
        (("n",), ["reject_once", "reject_once"]),
        (("e", "n", "y"), ["reject_once", "allow_once"]),
    ):
        person, surface, _ = asker(*answers)
        assert await person.approve_batch(calls) == outcome
        assert "command: a" in surface.shown and "-1" in surface.shown


async def test_a_long_call_can_be_seen_whole() -> None:
    person, surface, _ = asker("v", "n")
    text = "\n".join([f"row {at}" for at in range(100)])
    assert await person.approve("shell", {"command": text}, "why") == "reject_once"
    assert "[60 more lines]" in surface.shown and surface.shown.count("row 5\n") == 2 and "row 99" in surface.shown
    assert [set(each.choices) for each in surface.asked] == [set("ynav"), set("yna")]


# -- lines -------------------------------------------------------------------------------------------------------------


def test_tool_lines_are_short_and_expand() -> None:
    lines = ToolLines(painter(60), "/w")
    started = lines.started(ToolStarted(call_id="c", name="shell", input={"command": "seq 9\n", "timeout": 3}))
    assert started == "→ 1 shell seq 9 timeout=3 in /w\n"
    output = "\n".join([str(at) for at in range(9)]) + "\n[... 12 bytes cut ...]\n"
    done = lines.finished(ToolFinished(call_id="c", name="shell", response=output, duration_ns=1_200_000_000))
    assert done.splitlines()[0] == "← 1 ok 1.2 s, 10 lines, cut for the model"
    assert done.splitlines()[-1].strip() == "… 7 more lines: /expand 1"
    assert "8\n[... 12 bytes cut" in (lines.expanded(1) or "") and lines.expanded(2) is None
    assert summary({"content": "x\x1b[2J\ny", "path": "p"}) == "p content=x y"


def test_the_transcript_tells_facts() -> None:
    out: list[str] = []
    transcript = Transcript(painter(60), out.append, lambda: None, ToolLines(painter(60)))
    for event in (
        TextDelta(text="half a "), TextDelta(text="row"), Retry(message="overloaded", attempt=2, delay=42.0),
        FileChanged(path="f", before=None, after="x"), FileChanged(path="g", before="x", status="undone"),
        ContextCompacted(strategy="tail", before_tokens=12_345, after_tokens=10), Log(message="hm", level="warning"),
    ):  # fmt: skip
        transcript(event)
    assert "".join(out).splitlines() == [
        "half a row", "! overloaded, again in 42 s", "  created f", "  undone: deleted g",
        "  context compacted (tail): 12.3k to 10 tokens", "! hm",
    ]  # fmt: skip


def test_what_is_said_in_between_waits_for_the_row_s_end() -> None:
    out: list[str] = []
    transcript = Transcript(painter(60), out.append, lambda: None, ToolLines(painter(60)))
    transcript(TextDelta(text="one "))
    transcript.aside("told", "↪ ")
    transcript(TextDelta(text="two\nthree"))
    transcript.rest()
    assert "".join(out) == "one two\nthree\n\n↪ told\n"


def test_status_and_waiting() -> None:
    status = Status(mode="ask", queued=1)
    status.of_model("openai:gpt-4.1")
    status.count(Usage(1000, 50, cache_read_tokens=500), 2_500_000)
    line = status.line(100)
    assert line.startswith("openai:gpt-4.1 · ask · 1 queued · 0% of 1.0M") and line.endswith("$0.0025 · cache 50%")
    assert all(len(status.line(width)) < width for width in range(16, 100))
    assert (amount(250_000), money(None), money(0)) == ("250k", "$?", "$0.00")
    waiting = Waiting()
    waiting.begin("waiting for provider", 600)
    waiting.since -= 12
    assert waiting.line(80) == "waiting for provider (12 s of 600 s) - Esc stops"
    waiting.take(Retry(message="provider overloaded", attempt=3, delay=42.0))
    assert waiting.line(80) == "provider overloaded, retry 3 in 42 s - Esc stops"


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_notices_are_what_the_terminal_knows() -> None:
    def sent(**environ: str) -> str:
        return notice("done\x1b[2J; x", {"TERM": "xterm", **environ})

    assert sent() == sent(TMUX="1", TERM_PROGRAM="WezTerm") == "\a"
    assert sent(TERM_PROGRAM="iTerm.app") == "\x1b]9;windlass: done, x\x1b\\"
    assert sent(VTE_VERSION="7000") == "\x1b]777;notify;windlass;done, x\x1b\\"
    assert sent(WINDLASS_NOTIFY="off") == sent(TERM="dumb") == notice("x", {"TERM": "xterm"}, terminal=False) == ""


def test_themes() -> None:
    assert choose_theme("light", {"TERM": "xterm", "NO_COLOR": "1"}).name == "mono"
    assert choose_theme(None, {"TERM": "xterm", "COLORFGBG": "0;15"}).name == "light"
    assert (choose_theme(None, {"TERM": "xterm"}).name, choose_theme(None, {}).name) == ("dark", "mono")
    with pytest.raises(UnknownNameError):
        choose_theme("pink", {"TERM": "xterm"})


def test_only_known_terminals_are_taken_to_reflow() -> None:
    assert reflows({"TMUX": "x", "TERM": "screen"}) and reflows({"TERM": "xterm-256color", "VTE_VERSION": "1"})
    assert not reflows({"TERM": "xterm"}) and not reflows({"TERM": "xterm", "XTERM_VERSION": "1", "TMUX": "x"})


def test_modes_go_round_and_a_fixed_policy_says_so() -> None:
    policy = Permissions("ask")
    assert [next_mode(policy) for _ in range(4)] == ["auto-edit", "sandboxed-auto", "plan", "ask"]
    with pytest.raises(ConfigError):
        set_mode(policy, "yolo")
    assert mode_of(Policy("ask")) == "ask"
    with pytest.raises(ConfigError):
        next_mode(Policy("ask"))


def test_the_walk_honours_gitignore(tmp_path: Path) -> None:
    for name in ("a.py", "b.log", "out/c.py", "sub/keep.log", "sub/d.py", "node_modules/e.js", "bad\x1bname"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / ".gitignore").write_text("*.log\n/out/\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.log\n")
    assert walked(tmp_path) == [".gitignore", "a.py", "sub/.gitignore", "sub/d.py", "sub/keep.log"]
    assert matching(["x/app.py", "app/x.py", "a-p-p"], "app") == ["x/app.py", "app/x.py", "a-p-p"]


def test_completion_of_commands_files_and_arguments(tmp_path: Path) -> None:
    (tmp_path / "my file.py").write_text("")

    def words(name: str) -> list[str]:
        return ["plan", "ask"] if name == "mode" else []

    completer = InputCompleter(FileIndex(tmp_path), {"mode": "m", "model": "n"}, words)

    def offered(text: str) -> list[str]:
        return [each.text for each in completer.get_completions(Document(text), CompleteEvent())]

    assert offered("/mod") == ["/mode", "/model"] and offered("/mode p") == ["plan"]
    assert offered("see @my") == ['@"my file.py"'] and offered("mail me@my") == [] and offered("say /mod") == []


async def test_what_a_prompt_names_is_attached(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(8)
    workspace = MemoryWorkspace({"a.py": b"x = 1\n", "p.png": png, "big": b"x" * (300 << 10), "bin": b"\0\1"})
    made = await attach("see @a.py, @p.png (@nothing) me@a.py @big @bin", workspace, "<command/>")
    assert [type(part) for part in made.parts] == [Text, Text, Text, Blob]
    assert made.taken == ("a.py", "p.png") and [text.split(":")[0] for text in made.failed] == ["big", "bin"]
    (tmp_path / "s.png").write_bytes(png)
    assert pasted_image(f"{tmp_path}/s.png ") == f"@{tmp_path}/s.png" and pasted_image("just words") is None
    assert (await attach(f"@{tmp_path}/s.png", None)).taken == (f"{tmp_path}/s.png",)


async def test_the_picker_lists_sessions_of_the_folder() -> None:
    store, agent = MemoryStore(), Agent(ScriptedProvider(["a"], repeat=True))
    for name, folder in (("s1", "/here"), ("s2", "/there")):
        await Session(agent, name, store, metadata={"folder": folder}).run(f"about {name}")
    assert [info.id for info in await kept_sessions(store, "/here")] == ["s1"]
    infos = await kept_sessions(store, None, but="s1")
    assert "about s2" in rows(infos)[0] and rows(infos)[0].strip().startswith("now")
    assert (ago(90 * 10**9), ago(26 * 3600 * 10**9)) == ("1 min", "1 d")


async def test_what_is_logged_becomes_a_line(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, str]] = []
    with noted(lambda text, role: told.append((text, role))):
        logging.getLogger("windlass.agent").warning("a sink\x1b[2J failed")
        await asyncio.sleep(0)
    assert told == [("! a sink failed", "warning")] and logging.getLogger("windlass").propagate
