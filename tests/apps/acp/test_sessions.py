"""Sessions of an editor in this process: the official SDK on both ends of a socket, scripted models, real files."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path
from typing import Any

import acp
import pytest
from acp import RequestError
from acp.schema import AcpMcpServer, EnvVariable, McpServerStdio, ToolCallUpdate

from tests.apps.acp.editor import WITH_FILES, Editor, asks, connected
from windlass.apps.acp.build import Options
from windlass.core.errors import AuthError
from windlass.core.messages import Blob, Text
from windlass.stores.memory import MemoryStore
from windlass.testing.scripted import ScriptedProvider, call, turn

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def never(_: ToolCallUpdate) -> str:
    """A person who went away."""
    await asyncio.get_running_loop().create_future()
    return ""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.txt").write_text("one\ntwo\nthree\n")
    return tmp_path / "work"


async def test_a_task_from_reading_to_the_answer(home: Path, work: Path) -> None:
    """Thought, text, plan, read, edit with a diff and a question, a command: all that an editor shows of a task."""
    script = ScriptedProvider(
        [
            turn(
                call("todo_write", todos=[{"content": "Edit a.txt", "status": "in_progress"}]),
                call("read_file", path="a.txt"),
                thinking="Look first.",
                text="I will read it. ",
            ),
            call("edit", path="a.txt", old_string="two", new_string="2"),
            call("shell", command="printf '%s\\n' from-the-shell"),
            "Done.",
        ]
    )
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        answer = await client.prompt(session_id=made.session_id, prompt=asks("Make two a digit"))
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == 20  # four answers of the script
    assert editor.text() == "I will read it. Done."
    assert editor.text("agent_thought_chunk") == "Look first."
    (plan,) = editor.of("plan")
    assert [(entry.content, entry.status) for entry in plan.entries] == [("Edit a.txt", "in_progress")]
    shown = list(editor.calls().values())
    assert [row["kind"] for row in shown] == ["think", "read", "edit", "execute"]
    assert [row["title"] for row in shown][1:] == ["Read a.txt", "Edit a.txt", "`printf '%s\\n' from-the-shell`"]
    assert [row["status"] for row in shown] == ["completed"] * 4
    assert shown[1]["statuses"] == ["pending", "in_progress", "completed"]
    path = str(work / "a.txt")
    assert shown[1]["locations"] == [{"path": path}] or shown[1]["locations"][0]["path"] == path
    (diff,) = shown[2]["content"]
    assert diff == {
        "type": "diff", "path": path, "old_text": "one\ntwo\nthree\n", "new_text": "one\n2\nthree\n"
    }  # fmt: skip
    assert shown[2]["locations"] == [{"path": path, "line": 2}]
    assert "from-the-shell" in shown[3]["content"][0]["content"]["text"]
    assert (work / "a.txt").read_text() == "one\n2\nthree\n"
    # What was asked: the edit, with its difference; the command, whole.
    assert [question.kind for question in editor.asked] == ["edit", "execute"]
    assert editor.offered[0] == ["allow_once", "allow_always", "reject_once", "reject_always"]
    first, second = editor.asked
    assert first.content and first.content[0].type == "diff"
    assert "printf" in str(second.content)
    assert all(row["statuses"].count("completed") == 1 for row in shown)


async def test_what_is_rejected_is_not_done_and_the_model_hears_it(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("edit", path="a.txt", old_string="two", new_string="2"), "As you like."])
    script.script.insert(0, call("read_file", path="a.txt"))
    editor = Editor("reject_once")
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        answer = await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert answer.stop_reason == "end_turn" and editor.text() == "As you like."
    assert (work / "a.txt").read_text() == "one\ntwo\nthree\n"
    assert [row["status"] for row in editor.calls().values()] == ["completed", "failed"]


async def test_always_holds_for_the_same_call_and_no_other(home: Path, work: Path) -> None:
    script = ScriptedProvider([
        call("shell", command="echo 1"), call("shell", command="echo 1"), call("shell", command="echo 2"), "ok"
    ])  # fmt: skip
    editor = Editor("allow_always")
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert [question.title for question in editor.asked] == ["`echo 1`", "`echo 2`"]


@pytest.mark.parametrize("answer", ["no-such-option", ""])
async def test_an_answer_that_was_not_offered_is_a_refusal(home: Path, work: Path, answer: str) -> None:
    script = ScriptedProvider([call("shell", command="touch made"), "ok"])
    editor = Editor(answer)
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert not (work / "made").exists()


async def test_calls_that_come_at_once_are_each_asked_about_by_their_own_id(home: Path, work: Path) -> None:
    (work / "b.txt").write_text("two\n")
    calls = [call("write_file", path=f"{name}.new", content=name) for name in ("a", "b")]
    script = ScriptedProvider([turn(*calls), "ok"])

    def only_a(question: ToolCallUpdate) -> str:
        return "allow_once" if "a.new" in str(question.title) else "reject_once"

    editor = Editor(only_a)
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert (work / "a.new").exists() and not (work / "b.new").exists()
    rows = editor.calls()
    by_id = {question.tool_call_id: question.title for question in editor.asked}
    assert {rows[key]["title"] for key in by_id} == {"Write a.new", "Write b.new"}
    assert {by_id[key]: rows[key]["status"] for key in by_id} == {"Write a.new": "completed", "Write b.new": "failed"}


# -- modes and choices -------------------------------------------------------------------------------------------------


async def test_modes_are_told_and_changed_in_both_ways(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("write_file", path="b.txt", content="b"), "ok", "ok"], repeat=True)
    editor = Editor("reject_once")
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        assert made.modes.current_mode_id == "ask"
        assert [mode.id for mode in made.modes.available_modes] == ["plan", "ask", "auto-edit", "sandboxed-auto"]
        await client.set_session_mode(session_id=made.session_id, mode_id="auto-edit")
        await editor.until(lambda: editor.of("config_option_update"))
        (told,) = editor.of("config_option_update")
        assert {option.id: option.current_value for option in told.config_options}["mode"] == "auto-edit"
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
        assert (work / "b.txt").exists() and editor.asked == []
        chosen = await client.set_config_option(config_id="mode", session_id=made.session_id, value="plan")
        assert {option.id: option.current_value for option in chosen.config_options}["mode"] == "plan"
        await editor.until(lambda: editor.of("current_mode_update"))
        assert [update.current_mode_id for update in editor.of("current_mode_update")] == ["plan"]
        for mode in ("yolo", "nonsense"):
            with pytest.raises(RequestError) as refused:
                await client.set_session_mode(session_id=made.session_id, mode_id=mode)
            assert refused.value.code == -32602


async def test_plan_mode_changes_nothing(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("write_file", path="b.txt", content="b"), "A plan."])
    editor = Editor()
    async with connected(editor, home, script, options=Options(model="echo", sandbox="none", mode="plan")) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        assert made.modes.current_mode_id == "plan"
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert not (work / "b.txt").exists() and editor.asked == []
    assert [row["status"] for row in editor.calls().values()] == ["failed"]


async def test_the_model_and_the_reasoning_can_be_chosen(home: Path, work: Path) -> None:
    script = ScriptedProvider(["the script"], repeat=True)
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        options = {option.id: option for option in made.config_options}
        assert options["model"].category == "model" and options["model"].current_value == "scripted:script"
        assert options["thinking"].category == "thought_level" and options["thinking"].current_value == "default"
        await client.set_config_option(config_id="thinking", session_id=made.session_id, value="high")
        await client.prompt(session_id=made.session_id, prompt=asks("one"))
        assert script.requests[0].settings.thinking == "high"
        changed = await client.set_config_option(config_id="model", session_id=made.session_id, value="echo:other")
        assert {option.id: option.current_value for option in changed.config_options}["model"] == "echo:other"
        await client.prompt(session_id=made.session_id, prompt=asks("two"))
        assert len(script.requests) == 1 and "two" in editor.text()
        for option, value in (("model", "nobody:x"), ("thinking", "very"), ("colour", "red")):
            with pytest.raises(RequestError) as refused:
                await client.set_config_option(config_id=option, session_id=made.session_id, value=value)
            assert refused.value.code == -32602


async def test_a_mode_that_is_chosen_while_a_call_waits_holds_for_the_next_call(home: Path, work: Path) -> None:
    script = ScriptedProvider(
        [call("write_file", path="b", content="b"), call("write_file", path="c", content="c"), "ok"]
    )
    sessions: list[str] = []
    editor = Editor()
    async with connected(editor, home, script) as client:

        async def from_now_on(_: ToolCallUpdate) -> str:
            await client.set_session_mode(session_id=sessions[0], mode_id="auto-edit")
            return "allow_once"

        editor.answer = from_now_on
        sessions.append((await client.new_session(cwd=str(work), mcp_servers=[])).session_id)
        await client.prompt(session_id=sessions[0], prompt=asks("go"))
    assert (work / "b").exists() and (work / "c").exists() and len(editor.asked) == 1


async def test_commands_run_unasked_in_a_real_sandbox_only(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("shell", command="echo $PWD > made; touch /outside"), "ok"])
    editor = Editor("reject_once")
    options = Options(model="echo", sandbox="auto", mode="sandboxed-auto")
    async with connected(editor, home, script, options=options, offers=WITH_FILES) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert editor.asked == [] and (work / "made").exists() and not Path("/outside").exists()


# -- cancelling --------------------------------------------------------------------------------------------------------


async def test_a_question_that_is_never_answered_ends_with_the_cancel(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("shell", command="touch made"), "after"], repeat=True)
    editor = Editor(never)
    store = MemoryStore()
    async with connected(editor, home, script, store=store) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        prompt = asyncio.create_task(client.prompt(session_id=made.session_id, prompt=asks("go")))
        await editor.until(lambda: editor.asked)
        await client.cancel(session_id=made.session_id)
        assert (await prompt).stop_reason == "cancelled"
        (row,) = editor.calls().values()
        assert row["status"] == "failed"
        # The session goes on, from a valid history.
        editor.answer = "allow_once"
        assert (await client.prompt(session_id=made.session_id, prompt=asks("again"))).stop_reason == "end_turn"
    assert not (work / "made").exists()
    kinds = [row.kind for row in await store.read(made.session_id)]
    assert kinds.count("run.started") == kinds.count("run.finished") == 2


async def test_a_cancel_right_behind_the_prompt_is_not_lost(home: Path, work: Path) -> None:
    async def forever(_: Any) -> str:
        await asyncio.get_running_loop().create_future()
        return ""

    script = ScriptedProvider([forever], repeat=True)
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        for _ in range(3):
            prompt = asyncio.create_task(client.prompt(session_id=made.session_id, prompt=asks("go")))
            await asyncio.sleep(0)
            await client.cancel(session_id=made.session_id)
            assert (await prompt).stop_reason == "cancelled"
        # With nothing to cancel, and for a session that is not there, it is nothing.
        await client.cancel(session_id=made.session_id)
        await client.cancel(session_id="nobody")


async def test_a_command_that_runs_is_ended_by_the_cancel(home: Path, work: Path) -> None:
    script = ScriptedProvider([call("shell", command="echo begun; sleep 600; touch made")])
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        prompt = asyncio.create_task(client.prompt(session_id=made.session_id, prompt=asks("go")))
        # Its output is shown while it runs.
        await editor.until(lambda: "begun" in str([row.get("content") for row in editor.calls().values()]))
        await client.cancel(session_id=made.session_id)
        assert (await prompt).stop_reason == "cancelled"
    assert [row["status"] for row in editor.calls().values()] == ["failed"]


async def test_the_end_of_the_client_ends_what_runs_and_keeps_it(home: Path, work: Path) -> None:
    store, editor = MemoryStore(), Editor(never)
    script = ScriptedProvider([call("shell", command="touch made")])
    async with connected(editor, home, script, store=store) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        prompt = asyncio.create_task(client.prompt(session_id=made.session_id, prompt=asks("go")))
        await editor.until(lambda: editor.asked)
    with pytest.raises((ConnectionError, RequestError, asyncio.CancelledError)):
        if (await prompt).stop_reason == "cancelled":
            raise ConnectionError
    rows = [row.kind for row in await store.read(made.session_id)]
    assert rows[-1] == "run.finished" and rows.count("tool.finished") == 1 and not (work / "made").exists()


async def test_a_slash_command_can_be_cancelled(home: Path, work: Path) -> None:
    async def forever(_: Any) -> str:
        begun.set()
        await asyncio.get_running_loop().create_future()
        return ""

    begun = asyncio.Event()
    long = "word " * 2000
    script = ScriptedProvider([long, long, long, long, long, long, forever, "after"])
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        for _ in range(6):
            await client.prompt(session_id=made.session_id, prompt=asks(long))
        prompt = asyncio.create_task(client.prompt(session_id=made.session_id, prompt=asks("/compact")))
        await begun.wait()
        await client.cancel(session_id=made.session_id)
        assert (await prompt).stop_reason == "cancelled"
        assert (await client.prompt(session_id=made.session_id, prompt=asks("go"))).stop_reason == "end_turn"
    assert editor.text().endswith("after")


# -- several at once ---------------------------------------------------------------------------------------------------


async def test_several_sessions_run_at_once_each_in_its_folder(home: Path, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(_: Any) -> Any:
        await gate.wait()
        return call("read_file", path="name.txt")

    scripts = [ScriptedProvider([wait, f"answer {number}"]) for number in range(3)]
    editor = Editor()
    async with connected(editor, home, *scripts) as client:
        ids: list[str] = []
        for number in range(3):
            folder = tmp_path / f"w{number}"
            folder.mkdir()
            (folder / "name.txt").write_text(f"I am {number}\n")
            ids.append((await client.new_session(cwd=str(folder), mcp_servers=[])).session_id)
        prompts = [asyncio.create_task(client.prompt(session_id=one, prompt=asks("who?"))) for one in ids]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as busy:
            await client.prompt(session_id=ids[0], prompt=asks("and now?"))
        assert busy.value.code == -32600
        gate.set()
        assert [(await prompt).stop_reason for prompt in prompts] == ["end_turn"] * 3
        for number, one in enumerate(ids):
            assert editor.text(session=one) == f"answer {number}"
            (row,) = editor.calls(one).values()
            assert f"I am {number}" in str(row["content"])
        await client.close_session(session_id=ids[0])
        with pytest.raises(RequestError) as gone:
            await client.prompt(session_id=ids[0], prompt=asks("still there?"))
        assert gone.value.code == -32002


async def test_what_cannot_be_opened_is_refused_in_words(home: Path, work: Path) -> None:
    editor = Editor()
    async with connected(editor, home, ScriptedProvider(["x"])) as client:
        for cwd in ("relative", str(work / "missing"), str(work / "a.txt")):
            with pytest.raises(RequestError) as refused:
                await client.new_session(cwd=cwd, mcp_servers=[])
            assert refused.value.code == -32602 and "cwd" in str(refused.value)
        with pytest.raises(RequestError) as unknown:
            await client.load_session(cwd=str(work), session_id="nobody", mcp_servers=[])
        assert unknown.value.code == -32002
        (work / "windlass.toml").write_text("[policy\n")
        with pytest.raises(RequestError) as broken:
            await client.new_session(cwd=str(work), mcp_servers=[])
        assert "windlass.toml" in str(broken.value)


# -- loading -----------------------------------------------------------------------------------------------------------


async def test_a_loaded_session_tells_all_that_was_said(home: Path, work: Path) -> None:
    store = MemoryStore()
    script = ScriptedProvider(
        [
            call("read_file", path="a.txt"),
            turn(
                call("edit", path="a.txt", old_string="two", new_string="2"),
                call("todo_write", todos=[{"content": "x", "status": "completed"}]),
                thinking="hm",
                text="Editing.",
            ),
            "Done.",
            "I remember.",
        ]
    )
    first, second = Editor(), Editor()
    async with connected(first, home, script, store=store) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("Make two a digit", acp.image_block(
            base64.b64encode(PNG).decode(), "image/png")))  # fmt: skip
    async with connected(second, home, script, store=store) as client:
        listed = await client.list_sessions(cwd=str(work))
        assert [(row.session_id, row.title) for row in listed.sessions] == [(made.session_id, "Make two a digit")]
        assert (await client.list_sessions(cwd=str(home))).sessions == []
        loaded = await client.load_session(cwd=str(work), session_id=made.session_id, mcp_servers=[])
        assert loaded.modes.current_mode_id == "ask"
        # All of it was told before the answer to session/load.
        told = [update.session_update for _, update in second.updates]
        users = second.of("user_message_chunk")
        assert users[0].content.text == "Make two a digit" and users[1].content.mime_type == "image/png"
        assert second.text() == "Editing.Done." and second.text("agent_thought_chunk") == "hm"
        shown, live = list(second.calls().values()), list(first.calls().values())
        assert [row["status"] for row in shown] == ["completed"] * 3
        assert [row["content"] for row in shown] == [row["content"] for row in live]
        assert [row["title"] for row in shown] == [row["title"] for row in live]
        assert len(second.of("plan")) == 1 and told.index("user_message_chunk") == 0
        await client.prompt(session_id=made.session_id, prompt=asks("Do you?"))
        assert second.text() == "Editing.Done.I remember."
        assert len(script.requests[-1].messages) == len(script.requests[-2].messages) + 2
    third = Editor()
    async with connected(third, home, script, store=store) as client:
        await client.resume_session(cwd=str(work), session_id=made.session_id, mcp_servers=[])
        await third.until(lambda: third.of("available_commands_update"))
        assert {update.session_update for _, update in third.updates} == {"available_commands_update"}


# -- commands ----------------------------------------------------------------------------------------------------------


async def test_slash_commands_are_told_and_done(home: Path, work: Path) -> None:
    skill = work / ".agents" / "skills" / "greet"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("---\nname: greet\ndescription: Greets people\n---\nSay hello to $ARGUMENTS.\n")
    script = ScriptedProvider(
        [call("read_file", path="a.txt"), call("edit", path="a.txt", old_string="two", new_string="2"), "Done.", "Hi"]
    )
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await editor.until(lambda: len(editor.of("available_commands_update")) == 2)
        last = {each.name: each for each in editor.of("available_commands_update")[-1].available_commands}
        assert {"compact", "undo", "skills", "continue", "greet"} <= last.keys()
        assert last["greet"].description == "Greets people"

        async def say(text: str) -> str:
            before = len(editor.text())
            assert (await client.prompt(session_id=made.session_id, prompt=asks(text))).stop_reason == "end_turn"
            return editor.text()[before:]

        assert "is empty" in await say("/undo")
        await say("edit it")
        assert (work / "a.txt").read_text() == "one\n2\nthree\n"
        assert "a.txt" in await say("/undo") and (work / "a.txt").read_text() == "one\ntwo\nthree\n"
        assert "a.txt" in await say("/redo") and (work / "a.txt").read_text() == "one\n2\nthree\n"
        assert "greet" in await say("/skills") and "read_file" in await say("/tools")
        assert await say("/mode plan") == "Mode: plan (of plan, ask, auto-edit, sandboxed-auto)."
        assert "scripted:script" in await say("/model") and "3 answers" in await say("/cost")
        assert await say("/compact tail") == "Nothing could be made shorter." and "sandbox" in await say("/notices")
        assert "mode" in await say("/mode nonsense") and await say("/mcp") == "There are none."
        assert len(script.requests) == 3  # no command asked the model
        assert await say("/greet the crew") == "Hi"
        assert "Say hello to the crew." in script.requests[-1].messages[-1].text
        with pytest.raises(RequestError):
            await client.prompt(session_id=made.session_id, prompt=asks("/continue"))


# -- prompts -----------------------------------------------------------------------------------------------------------


async def test_what_a_prompt_may_hold_reaches_the_model(home: Path, work: Path) -> None:
    script = ScriptedProvider(["ok"])
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        picture = base64.b64encode(PNG).decode()
        await client.prompt(
            session_id=made.session_id,
            prompt=[
                acp.text_block("See "),
                acp.resource_link_block("a.txt", (work / "a.txt").as_uri()),
                acp.image_block(picture, "image/png"),
                acp.resource_block(acp.embedded_text_resource((work / "a.txt").as_uri() + "#L2", "two")),
                acp.resource_block(acp.embedded_blob_resource("file:///x/p.png", picture, mime_type="image/png")),
            ],
        )
        parts = script.requests[0].messages[-1].parts
        texts = [part.content for part in parts if isinstance(part, Text)]
        assert texts == ["See ", "[a.txt](a.txt)", '\n<resource uri="a.txt#L2">\ntwo\n</resource>\n']
        assert [part.content for part in parts if isinstance(part, Blob)] == [PNG, PNG]
        bad = [[], [acp.text_block("  ")], [acp.audio_block(picture, "audio/wav")], [acp.image_block("%", "image/png")]]
        for prompt in bad:
            with pytest.raises(RequestError) as refused:
                await client.prompt(session_id=made.session_id, prompt=prompt)
            assert refused.value.code == -32602
        assert len(script.requests) == 1


async def test_an_error_of_the_model_is_told_in_words(home: Path, work: Path) -> None:
    script = ScriptedProvider([AuthError("The key is wrong.", provider="scripted", hint="Set another one."), "fine"])
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        with pytest.raises(RequestError) as failed:
            await client.prompt(session_id=made.session_id, prompt=asks("go"))
        assert "The key is wrong." in str(failed.value) and failed.value.code == -32603
        assert (await client.prompt(session_id=made.session_id, prompt=asks("go"))).stop_reason == "end_turn"


async def test_a_limit_is_its_own_reason(home: Path, work: Path) -> None:
    (home / "windlass.toml").write_text("max_turns = 1\n")
    script = ScriptedProvider([call("read_file", path="a.txt")], repeat=True)
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        answer = await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert answer.stop_reason == "max_turn_requests"


# -- the editor's own files --------------------------------------------------------------------------------------------


async def test_unsaved_text_is_read_and_written_through_the_editor(home: Path, work: Path) -> None:
    script = ScriptedProvider([
        call("read_file", path="a.txt"), call("grep", pattern="one"),
        call("edit", path="a.txt", old_string="UNSAVED", new_string="saved"), "ok",
    ])  # fmt: skip
    editor, path = Editor(), str(work / "a.txt")
    editor.buffers[path] = "one\nUNSAVED\nthree\n"
    async with connected(editor, home, script, offers=WITH_FILES) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    shown = list(editor.calls().values())
    assert [row["status"] for row in shown] == ["completed"] * 3, shown
    assert "UNSAVED" in str(shown[0]["content"])
    assert editor.wrote == [(path, "one\nsaved\nthree\n")]
    assert (work / "a.txt").read_text() == "one\nsaved\nthree\n"
    assert shown[2]["content"][0]["old_text"] == "one\nUNSAVED\nthree\n"
    assert set(editor.read) == {path}


@pytest.mark.parametrize("how", ["flag", "broken", "not offered"])
async def test_without_the_editor_s_files_the_disk_is_used(home: Path, work: Path, how: str) -> None:
    script = ScriptedProvider([
        call("read_file", path="a.txt"), call("edit", path="a.txt", old_string="two", new_string="2"), "ok"
    ])  # fmt: skip
    editor = Editor()
    editor.buffers[str(work / "a.txt")] = "other\n"
    editor.broken = how == "broken"
    options = Options(model="echo", sandbox="none", client_files=how != "flag")
    offers = None if how == "not offered" else WITH_FILES
    async with connected(editor, home, script, options=options, offers=offers) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
    assert (work / "a.txt").read_text() == "one\n2\nthree\n" and editor.wrote == []
    assert (editor.read != []) is (how == "broken")


# -- MCP servers of the editor -----------------------------------------------------------------------------------------

CLOCK = '''
import os
from mcp.server import MCPServer
server = MCPServer("clock")
@server.tool()
def fetch_time(zone: str) -> str:
    """Tell the time."""
    return f"noon in {zone}, {os.environ['WHO']}"
server.run("stdio")
'''


async def test_the_editor_s_mcp_servers_are_connected_without_asking(home: Path, work: Path) -> None:
    (home / "clock.py").write_text(CLOCK)
    server = McpServerStdio(
        name="clock", command=sys.executable, args=[str(home / "clock.py")], env=[EnvVariable(name="WHO", value="me")]
    )
    script = ScriptedProvider([call("mcp_clock_fetch_time", zone="Rome"), "It is noon."])
    editor = Editor()
    async with connected(editor, home, script) as client:
        made = await client.new_session(cwd=str(work), mcp_servers=[server])
        await client.prompt(session_id=made.session_id, prompt=asks("go"))
        (row,) = editor.calls().values()
        assert row["kind"] == "fetch" and "noon in Rome, me" in str(row["content"])
        # Connecting was not asked about, calling it was: nobody vouches for what a server says of its tools.
        assert [question.title for question in editor.asked] == ["mcp_clock_fetch_time zone=Rome"]
        await client.prompt(session_id=made.session_id, prompt=asks("/mcp"))
        assert "clock" in editor.text()
        with pytest.raises(RequestError) as refused:
            await client.new_session(
                cwd=str(work), mcp_servers=[AcpMcpServer(type="acp", name="inside", server_id="x")]
            )
        assert refused.value.code == -32602 and "acp" in str(refused.value)
