"""LoRA: what learns, what stays, and that files mean the same to torch, the engine and a reader of PEFT's names."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.small_llama import Exact, ask_native, differences, llama, log_probabilities, tokenizer
from windlass.core.errors import ConfigError, LocalModelError
from windlass.local.engine import Adapter, EngineOptions, Native
from windlass.local.gguf import read_header
from windlass.local.llama import Llama
from windlass.local.llama_gguf import load_gguf
from windlass.training.export import export_gguf
from windlass.training.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    lora_layers,
    merge_lora,
    merged_state,
    unmerge_lora,
)
from windlass.training.lora_files import export_lora, load_lora, save_lora

TOKENIZER = tokenizer()
SIZE, A = TOKENIZER.vocab_size, TOKENIZER.id("a")
PROMPTS = [TOKENIZER.encode("The quick brown fox"), TOKENIZER.encode("naïve café"), [A]]


def adapted(model: Llama, config: LoraConfig | None = None, spread: float = 0.1) -> Llama:
    """Add adapters that do something."""
    add_lora(model, config or LoraConfig(rank=4, alpha=8.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_b.normal_(std=spread)
    return model


def logits(model: Llama) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([PROMPTS[0]]))


def test_a_new_adapter_changes_nothing_and_alone_learns() -> None:
    model = llama(SIZE)
    before, frozen = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, LoraConfig(rank=2))
    assert torch.equal(logits(model), before)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(learned) == 2 * 7 * 2
    assert sum(weight.numel() for weight in learned) < model.config.parameters / 10
    optimizer = torch.optim.AdamW(learned, lr=0.05)
    tokens = torch.tensor([PROMPTS[0]])
    losses: list[float] = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1  # what it can: the embeddings are frozen
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_only_the_named_matrices_get_adapters() -> None:
    model = add_lora(llama(SIZE), LoraConfig(targets=("attn_q", "attn_v")))
    assert [name for name, _ in lora_layers(model)] == ["blk.0.attn_q", "blk.0.attn_v", "blk.1.attn_q", "blk.1.attn_v"]
    assert isinstance(model.blk[0].attn_q, LoraLinear)
    assert isinstance(model.blk[0].ffn_up, torch.nn.Linear)


def test_dropout_is_for_training_alone() -> None:
    model = adapted(llama(SIZE), LoraConfig(dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_merged_computes_the_same_and_unmerged_is_bit_by_bit_what_it_was() -> None:
    model = adapted(llama(SIZE))
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = Llama(model.config).eval()
    plain.load_state_dict(merged_state(model))
    merge_lora(model)
    merge_lora(model)
    assert not torch.equal(model.state_dict()["blk.0.attn_q.weight"], weights["blk.0.attn_q.weight"])
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(plain), logits(model))
    unmerge_lora(model)
    unmerge_lora(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_engine_with_the_adapter_computes_what_torch_does(tmp_path: Path) -> None:
    model = llama(SIZE)
    export_gguf(model, TOKENIZER, tmp_path / "base.gguf", dtype="f32")
    plain = [log_probabilities(model, tokens) for tokens in PROMPTS]
    info = export_lora(adapted(model), tmp_path / "adapter.gguf")
    assert info.metadata["adapter.lora.alpha"] == 8.0
    changed = max(
        float(np.abs(log_probabilities(model, tokens) - before).max())
        for tokens, before in zip(PROMPTS, plain, strict=True)
    )
    assert changed > 0.05
    assert differences(tmp_path / "base.gguf", model, PROMPTS, A, adapter=tmp_path / "adapter.gguf") <= 1e-5
    # Merged into the weights it is the same model.
    export_gguf(model, TOKENIZER, tmp_path / "merged.gguf", dtype="f32")
    assert {tensor.name for tensor in read_header(tmp_path / "merged.gguf").tensors} == {
        tensor.name for tensor in read_header(tmp_path / "base.gguf").tensors
    }
    assert differences(tmp_path / "merged.gguf", model, PROMPTS, A) <= 1e-5


def test_the_engine_of_this_package_takes_the_adapter(tmp_path: Path) -> None:
    model = llama(SIZE)
    export_gguf(model, TOKENIZER, tmp_path / "base.gguf", dtype="f32")
    export_lora(adapted(model, spread=0.5), tmp_path / "adapter.gguf")
    expected = int(log_probabilities(model, PROMPTS[0]).argmax())
    texts: list[str] = []
    for adapters in ((), (Adapter(str(tmp_path / "adapter.gguf")),)):
        options = EngineOptions(context=64, threads=1, gpu_layers=0, adapters=adapters)
        with closing(Native(str(tmp_path / "base.gguf"), options)) as native:
            body = {"prompt": PROMPTS[0], "max_tokens": 1, "temperature": 0, "n_probs": 1, "logit_bias": [[A, 1000.0]]}
            answer = ask_native(native, "completion", body)
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
        texts.append(str(top["id"]))
    assert texts[1] == str(expected)


@pytest.mark.parametrize("kind", ["peft", "gguf"])
def test_adapters_come_back_from_files(tmp_path: Path, kind: str) -> None:
    model = adapted(llama(SIZE), LoraConfig(rank=3, alpha=5.0, dropout=0.25, targets=("attn_k", "ffn_down")))
    if kind == "peft":
        save_lora(model, tmp_path / "a", base="base.gguf")
    else:
        export_lora(model, tmp_path / "a")
    other = llama(SIZE)
    config = load_lora(other, tmp_path / "a")
    assert config.rank == 3
    assert config.alpha == 5.0
    assert config.targets == ("attn_k", "ffn_down")
    assert config.dropout == (0.25 if kind == "peft" else 0.0)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(ConfigError, match="has adapters already"):
        load_lora(other, tmp_path / "a")


def test_peft_files_have_its_names_and_hugging_faces_rows(tmp_path: Path) -> None:
    model = adapted(llama(SIZE))
    save_lora(model, tmp_path, base="org/name")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    assert len(tensors) == 28
    assert tensors[f"{name}A.weight"].shape == (4, 64)
    theirs, ours = tensors[f"{name}B.weight"], dict(lora_layers(model))["blk.1.attn_q"].lora_b
    # Head 1 of 4, of size 16: its pair 3 is rows 16 + 6 and 16 + 7 here, 16 + 3 and 16 + 8 + 3 there.
    assert torch.equal(theirs[16 + 3], ours[16 + 6])
    assert torch.equal(theirs[16 + 8 + 3], ours[16 + 7])
    config: dict[str, Any] = msgspec.json.decode((tmp_path / "adapter_config.json").read_bytes())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert set(config["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert config["base_model_name_or_path"] == "org/name"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"use_dora": True}, ConfigError, "no plain LoRA: use_dora"),
        ({"bias": "all"}, ConfigError, "no plain LoRA: bias"),
        ({"modules_to_save": ["lm_head"]}, ConfigError, "modules_to_save"),
        ({"peft_type": "IA3"}, ConfigError, "peft_type = 'IA3'"),
        ({"r": None}, LocalModelError, "cannot be used"),
    ],
    ids=["dora", "bias", "modules", "type", "rank"],
)
def test_other_kinds_of_adapters_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    save_lora(adapted(llama(SIZE)), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_bytes(msgspec.json.encode(msgspec.json.decode(file.read_bytes()) | change))
    with pytest.raises(error, match=match):
        load_lora(llama(SIZE), tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = adapted(llama(SIZE))
    save_lora(model, tmp_path / "peft")
    export_lora(model, tmp_path / "a.gguf")
    other = msgspec.structs.replace(model.config, width=128)
    for path in (tmp_path / "peft", tmp_path / "a.gguf"):
        with pytest.raises(LocalModelError, match="does not fit"):
            load_lora(Llama(other), path)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(LocalModelError, match="has not both"):
        load_lora(llama(SIZE), tmp_path / "peft")
    export_gguf(llama(SIZE), TOKENIZER, tmp_path / "m.gguf")
    with pytest.raises(LocalModelError, match="it is a model, not an adapter"):
        load_lora(llama(SIZE), tmp_path / "m.gguf")
    with pytest.raises(LocalModelError, match="has no table of token embeddings"):
        load_gguf(tmp_path / "a.gguf")


def test_rank_stabilised_scale_is_read(tmp_path: Path) -> None:
    save_lora(adapted(llama(SIZE)), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_bytes(msgspec.json.encode(msgspec.json.decode(file.read_bytes()) | {"use_rslora": True}))
    # alpha / sqrt(rank) is what alpha sqrt(rank) / rank is.
    assert load_lora(llama(SIZE), tmp_path).alpha == 16.0


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"targets": ("q",)}, {"targets": ()}],
    ids=["rank", "alpha", "nan", "dropout", "unknown", "none"],
)
def test_bad_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="LoRA"):
        LoraConfig(**options)


def test_a_model_without_adapters_has_no_adapter_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapters"):
        save_lora(llama(SIZE), tmp_path)
    with pytest.raises(ConfigError, match="no adapters"):
        export_lora(llama(SIZE), tmp_path / "a.gguf")
    with closing(Exact(_exported(tmp_path))) as engine:
        assert np.isfinite(engine.next(PROMPTS[0], SIZE, A)).all()


def _exported(folder: Path) -> Path:
    export_gguf(llama(SIZE), TOKENIZER, folder / "m.gguf")
    return folder / "m.gguf"
