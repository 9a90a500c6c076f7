"""Models from Hugging Face's layout to GGUF and back; tokenizers with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.local.asking import ask, said
from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.convert import (
    gguf_to_hf,
    halves_to_pairs,
    hf_name,
    hf_to_gguf,
    llama_metadata,
    llama_shapes,
    load_hf,
    pairs_to_halves,
    write_llama,
)
from windlass.local.convert_tokenizer import CUTTERS, from_gguf_tokenizer, to_gguf_tokenizer
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions
from windlass.local.gguf import read_header
from windlass.local.gguf_data import GgufFile
from windlass.local.hf_folder import HfFolder, hf_config, hf_to_llama_config
from windlass.local.llama import Llama, LlamaConfig
from windlass.local.llama_gguf import llama_config, load_gguf
from windlass.local.safetensors import SafetensorsFile, read_safetensors, write_safetensors

TINY = embedded_model().path
CONFIG = LlamaConfig(
    vocab_size=300,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    feed_forward=48,
    context=64,
    rope_theta=500.0,
    norm_eps=1e-6,
)
TEXTS = [
    "The quick brown fox",
    "Ünïcödé — 東京 🦊!",
    "a  b\n\n\tc 12345 it's I'LL",
    "<|end|>x<tool>y",
    "",
    " lead",
    "\r\n\x00\x7f",
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokenizer(pre: str = "gpt-2", size: int = 290) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = Tokenizer.from_str(  # pyright: ignore[reportAttributeAccessIssue]
        msgspec.json.encode(
            {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": CUTTERS[pre]}
        ).decode()
    ).pre_tokenizer
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken("<|end|>", special=True, normalized=False)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(["the quick brown fox it's 12345 12345 the the quick   fox\n\n"] * 9, trainer)
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return made


def hf_folder(
    folder: Path, config: LlamaConfig = CONFIG, *, shards: int = 1, dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Write a folder as transformers does, with random weights; return them by Hugging Face's names."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    weights = {
        hf_name(name): (torch.randn(shape) * 0.3 + (len(shape) == 1)).to(getattr(torch, dtype))
        for name, shape in llama_shapes(config).items()
    }
    (folder / "config.json").write_bytes(msgspec.json.encode(hf_config(config, dtype)))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<|end|>"}, "bos_token": "<|end|>", "add_bos_token": false,'
        ' "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}'
    )
    names = sorted(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
        return weights
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, {name: weights[name] for name in names[number::shards]})
        index |= dict.fromkeys(names[number::shards], file)
    (folder / "model.safetensors.index.json").write_bytes(msgspec.json.encode({"metadata": {}, "weight_map": index}))
    return weights


def hf_forward(weights: dict[str, torch.Tensor], config: LlamaConfig, tokens: torch.Tensor) -> torch.Tensor:
    """Compute logits as transformers' LlamaForCausalLM does, rotary embeddings over the halves of a head."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps)

    size, count = config.head_size, tokens.shape[0]
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(count).float(), frequencies)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), -1)
        return x * cos + half * sin

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config.layers):
        w = {name.split(".", 3)[3]: t for name, t in weights.items() if name.startswith(f"model.layers.{layer}.")}
        y = norm(x, w["input_layernorm.weight"])
        q, k, v = (
            (y @ w[f"self_attn.{part}_proj.weight"].T).reshape(count, -1, size).transpose(0, 1) for part in "qkv"
        )
        k, v = (part.repeat_interleave(config.heads // config.kv_heads, 0) for part in (turned(k), v))
        out = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + out @ w["self_attn.o_proj.weight"].T
        y = norm(x, w["post_attention_layernorm.weight"])
        x = (
            x
            + (F.silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        )
    x = norm(x, weights["model.norm.weight"])
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_the_same_in_both_layouts(tmp_path: Path, tied: bool, shards: int) -> None:
    """The halves of Hugging Face's heads and the pairs of GGUF's compute the same, to rounding.

    The same was compared by hand with transformers itself: 6e-6 for the shipped model.
    """
    config = msgspec.structs.replace(CONFIG, tied=tied)
    weights = hf_folder(tmp_path / "hf", config, shards=shards)
    tokens = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(1))
    info = hf_to_gguf(tmp_path / "hf", tmp_path / "m.gguf", kind="F32")
    model, _ = load_gguf(tmp_path / "m.gguf")
    with torch.no_grad():
        wanted = hf_forward(weights, config, tokens)
        assert (model(tokens[None])[0] - wanted).abs().max() < 2e-5
        assert (load_hf(tmp_path / "hf")(tokens[None])[0] - wanted).abs().max() < 2e-5
        wrong = Llama(config)
        wrong.load_state_dict({n: weights[hf_name(n)] for n in llama_shapes(config)})
        assert (wrong(tokens[None])[0] - wanted).abs().max() > 0.01  # without the permutation it is another model
    assert llama_config(info) == config and info.metadata["general.name"] == "hf"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_there_and_back_every_tensor_is_the_same(tmp_path: Path, kind: Any) -> None:
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    weights = hf_folder(tmp_path / "hf", dtype=dtype)
    hf_to_gguf(tmp_path / "hf", tmp_path / "m.gguf", kind=kind)
    header = gguf_to_hf(tmp_path / "m.gguf", tmp_path / "back", kind=kind)
    assert {tensor.dtype for tensor in header.tensors} == {kind}
    with SafetensorsFile(tmp_path / "back" / "model.safetensors") as file:
        assert {*file} == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(file.torch(name), tensor), name
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert msgspec.json.decode((tmp_path / "back" / name).read_bytes())
    assert hf_to_llama_config(msgspec.json.decode((tmp_path / "back" / "config.json").read_bytes())) == CONFIG


def test_the_shipped_model_there_and_back(tmp_path: Path) -> None:
    """Q8_0 -> F32 -> Q8_0 is the same file but for what names it."""
    gguf_to_hf(TINY, tmp_path / "hf", kind="F32")
    hf_to_gguf(tmp_path / "hf", tmp_path / "m.gguf", kind="Q8_0", name="tiny-0")
    with GgufFile(TINY) as ours, GgufFile(tmp_path / "m.gguf") as again:
        for key in ours.info.metadata:
            assert again.raw_value(key) == ours.raw_value(key), key
        assert {t.name: t.type for t in again.info.tensors} == {t.name: t.type for t in ours.info.tensors}
        for tensor in ours.info.tensors:
            assert [p.tobytes() for p in again.raw(tensor.name)] == [p.tobytes() for p in ours.raw(tensor.name)]


async def test_the_engine_runs_a_converted_model(tmp_path: Path) -> None:
    hf_folder(tmp_path / "hf")
    hf_to_gguf(tmp_path / "hf", tmp_path / "m.gguf", kind="F32")
    model, _ = load_gguf(tmp_path / "m.gguf")
    made = tokenizer()
    ids: list[int] = made.encode("the quick brown").ids
    start = len(ids)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    engine = Engine(tmp_path / "m.gguf", EngineOptions(context=64, threads=1, gpu_layers=0, memory_map=False))
    answer = await ask(engine, said("the quick brown", max_tokens=8))
    engine.close()
    assert answer.usage["prompt_tokens"] == start  # the same tokenizer
    text = made.decode(ids[start:])
    cut = text.split("\ufffd")[0]  # the engine holds back what is no character yet
    assert answer.text.startswith(cut.strip()) or answer.text.strip().startswith(cut.strip())


@pytest.mark.parametrize("pre", CUTTERS)
def test_tokenizers_there_and_back_say_the_same(pre: str) -> None:
    made = tokenizer(pre)
    keys = to_gguf_tokenizer(msgspec.json.decode(made.to_str()), {"eos_token": "<|end|>"}, 300)
    assert keys["tokenizer.ggml.pre"] == pre and len(keys["tokenizer.ggml.tokens"]) == 300
    assert keys["tokenizer.ggml.add_bos_token"] is False
    size = made.get_vocab_size()
    fixed = made.token_to_id("<tool>")
    assert fixed == size - 1
    assert keys["tokenizer.ggml.token_type"][:size] == [3] + [1] * (size - 2) + [4]
    assert set(keys["tokenizer.ggml.token_type"][size:]) == {5} and keys["tokenizer.ggml.tokens"][-1] == "[PAD299]"
    document, side = from_gguf_tokenizer(keys)
    again = Tokenizer.from_str(msgspec.json.encode(document).decode())
    for text in TEXTS:
        assert again.encode(text).ids == made.encode(text).ids, text
        assert again.decode(again.encode(text).ids, skip_special_tokens=False) == made.decode(
            made.encode(text).ids, skip_special_tokens=False
        )
    assert side["eos_token"] == "<|end|>"
    assert to_gguf_tokenizer(document, side, 300) == keys


@pytest.mark.parametrize("pre", CUTTERS)
async def test_the_engine_cuts_words_as_the_tokenizers_library(tmp_path: Path, pre: str) -> None:
    """Counts of tokens of odd texts, through a model that holds nothing but the tokenizer's vocabulary."""
    made = tokenizer(pre)
    keys = to_gguf_tokenizer(msgspec.json.decode(made.to_str()), {"eos_token": "<|end|>"}, 300)
    keys["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = Llama(msgspec.structs.replace(CONFIG, layers=1, context=256))
    state = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    write_llama(tmp_path / "m.gguf", model.config, state, metadata=keys)
    engine = Engine(tmp_path / "m.gguf", EngineOptions(context=256, threads=1, gpu_layers=0, memory_map=False))
    for text in ["it's 12345 o'clock  and\n\n\tI'LL", "Ünïcödé — 東京 🦊! 3.14", " lead", "x<tool>y  z"]:
        answer = await ask(engine, said(text, max_tokens=1))
        assert answer.usage["prompt_tokens"] == len(made.encode(text).ids), text
    engine.close()


def test_a_text_may_begin_with_a_token() -> None:
    made = tokenizer()
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<|end|> $A", pair="<|end|> $A <|end|> $B:1", special_tokens=[("<|end|>", 0)]
    )
    keys = to_gguf_tokenizer(msgspec.json.decode(made.to_str()), {"bos_token": "<|end|>"}, 290)
    assert keys["tokenizer.ggml.add_bos_token"] is True and keys["tokenizer.ggml.bos_token_id"] == 0
    document, side = from_gguf_tokenizer(keys)
    again = Tokenizer.from_str(msgspec.json.encode(document).decode())
    assert again.encode("fox").ids == made.encode("fox").ids and again.encode("fox").ids[0] == 0
    assert side["add_bos_token"] is True


def changed(**fields: Any) -> dict[str, Any]:
    return {**msgspec.json.decode(tokenizer().to_str()), **fields}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "has no model"),
        (changed(model={"type": "Unigram"}), "'Unigram', not BPE"),
        (changed(model={"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True}), "not byte-level"),
        (changed(normalizer={"type": "Lowercase"}), "normalizer"),
        (changed(pre_tokenizer=None), "no name for"),
        (changed(pre_tokenizer={"type": "Whitespace"}), "no name for"),
        (changed(pre_tokenizer={**CUTTERS["gpt-2"], "add_prefix_space": True}), "no name for"),
        (changed(model={"type": "BPE", "vocab": {"a": 5000}, "merges": []}), "has the id 5000; the model has 300"),
        (changed(model={"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}), "stands for 'a' and for 'b'"),
        (changed(model={"type": "BPE", "vocab": {"a": True}, "merges": []}), "has the id True"),
        (changed(added_tokens=[{"id": 3, "content": "new"}]), "stands for"),
        (changed(added_tokens=[{"id": 0, "content": "<|end|>", "lstrip": True}]), "strips the text"),
        (changed(model={"type": "BPE", "vocab": {}, "merges": [["a", "b c"]]}), "holds a space"),
        (changed(model={"type": "BPE", "vocab": {}, "merges": ["abc"]}), "not of two tokens"),
    ],
)
def test_other_tokenizers_are_refused(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(LocalModelError, match=problem):
        to_gguf_tokenizer(document, {}, 300)


def test_other_keys_are_refused() -> None:
    good = to_gguf_tokenizer(changed(), {}, 300)
    for wrong in (
        {"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "viking"}, {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.tokens": ["a"] * 300},
    ):  # fmt: skip
        with pytest.raises(LocalModelError, match="cannot be converted"):
            from_gguf_tokenizer(good | wrong)
    with pytest.raises(LocalModelError, match="eos_token 'nope' is no token"):
        to_gguf_tokenizer(changed(), {"eos_token": "nope"}, 300)


def test_templates_and_ids_come_from_where_they_are(tmp_path: Path) -> None:
    hf_folder(tmp_path / "hf")
    info = hf_to_gguf(tmp_path / "hf", tmp_path / "a.gguf")
    assert info.chat_template.startswith("{% for m in messages")
    (tmp_path / "hf" / "chat_template.jinja").write_text("newer")
    (tmp_path / "hf" / "tokenizer_config.json").write_text("{}")
    config = hf_config(CONFIG) | {"eos_token_id": [7, 8], "bos_token_id": 5}
    (tmp_path / "hf" / "config.json").write_bytes(msgspec.json.encode(config))
    info = hf_to_gguf(tmp_path / "hf", tmp_path / "b.gguf", kind="q8_0", name="n")
    assert info.chat_template == "newer" and info.metadata["general.name"] == "n"
    assert (info.metadata["tokenizer.ggml.eos_token_id"], info.metadata["tokenizer.ggml.bos_token_id"]) == (7, 5)
    # Rows of 48 are not divided by 32.
    assert {t.name: t.type for t in info.tensors}["blk.0.ffn_down.weight"] == "F16"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert to_gguf_tokenizer(changed(), {"chat_template": several}, 300)["tokenizer.chat_template"] == "d"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"head_dim": 16}, "head_dim is 16, not 8"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"vocab_size": "300"}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(LocalModelError, match=problem):
        hf_to_llama_config(hf_config(CONFIG) | change)


def test_sizes_are_the_same_in_both_words(tmp_path: Path) -> None:
    assert hf_to_llama_config(hf_config(CONFIG)) == CONFIG
    newer = hf_config(CONFIG) | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": None}
    assert hf_to_llama_config(newer) == CONFIG
    model = Llama(CONFIG)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == llama_shapes(CONFIG)
    write_llama(tmp_path / "m.gguf", CONFIG, {n: t.numpy() for n, t in model.state_dict().items()}, kind="F32")
    assert llama_config(read_header(tmp_path / "m.gguf")) == CONFIG
    assert llama_metadata(CONFIG)["llama.rope.dimension_count"] == 8


def test_the_order_of_rows_there_and_back() -> None:
    rows = np.arange(2 * 8 * 3).reshape(16, 3)
    pairs = halves_to_pairs(rows, 2)
    assert pairs[:, 0].tolist()[:8] == [0, 12, 3, 15, 6, 18, 9, 21]  # 0 beside 4, 1 beside 5, ...
    assert (pairs_to_halves(pairs, 2) == rows).all()


def test_folders_that_lie(tmp_path: Path) -> None:
    good = tmp_path / "good"
    hf_folder(good, shards=2)

    def refused(problem: str, name: str, data: Any) -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        (folder / name).write_bytes(data if isinstance(data, bytes) else msgspec.json.encode(data))
        with pytest.raises(LocalModelError, match=problem):
            hf_to_gguf(folder, tmp_path / "m.gguf")

    index = "model.safetensors.index.json"
    mapping: dict[str, str] = msgspec.json.decode((good / index).read_bytes())["weight_map"]
    name = min(mapping)
    for bad in (
        "../good/model-00001-of-00002.safetensors",
        "/etc/passwd",
        "a\\b.safetensors",
        "c:x.safetensors",
        "x.bin",
    ):
        refused("not a safetensors file of the folder", index, {"weight_map": mapping | {name: bad}})
    refused("cannot be read", index, {"weight_map": mapping | {name: "missing.safetensors"}})
    swapped = "model-00002-of-00002.safetensors" if "00001" in mapping[name] else "model-00001-of-00002.safetensors"
    refused("and it is not", index, {"weight_map": mapping | {name: swapped}})
    refused("its files hold", index, {"weight_map": {k: v for k, v in mapping.items() if k != name}})
    refused("no weight_map", index, {"weight_map": [1]})
    refused("not a JSON object", index, [])
    refused("cannot be read", index, b"{")
    refused("cannot be read", "config.json", b"[" * 100_000)
    refused("longer than", "config.json", b" " * (2 << 20))
    refused("no tensor|that no llama has", "config.json", hf_config(CONFIG) | {"num_hidden_layers": 3})
    refused("that no llama has", "config.json", hf_config(CONFIG) | {"num_hidden_layers": 1})
    refused("is .* not ", "config.json", hf_config(CONFIG) | {"intermediate_size": 64})
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / "bad" / "x").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "bad")
        shutil.copytree(good, tmp_path / "bad")
        (tmp_path / "bad" / name).unlink()
        with pytest.raises(LocalModelError, match=f"has no {name}"):
            hf_to_gguf(tmp_path / "bad", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_s108_a_pickled_checkpoint_is_no_model(tmp_path: Path) -> None:
    hf_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(LocalModelError, match="pickled and never opened"):
        HfFolder(tmp_path / "hf")


def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    model = Llama(CONFIG)
    state: dict[str, Any] = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnknownNameError, match="'Q9'"):
        write_llama(tmp_path / "m.gguf", CONFIG, state, kind="Q9")
    with pytest.raises(ConfigError, match=r"missing \['output_norm"):
        write_llama(tmp_path / "m.gguf", CONFIG, {k: v for k, v in state.items() if k != "output_norm.weight"})
    with pytest.raises(UnknownNameError, match="'Q8_0'"):
        gguf_to_hf(TINY, tmp_path / "x", kind="Q8_0")  # pyright: ignore[reportArgumentType]
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalModelError, match="cannot be made"):
        gguf_to_hf(TINY, tmp_path / "file" / "x")
    with pytest.raises(LocalModelError):
        gguf_to_hf(tmp_path / "file", tmp_path / "x")
    assert read_safetensors(_with_more(tmp_path, state)).tensors
    with pytest.raises(LocalModelError, match="that no llama has"):
        load_hf(tmp_path / "more")


def _with_more(tmp_path: Path, state: dict[str, Any]) -> Path:
    """Write a folder with a tensor too many."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(hf_config(CONFIG)))
    write_safetensors(folder / "model.safetensors", {hf_name(n): t for n, t in state.items()} | {"x": np.ones(1)})
    return folder / "model.safetensors"
