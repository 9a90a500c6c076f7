"""Vectors from GGUF models: against a BERT computed in numpy, and the ways in which asking can go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.local.bert import POSITIONS, WIDTH, make_folder, states, token_ids
from windlass.core.errors import (
    BadRequestError,
    ConfigError,
    ContextExceededError,
    LocalModelError,
    UnsupportedInputError,
)
from windlass.core.ports import Embedder
from windlass.core.usage import Usage
from windlass.local import Encoder, GgufEmbedder, bert_to_gguf, embedded_model, read_header
from windlass.local.backend_native import NativeBackend
from windlass.local.supervisor import WorkerEngine

#: As the model's own tokenizer sees them: known words, pieces, unknown ones, Chinese characters, case and accents.
TEXTS = {
    "the cat sat on a mat .": "the cat sat on a mat .",
    "The Cats, sat!": "the cats , sat !",
    "walks walking xyz 日本 naïve": "walks walking xyz 日 本 naive",
    "dog": "dog",
    "a cat " * 15: "a cat " * 15,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("bert") / "tiny-bert"
    return path, make_folder(path)


@pytest.fixture(scope="module")
def model(folder: tuple[Path, dict[str, Any]]) -> Path:
    path = folder[0].parent / "tiny.gguf"
    bert_to_gguf(folder[0], path, "F32")
    return path


@pytest.fixture(scope="module")
def embedder(model: Path) -> Generator[GgufEmbedder]:
    made = GgufEmbedder(model)
    yield made
    made.close()


def pooled(made: dict[str, Any], text: str, how: str = "mean") -> Any:
    last = states(made, token_ids(text))
    vector = {"mean": last.mean(0), "cls": last[0], "last": last[-1]}[how]
    return vector / np.linalg.norm(vector)


def cosine(a: Any, b: Any) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# -------------------------------------------------------------------------------------------------------- vectors


async def test_vectors_are_those_of_the_model(folder: tuple[Path, dict[str, Any]], embedder: GgufEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    made = await embedder.embed(list(TEXTS))
    for vector, plain in zip(made.vectors, TEXTS.values(), strict=True):
        assert len(vector) == WIDTH and np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert cosine(vector, pooled(folder[1], plain)) > 0.9999
    tokens = sum([len(token_ids(plain)) for plain in TEXTS.values()])
    assert (made.model, made.usage) == ("tiny", Usage(tokens))
    assert np.allclose(await embedder.encode("dog"), made.vectors[3], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
async def test_pooling_is_the_folder_s_or_the_option_s(
    folder: tuple[Path, dict[str, Any]], model: Path, tmp_path: Path, pooling: Any
) -> None:
    name = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}[pooling]
    weights = make_folder(tmp_path / "own", name, prefix="")
    bert_to_gguf(tmp_path / "own", tmp_path / "own.gguf", "F32")
    for path, options in ((tmp_path / "own.gguf", {}), (model, {"pooling": pooling})):
        made = GgufEmbedder(path, **options)
        assert cosine(await made.encode("the cat sat"), pooled(weights, "the cat sat", pooling)) > 0.9999
        made.close()


async def test_without_normalising_the_length_is_the_model_s(folder: tuple[Path, dict[str, Any]], model: Path) -> None:
    made = GgufEmbedder(model, normalize=False)
    mean = states(folder[1], token_ids("the cat sat")).mean(0)
    assert np.allclose(await made.encode("the cat sat"), mean, atol=2e-3)
    made.close()


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
async def test_shorter_weights_stay_near(folder: tuple[Path, dict[str, Any]], tmp_path: Path, kind: str) -> None:
    info = bert_to_gguf(folder[0], tmp_path / "s.gguf", kind)
    kinds = {tensor.name: tensor.type for tensor in info.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["position_embd.weight"] == kinds["blk.0.attn_q.bias"] == "F32" and not any(
        "pooler" in n for n in kinds
    )
    made = GgufEmbedder(tmp_path / "s.gguf")
    assert cosine(await made.encode("the cat sat"), pooled(folder[1], "the cat sat")) > 0.999
    made.close()


async def test_many_texts_come_in_their_order(embedder: GgufEmbedder) -> None:
    texts = [f"{'cat ' * (n % 7 + 1)}{'dog ' * (n % 3)}" for n in range(45)]
    made = await embedder.embed(texts)
    alone = [await embedder.encode(text) for text in texts[30:36]]
    assert len(made.vectors) == 45 and np.allclose(made.vectors[30:36], alone, atol=1e-5)
    empty = await embedder.embed([])
    assert (empty.vectors, empty.usage) == ((), Usage())


async def test_a_model_made_for_text_gives_the_mean_of_its_tokens() -> None:
    shipped = embedded_model()
    made = GgufEmbedder(shipped.path, in_process=True, verify=shipped.verify)
    answer = await made.embed(["read the file", "read the files", "what time is it"])
    near, far = cosine(*answer.vectors[:2]), cosine(answer.vectors[0], answer.vectors[2])
    assert near > far and answer.usage.input_tokens > 6
    with pytest.raises(BadRequestError, match="empty"):
        await made.embed(["x", ""])
    made.close()


# ---------------------------------------------------------------------------------------------------- what goes wrong


async def test_a_text_that_does_not_fit_is_refused_or_cut_to_what_fits(
    folder: tuple[Path, dict[str, Any]], model: Path, embedder: GgufEmbedder
) -> None:
    long = "cat " * 100
    with pytest.raises(ContextExceededError, match=f"Text 1 has 102 tokens; the context of tiny holds {POSITIONS}"):
        await embedder.embed(["dog", long])
    cutting = GgufEmbedder(model, truncate=True)
    made = await cutting.embed([long, "dog", "Cat cat " * 19 + "cats"])
    assert cosine(made.vectors[0], pooled(folder[1], "cat " * (POSITIONS - 2))) > 0.9999
    assert cosine(made.vectors[1], pooled(folder[1], "dog")) > 0.9999
    assert made.usage == Usage(POSITIONS + 3 + POSITIONS)
    cutting.close()


async def test_dimensions_other_than_the_model_s_are_refused(embedder: GgufEmbedder) -> None:
    assert len((await embedder.embed(["dog"], dimensions=WIDTH)).vectors[0]) == WIDTH
    with pytest.raises(UnsupportedInputError, match=f"have {WIDTH} numbers, not 8"):
        await embedder.embed(["dog"], dimensions=8)
    with pytest.raises(BadRequestError, match="list"):
        await embedder.embed("dog")


async def test_files_that_are_no_models_and_unknown_poolings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    for path in ("bad.gguf", "missing.gguf"):
        with pytest.raises(LocalModelError):
            await GgufEmbedder(tmp_path / path).embed(["x"])
    with pytest.raises(ConfigError, match="pooling 'rank'"):
        GgufEmbedder("x.gguf", pooling="rank")  # pyright: ignore[reportArgumentType]


async def test_a_worker_that_dies_is_told_and_started_again(model: Path) -> None:
    made = GgufEmbedder(model)
    before = await made.encode("dog")
    engine = made.backend.chat_engine()
    assert isinstance(engine, WorkerEngine)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for _ in range(1000):
        if engine.pid != pid:
            break
        await asyncio.sleep(0.01)
    assert await made.encode("dog") == before
    made.close()
    assert await made.encode("dog") == before
    made.close()


async def test_another_s_backend_is_asked_and_stays_open(model: Path) -> None:
    backend = NativeBackend(model)
    made = GgufEmbedder(backend=backend, pooling="cls")
    first = await made.encode("dog")
    made.close()
    assert await made.encode("dog") == first
    backend.close()


# ------------------------------------------------------------------------------------------------- reference E's names


def test_the_encoder_of_reference_e(model: Path, folder: tuple[Path, dict[str, Any]]) -> None:
    with Encoder.init(model) as encoder:
        vector = encoder.encode("the cat")
        assert cosine(vector, pooled(folder[1], "the cat")) > 0.9999
        assert encoder.embed_batch(["the cat", "dog"])[0] == pytest.approx(vector)
        assert encoder.cosine_similarity(vector, vector) == pytest.approx(1)
        assert Encoder.cosine_similarity((1.0, 0.0), (0.0, 1.0)) == 0


# ----------------------------------------------------------------------------------------------------- the conversion


async def test_the_header_says_what_the_folder_says(model: Path) -> None:
    info = read_header(model)
    assert info.architecture == "bert" and info.context_length == POSITIONS
    assert info.metadata["bert.pooling_type"] == 1 and info.metadata["bert.attention.causal"] is False
    assert info.metadata["general.name"] == "tiny-bert"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "not absolute"),
        ({"hidden_act": "relu"}, "not GELU"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"vocab_size": 5}, "more than 5 tokens"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
    ],
    ids=["family", "positions", "activation", "layers", "size", "vocabulary", "epsilon"],
)
def test_models_that_would_compute_otherwise_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    make_folder(tmp_path / "m", **change)
    with pytest.raises(LocalModelError, match=says):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_cased_vocabularies_other_modules_and_other_pooling_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "m", "max_tokens")
    with pytest.raises(LocalModelError, match="pools by max_tokens"):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    (tmp_path / "m" / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(LocalModelError, match="module 'Dense'"):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    (tmp_path / "m" / "modules.json").write_text("{")
    with pytest.raises(LocalModelError, match=r"modules\.json cannot be read"):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    (tmp_path / "m" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(LocalModelError, match="cased"):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="Q4_K"):
        bert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "Q4_K")


def test_a_vocabulary_in_tokenizer_json_is_read_too(tmp_path: Path, model: Path) -> None:
    make_folder(tmp_path / "tiny-bert")
    tokens = (tmp_path / "tiny-bert" / "vocab.txt").read_text(encoding="utf-8").split()
    (tmp_path / "tiny-bert" / "vocab.txt").unlink()
    table = {token: at for at, token in enumerate(tokens)}

    (tmp_path / "tiny-bert" / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": table}}))
    bert_to_gguf(tmp_path / "tiny-bert", tmp_path / "m.gguf", "F32")
    assert (tmp_path / "m.gguf").read_bytes() == model.read_bytes()
