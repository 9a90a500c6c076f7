"""Torch, its GGUF file and the engine compute the same; so do the tokenizer and the one in the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.small_llama import (
    ONE_THREAD,
    TEXTS,
    Exact,
    differences,
    engine_tokens,
    llama,
    log_probabilities,
    tokenizer,
)
from windlass.local.engine import Native
from windlass.local.llama import Llama
from windlass.local.llama_gguf import load_gguf
from windlass.training.export import Dtype, export_gguf

TOKENIZER = tokenizer()
SIZE = TOKENIZER.vocab_size
A = TOKENIZER.id("a")
PROMPTS = [
    TOKENIZER.encode("The quick brown fox"),
    TOKENIZER.encode("".join(TEXTS))[:120],
    [TOKENIZER.id("<|im_start|>"), A],
    [A],
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_in_f32_are_equal_to_1e_5(tmp_path: Path, tied: bool) -> None:
    model = llama(SIZE, tied=tied)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
    spread = [float(np.ptp(log_probabilities(model, tokens))) for tokens in PROMPTS]
    assert min(spread) > 1.0  # not the even distribution, which any model would give
    assert differences(tmp_path / "m.gguf", model, PROMPTS, A) <= 1e-5


def test_a_long_rotary_base_and_other_shapes_are_equal_too(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = llama(SIZE).config
    changed = {"rope_theta": 500000.0, "norm_eps": 1e-6, "heads": 8, "kv_heads": 1, "layers": 3, "feed_forward": 96}
    model = Llama(msgspec.structs.replace(config, **changed)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=0.08)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
    assert differences(tmp_path / "m.gguf", model, PROMPTS, A) <= 1e-5
    assert load_gguf(tmp_path / "m.gguf")[0].config == model.config


# What rounding the matrices costs at this spread of weights, with room above what was measured (0.0016, 0.013, 0.047,
# 0.53); and what the engine computes against torch on the *same* rounded weights, which is how it multiplies: it rounds
# the activations too, to F16, BF16 or blocks of 8 bits.
@pytest.mark.parametrize(
    ("dtype", "to_own", "to_rounded"),
    [("f16", 5e-3, 5e-3), ("bf16", 3e-2, 3e-2), ("q8_0", 0.1, 0.1), ("q4_0", 1.5, 0.1)],
    ids=["f16", "bf16", "q8_0", "q4_0"],
)
def test_rounded_types_differ_by_what_is_stated(tmp_path: Path, dtype: Dtype, to_own: float, to_rounded: float) -> None:
    model = llama(SIZE)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype=dtype)
    own = differences(tmp_path / "m.gguf", model, PROMPTS, A)
    rounded = differences(tmp_path / "m.gguf", load_gguf(tmp_path / "m.gguf")[0], PROMPTS, A)
    print(dtype, own, rounded)
    assert 1e-5 < own <= to_own
    assert rounded <= to_rounded


def test_greedy_tokens_are_equal(tmp_path: Path) -> None:
    model = llama(SIZE, spread=0.15)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
    tokens, expected = PROMPTS[0], list[int]()
    for _ in range(24):
        expected.append(int(log_probabilities(model, tokens + expected).argmax()))
    with closing(Exact(tmp_path / "m.gguf")) as engine:
        got = [int(engine.next(tokens + expected[:n], SIZE, A).argmax()) for n in range(24)]
    assert got == expected
    assert len(set(expected)) > 3


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    path = tmp_path_factory.mktemp("tokens") / "m.gguf"
    export_gguf(llama(SIZE), TOKENIZER, path)
    native = Native(str(path), ONE_THREAD)
    yield native
    native.close()


PIECES = st.sampled_from(
    ["hello", " world", "\n", "\n\n", "  ", "\t", "é", "ß", "你好", "🙂", "👨‍👩‍👧", "\u00a0", "'s", "'LL", "123", "4",
     "x=1;", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<tool", "_call>", "<|im", "\u0301", "İ"]
)  # fmt: skip
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(text=st.one_of(ANY, st.lists(st.one_of(PIECES, ANY), max_size=8).map("".join)))
def test_the_engine_tokenizes_as_we_do(native: Native, text: str) -> None:
    assert engine_tokens(native, text, special=True) == TOKENIZER.encode(text, special=True)


def test_special_tokens_in_plain_text_stay_text_in_both(native: Native) -> None:
    text = "a<|im_start|>b <tool_call> <|endoftext|>\n"
    plain = TOKENIZER.encode(text, special=False)
    assert engine_tokens(native, text, special=False) == plain
    assert not {TOKENIZER.id(token) for token in TOKENIZER.special} & set(plain)
    assert TOKENIZER.id("<tool_call>") in plain


def test_checkpointing_gives_the_same_gradients() -> None:
    tokens = torch.tensor([PROMPTS[1]])
    grads: list[list[torch.Tensor]] = []
    for checkpointing in (False, True):
        model = llama(SIZE).train()
        model.checkpointing = checkpointing
        torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).backward()
        grads.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert len(grads[0]) == len(grads[1]) == 20
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
