"""`/v1/embeddings` with a GGUF file on this machine, through OpenAI's own SDK."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.local.bert import WIDTH, make_folder
from tests.server.conftest import StartGateway
from windlass.core.vectors import cosine_similarity, norm
from windlass.local import Encoder, bert_to_gguf


async def test_a_route_to_a_gguf_file_answers_embeddings(gateway: StartGateway, tmp_path: Path) -> None:
    make_folder(tmp_path / "tiny")
    path = tmp_path / "tiny.gguf"
    bert_to_gguf(tmp_path / "tiny", path)
    made = await gateway(routes={"vectors": f"local:{path}"})
    async with openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="any", max_retries=0) as client:
        packed = await client.embeddings.create(model="vectors", input=["the cat sat", "the cat sat on", "dog !"])
        plain = await client.embeddings.create(model="vectors", input="the cat sat", encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="102 tokens"):
            await client.embeddings.create(model="vectors", input="cat " * 100)
        with pytest.raises(openai.BadRequestError, match="cannot be cut"):
            await client.embeddings.create(model="vectors", input="cat", dimensions=8)
        # A client may not choose files of the machine.
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model=f"local:{path}x.gguf", input="cat")
    first, near, far = [row.embedding for row in packed.data]
    assert [len(first), norm(first)] == [WIDTH, pytest.approx(1, abs=1e-5)]
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-5)
    assert cosine_similarity(first, near) > cosine_similarity(first, far)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 5 + 6 + 4
    with Encoder.init(path) as encoder:
        assert cosine_similarity(encoder.encode("the cat sat"), first) > 0.9999
