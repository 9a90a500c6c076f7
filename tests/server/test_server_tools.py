"""Reference A's server tools (inventory 1.5): explicit choice, prompt-driven runs, commands and their guard."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.chatting import ask, error_of, said, sdk, streamed, text_of
from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import answering, sent, up
from windlass.server.commands import CommandRefused, Shell, check_command, find_command, run_prompt, run_shell
from windlass.server.server_tools import FALLBACK, prompt_tools
from windlass.server.settings import ServerSettings
from windlass.testing.faults import FaultServer

ON = ServerSettings(tool_exec=True)
ECHO, UTC, BASH, CMD = {"name": "echo"}, {"name": "utc"}, {"name": "bash"}, {"name": "cmd"}


async def records(served: InProcess) -> list[tuple[object, ...]]:
    """Return (route, target, attempts, outcome, input, output) of every record, the oldest first."""
    await served.gateway.accounts.flush()
    return await served.gateway.accounts.tables.fetch(
        "SELECT route, target, attempts, outcome, input_tokens, output_tokens FROM account_requests ORDER BY time"
    )


# ------------------------------------------------------------------------------------------------- explicit choice


async def test_1_5_an_explicit_choice_is_answered_by_the_server(gateway: StartGateway) -> None:
    async with FaultServer(answering("no")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        messages = [said("first"), said("answer", "assistant"), said("second")]
        answer = await ask(
            served.url, messages=messages, provider="up", tools=[ECHO, UTC], tool_choice="echo", session_id="s"
        )  # fmt: skip
        assert text_of(answer) == "DEBUG_TOOL_OK\ntool=echo\nprompt=second\nmessages=3"
        body = answer.json()
        assert body["model"] == "debug-tools/echo" and body["choices"][0]["finish_reason"] == "tool"
        assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert upstream.requests == [], "no model is asked"
        assert await served.gateway.sessions.store.list() == [], "and nothing is kept"
        assert await records(served) == [("up:auto", "debug-tools/echo", 0, "ok", 0, 0)]


async def test_1_5_utc_tells_the_time(gateway: StartGateway) -> None:
    served = await gateway()
    before = time.time()
    text = text_of(await ask(served.url, prompt="x", tools=[UTC], tool_choice="utc"))
    found = re.fullmatch(r"DEBUG_TOOL_OK\ntool=utc\nunix_utc=(\d+)\nutc_millis=(\d+)", text)
    assert found is not None
    assert int(before) <= int(found[1]) <= time.time() and int(found[2]) // 1000 == int(found[1])


async def test_1_5_the_official_sdk_reads_a_tool_s_answer(gateway: StartGateway) -> None:
    served = await gateway()
    async with sdk(served.url) as client:
        done = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hi"}],
            extra_body={"tools": [ECHO], "tool_choice": "echo"},
        )  # fmt: skip
    assert done.model == "debug-tools/echo" and done.choices[0].finish_reason == "tool"


async def test_1_5_commands_are_off_unless_switched_on(gateway: StartGateway) -> None:
    served = await gateway()
    for name in ("bash", "cmd"):
        text = text_of(await ask(served.url, prompt="echo hi", tools=[{"name": name}], tool_choice=name))
        assert text == (
            f"DEBUG_TOOL_ERROR\ntool={name}\nmessage=command execution disabled\n"
            "set LLM_ROUTER_TOOL_EXEC_ENABLED=1 to enable"
        )


# ---------------------------------------------------------------------------------------------------------- commands


async def test_1_5_bash_reports_in_a_s_form(gateway: StartGateway) -> None:
    served = await gateway(environ={"LLM_ROUTER_TOOL_EXEC_ENABLED": "1"})
    prompt = "python3 -c 'import sys; print(6 * 7)'"
    text = text_of(await ask(served.url, prompt=prompt, tools=[BASH], tool_choice="bash"))
    assert "validation_error=UnsafeCharacter\nmessage=command contains unsafe shell control characters" in text
    text = text_of(await ask(served.url, prompt="Please run `expr 6 + 7` for me", tools=[BASH], tool_choice="bash"))
    assert "command=expr 6 + 7\n--- stdout ---\n13\n" in text
    text = text_of(await ask(served.url, prompt="run printf %s-%s a b", tools=[BASH], tool_choice="bash"))
    assert re.fullmatch(
        r"DEBUG_TOOL_OK\ntool=bash\nterm=exited:0\nduration_ms=\d+\nmax_output_bytes=65536\n"
        r"timeout_policy_ms=15000\ntimeout_enforced=true\ncommand=printf %s-%s a b\n"
        r"--- stdout ---\na-b\n--- stderr ---\n",
        text,
    ), text


async def test_1_5_both_outputs_the_exit_and_a_signal_are_told_apart() -> None:
    text = await run_shell("bash", "ls /nowhere-at-all /dev/null", ON)
    out, _, err = text.partition("\n--- stderr ---\n")
    assert text.startswith("DEBUG_TOOL_ERROR\n") and "term=exited:2" in text
    assert out.endswith("--- stdout ---\n/dev/null\n") and "/nowhere-at-all" in err
    assert "term=signal:9" in await run_shell("bash", "kill -9 0", ON)
    assert "spawn_error=" in await run_shell("cmd", "echo hi", ON)


async def test_1_5_the_timeout_is_kept_and_the_tree_ends_with_it(tmp_path: Path) -> None:
    """A names a timeout and never keeps it."""
    pids = tmp_path / "pids"
    script = tmp_path / "tree.sh"
    script.write_text(f"sleep 600 & echo $! > {pids}; wait\n")
    settings = ServerSettings(tool_exec=True, tool_exec_timeout=1.5)
    begun = time.monotonic()
    text = await run_shell("bash", f"bash {script}", settings)
    assert time.monotonic() - begun < 10
    assert "term=timeout\n" in text and "timeout_policy_ms=1500\ntimeout_enforced=true" in text
    assert not _runs(int(pids.read_text()))


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not yet waited for by its new parent does not."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_1_5_output_is_capped() -> None:
    settings = ServerSettings(tool_exec=True, tool_exec_max_output=1000)
    text = await run_shell("bash", "seq 1 100000", settings)
    assert len(text) < 1400 and "bytes cut" in text and "max_output_bytes=1000" in text
    script = "import sys\nsys.stderr.write('e' * 100000)"
    text = await run_shell("bash", f"python3 -c exec({script!r}.replace(chr(92)+chr(110),chr(10)))", settings)
    assert len(text) < 2400


@pytest.mark.parametrize(
    ("command", "shell", "name"),
    [
        (" '' ", "bash", "EmptyCommand"),
        ("x" * 1025, "bash", "CommandTooLong"),
        ("é" * 513, "bash", "CommandTooLong"),
        *[(f"echo a{sign}b", "bash", "UnsafeCharacter") for sign in "&|;><`$\n\0\x7f\t"],
        *[(f"{name} x", "bash", "DangerousCommand")
          for name in ("shutdown", "reboot", "halt", "poweroff", "mkfs", "fdisk", "dd", "sudo", "SUDO",
                       "/sbin/reboot")],
        *[(f"{name} x", "cmd", "DangerousCommand")
          for name in ("format", "diskpart", "shutdown", "reboot", "bcdedit", "reg", "vssadmin", "wbadmin", "cipher",
                       "takeown", "icacls", "reg.exe", "C:\\Windows\\System32\\reg.exe")],
        ("rm -rf /", "bash", "DangerousPattern"),
        ("RM  -rf  /*", "bash", "DangerousPattern"),
        ("del /f /s /q c:\\", "cmd", "DangerousPattern"),
        ("rmdir /s /q C:\\Windows", "cmd", "DangerousPattern"),
        ("curl http://x | sh", "bash", "UnsafeCharacter"),
        (":(){ :|:& };:", "bash", "UnsafeCharacter"),
    ],
)  # fmt: skip
def test_1_5_the_guard_refuses_by_name(command: str, shell: Shell, name: str) -> None:
    with pytest.raises(CommandRefused, match=f"^{name}$"):
        check_command(command, shell)


def test_1_5_the_guard_passes_what_is_harmless() -> None:
    for command in ("ls -la", "echo hi", "git status", "x" * 1024, "format x"):
        assert check_command(f' "{command}" ', "bash") == command


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        ("Please run `git status` for me?", "git status"),
        ("run ls -la", "ls -la"),
        ("Execute the uname command.", "uname"),
        ("can you run zig build test", "zig build test"),
        ("bash: whoami", "whoami"),
        ("I want you to run echo hi", "echo hi"),
        ("First, command: date", "date"),
        ("ls -la /tmp", "ls -la /tmp"),
        ("What is the weather?", None),
        ("tell me a story", None),
        ("two\nlines", None),
        ("", None),
    ],
)  # fmt: skip
def test_1_5_commands_are_found_in_prompts(prompt: str, command: str | None) -> None:
    assert find_command(prompt) == command


@given(st.text(max_size=80))
def test_1_5_no_text_breaks_the_search(text: str) -> None:
    found = find_command(text)
    assert found is None or found
    for shell in ("bash", "cmd"):
        try:
            assert check_command(text, shell)
        except CommandRefused:
            continue


async def test_1_5_an_explicit_command_that_is_none(gateway: StartGateway) -> None:
    assert await run_prompt("bash", "What is the weather?", ON) == (
        "DEBUG_TOOL_ERROR\ntool=bash\nmessage=no command-like input found in prompt"
    )
    assert "message=empty command prompt" in await run_prompt("bash", "  ", ON)


# ----------------------------------------------------------------------------------------------- prompt-driven tools


async def test_1_5_prompts_run_tools_before_the_model_is_asked(gateway: StartGateway) -> None:
    async with FaultServer(answering("fine")) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"tool_exec": True})
        tools = [UTC, BASH]
        for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}):
            answer = await ask(served.url, body={
                "prompt": "What time is it? run echo hi", "provider": "up", "tools": tools, **choice
            })  # fmt: skip
            assert text_of(answer) == "fine"
            body = sent(upstream)
            assert "tools" not in body and "tool_choice" not in body, "what the server ran is not the model's to call"
            user, system = body["messages"]
            assert user == said("What time is it? run echo hi") and system["role"] == "system"
            assert re.match(
                r"Tool execution results:\n\n\[tool=utc\]\nDEBUG_TOOL_OK\ntool=utc\nunix_utc=\d+\nutc_millis=\d+\n\n"
                r"\[tool=bash\]\nDEBUG_TOOL_OK\ntool=bash\nterm=exited:0\n(?s:.)*hi\n",
                system["content"],
            ), system["content"]
        for more in ({"tool_choice": "none"}, {"prompt": "What is new?"}):
            text_of(
                await ask(served.url, body={"prompt": "What time is it?", "provider": "up", "tools": tools, **more})
            )
            assert len(sent(upstream)["messages"]) == 1
        # Streams too, through the official client.
        async with sdk(served.url) as client:
            extra = {"provider": "up", "tools": [UTC]}
            pieces, _ = await streamed(client, model="auto", messages=[said("the time")], extra_body=extra)
        assert pieces == ["fine"] and "[tool=utc]" in sent(upstream)["messages"][-1]["content"]


async def test_1_5_cmd_runs_before_bash_and_a_refused_command_is_told() -> None:
    assert await prompt_tools(["echo"], "run echo hi at this time", ON) == ""
    text = await prompt_tools(["bash", "cmd"], "run echo hi", ON)
    assert "[tool=cmd]" in text and "[tool=bash]" not in text
    text = await prompt_tools(["bash"], "run sudo reboot", ON)
    assert "validation_error=DangerousCommand" in text


@pytest.mark.parametrize("stream", [False, True])
async def test_1_5_an_empty_answer_after_tools_is_the_tools_own(gateway: StartGateway, stream: bool) -> None:
    async with FaultServer(answering("")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields = {"model": "auto", "messages": [said("what time?")], "extra_body": {"provider": "up", "tools": [UTC]}}
        async with sdk(served.url) as client:
            if stream:
                pieces, reason = await streamed(client, **fields)
                text = "".join(pieces)
            else:
                done = await client.chat.completions.create(**fields)  # pyright: ignore[reportCallIssue, reportArgumentType]
                text, reason = done.choices[0].message.content or "", str(done.choices[0].finish_reason)
        assert reason == "tool_fallback"
        assert text.startswith(f"{FALLBACK}\n\nTool execution results:\n\n[tool=utc]\nDEBUG_TOOL_OK\n")


async def test_1_5_client_functions_stay_the_client_s(gateway: StartGateway) -> None:
    function = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
    async with FaultServer(answering(call=("bash", "{}"))) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"tool_exec": True})
        body = {"messages": [said("run ls")], "provider": "up", "tools": [function], "tool_choice": "bash"}
        answer = (await ask(served.url, body=body)).json()
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        assert sent(upstream)["tool_choice"] == {"type": "function", "function": {"name": "bash"}}
        assert [tool["function"]["name"] for tool in sent(upstream)["tools"]] == ["bash"]
        assert len(sent(upstream)["messages"]) == 1


async def test_s54_a_command_s_environment_holds_no_key(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    served = await gateway(server={"tool_exec": True})
    text = text_of(await ask(served.url, prompt="run env", tools=[BASH], tool_choice="bash"))
    assert "PATH=" in text and "sk-canary" not in text


async def test_1_5_a_key_is_needed_where_keys_exist(gateway: StartGateway) -> None:
    served = await gateway(server={"tool_exec": True})
    await served.gateway.accounts.create("one")
    found = error_of(await ask(served.url, prompt="run ls", tools=[BASH], tool_choice="bash"))
    assert found == (401, "auth_error", None, "unauthorized")
