"""Reference A's variables (inventory 1.5, config defaults) and who wins: a flag over a variable over the file."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.chatting import ask, error_of, text_of
from tests.server.conftest import Serve, StartGateway
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.server.settings import VARIABLES, ServerSettings, read_settings


def test_1_5_defaults_are_a_s_where_they_mean_the_same() -> None:
    made = read_settings({}, environ={})
    assert (made.host, made.port, made.instance_id) == ("127.0.0.1", 8081, "local-instance")
    assert (made.retention_messages, made.tool_exec, made.tool_exec_timeout) == (24, False, 15.0)
    assert (made.tool_exec_max_output, made.loop_progress, made.debug) == (65_536, True, False)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("LLM_ROUTER_HOST", "127.0.0.2", "host", "127.0.0.2"),
        ("LLM_ROUTER_PORT", "9000", "port", 9000),
        ("LLM_ROUTER_PORT", "0", "port", 0),
        ("LLM_ROUTER_INSTANCE_ID", "blue", "instance_id", "blue"),
        ("LLM_ROUTER_PROVIDER_TIMEOUT_MS", "1500", "request_timeout", 1.5),
        ("LLM_ROUTER_DEBUG", "1", "debug", True),
        ("LLM_ROUTER_SESSION_STORE_PATH", "logs/sessions", "session_path", "logs/sessions"),
        ("LLM_ROUTER_SESSION_STORE_PATH", "", "session_path", ""),
        ("LLM_ROUTER_SESSION_RETENTION_MESSAGES", "3", "retention_messages", 3),
        ("LLM_ROUTER_LOOP_STREAM_PROGRESS_ENABLED", "false", "loop_progress", False),
        ("LLM_ROUTER_TOOL_EXEC_ENABLED", "1", "tool_exec", True),
        ("LLM_ROUTER_TOOL_EXEC_TIMEOUT_MS", "2500", "tool_exec_timeout", 2.5),
        ("LLM_ROUTER_TOOL_EXEC_MAX_OUTPUT_BYTES", "100", "tool_exec_max_output", 100),
    ],
)
def test_1_5_each_variable_wins_over_the_file(variable: str, text: str, key: str, value: Any) -> None:
    other: dict[str, Any] = {"session_path": "/elsewhere"} if key == "session_path" else {}
    assert getattr(read_settings(other, environ={variable: text}), key) == value
    assert getattr(read_settings(other, environ={}), key) == other.get(key, getattr(ServerSettings(), key))


def test_1_5_the_request_timeout_is_the_time_a_request_has_to_arrive() -> None:
    made = read_settings({"limits": {"idle_seconds": 9.0}}, environ={"LLM_ROUTER_REQUEST_TIMEOUT_MS": "30000"})
    assert (made.limits.head_seconds, made.limits.idle_seconds) == (30.0, 9.0)


@pytest.mark.parametrize("text", ["", "0", "false", "FALSE", "no", " No "])
def test_1_5_four_words_are_false_and_all_else_is_true(text: str) -> None:
    assert not read_settings({}, environ={"LLM_ROUTER_LOOP_STREAM_PROGRESS_ENABLED": text}).loop_progress
    for other in ("1", "true", "yes", "off", "nein"):
        assert read_settings({}, environ={"LLM_ROUTER_TOOL_EXEC_ENABLED": other}).tool_exec


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "9" * 20, "٣"])
def test_1_5_zero_and_nonsense_are_errors_that_name_the_variable(text: str) -> None:
    numbers = [name for name, (_, kind) in VARIABLES.items() if kind in ("int", "ms")]
    for variable in numbers:
        if (variable, text) == ("LLM_ROUTER_PORT", "0"):
            continue
        with pytest.raises(ConfigError, match=variable):
            read_settings({}, environ={variable: text})
    for key in ("retention_messages", "tool_exec_timeout", "tool_exec_max_output", "request_timeout"):
        with pytest.raises(ConfigError, match=f"{key} is 0"):
            read_settings({key: 0})
    with pytest.raises(ConfigError, match="LLM_ROUTER_PORT"):
        read_settings({}, environ={"LLM_ROUTER_PORT": "65536"})
    with pytest.raises(UnknownNameError, match="session_stor"):
        read_settings({"session_stor": ""})


def test_1_5_a_flag_wins_over_a_variable_and_that_over_the_file(serve: Serve) -> None:
    served = serve(
        'provider = "echo"\n[server]\ninstance_id = "file"\nport = 1\nretention_messages = 7\n', port=0,
        LLM_ROUTER_INSTANCE_ID="variable", LLM_ROUTER_PORT="2", LLM_ROUTER_DEBUG="0",
    )  # fmt: skip
    assert served.port > 2, "the flag --port 0 wins over both"
    assert httpx.get(f"{served.url}/health").json()["instance_id"] == "variable"


def test_1_5_a_wrong_variable_ends_the_start_with_its_name(serve: Serve) -> None:
    with pytest.raises(AssertionError, match=r"LLM_ROUTER_SESSION_RETENTION_MESSAGES is '0'"):
        serve("", LLM_ROUTER_SESSION_RETENTION_MESSAGES="0")


async def test_1_5_the_single_key_and_the_provider(gateway: StartGateway) -> None:
    served = await gateway(environ={"LLM_ROUTER_API_KEY": "the-key"})
    assert error_of(await ask(served.url, prompt="x", provider="echo"))[3] == "unauthorized"
    assert text_of(await ask(served.url, key="the-key", prompt="x", provider="echo")) == "Echo: x"
