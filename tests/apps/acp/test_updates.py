"""Events become updates: the table, kind by kind, without a client."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from acp.schema import SessionNotification
from acp.utils import serialize_params
from hypothesis import given
from hypothesis import strategies as st

from windlass.apps.acp.looks import KINDS, fenced, first_line, kind_of, locations, title_of
from windlass.apps.acp.updates import LIVE, LIVE_BYTES, PAST, Table, View, plan_of, translate
from windlass.core.events import (
    BudgetExceeded,
    ContextCompacted,
    Event,
    FileChanged,
    Log,
    McpConnected,
    MessageAdded,
    PermissionRequested,
    ProviderSwitched,
    ReasoningDelta,
    Retry,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TurnFinished,
    TurnStarted,
)
from windlass.core.messages import Blob, Message, Reasoning, Text, ToolCall, Uri
from windlass.core.request import ToolAnnotations
from windlass.core.usage import Usage
from windlass.tools.toolsets import CODING


def told(view: View, *events: Event, table: Table = LIVE) -> list[dict[str, Any]]:
    """Return what a client would get, as JSON: every update must be one the protocol knows."""
    out: list[dict[str, Any]] = []
    for event in events:
        view.take(event)
        for update in translate(view, event, table):
            sent = serialize_params(SessionNotification(session_id="s", update=update))
            SessionNotification.model_validate(sent)
            out.append(sent["update"])
    return out


def called(name: str, **args: Any) -> MessageAdded:
    return MessageAdded(message=Message("assistant", (ToolCall("c", name, args),)), usage=Usage(100, 10), cost=5)


def kept(view: View, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    view.contents[sha256] = data
    return sha256


def test_text_and_thought() -> None:
    rows = told(View("/w"), TextDelta(text="a"), ReasoningDelta(text="b"), TextDelta(text=""), TurnStarted(turn=1))
    assert rows == [
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "a"}},
        {"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "b"}},
    ]


def test_half_a_surrogate_pair_can_be_sent() -> None:
    (row,) = told(View("/w"), TextDelta(text="a\ud83d"))
    assert row["content"]["text"] == "a\ufffd"
    (row,) = told(View("/w"), called("shell", command="\ud800"))
    assert row["rawInput"] == {"command": "\ufffd"}


def test_a_call_from_its_announcement_to_its_end() -> None:
    view = View("/w")
    rows = told(
        view,
        called("read_file", path="src/a.py", offset=7),
        ToolStarted(call_id="c", name="read_file", input={"path": "src/a.py", "offset": 7}),
        ToolFinished(call_id="c", name="read_file", response="x\n```\ny"),
    )
    first, started, done = rows
    assert first["title"] == "Read src/a.py" and first["kind"] == "read" and first["status"] == "pending"
    assert first["locations"] == [{"path": "/w/src/a.py", "line": 7}]
    assert first["rawInput"] == {"path": "src/a.py", "offset": 7}
    assert started["status"] == "in_progress" and done["status"] == "completed"
    assert done["content"] == [{"type": "content", "content": {"type": "text", "text": "````\nx\n```\ny\n````"}}]
    assert "c" in view.calls
    view.forget(ToolFinished(call_id="c"))
    assert view.calls == {} and view.contents == {}


@pytest.mark.parametrize("status", ["error", "blocked", "skipped", "cancelled", "timeout", "unknown"])
def test_every_other_end_is_a_failure(status: Any) -> None:
    *_, row = told(View("/w"), called("shell", command="x"), ToolFinished(call_id="c", response="no", status=status))
    assert row["status"] == "failed" and "no" in row["content"][0]["content"]["text"]


def test_changes_of_files_are_differences_with_their_line() -> None:
    view = View("/w")
    one, two, three = (kept(view, text) for text in (b"a\nb\n", b"a\nc\n", b"a\nd\n"))
    rows = told(
        view,
        called("multi_edit", path="f"),
        FileChanged(path="f", call_id="c", before=one, after=two),
        FileChanged(path="f", call_id="c", before=two, after=three),
        FileChanged(path="new", call_id="c", before=None, after=one),
        FileChanged(path="old", call_id="c", before=one, after=None),
        ToolFinished(call_id="c", response="Edited."),
    )
    done = rows[-1]
    assert done["content"] == [
        {"type": "diff", "path": "/w/f", "oldText": "a\nb\n", "newText": "a\nd\n"},
        {"type": "diff", "path": "/w/new", "newText": "a\nb\n"},
        {"type": "diff", "path": "/w/old", "oldText": "a\nb\n", "newText": ""},
    ]
    assert [each["line"] for each in done["locations"]] == [2, 1, 1]
    assert rows[1]["content"][0]["newText"] == "a\nc\n"


def test_a_change_that_did_not_happen_or_cannot_be_shown() -> None:
    view = View("/w")
    one, binary = kept(view, b"a"), kept(view, b"\xff\xfe")
    *_, done = told(
        view,
        called("edit", path="f"),
        FileChanged(path="f", call_id="c", before=one, after=binary),
        FileChanged(path="g", call_id="c", before=None, after="0" * 64),
        FileChanged(path="h", call_id="c", before=None, after=one),
        FileChanged(path="h", call_id="c", before=None, after=one, status="failed"),
        ToolFinished(call_id="c", response="no", status="error"),
    )
    texts = [row["content"]["text"] for row in done["content"]]
    assert texts[0].startswith("f was changed") and texts[1].startswith("g was changed") and "no" in texts[2]
    assert len(texts) == 3
    assert view.missing(FileChanged(path="g", call_id="c")) == {"0" * 64: "g"}


def test_output_is_shown_while_it_comes_and_not_too_often() -> None:
    view = View("/w")
    begun = called("shell", command="make")
    pieces = [ToolProgress(call_id="c", text=f"line {n}\n", time=1 + n * 30_000_000) for n in range(10)]
    rows = told(view, begun, *pieces)[1:]
    assert [row["content"][0]["content"]["text"].count("line") for row in rows] == [1, 5, 9]
    flood = [ToolProgress(call_id="c", text="\x1b[31m" + "x" * 100_000, time=10**12)]
    (row,) = told(view, *flood)
    assert len(row["content"][0]["content"]["text"]) < LIVE_BYTES + 100 and "\x1b" not in str(row)


def test_the_plan_is_the_todo_tool_s() -> None:
    todos = [{"id": "1", "content": "one", "status": "completed"}, {"id": "2", "content": "two", "status": "pending"}]
    (row,) = told(View("/w"), ToolProgress(call_id="c", data={"plan": todos}))
    assert row["sessionUpdate"] == "plan"
    assert [(each["content"], each["status"]) for each in row["entries"]] == [("one", "completed"), ("two", "pending")]
    assert told(View("/w"), ToolProgress(call_id="c", data={"other": 1})) == []
    for bad in ("text", [1], [{"content": "x", "status": "later"}], [{"status": "pending"}], None):
        assert plan_of(bad) is None
    empty = plan_of([])
    assert empty is not None and empty.entries == []


def test_a_question_shows_all_of_the_call_and_what_it_hides() -> None:
    command = "echo ok\n" + "x" * 300 + "\nrm -rf \u202e/"
    asked = PermissionRequested(call_id="c", name="shell", input={"command": command, "timeout": 3}, reason="it runs")
    (row,) = told(View("/w"), asked)
    text = row["content"][0]["content"]["text"]
    assert "x" * 300 in text and "rm -rf \\u202e/" in text and "timeout: 3" in text and text.startswith("it runs")
    assert row["status"] == "pending"


def test_usage_needs_a_window_and_counts_the_conversation() -> None:
    assert told(View("/w"), called("shell"), TurnFinished(turn=1))[1:] == []
    view = View("/w", window=1000)
    rows = told(view, called("shell"), TurnFinished(turn=1), called("shell"), TurnFinished(turn=2))
    usage = [row for row in rows if row["sessionUpdate"] == "usage_update"]
    assert [(row["used"], row["size"], row["cost"]["amount"]) for row in usage] == [
        (110, 1000, 5e-9),
        (110, 1000, 1e-8),
    ]
    view.take(MessageAdded(message=Message("assistant"), usage=Usage(1, 1), cost=None))
    assert "cost" not in told(view, TurnFinished(turn=3))[0]


def test_what_has_no_place_in_the_protocol_is_a_thought() -> None:
    rows = told(
        View("/w"),
        Retry(message="again in 2 s"),
        ProviderSwitched(message="to b"),
        ContextCompacted(strategy="summary", before_tokens=9, after_tokens=4),
        BudgetExceeded(what="turns", used=3, limit=3),
        McpConnected(name="clock", ok=False, error="broken"),
        McpConnected(name="clock"),
        Log(message="quiet", level="debug"),
        Log(message="loud", level="warning"),
    )
    assert {row["sessionUpdate"] for row in rows} == {"agent_thought_chunk"}
    text = "".join([row["content"]["text"] for row in rows])
    assert all(word in text for word in ("again", "to b", "9 to 4", "turns 3 of 3", "broken", "loud"))
    assert "quiet" not in text and len(rows) == 6


def test_a_sub_agent_s_calls_are_shown_and_its_words_are_not() -> None:
    view = View("/w", window=100)
    calls = (ToolCall("c", "shell", {"command": "x"}),)
    child = MessageAdded(message=Message("assistant", calls), run_id="r2", parent_run_id="r1", usage=Usage(9, 9))
    rows = told(
        view,
        called("shell", command="y"),
        TextDelta(text="inner", run_id="r2", parent_run_id="r1"),
        child,
        ToolFinished(call_id="c", response="x", run_id="r2", parent_run_id="r1"),
        TurnFinished(turn=1, run_id="r2", parent_run_id="r1"),
    )
    assert [row["toolCallId"] for row in rows] == ["c", "r2:c", "r2:c"] and view.used == 110


def test_responses_of_parts() -> None:
    parts = (Text("t"), Blob(b"png", "image/png"), Blob(b"%PDF", "application/pdf", "document"), Uri("https://x/y.png"))
    *_, row = told(View("/w"), called("mcp_x_y"), ToolFinished(call_id="c", response=parts))
    kinds = [each["content"]["type"] for each in row["content"]]
    assert kinds == ["text", "image", "text", "resource_link"]


def test_the_past_is_told_from_rows_alone() -> None:
    view = View("/w")
    one, two = kept(view, b"a"), kept(view, b"b")
    call = ToolCall("c", "edit", {"path": "f", "old_string": "a", "new_string": "b"})
    rows = told(
        view,
        MessageAdded(message=Message("user", (Text("do it"), Blob(b"p", "image/png"))), source="prompt"),
        MessageAdded(message=Message("user", (Text("hidden"),)), source="loop"),
        MessageAdded(message=Message("assistant", (Reasoning("hm"), Text("yes"), call))),
        ToolStarted(call_id="c", name=""),
        FileChanged(path="f", call_id="c", before=one, after=two),
        ToolFinished(call_id="c", response="Edited."),
        table=PAST,
    )
    assert [row["sessionUpdate"] for row in rows] == [
        "user_message_chunk", "user_message_chunk", "agent_thought_chunk", "agent_message_chunk", "tool_call",
        "tool_call_update", "tool_call_update",
    ]  # fmt: skip
    assert rows[4]["title"] == "Edit f" and rows[5] == {
        "sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "in_progress"
    }  # fmt: skip
    assert rows[6]["content"] == [{"type": "diff", "path": "/w/f", "oldText": "a", "newText": "b"}]


# -- looks -------------------------------------------------------------------------------------------------------------


def test_every_tool_of_the_coding_agent_has_a_kind_and_a_title() -> None:
    for tool in CODING:
        assert (tool.spec.name in KINDS and title_of(tool.spec.name, {}) != tool.spec.name) or tool.spec.name == "shell"


@pytest.mark.parametrize(
    ("name", "notes", "kind"),
    [
        ("mcp_web_fetch", ToolAnnotations(), "fetch"),
        ("mcp_db_query", ToolAnnotations(), "search"),
        ("mcp_fs_delete_file", ToolAnnotations(destructive=True), "delete"),
        ("mcp_fs_delete_file", ToolAnnotations(read_only=True), "read"),
        ("mcp_fs_move_file", None, "move"),
        ("mcp_x_run_job", None, "execute"),
        ("mcp_x_frobnicate", None, "other"),
        ("mcp_x_frobnicate", ToolAnnotations(read_only=True), "read"),
        ("mcp_x_frobnicate", ToolAnnotations(read_only=True, open_world=True), "fetch"),
    ],
)
def test_kinds_of_tools_that_nobody_knows(name: str, notes: ToolAnnotations | None, kind: str) -> None:
    assert kind_of(name, {}, notes) == kind


def test_the_file_tool_s_kind_is_its_operation_s() -> None:
    assert [kind_of("file", {"operation": each}) for each in ("delete", "move", "copy")] == ["delete", "move", "edit"]
    assert title_of("file", {"operation": "move", "path": "a", "destination": "b"}) == "Move a to b"


@given(st.text(), st.text())
def test_a_title_is_one_short_line_that_hides_nothing(name: str, value: str) -> None:
    for made in (title_of(name, {"x": value}), title_of("shell", {"command": value})):
        assert "\n" not in made and len(made) <= 160 and "\u202e" not in made and "\x1b" not in made


@given(st.text(max_size=300))
def test_a_fence_holds_whatever_is_in_it(text: str) -> None:
    head, _, rest = fenced(text).partition("\n")
    body, _, tail = rest.rpartition("\n")
    assert head == tail and set(head) == {"`"} and len(head) >= 3
    assert head not in body and body == text.rstrip("\n")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_the_first_line_that_differs(before: bytes, after: bytes) -> None:
    line = first_line(before, after)
    assert 1 <= line <= after.count(b"\n") + 1
    assert before.split(b"\n")[: line - 1] == after.split(b"\n")[: line - 1]


def test_paths_become_absolute() -> None:
    assert [each.path for each in locations("/w", {"path": "../x", "destination": "/abs/y"})] == ["/x", "/abs/y"]
    assert locations("/w", {"path": 3, "destination": "a\0b"}) == []
