"""Anthropic's token counting and list of models through its own SDK."""

from __future__ import annotations

import anthropic
import pytest

from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import refusal, reply, sent
from windlass.testing.faults import FaultServer


def client_of(made: InProcess, key: str = "any") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=made.url, api_key=key, max_retries=0)


def _claude(server: FaultServer) -> dict[str, object]:
    return {"claude": {"base_url": server.url, "dialect": "anthropic", "api_key": "k"}}


async def test_tokens_are_counted_by_the_vendor_that_counts(gateway: StartGateway) -> None:
    async with FaultServer([reply({"input_tokens": 41})]) as upstream:
        made = await gateway(providers=_claude(upstream), routes={"fast": "claude:c-1"})
        async with client_of(made) as client:
            counted = await client.messages.count_tokens(
                model="fast",
                system="be brief",
                messages=[{"role": "user", "content": "hi"}],
                tools=[{"name": "add", "input_schema": {"type": "object", "properties": {}}}],
            )
        assert counted.input_tokens == 41
        assert upstream.requests[0].target == "/v1/messages/count_tokens"
        assert sent(upstream)["model"] == "c-1" and "max_tokens" not in sent(upstream)
        (row,) = await made.gateway.accounts.usage("model")
        assert (row.name, row.requests, row.input_tokens, row.cost, row.unknown_cost) == ("claude:c-1", 1, 0, 0, 0)


async def test_tokens_are_estimated_where_nobody_counts(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with client_of(made) as client:
        answer = await client.messages.with_raw_response.count_tokens(
            model="parrot", messages=[{"role": "user", "content": "x" * 400}]
        )
        assert 100 <= (await answer.parse()).input_tokens <= 110
        assert answer.headers["x-windlass-model"] == "echo"
        with pytest.raises(anthropic.BadRequestError) as bad:
            await client.messages.count_tokens(model="parrot", messages=[{"role": "user", "content": 3}])  # pyright: ignore[reportArgumentType]
        assert "messages" in str(bad.value)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="nobody", messages=[{"role": "user", "content": "a"}])


async def test_a_vendor_that_fails_to_count_is_told_as_an_error_of_anthropic(gateway: StartGateway) -> None:
    async with FaultServer([refusal(500, "api_error")]) as upstream:
        made = await gateway(providers=_claude(upstream), routes={"fast": "claude:c-1"}, server={"attempts": 1})
        _, key = await made.gateway.accounts.create("k", models=["fast"])
        async with client_of(made, key) as client:
            with pytest.raises(anthropic.InternalServerError):
                await client.messages.count_tokens(model="fast", messages=[{"role": "user", "content": "a"}])
            with pytest.raises(anthropic.PermissionDeniedError):
                await client.messages.count_tokens(model="echo", messages=[{"role": "user", "content": "a"}])
        async with client_of(made, "wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.messages.count_tokens(model="fast", messages=[{"role": "user", "content": "a"}])
            assert isinstance(refused.value.body, dict) and refused.value.body["type"] == "error"


async def test_a_limit_of_tokens_does_not_stop_counting(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    _, key = await made.gateway.accounts.create("k", token_budget=50)
    async with client_of(made, key) as client:
        for _ in range(3):
            await client.messages.count_tokens(model="parrot", messages=[{"role": "user", "content": "x" * 4000}])
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(
                model="parrot", max_tokens=9, messages=[{"role": "user", "content": "x" * 4000}]
            )


async def test_models_in_anthropic_s_form(gateway: StartGateway) -> None:
    made = await gateway(routes={"a": "echo", "b": "echo", "c": "echo"})
    async with client_of(made) as client:
        page = await client.models.list(limit=2)
        assert [model.id for model in page.data] == ["a", "b"] and page.has_more
        assert [model.id async for model in client.models.list(limit=2)] == ["a", "b", "c", "local"]
        assert (await client.models.retrieve("b")).type == "model"
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.models.retrieve("z")
        assert isinstance(missing.value.body, dict) and missing.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            await client.models.list(limit=2000)
