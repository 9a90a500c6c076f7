"""Counting the tokens of a request: asked where the vendor can, estimated where it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import AuthError, OverloadedError, ProviderError, UnsupportedInputError, WireError
from windlass.core.estimate import estimate_tokens
from windlass.core.messages import Blob, Message, user
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.providers.retry import Retrying
from windlass.testing.faults import FaultServer, Fin, Reply, Step
from windlass.wire.anthropic_count import decode_count_request

REQUEST = Request(
    model="claude-sonnet-4-5",
    messages=[user("How many?")],
    system="Be brief.",
    tools=(ToolSpec("look"),),
    settings=Settings(max_tokens=1_000_000, temperature=0.5, extra={"betas": ["one", "two"]}),
)


def said(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"content-type": "application/json"})


def failure(status: int, kind: str) -> Reply:
    return said({"type": "error", "error": {"type": kind, "message": "no"}}, status)


def made(base_url: str, name: str = "anthropic") -> Any:
    providers = {name: {"base_url": base_url, "api_key": "env:KEY"}}
    provider = registry.model(f"{name}:m", Config(environ={"KEY": "key-1"}, providers=providers))[0]
    return Retrying(provider.provider, base=0.001)


@pytest.mark.parametrize("base", ["", "/v1", "/v1/messages"])
async def test_anthropic_counts(base: str) -> None:
    async with FaultServer([said({"input_tokens": 403})]) as server:
        provider = made(server.url + base)
        assert await provider.count(REQUEST) == Usage(403)
        await provider.close()
        sent = server.requests[0]
    assert (sent.method, sent.target) == ("POST", "/v1/messages/count_tokens")
    assert (sent.headers["x-api-key"], sent.headers["anthropic-beta"]) == ("key-1", "one,two")
    asked = decode_count_request(sent.body)
    assert ([message.text for message in asked.messages], asked.system) == (["How many?"], "Be brief.")
    assert [tool.name for tool in asked.tools] == ["look"]
    assert set(json.loads(sent.body)) == {"model", "messages", "system", "tools"}


@pytest.mark.parametrize("name", ["groq", "ollama", "openai"])
async def test_who_cannot_count_is_not_asked(name: str) -> None:
    async with FaultServer([said({"input_tokens": 403})]) as server:
        provider = made(server.url, name)
        assert await provider.count(REQUEST) == Usage(estimate_tokens(REQUEST), estimated=True)
        await provider.close()
        assert server.requests == []


@pytest.mark.parametrize("broken", [Fin(), failure(529, "overloaded_error"), failure(429, "rate_limit_error")])
async def test_r19_a_count_is_asked_for_again_within_its_budget(broken: Step) -> None:
    async with FaultServer([broken, broken, said({"input_tokens": 5})]) as server:
        provider = made(server.url)
        with pytest.raises(ProviderError) as caught:
            await provider.count(Request(model="m", messages=[user("x")], budget=Budget(None, 2)))
        assert (caught.value.attempt, caught.value.max_attempts, len(server.requests)) == (2, 2, 2)
        assert await provider.count(REQUEST) == Usage(5)
        await provider.close()


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (said({}), WireError),
        (said({"input_tokens": -1}), WireError),
        (said({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}), OverloadedError),
        (Reply(200, b"<html>", {"content-type": "text/html"}), WireError),
        (failure(401, "authentication_error"), AuthError),
    ],
)
async def test_failures_are_typed_and_say_where(step: Step, kind: type[ProviderError]) -> None:
    async with FaultServer([step]) as server:
        provider = made(server.url).provider
        with pytest.raises(kind) as caught:
            await provider.count(REQUEST)
        await provider.close()
        error, where = caught.value, f"{server.url}/v1/messages/count_tokens"
    assert (error.provider, error.model, error.endpoint) == ("anthropic", REQUEST.model, where)


async def test_what_the_model_cannot_take_is_refused_before_anything_is_sent() -> None:
    async with FaultServer([said({"input_tokens": 5})]) as server:
        provider = made(server.url)
        odd = Message("user", (Blob(b"x", "application/zip", "document"),))
        with pytest.raises(UnsupportedInputError):
            await provider.count(Request(model="m", messages=[odd]))
        await provider.close()
        assert server.requests == []
