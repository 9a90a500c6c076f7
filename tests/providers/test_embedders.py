"""Embeddings of Hugging Face's own task over a loopback server, and of local models behind the port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.local.bert import WIDTH, make_folder
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    ProviderError,
    UnsupportedInputError,
    WireError,
)
from windlass.core.ports import Embedder, Embeddings
from windlass.core.usage import Usage
from windlass.local import bert_to_gguf
from windlass.providers.local import LocalProvider
from windlass.testing.faults import FaultServer, Reply

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def said(data: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(data).encode(), {"content-type": "application/json"})


def hub(server: FaultServer) -> Any:
    config = Config(environ={"HF_TOKEN": "hf_x"}, providers={"huggingface": {"base_url": f"{server.url}/v1"}})
    provider, model = registry.embedder(f"huggingface:{MODEL}", config)
    assert isinstance(provider, Embedder) and model == MODEL
    return provider


# --------------------------------------------------------------------------------------------------- Hugging Face


async def test_the_router_s_feature_extraction_is_asked_beside_the_chat() -> None:
    async with FaultServer([said([[0.5, 1], [2, -0.25]])]) as server:
        provider = hub(server)
        got = await provider.embed(["Hello, world", "b"], MODEL)
        await provider.close()
    [sent] = server.requests
    assert sent.target == f"/hf-inference/models/{MODEL}/pipeline/feature-extraction"
    assert sent.headers["authorization"] == "Bearer hf_x" and json.loads(sent.body) == {"inputs": ["Hello, world", "b"]}
    assert got == Embeddings(((0.5, 1.0), (2.0, -0.25)), MODEL, Usage(4, estimated=True))


async def test_vectors_of_tokens_are_averaged_and_single_ones_unpacked() -> None:
    tokens = [[1.0, 0.0], [3.0, 1.0]]
    async with FaultServer(
        [said([tokens, [[5.0, 5.0]]]), said([[tokens], [[[7.0, 1.0]]]]), said([0.5, 0.25])]
    ) as server:
        provider = hub(server)
        assert (await provider.embed(["a", "b"], MODEL)).vectors == ((2.0, 0.5), (5.0, 5.0))
        assert (await provider.embed(["a", "b"], MODEL)).vectors == ((2.0, 0.5), (7.0, 1.0))
        assert (await provider.embed(["a"], MODEL)).vectors == ((0.5, 0.25),)
        await provider.close()


async def test_many_texts_go_in_batches_in_order() -> None:
    async with FaultServer(lambda got: said([[float(text)] for text in json.loads(got.body)["inputs"]])) as server:
        provider = hub(server)
        got = await provider.embed([str(n) for n in range(70)], MODEL)
        assert await provider.embed([], MODEL) == Embeddings((), MODEL, Usage())
        await provider.close()
    assert got.vectors == tuple([(float(n),) for n in range(70)])
    assert [len(json.loads(sent.body)["inputs"]) for sent in server.requests] == [32, 32, 6]


BROKEN: list[Any] = [
    {}, [], [[0.1]], [[1], [2], [3]], [["a"], ["b"]], [[], []], [[1, 2], [1]], [[[1, 2], [1]], [[1, 2]]], [None, None],
    [[True], [False]], [[[]], [[]]], "text",
]  # fmt: skip


@pytest.mark.parametrize("answer", BROKEN, ids=[json.dumps(each)[:24] for each in BROKEN])
async def test_an_answer_that_holds_no_vectors_is_told(answer: Any) -> None:
    async with FaultServer([said(answer)]) as server:
        provider = hub(server)
        with pytest.raises(WireError) as caught:
            await provider.embed(["a", "b"], MODEL)
        await provider.close()
    assert caught.value.provider == "huggingface" and "feature-extraction" in str(caught.value.endpoint)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthError), (404, ModelNotFoundError), (400, BadRequestError)], ids=["401", "404", "400"]
)
async def test_refusals_are_typed(status: int, kind: type[ProviderError]) -> None:
    async with FaultServer([said({"error": f"Model {MODEL} does not exist"}, status)]) as server:
        provider = hub(server)
        with pytest.raises(kind, match="does not exist"):
            await provider.embed(["a"], MODEL)
        with pytest.raises(UnsupportedInputError, match="own length"):
            await provider.embed(["a"], MODEL, dimensions=8)
        await provider.close()
    assert len(server.requests) == 1


async def test_a_server_of_one_s_own_speaks_openai_s_embeddings() -> None:
    """Text Embeddings Inference: any `[providers.NAME]` that is not the hub itself."""
    row = {"object": "embedding", "index": 0, "embedding": [0.5]}
    body = {"object": "list", "data": [row], "model": "tei", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    async with FaultServer([said(body)]) as server:
        provider, model = registry.embedder("mine:x", Config(environ={}, providers={"mine": {"base_url": server.url}}))
        assert (await provider.embed(["a"], model)).vectors == ((0.5,),)
        await provider.close()
    assert server.requests[0].target == "/v1/embeddings"


# ----------------------------------------------------------------------------------------------------------- local


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    make_folder(folder / "tiny")
    bert_to_gguf(folder / "tiny", folder / "tiny.gguf")
    return folder / "tiny.gguf"


async def test_a_local_file_is_an_embedder_by_name(model: Path) -> None:
    provider, path = registry.embedder(f"local:{model}", Config(environ={}))
    assert isinstance(provider, LocalProvider) and isinstance(provider, Embedder) and path == str(model)
    got = await provider.embed(["the cat", "dog"], path)
    assert (
        [len(vector) for vector in got.vectors] == [WIDTH, WIDTH] and got.usage == Usage(4 + 3) and got.model == "tiny"
    )
    with pytest.raises(ContextExceededError):
        await provider.embed(["cat " * 100], path)
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        await provider.embed(["a"], str(model.with_name("gone.gguf")))
    (model.parent / "bad.gguf").write_bytes(b"no model at all")
    with pytest.raises(ProviderError):
        await provider.embed(["a"], str(model.with_name("bad.gguf")))
    provider.close()


async def test_the_built_in_model_embeds_too_and_clients_choose_no_files(model: Path) -> None:
    provider = LocalProvider(any_path=False)
    got = await provider.embed(["read the file"], "tiny-0")
    assert len(got.vectors[0]) == 256 and got.model == "tiny-0"
    with pytest.raises(ModelNotFoundError):
        await provider.embed(["a"], str(model))
    provider.close()
