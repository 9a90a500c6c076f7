"""Going on with models that exist: what is read, what is kept, what comes out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from tests.training.small_llama import ONE_THREAD, TEXTS, engine_tokens, llama, log_probabilities, tokenizer
from windlass.core.errors import ConfigError, LocalModelError
from windlass.core.events import Log, TrainStep
from windlass.local.convert import load_hf
from windlass.local.embedded import embedded_model
from windlass.local.engine import Native
from windlass.local.gguf import read_header
from windlass.local.llama import Llama
from windlass.local.llama_gguf import load_gguf
from windlass.training.config import TrainConfig
from windlass.training.export import Dtype, export_gguf, export_hf
from windlass.training.finetune import adapt, load_base
from windlass.training.lora import lora_layers
from windlass.training.sources import TextSource
from windlass.training.tokenizer import Tokenizer
from windlass.training.trainer import Trainer

TOKENIZER = tokenizer()
SIZE = TOKENIZER.vocab_size
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_every_written_type_is_read_back(tmp_path: Path, dtype: Dtype) -> None:
    model = llama(SIZE, tied=dtype != "bf16")
    info = export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype=dtype, name="small", chat_template=TEMPLATE)
    again, metadata = load_gguf(tmp_path / "m.gguf")
    assert again.config == model.config
    assert metadata["general.name"] == "small"
    assert info.chat_template == TEMPLATE
    kinds = {tensor.type for tensor in info.tensors if len(tensor.dims) == 2}
    assert kinds == {dtype.upper()}
    assert {tensor.type for tensor in info.tensors if len(tensor.dims) == 1} == {"F32"}
    close = {"f32": 0.0, "f16": 3e-4, "bf16": 3e-3, "q8_0": 3e-3, "q4_0": 0.06}[dtype]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=close, rtol=0)
    # Learning on is possible: the tensors are its own.
    again(torch.tensor([[1, 2]])).sum().backward()


def test_a_folder_for_hugging_face_comes_back(tmp_path: Path) -> None:
    model = llama(SIZE)
    folder = export_hf(model, tmp_path / "hf", TOKENIZER)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    base = load_base(folder)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(base.model(tokens), model(tokens))
    assert base.tokenizer is not None
    assert base.tokenizer.encode("".join(TEXTS)) == TOKENIZER.encode("".join(TEXTS))
    stored = load_file(folder / "model.safetensors")
    # Head 1, of size 16: its pair 3.
    ours = model.state_dict()["blk.0.attn_k.weight"]
    assert torch.equal(stored["model.layers.0.self_attn.k_proj.weight"][16 + 8 + 3], ours[16 + 7])


def test_a_gguf_base_brings_its_tokenizer(tmp_path: Path) -> None:
    export_gguf(llama(SIZE), TOKENIZER, tmp_path / "m.gguf", chat_template=TEMPLATE)
    base = load_base(tmp_path / "m.gguf")
    assert base.tokenizer is not None
    assert base.note == ""
    for text in ["".join(TEXTS), "<|im_start|>a<tool_call>\n", "  \t é"]:
        assert base.tokenizer.encode(text) == TOKENIZER.encode(text)
        assert base.tokenizer.encode(text, special=False) == TOKENIZER.encode(text, special=False)
    assert (base.tokenizer.eos, base.tokenizer.chat_template) == ("<|endoftext|>", TEMPLATE)


def test_the_shipped_model_is_a_base_and_keeps_its_keys(tmp_path: Path) -> None:
    path = embedded_model().path
    base = load_base(path)
    assert base.tokenizer is not None
    export_gguf(base.model, None, tmp_path / "again.gguf", dtype="q8_0", name="tiny-0", tokenizer_of=path)
    one, two = read_header(path).metadata, read_header(tmp_path / "again.gguf").metadata
    changed = {key for key in one if one[key] != two.get(key)}
    assert changed == set()
    text = "<|im_start|>user\nread notes.txt<|im_end|>\n"
    with closing(Native(str(path), ONE_THREAD)) as native:
        assert engine_tokens(native, text, special=True) == base.tokenizer.encode(text)


def test_a_tokenizer_of_another_kind_is_copied_by_the_export(tmp_path: Path) -> None:
    export_gguf(llama(SIZE), TOKENIZER, tmp_path / "m.gguf")
    # As SentencePiece models are written; the pieces do not matter here.
    writer = GGUFWriter(tmp_path / "spm.gguf", "llama")
    for key, value in read_header(tmp_path / "m.gguf").metadata.items():
        if key.startswith("llama.") and isinstance(value, int):
            writer.add_uint32(key, value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"▁{number}" for number in range(SIZE)])
    writer.add_token_scores([float(-number) for number in range(SIZE)])
    for name, tensor in llama(SIZE).state_dict().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = load_base(tmp_path / "spm.gguf")
    assert base.tokenizer is None
    assert "must be tokens" in base.note
    info = export_gguf(base.model, None, tmp_path / "out.gguf", tokenizer_of=tmp_path / "spm.gguf")
    assert info.metadata["tokenizer.ggml.model"] == "llama"
    assert (
        info.metadata["tokenizer.ggml.scores"] == read_header(tmp_path / "spm.gguf").metadata["tokenizer.ggml.scores"]
    )
    with pytest.raises(ConfigError, match="has 300 tokens, the model 64"):
        export_gguf(llama(64), None, tmp_path / "no.gguf", tokenizer_of=tmp_path / "spm.gguf")


def tuned(base: Path, out: Path, **options: Any) -> tuple[Trainer, list[float], list[str]]:
    """Train a few steps on one text; return the trainer, its losses and its notes."""
    chosen = TrainConfig(
        base=str(base), lr=2e-2, min_lr=0.0, schedule="constant", batch_size=4, max_steps=12, seq_len=16, device="cpu",
        early_stopping_patience=0, epochs=100, export_gguf_path=str(out), **options,
    )  # fmt: skip
    source = TextSource(TEXTS, TOKENIZER, 16)
    trainer = Trainer(chosen, source=source)
    events = list(trainer.run())
    losses = [event.metrics["loss"] for event in events if isinstance(event, TrainStep)]
    return trainer, losses, [event.message for event in events if isinstance(event, Log)]


def test_adapters_are_tuned_on_a_gguf_base_resumed_and_exported(tmp_path: Path) -> None:
    export_gguf(llama(SIZE), TOKENIZER, tmp_path / "base.gguf", dtype="f32", chat_template=TEMPLATE)
    options: dict[str, Any] = {"lora_rank": 4, "checkpoint_path": str(tmp_path / "ck"), "checkpoint_interval": 6}
    trainer, losses, notes = tuned(tmp_path / "base.gguf", tmp_path / "out.gguf", **options)
    assert losses[-1] < losses[0] - 0.5
    assert f"Wrote {tmp_path / 'out.gguf'}." in notes
    assert isinstance(trainer.model, Llama)
    # The file holds the merged model, with the base's tokenizer and template.
    merged, _ = load_gguf(tmp_path / "out.gguf")
    assert len(merged.state_dict()) == 20
    tokens = TOKENIZER.encode(TEXTS[0])
    trainer.model.eval()
    ours = log_probabilities(trainer.model, tokens)
    assert np.abs(log_probabilities(merged, tokens) - ours).max() < 0.02
    assert np.abs(log_probabilities(load_base(tmp_path / "base.gguf").model, tokens) - ours).max() > 0.5
    assert read_header(tmp_path / "out.gguf").chat_template == TEMPLATE
    # Taken up from the middle, it ends bit by bit where it ended.
    source, changes = TextSource(TEXTS, TOKENIZER, 16), {"checkpoint_path": None, "checkpoint_interval": 0}
    again = Trainer.load(tmp_path / "ck" / "step-00000006", changes=changes, source=source)
    assert len(list(lora_layers(again.model))) == 14  # pyright: ignore[reportArgumentType]
    late = [event.metrics["loss"] for event in again.run() if isinstance(event, TrainStep)]
    assert late == losses[6:]


def test_all_of_a_folders_model_is_tuned(tmp_path: Path) -> None:
    folder = export_hf(llama(SIZE), tmp_path / "hf", TOKENIZER)
    _, losses, _ = tuned(folder, tmp_path / "out.gguf")
    assert losses[-1] < losses[0] - 1
    before, after = load_hf(folder).state_dict(), load_gguf(tmp_path / "out.gguf")[0].state_dict()
    assert not any(torch.allclose(before[name], after[name], atol=1e-4) for name in before)


def test_adapters_start_from_the_seed_alone() -> None:
    drawn: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        model = llama(SIZE)
        torch.manual_seed(len(drawn))
        state = torch.random.get_rng_state()
        adapt(model, TrainConfig(lora_rank=2, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        drawn.append(dict(lora_layers(model))["blk.0.attn_q"].lora_a.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ConfigError, match="for llama models"):
        adapt(torch.nn.Linear(2, 2), TrainConfig(lora_rank=2))


def _with(path: Path, change: dict[str, Any], drop: str = "", add: str = "") -> Path:
    """Write a small model in which metadata or tensors are not what they should be."""
    export_gguf(llama(SIZE), TOKENIZER, path.with_name("good.gguf"), dtype="f32")
    good, out = read_header(path.with_name("good.gguf")), path
    writer = GGUFWriter(out, change.pop("general.architecture", "llama"))
    values = {key: value for key, value in good.metadata.items() if key.startswith("llama.")} | change
    for key, value in values.items():
        adder = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        adder[type(value)](key, value)
    for name, tensor in llama(SIZE).state_dict().items():
        if name != drop:
            writer.add_tensor(name, tensor.numpy())
    if add:
        writer.add_tensor(add, np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(
    ("change", "drop", "add", "match"),
    [
        ({"general.architecture": "qwen2"}, "", "", "architecture is 'qwen2'"),
        ({"llama.expert_count": 8}, "", "", "expert_count is 8"),
        ({"llama.rope.scaling.type": "yarn"}, "", "", "rope.scaling.type is 'yarn'"),
        ({"llama.block_count": 4_000_000}, "", "", "4000000 layers cannot be made of 20 tensors"),
        ({"llama.block_count": 1}, "", "", "tensors that the torch model has not, such as 'blk.1"),
        ({"llama.attention.head_count": 5}, "", "", "5 heads cannot share 2"),
        ({"llama.attention.head_count": 0}, "", "", "head_count is 0"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "", "", "epsilon is nan"),
        ({"llama.rope.dimension_count": 8}, "", "", "dimension_count is 8"),
        ({"llama.feed_forward_length": 96}, "", "", r"ffn_gate.weight' is \(128, 64\), not \(96, 64\)"),
        ({}, "blk.1.ffn_up.weight", "", "1 tensors are missing, such as .blk.1"),
        ({}, "token_embd.weight", "", "no table of token embeddings"),
        ({}, "", "blk.0.attn_q.bias", "such as 'blk.0.attn_q.bias'"),
        ({}, "", "rope_freqs.weight", "such as 'rope_freqs.weight'"),
    ],
    ids=["arch", "experts", "yarn", "layers", "fewer-layers", "heads", "no-heads", "nan", "rotary", "shape", "missing",
         "no-embedding", "bias", "rope-freqs"],
)  # fmt: skip
def test_what_is_not_a_plain_llama_is_refused(
    tmp_path: Path, change: dict[str, Any], drop: str, add: str, match: str
) -> None:
    path = _with(tmp_path / "odd.gguf", dict(change), drop, add)
    with pytest.raises(LocalModelError, match=match):
        load_gguf(path)


def test_bases_that_are_no_models_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(LocalModelError, match="weights alone"):
        load_base(tmp_path / "model.safetensors")
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(LocalModelError, match="zip archive"):
        load_base(tmp_path / "m.pt")
    with pytest.raises(LocalModelError, match=r"config\.json"):
        load_base(tmp_path)


def test_exports_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match="without a tokenizer"):
        export_gguf(llama(SIZE), None, out)
    with pytest.raises(ConfigError, match="has 300 tokens, the model 64"):
        export_gguf(llama(64), TOKENIZER, out)
    with pytest.raises(ConfigError, match="'f8' is no type"):
        export_gguf(llama(SIZE), TOKENIZER, out, dtype="f8")  # pyright: ignore[reportArgumentType]
    broken = llama(SIZE)
    with torch.no_grad():
        broken.state_dict()["blk.0.ffn_up.weight"][0, 0] = float("nan")
    with pytest.raises(ConfigError, match="holds infinities"):
        export_gguf(broken, TOKENIZER, out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LocalModelError, match="cannot be written"):
        export_gguf(llama(SIZE), TOKENIZER, tmp_path / "no" / "m.gguf")


def test_a_model_wider_than_its_tokenizer_gets_unused_tokens(tmp_path: Path) -> None:
    model = llama(SIZE + 20)
    info = export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
    assert info.metadata["tokenizer.ggml.tokens"].count == SIZE + 20
    with closing(Native(str(tmp_path / "m.gguf"), ONE_THREAD)) as native:
        assert engine_tokens(native, TEXTS[1], special=True) == TOKENIZER.encode(TEXTS[1])


def test_extra_keys_are_added_and_replace_the_tokenizers(tmp_path: Path) -> None:
    extra = {"general.license": "mit", "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1}
    info = export_gguf(llama(SIZE), TOKENIZER, tmp_path / "m.gguf", extra_metadata=extra)
    assert {key: info.metadata[key] for key in extra} == extra


def test_trained_tokenizers_without_merges_can_be_exported(tmp_path: Path) -> None:
    bare = Tokenizer.train(["ab"], 257)
    info = export_gguf(llama(bare.vocab_size), bare, tmp_path / "m.gguf", dtype="f32")
    assert msgspec.json.encode(info.text("tokenizer.ggml.model")) == b'"gpt2"'
