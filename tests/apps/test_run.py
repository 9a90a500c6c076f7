"""`windlass run`: its options, and what reaches the model."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, asked, calls, says, tool_results
from windlass.core.events import EVENT_SCHEMA, MessageAdded, RunFinished, TextDelta
from windlass.testing.faults import FaultServer

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def test_the_answer_is_on_stdout_and_the_rest_on_stderr(cli: Cli) -> None:
    async with FaultServer([says("Hel", "lo")]) as server:
        cli.use(server)
        done = await cli("run", "--system", "Be brief.", "--tools", "none", "--thinking", "low", "say", "hello")
        body = asked(server)
    assert (done.code, done.out) == (0, "Hello\n")
    assert done.err == "! groq cannot take thinking; not sent.\n[end_turn: 20 in / 3 out, 1 turn]\n"
    assert [(m["role"], m["content"]) for m in body["messages"]] == [("system", "Be brief."), ("user", "say hello")]
    assert body["model"] == "test-model" and "tools" not in body
    assert server.requests[0].headers["authorization"] == "Bearer sk-canary-4f1d9b"


async def test_tools_act_in_the_workspace_and_are_shown_on_stderr(cli: Cli) -> None:
    space = cli.folder / "deep"
    space.mkdir()
    script = [calls(("write_file", {"path": "a.txt", "content": "hi"}), text="Writing."), says("Done.")]
    async with FaultServer(script) as server:
        cli.use(server)
        done = await cli("run", "--yes", "--workspace", "deep", "--tools", "files,utc", "write a file")
        offered = [tool["function"]["name"] for tool in asked(server)["tools"]]
    assert done.code == 0 and done.out == "Writing.\nDone.\n"
    assert (space / "a.txt").read_text() == "hi"
    assert done.err.splitlines() == [
        "→ write_file(path='a.txt', content='hi')",
        "  created a.txt",
        "← Created a.txt",
        "[end_turn: 40 in / 6 out, 2 turns]",
    ]
    assert "utc" in offered and "read_file" in offered and "shell" not in offered


async def test_json_is_one_object_and_stream_json_is_versioned_events(cli: Cli) -> None:
    async with FaultServer([says("Hello")]) as server:
        cli.use(server)
        one = await cli("run", "--output", "json", "hi")
        many = await cli("run", "--output", "stream-json", "hi")
    result = one.json()
    assert {key: result[key] for key in ("text", "stop_reason", "turns", "refused", "output", "model")} == {
        "text": "Hello", "stop_reason": "end_turn", "turns": 1, "refused": [], "output": None,
        "model": "groq:test-model",
    }  # fmt: skip
    assert result["usage"] == {"input_tokens": 20, "output_tokens": 3} and result["cost"] is None
    assert len(result["session_id"]) == 26 and "notice" not in result
    events = many.events()
    assert [json.loads(line)["v"] for line in many.raw.splitlines()] == [EVENT_SCHEMA] * len(events)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Hello"]
    assert isinstance(events[-1], RunFinished) and many.err == ""


async def test_piped_text_is_context_and_dev_null_is_not(cli: Cli) -> None:
    both = await cli("run", "-m", "echo", "why?", piped=b"line 1\nline 2\n")
    alone = await cli("run", "-m", "echo", piped=b"only this \xff\n")
    nothing = await cli("run", "-m", "echo", "hi")
    assert both.out == "Echo: why?\n\nline 1\nline 2\n"
    assert alone.out == "Echo: only this \ufffd\n"
    assert nothing.out == "Echo: hi\n"


async def test_reference_a_and_e_forms(cli: Cli) -> None:
    """A: options and no command, a loop until DONE. E: `agent --message`."""
    async with FaultServer([says("working"), says("now DONE")]) as server:
        cli.use(server)
        a = await cli("--provider=groq", "--prompt", "go", "--agent-loop", "--max-turns", "5")
        system = asked(server, 0)["messages"][0]["content"]
        models = [asked(server, number)["model"] for number in (0, 1)]
    assert a.code == 0 and a.out == "working\nnow DONE\n"
    assert "[iteration 2/5]" in a.err and "windlass: Loop completed: found marker 'DONE'." in a.err
    assert "API agent loop mode" in system
    assert models == ["llama-3.3-70b-versatile"] * 2  # the provider's own default, not the variable's model
    e = await cli("agent", "-m", "echo", "--message", "hello")
    assert (e.code, e.out) == (0, "Echo: hello\n")


async def test_a_model_without_a_provider_belongs_to_the_chosen_one(cli: Cli) -> None:
    async with FaultServer([says("ok")]) as server:
        cli.use(server)
        done = await cli("run", "--provider", "groq", "-m", "meta/llama:8b", "hi")
        assert done.code == 0 and asked(server)["model"] == "meta/llama:8b"


async def test_a_dash_in_a_prompt_is_not_an_option(cli: Cli) -> None:
    """S90: what stands after -- is never read as options."""
    done = await cli("run", "-m", "echo", "--", "--yes", "--model=x")
    assert done.out == "Echo: --yes --model=x\n"


async def test_until_and_loop_mode_ask_again(cli: Cli) -> None:
    async with FaultServer([says("one"), says("two STOP")]) as server:
        cli.use(server)
        done = await cli("run", "--until", "STOP", "--loop-mode", "basic", "go")
        assert [m["content"] for m in asked(server)["messages"][1:]] == ["go", "one", "Continue."]
    assert done.code == 0 and "found marker 'STOP'" in done.err


async def test_memory_files_leave_the_disk_untouched(cli: Cli) -> None:
    (cli.folder / "in").mkdir()
    (cli.folder / "in" / "a.txt").write_text("old")
    (cli.folder / "in" / "b.bin").write_bytes(b"\xff\x00")
    (cli.folder / "one.txt").write_text("1")
    script = [
        calls(("read_file", {"path": "a.txt"})),
        calls(
            ("edit", {"path": "a.txt", "old_string": "old", "new_string": "new"}),
            ("write_file", {"path": "sub/c.txt", "content": "c"}),
            ("read_file", {"path": "one.txt"}),
        ),
        says("ok"),
    ]
    async with FaultServer(script) as server:
        cli.use(server)
        options = ("--yes", "--memory-files", "in", "--memory-files", "one.txt")
        done = await cli("run", *options, "--output", "json", "go")
        assert tool_results(server)[3].strip().endswith("1")
        again = await cli("run", *options, "go")
    assert done.json()["files"] == {"a.txt": "new", "sub/c.txt": "c"} and done.json()["deleted"] == []
    assert "changed in memory" in done.err or done.code == 0
    assert (cli.folder / "in" / "a.txt").read_text() == "old" and not (cli.folder / "sub").exists()
    assert again.code == 0


async def test_memory_files_are_named_when_something_is_wrong(cli: Cli) -> None:
    (cli.folder / "a").mkdir()
    (cli.folder / "a" / "x").write_text("1")
    (cli.folder / "x").write_text("2")
    twice = await cli("run", "-m", "echo", "--memory-files", "a", "--memory-files", "x", "hi")
    missing = await cli("run", "-m", "echo", "--memory-files", "nowhere", "hi")
    both = await cli("run", "-m", "echo", "--memory-files", "a", "--workspace", ".", "hi")
    assert (twice.code, missing.code, both.code) == (2, 2, 2)
    assert "x is there twice" in twice.err and "nothing at nowhere" in missing.err and "exclude" in both.err


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


async def test_schema_gives_json_on_stdout(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    async with FaultServer([says('{"n": 42}')]) as server:
        cli.use(server)
        good = await cli("run", "--schema", str(file), "how many?")
        structured = await cli("run", "--schema", json.dumps(SCHEMA), "--output", "json", "how many?")
    assert (good.code, good.out) == (0, '{"n":42}\n')
    assert structured.json()["output"] == {"n": 42}


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ("no.json", "Cannot read the schema no.json: No such file or directory."),
        ("{nonsense", "--schema: not valid JSON"),
        ("list.json", "schema list.json: a JSON Schema is an object."),
    ],
)
async def test_a_bad_schema_is_a_usage_error(cli: Cli, schema: str, complaint: str) -> None:
    (cli.folder / "list.json").write_text("[1]")
    done = await cli("run", "-m", "echo", "--schema", schema, "x")
    assert (done.code, done.out) == (2, "") and complaint in done.err


async def test_images_documents_and_text_are_attached(cli: Cli) -> None:
    (cli.folder / "dot.png").write_bytes(PNG)
    (cli.folder / "notes.txt").write_text("remember")
    async with FaultServer([says("seen")]) as server:
        cli.use(server)
        done = await cli("run", "--image", "dot.png", "--image", "notes.txt", "look")
        content = asked(server)["messages"][-1]["content"]
    assert done.code == 0
    assert content[0] == {"type": "text", "text": "look"}
    assert content[1]["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert "remember" in json.dumps(content[2])


async def test_a_pdf_goes_to_a_model_that_takes_documents(cli: Cli) -> None:
    pdf = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
    (cli.folder / "a.pdf").write_bytes(pdf)
    async with FaultServer([says("read")]) as server:
        cli.use(server)
        refused = await cli("run", "--image", "a.pdf", "look")
        assert server.requests == []
        cli.env.update(WINDLASS_OPENAI_BASE_URL=f"{server.url}/v1", WINDLASS_OPENAI_API_KEY="k")
        done = await cli("run", "-m", "openai:gpt-x", "--image", "a.pdf", "look")
        sent = server.requests[-1].body
    assert refused.code == 5 and "document" in refused.err
    assert done.code == 0 and base64.b64encode(pdf) in sent


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("fake.png", b"hello", "fake.png is named as image/png"),
        ("raw.txt", b"\x00\xff\xfe", "raw.txt is neither an image, a PDF nor UTF-8 text"),
        ("empty.txt", b"", "empty.txt is empty"),
        ("gone.png", None, "Cannot read the attachment gone.png: No such file"),
    ],
)
async def test_a_broken_attachment_is_named_before_anything_is_sent(
    cli: Cli, name: str, data: bytes | None, complaint: str
) -> None:
    if data is not None:
        (cli.folder / name).write_bytes(data)
    done = await cli("run", "-m", "echo", "--image", name, "look")
    assert done.code == 2 and complaint in done.err and done.out == ""


async def test_verbose_shows_reasoning_and_whole_results(cli: Cli) -> None:
    (cli.folder / "a.txt").write_text("one\ntwo\nthree\n")
    script = [calls(("read_file", {"path": "a.txt"})), says("ok", thinking="hmm, let me see")]
    async with FaultServer(script) as server:
        cli.use(server)
        plain = await cli("run", "read it")
        server.requests.clear()
        verbose = await cli("run", "-v", "read it")
    assert plain.out == verbose.out == "ok\n"
    assert "hmm" not in plain.err and "three" not in plain.err
    assert "hmm, let me see\n" in verbose.err and "three" in verbose.err


async def test_s30_a_command_sees_no_key(cli: Cli) -> None:
    script = [calls(("shell", {"command": "env; cat /proc/self/environ | tr '\\0' '\\n'"})), says("ok")]
    async with FaultServer(script) as server:
        cli.use(server)
        done = await cli(
            "run", "--tools", "shell", "--yes", "go", OPENAI_API_KEY="sk-other-canary", SECRET="tell-me-not"
        )
        (result,) = tool_results(server)
    assert done.code == 0 and "PATH=" in result
    for secret in ("canary", "tell-me-not", "WINDLASS_GROQ"):
        assert secret not in result


async def test_s54_the_key_is_in_no_output(cli: Cli) -> None:
    async with FaultServer([says("hi")]) as server:
        cli.use(server)
        record = cli.folder / "r.jsonl"
        outputs = [
            await cli("run", "--output", "stream-json", "--record", str(record), "hi"),
            await cli("config", "--origins"),
            await cli("models", "--json"),
            await cli("doctor"),
        ]
    kept = b"".join(path.read_bytes() for path in [record, *cli.home.iterdir()] if path.is_file())
    assert all(done.code == 0 for done in outputs)
    assert "canary" not in "".join(done.out + done.err for done in outputs) and b"canary" not in kept


async def test_the_session_is_kept_with_its_messages(cli: Cli) -> None:
    done = await cli("run", "-m", "echo", "--output", "stream-json", "hello")
    roles = [event.message.role for event in done.events() if isinstance(event, MessageAdded)]
    assert roles == ["user", "assistant"]
    assert (cli.home / "sessions.db").stat().st_mode & 0o777 == 0o600
