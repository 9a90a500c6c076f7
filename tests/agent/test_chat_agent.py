"""Reference E's agent, row by row: its options, its backends as they are asked, its errors in one line."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from windlass.agent.chat import BACKENDS, ChatAgent, InvalidConfiguration
from windlass.core.config import Config
from windlass.core.error_context import ErrorContext
from windlass.core.errors import (
    ConfigError,
    ModelNotFoundError,
    ProviderConnectionError,
    ProviderTimeoutError,
    RateLimitError,
    WindlassError,
)
from windlass.providers.vendors import VENDORS
from windlass.testing.faults import FaultServer, Reply, Stream, sse
from windlass.testing.scripted import ScriptedProvider


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"id": "r", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


USE = json.dumps({"id": "r", "object": "chat.completion.chunk", "model": "m", "choices": [],
                  "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}})  # fmt: skip
OPENAI = Stream(sse(chunk("Hi"), chunk("", "stop"), USE, "[DONE]"))
OLLAMA = Stream(
    [
        json.dumps({"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": False}).encode() + b"\n",
        json.dumps({"model": "m", "message": {"role": "assistant", "content": ""}, "done": True,
                    "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 1}).encode() + b"\n",
    ],
    headers={"content-type": "application/x-ndjson"},
)  # fmt: skip


async def told(server: FaultServer, chat: ChatAgent) -> dict[str, Any]:
    assert await chat.chat("hello") == "Hi"
    await chat.agent.destroy()
    return json.loads(server.requests[-1].body)


async def test_the_echo_backend_repeats_the_input() -> None:
    chat = ChatAgent("bot", backend="echo")
    assert await chat.chat("hello there") == "Echo: hello there"
    assert await chat.process("again") == "Echo: again" and chat.history_count == 4


async def test_the_local_backend_is_a_model_and_no_stub() -> None:
    chat = ChatAgent("bot", backend="local", temperature=0.0)
    assert (await chat.chat("hello")).startswith("Hello! I am the tiny built-in model")


@pytest.mark.parametrize("address", ["ABI_OPENAI_BASE_URL", "OPENAI_BASE_URL"])
@pytest.mark.parametrize("key", ["ABI_OPENAI_API_KEY", "OPENAI_API_KEY"])
async def test_openai_is_sent_every_setting_top_p_too(address: str, key: str) -> None:
    async with FaultServer([OPENAI]) as server:
        config = Config.from_environment({address: f"{server.url}/v1", key: "sk-1"})
        chat = ChatAgent("bot", backend="openai", model="gpt-4", system_prompt="Be kind.", config=config)
        body = await told(server, chat)
    assert (body["model"], body["temperature"], body["top_p"]) == ("gpt-4", 0.7, 0.9)
    assert body.get("max_completion_tokens", body.get("max_tokens")) == 1024
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert dict(server.requests[0].headers)["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("address", ["ABI_OLLAMA_HOST", "OLLAMA_HOST"])
@pytest.mark.parametrize(
    ("environ", "model", "asked"),
    [
        ({}, None, "gpt-oss"),
        ({"ABI_OLLAMA_MODEL": "mine"}, None, "mine"),
        ({"OLLAMA_MODEL": "theirs"}, None, "theirs"),
        ({"ABI_OLLAMA_MODEL": "mine"}, "named", "named"),
    ],
    ids=["default", "ABI_OLLAMA_MODEL", "OLLAMA_MODEL", "argument"],
)
async def test_ollama_by_e_s_variables(address: str, environ: dict[str, str], model: str | None, asked: str) -> None:
    async with FaultServer([OLLAMA]) as server:
        config = Config.from_environment({address: server.url, **environ})
        body = await told(server, ChatAgent("bot", backend="ollama", model=model, config=config))
    assert (body["model"], body["options"]["temperature"], body["options"]["top_p"]) == (asked, 0.7, 0.9)
    assert body["options"]["num_predict"] == 1024 and server.requests[0].target == "/api/chat"


def test_ollama_is_on_this_machine_unless_a_variable_says_otherwise() -> None:
    assert VENDORS["ollama"].base_url == "http://127.0.0.1:11434"
    chat = ChatAgent("bot", backend="ollama", config=Config.from_environment({}))
    assert chat.agent.model_name == "ollama:gpt-oss"


@pytest.mark.parametrize("name", ["ABI_HF_API_TOKEN", "HF_API_TOKEN"])
async def test_hugging_face_by_e_s_variables(name: str) -> None:
    async with FaultServer([OPENAI]) as server:
        environ = {name: "hf_1", "WINDLASS_HUGGINGFACE_BASE_URL": f"{server.url}/v1"}
        chat = ChatAgent("bot", backend="huggingface", model="org/m", config=Config.from_environment(environ))
        body = await told(server, chat)
    assert body["model"] == "org/m" and dict(server.requests[0].headers)["authorization"] == "Bearer hf_1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 1.1}, {"top_p": -0.1}, {"top_p": True}, {"max_tokens": 0}, {"max_tokens": 128_001},
        {"max_tokens": 1.5}, {"backend": "claude"}, {"backend": "openai", "model": 3},
    ],
    ids=str,
)  # fmt: skip
def test_out_of_range_is_invalid_configuration(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"name": "bot", "model": ScriptedProvider(["a"]), **wrong}
    with pytest.raises(InvalidConfiguration) as caught:
        ChatAgent(**options)
    assert isinstance(caught.value, ConfigError) and caught.value.code == "invalid_configuration"
    assert caught.value.to_dict()["code"] == "invalid_configuration"


def test_a_setter_out_of_range_changes_nothing() -> None:
    chat = ChatAgent("bot", model=ScriptedProvider(["a"]), max_tokens=128_000)
    for change, value in ((chat.set_temperature, 2.5), (chat.set_top_p, 1.5), (chat.set_top_p, -1)):
        with pytest.raises(InvalidConfiguration):
            change(value)
    assert (chat.temperature, chat.top_p, chat.max_tokens, chat.enable_history) == (0.7, 0.9, 128_000, True)
    chat.set_temperature(0)
    chat.set_top_p(1)
    assert (chat.temperature, chat.top_p) == (0, 1)


async def test_clearing_keeps_the_system_prompt_and_drops_the_rest() -> None:
    provider = ScriptedProvider(["a", "b", "c"])
    chat = ChatAgent("bot", model=provider, system_prompt="Be kind.", max_tokens=7)
    await chat.chat("one")
    chat.set_history_enabled(False)
    await chat.chat("two")
    assert chat.history_count == 2 and [m.text for m in chat.history_slice(0, 1)] == ["one"]
    chat.clear_history()
    chat.set_history_enabled(True)
    await chat.chat("three")
    assert chat.history_count == 2 and provider.requests[-1].system == "Be kind."
    assert [m.text for m in provider.requests[-1].messages] == ["three"]
    assert provider.requests[-1].settings.max_tokens == 7


# --------------------------------------------------------------------------------------------------- errors in a line


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def failing(config: Config, backend: str = "openai") -> WindlassError:
    chat = ChatAgent("bot", backend=backend, model="gpt-4", config=config)
    with pytest.raises(WindlassError) as caught:
        await chat.chat("hello")
    await chat.agent.destroy()
    return caught.value


async def test_e_s_new_errors_by_their_names() -> None:
    """Timeout, ConnectionRefused and ModelNotFound, from real failures, with endpoint and status in the line."""
    key = {"OPENAI_API_KEY": "k"}
    refused = await failing(Config.from_environment({"OPENAI_BASE_URL": f"{_closed_port()}/v1", **key}))
    assert isinstance(refused, ProviderConnectionError)
    assert str(ErrorContext.from_error(refused)).startswith(
        "AgentError: ConnectionRefused during API request [backend=openai] [model=gpt-4] [endpoint=http://127.0.0.1:"
    )
    body = json.dumps(
        {"error": {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}}
    )
    async with FaultServer([Reply(status=404, body=body.encode())]) as server:
        unknown = await failing(Config.from_environment({"OPENAI_BASE_URL": f"{server.url}/v1", **key}))
    assert isinstance(unknown, ModelNotFoundError)
    line = str(ErrorContext.from_error(unknown))
    assert line.startswith("AgentError: ModelNotFound during API request [backend=openai] [model=gpt-4] [endpoint=http")
    assert "[http_status=404] [attempt=1/3] - openai answered 404 for model gpt-4: no such model." in line
    late = ProviderTimeoutError(
        "too late.", provider="openai", model="gpt-4", endpoint="/v1", attempt=2, max_attempts=3
    )
    assert str(ErrorContext.from_error(late)) == (
        "AgentError: Timeout during API request [backend=openai] [model=gpt-4] [endpoint=/v1] [attempt=2/3] - too late."
    )


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (
            lambda: ErrorContext.api_error("HttpRequestFailed", "openai", "https://api.openai.com/v1", 500, "gpt-4"),
            # E's own sample shows backend and model alone, though endpoint and status are given: here all are told.
            "AgentError: HttpRequestFailed during API request [backend=openai] [model=gpt-4] "
            "[endpoint=https://api.openai.com/v1] [http_status=500]",
        ),
        (
            lambda: ErrorContext.config_error(InvalidConfiguration("x"), "no key"),
            "AgentError: InvalidConfiguration during configuration - no key",
        ),
        (
            lambda: ErrorContext.generation_error("Empty", "local", "tiny", "nothing came"),
            "AgentError: Empty during generation [backend=local] [model=tiny] - nothing came",
        ),
        (
            lambda: ErrorContext.retry_error(RateLimitError("slow"), "openai", 2, 3, "again"),
            "AgentError: RateLimitError during retry [backend=openai] [attempt=2/3] - again",
        ),
    ],
    ids=["api", "config", "generation", "retry"],
)
def test_the_line_of_each_factory(made: Callable[[], ErrorContext], line: str) -> None:
    assert str(made()) == made().format() == line


def test_e_s_backends_are_all_there() -> None:
    assert BACKENDS == ("echo", "openai", "ollama", "huggingface", "local")
