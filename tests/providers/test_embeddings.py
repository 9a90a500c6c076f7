"""Embeddings of remote providers over a real loopback server that answers and fails as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from windlass.core import clock, registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ModelNotFoundError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    RateLimitError,
    UnsupportedInputError,
    WireError,
)
from windlass.core.ports import Embedder, Embeddings
from windlass.core.usage import Usage
from windlass.providers.embeddings import batches, joined
from windlass.providers.retry import Retrying
from windlass.testing.faults import BlackHole, FaultServer, Fin, Raw, Received, Reply, Rst, Step
from windlass.wire.embeddings import MAX_INPUTS, OLLAMA, OPENAI


def vector_of(text: str) -> tuple[float, ...]:
    return (float(len(text)), 0.5)


def answer(got: Received) -> Step:
    """Answer as the vendor of that path would."""
    dialect = OLLAMA if got.target == "/api/embed" else OPENAI
    asked = dialect.decode_request(got.body)
    made = Embeddings(tuple([vector_of(text) for text in asked.texts]), "m-9", Usage(len(asked.texts)))
    return said(dialect.encode_response(made, asked))


def said(body: bytes | str, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body.encode() if isinstance(body, str) else body
    return Reply(status, data, {"content-type": "application/json", **named})


def then(*first: Step) -> Callable[[Received], Step]:
    """Take these steps, then answer."""
    left = list(first)
    return lambda got: left.pop(0) if left else answer(got)


def failure(status: int, **headers: str) -> Reply:
    return said(json.dumps({"error": {"message": "no", "type": "error"}}), status, **headers)


def made(base_url: str, name: str = "groq", **more: Any) -> Any:
    providers = {name: {"base_url": base_url, "api_key": "env:KEY", **more}}
    provider = registry.model(f"{name}:m", Config(environ={"KEY": "key-1"}, providers=providers))[0]
    return Retrying(provider.provider, base=0.001)


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/api/v4"])
async def test_vectors_come_from_beside_the_models_endpoint(base: str) -> None:
    async with FaultServer(answer) as server:
        provider = made(server.url + base)
        got = await provider.embed(["ab", "c", "ab"], "m", dimensions=2)
        await provider.close()
        sent = server.requests[0]
    assert got == Embeddings((vector_of("ab"), vector_of("c"), vector_of("ab")), "m-9", Usage(3))
    assert sent.target == ("/api/v4/embeddings" if base == "/api/v4" else "/v1/embeddings")
    assert sent.headers["authorization"] == "Bearer key-1" and sent.headers["content-type"] == "application/json"
    assert json.loads(sent.body) == {"model": "m", "input": ["ab", "c", "ab"], "dimensions": 2}
    assert [isinstance(one, Embedder) for one in (provider, provider.provider)] == [True, True]


async def test_openai_is_asked_for_packed_numbers() -> None:
    async with FaultServer(answer) as server:
        provider = made(server.url, "openai")
        got = await provider.embed(["ab"], "m")
        await provider.close()
    assert json.loads(server.requests[0].body)["encoding_format"] == "base64"
    assert got.vectors == (vector_of("ab"),)


@pytest.mark.parametrize("dialect", ["openai-completions", "openai-chat"])
async def test_the_older_dialect_has_the_same_embeddings(dialect: str) -> None:
    async with FaultServer(answer) as server:
        provider = made(f"{server.url}/v1/", "mine", dialect=dialect)
        assert (await provider.embed(["ab"], "m")).vectors == (vector_of("ab"),)
        await provider.close()
    assert server.requests[0].target == "/v1/embeddings"


@pytest.mark.parametrize("dialect", ["ollama", "ollama-generate"])
async def test_ollama_embeds_and_no_other_model_stands_in(dialect: str) -> None:
    missing = said('{"error": "model \\"m\\" not found, try pulling it first"}', 404)
    async with FaultServer(then(missing)) as server:
        provider = made(server.url, "ollama", dialect=dialect)
        with pytest.raises(ModelNotFoundError, match="ollama pull m") as caught:
            await provider.embed(["ab"], "m")
        assert [sent.target for sent in server.requests] == ["/api/embed"]
        got = await provider.embed(["ab", "c"], "m", dimensions=2)
        await provider.close()
    assert (caught.value.provider, caught.value.model, caught.value.status) == ("ollama", "m", 404)
    assert got == Embeddings((vector_of("ab"), vector_of("c")), "m-9", Usage(2))
    assert json.loads(server.requests[1].body) == {"model": "m", "input": ["ab", "c"], "dimensions": 2}


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("name", "most"), [("groq", MAX_INPUTS), ("cohere", 96)])
async def test_more_than_a_vendor_takes_goes_in_batches_in_order(name: str, most: int) -> None:
    texts = ["x" * (at % 50) + "." for at in range(2 * most + 3)]
    async with FaultServer(answer) as server:
        for provider in (made(server.url, name), made(server.url, name).provider):
            got = await provider.embed(texts, "m")
            await provider.close()
            assert got == Embeddings(tuple([vector_of(text) for text in texts]), "m-9", Usage(len(texts)))
        sizes = [len(json.loads(sent.body)["input"]) for sent in server.requests]
    assert sizes == [most, most, 3] * 2


async def test_only_the_batch_that_failed_is_asked_again() -> None:
    seen: list[int] = []

    def step(got: Received) -> Step:
        seen.append(len(json.loads(got.body)["input"]))
        return failure(429, retry_after="0") if len(seen) == 2 else answer(got)

    async with FaultServer(step) as server:
        provider = made(server.url, "cohere")
        got = await provider.embed(["a"] * 96 + ["bb"], "m")
        await provider.close()
    assert seen == [96, 1, 1] and got.vectors[-1] == vector_of("bb") and got.usage == Usage(97)


async def test_no_texts_ask_nobody_and_one_bare_text_is_refused() -> None:
    async with FaultServer(answer) as server:
        provider = made(server.url)
        assert await provider.embed([], "m") == Embeddings((), "m", Usage())
        for asked in (provider, provider.provider):
            with pytest.raises(BadRequestError, match="list"):
                await asked.embed("text", "m")
        await provider.close()
        assert server.requests == []


def test_batches_are_joined_as_they_come() -> None:
    assert batches(["a"] * (MAX_INPUTS + 1), "x") == [["a"] * MAX_INPUTS, ["a"]]
    first = Embeddings(((1.0, 2.0),), "m", Usage(1))
    second = Embeddings(((3.0, 4.0),), "m", Usage(2, estimated=True))
    assert joined([first, second], "q") == Embeddings(((1.0, 2.0), (3.0, 4.0)), "m", Usage(3, estimated=True))
    with pytest.raises(WireError, match="different lengths"):
        joined([first, Embeddings(((3.0,),), "m")], "q")


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b"<html>Log in</html>",
        b'{"data": [{"embedding": [1]}]}',
        b'{"data": [{"embedding": [1]}, {"embedding": [1, 2]}]}',
        b'{"data": [{"embedding": [1]}, {"embedding": [null]}]}',
        b'{"data": [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}]}',
    ],
)  # fmt: skip
async def test_an_answer_that_does_not_hold_is_typed_and_not_asked_again(body: bytes) -> None:
    async with FaultServer([said(body)]) as server:
        provider = made(server.url)
        with pytest.raises(WireError) as caught:
            await provider.embed(["a", "b"], "m")
        await provider.close()
        assert len(server.requests) == 1
        error, where = caught.value, f"{server.url}/v1/embeddings"
    assert (error.provider, error.model, error.endpoint) == ("groq", "m", where)


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (302, WireError, 1),
        (400, BadRequestError, 1),
        (401, AuthError, 1),
        (404, ModelNotFoundError, 1),
        (429, RateLimitError, 3),
        (500, OverloadedError, 3),
    ],
)
async def test_r19_which_errors_are_asked_again(status: int, kind: type[ProviderError], attempts: int) -> None:
    async with FaultServer([failure(status)]) as server:
        provider = made(server.url)
        with pytest.raises(kind) as caught:
            await provider.embed(["a"], "m")
        await provider.close()
        assert len(server.requests) == attempts
        error, where = caught.value, f"{server.url}/v1/embeddings"
    assert (error.attempt, error.max_attempts, error.provider, error.model) == (attempts, 3, "groq", "m")
    assert error.endpoint == where


@pytest.mark.parametrize("broken", [Fin(), Rst(), failure(503), failure(429, retry_after="0"), Raw([b"HTTP/1.1 2"])])
async def test_r01_r02_a_lost_request_is_sent_again(broken: Step) -> None:
    async with FaultServer(then(broken)) as server:
        provider = made(server.url)
        assert (await provider.embed(["ab"], "m")).vectors == (vector_of("ab"),)
        await provider.close()
        assert len(server.requests) == 2


async def test_r04_a_refused_connection_is_typed() -> None:
    async with FaultServer(answer) as server:
        url = server.url
    provider = made(url, "llama_cpp")
    with pytest.raises(ProviderConnectionError, match="running") as caught:
        await provider.embed(["a"], "m")
    await provider.close()
    assert (caught.value.attempt, caught.value.endpoint) == (3, f"{url}/v1/embeddings")


async def test_r17_waits_are_kept_to_and_an_absurd_one_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(clock, "sleep", no_sleep)
    async with FaultServer(then(failure(429, retry_after="2"), failure(429, retry_after="1000000"))) as server:
        provider = made(server.url)
        with pytest.raises(RateLimitError) as caught:
            await provider.embed(["a"], "m")
        await provider.close()
    assert waits == [2.0] and caught.value.retry_after == 1e6 and caught.value.attempt == 2


async def test_r19_a_refused_credential_is_renewed_once() -> None:
    async with FaultServer(then(failure(401))) as server:
        provider = made(server.url)

        async def refresh() -> bool:
            provider.provider.headers["authorization"] = "Bearer key-2"
            return True

        provider.provider.refresh = refresh
        await provider.embed(["a"], "m")
        await provider.close()
    assert [sent.headers["authorization"] for sent in server.requests] == ["Bearer key-1", "Bearer key-2"]


async def test_r20_failures_share_the_allowance_of_the_streams() -> None:
    async with FaultServer([failure(503)]) as server:
        provider = made(server.url)
        for _ in range(20):
            with pytest.raises(OverloadedError):
                await provider.embed(["a"], "m")
        await provider.close()
        assert 20 < len(server.requests) <= 24


async def test_a_provider_without_embeddings_says_so_before_anything_is_sent() -> None:
    async with FaultServer(answer) as server:
        provider = made(server.url, "anthropic")
        with pytest.raises(UnsupportedInputError, match="anthropic has no embeddings"):
            await provider.embed(["a"], "m")
        await provider.close()
        assert server.requests == []


async def test_a_cancelled_request_closes_its_connection() -> None:
    arrived = asyncio.Event()

    def step(got: Received) -> Step:
        arrived.set()
        return BlackHole()

    async with FaultServer(step) as server:
        provider = made(server.url)
        task = asyncio.create_task(provider.embed(["a"], "m"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with clock.deadline(5):
            while server.open:
                await asyncio.sleep(0)
        assert len(server.requests) == 1
        await provider.close()
