"""Reference A's session files (inventory 1.5): taken over at first use, written on export, never mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.chatting import ECHO, ask, said, talk, text_of
from tests.server.conftest import StartGateway
from tests.server.upstreams import answering, sent, up
from windlass.agent.conversation import Conversation
from windlass.core.errors import StoreError
from windlass.core.events import MessageAdded
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, user
from windlass.server.session_files import (
    MAX_BYTES,
    file_name,
    read_file,
    read_session,
    session_json,
    write_session,
)
from windlass.server.sessions import stored_events
from windlass.testing.faults import FaultServer

A_MESSAGES = [said("Rules.", "system"), said("one"), said("A", "assistant"), said("result", "tool")]


def a_file(folder: Path, name: str, session: str, tenant: str | None = None, messages: Any = None) -> Path:
    """Write a file as reference A does."""
    folder.mkdir(exist_ok=True)
    data = {
        "session_id": session, "tenant_id": tenant, "summary": "", "updated_at_ms": 5,
        "messages": A_MESSAGES if messages is None else messages,
    }  # fmt: skip
    (folder / name).write_text(json.dumps(data))
    return folder / name


async def test_1_5_a_s_files_are_taken_over_when_their_session_is_first_used(
    gateway: StartGateway, tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    a_file(folder, "global__plan.json", "plan")
    a_file(folder, "acme__plan.json", "plan", "acme", [said("of acme"), said("B", "assistant")])
    async with FaultServer(answering("C")) as upstream:
        served = await gateway(
            providers=up(upstream, model="m"), environ={"LLM_ROUTER_SESSION_STORE_PATH": str(folder)}
        )  # fmt: skip
        fields = {"provider": "up", "session_id": "plan"}
        assert text_of(await ask(served.url, body={"prompt": "two", **fields})) == "C"
        assert sent(upstream)["messages"] == [
            said("Rules.", "system"), said("one"), said("A", "assistant"), said("result"), said("two")
        ]  # fmt: skip
        assert text_of(await ask(served.url, body={"prompt": "x", "tenant_id": "acme", **fields})) == "C"
        assert sent(upstream)["messages"][0] == said("of acme")
        # Once: from then on the ledger has it.
        (folder / "global__plan.json").unlink()
        assert text_of(await ask(served.url, body={"prompt": "three", **fields})) == "C"
        assert len(await talk(served, "plan")) == 7
        assert sorted(path.name for path in folder.iterdir()) == ["acme__plan.json"], "A's files are only read"


async def test_1_5_a_file_of_other_ids_is_not_taken(gateway: StartGateway, tmp_path: Path) -> None:
    # A gives "a b", "a/b" and "a_b" one file: it holds the one that was written last.
    a_file(tmp_path, "global__a_b.json", "a/b", None, [said("of a/b"), said("B", "assistant")])
    served = await gateway(server={"session_path": str(tmp_path)})
    for session, count in (("a b", 2), ("a_b", 2), ("a/b", 4)):
        text_of(await ask(served.url, prompt="x", session_id=session, **ECHO))
        assert len(await talk(served, session)) == count, session


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"session_id":"s","messages":5}', b'{"session_id":"s","messages":[{"role":"user"}]}',
     b'{"session_id":"s","messages":["x"]}', b'{"session_id":"s","messages":[{"role":"wizard","content":"x"}]}',
     b'{"session_id":"s","messages":[],"x":"' + b"x" * MAX_BYTES + b'"}', b"\xff\xfe"],
)  # fmt: skip
async def test_1_5_a_file_that_cannot_be_read_is_left_alone(
    gateway: StartGateway, tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "global__s.json"
    path.write_bytes(data)
    with pytest.raises(StoreError):
        read_file(path)
    served = await gateway(server={"session_path": str(tmp_path)})
    with caplog.at_level("WARNING", logger="windlass.server"):
        assert text_of(await ask(served.url, prompt="x", session_id="s", **ECHO)) == "Echo: x"
    assert len(await talk(served, "s")) == 2
    assert path.read_bytes() == data
    assert any("global__s.json" in record.getMessage() for record in caplog.records)


async def test_1_5_what_is_written_is_a_s_form_and_comes_back(tmp_path: Path) -> None:
    events: list[Any] = []
    talked = Conversation()
    messages = [
        user("one"), Message("assistant", (Text("look"), ToolCall("c", "f", {"x": 1}))),
        Message("tool", (ToolResponse("c", "42"),)), Message("assistant", (Text("It is 42."),)), user('"\n\x00é'),
    ]  # fmt: skip
    events += stored_events(talked, messages, "import")
    path = write_session(tmp_path / "new", "", "plan", events)
    assert path.name == "global__plan.json" and (path.stat().st_mode & 0o777) == 0o600
    data = json.loads(path.read_bytes())
    assert data.keys() == {"session_id", "tenant_id", "summary", "updated_at_ms", "messages"}
    assert (data["session_id"], data["tenant_id"]) == ("plan", None)
    assert data["messages"] == [
        said("one"), said('look\n[called f({"x":1})]', "assistant"), said("42", "tool"),
        said("It is 42.", "assistant"), said('"\n\x00é'),
    ]  # fmt: skip
    again = await read_session(tmp_path / "new", "", "plan")
    texts = [event.message.text for event in again if isinstance(event, MessageAdded)]
    assert texts == ["one", 'look\n[called f({"x":1})]', "42", "It is 42.", '"\n\x00é']
    assert write_session(tmp_path / "new", "", "plan", events) == path and len(list(path.parent.iterdir())) == 1
    assert json.loads(session_json("t", "s", []))["tenant_id"] == "t"


def test_1_5_names_are_a_s_where_that_is_safe() -> None:
    assert file_name("", "plan-1.2_x") == "global__plan-1.2_x.json"
    assert file_name("acme", "plan") == "acme__plan.json"
    for tenant, session in (("", "a b"), ("global", "plan"), ("", "a__b"), ("a_", "b"), ("a", "_b"), ("", "x" * 250)):
        assert "~" in file_name(tenant, session), (tenant, session)


ids = st.text(st.sampled_from("aA_.-~/ é\0"), max_size=6)


@given(ids, ids.filter(bool), ids, ids.filter(bool))
def test_1_5_no_two_sessions_share_a_file(tenant: str, session: str, other_tenant: str, other: str) -> None:
    same = (tenant, session) == (other_tenant, other)
    assert (file_name(tenant, session) == file_name(other_tenant, other)) == same
    name = file_name(tenant, session)
    assert "/" not in name and "\0" not in name and len(name) < 256
