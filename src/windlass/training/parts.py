"""What a run is made of, where the caller did not bring it: rows, tokenizer and model by the options."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from windlass.core.errors import ConfigError, UnknownNameError
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.data import Source
from windlass.training.documents import ChatFormat, Skipped, documents, text_files
from windlass.training.finetune import adapt, load_base
from windlass.training.ingest import open_source
from windlass.training.recipes import RECIPES
from windlass.training.tasks import Counting, shape_of
from windlass.training.tokenizer import END, Tokenizer

__all__ = ["Parts", "gather"]

#: `TrainConfig.model_size` when nobody chose it.
_USUAL_SIZE: Final = 512
_HELD_OUT: Final = 128
#: Files that hold tokens already.
_TOKENS: Final = (".bin", ".wdbx")
#: Tokens to learn, and characters of text to learn them from, when there is no tokenizer.
_VOCABULARY, _ENOUGH = 1024, 16_000_000
#: What `ChatFormat` writes, as the engine is to write it.
_CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Parts(NamedTuple):
    """Everything a run needs; `notes` are told when it starts."""

    model: nn.Module
    source: Source
    eval_source: Source | None
    tokenizer: Tokenizer | None
    notes: list[str]


def gather(
    config: TrainConfig,
    model: nn.Module | None,
    source: Source | None,
    eval_source: Source | None,
    tokenizer: Tokenizer | None,
) -> Parts:
    """Return what was given, and the rest by the options. Raises ConfigError where it does not go together."""
    notes: list[str] = []
    if tokenizer is None and config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    if model is None and config.base:
        base = load_base(config.base)
        model, tokenizer = base.model, tokenizer or base.tokenizer
        notes += [base.note] if base.note else []
    if source is None and config.recipe:
        model, source, eval_source, tokenizer = _recipe(config.recipe)(config)
    elif source is None and config.data:
        if tokenizer is None and Path(config.data).suffix.lower() not in _TOKENS:
            tokenizer = _learned(config.data, config.shape.get("vocab_size", _VOCABULARY))
            notes.append(f"No tokenizer was given: {tokenizer.vocab_size} tokens were learned from the data.")
        source = open_source(config.data, tokenizer, config.seq_len)
    elif source is None and config.base:
        raise ConfigError("A model to go on with needs data.", hint="Give data (--data).")
    elif source is None:
        source, tokenizer = Counting(config.sample_count, config.seed), tokenizer or Counting.tokenizer()
        eval_source = eval_source or Counting(_HELD_OUT, config.seed, config.sample_count)
        model = model or _drawn(shape_of(config.model_size, source.vocab_size, 16), config)
        count = sum([weight.numel() for weight in model.parameters()])
        notes.append(f"No data was given: a network of {count} parameters learns a generated task: {source.name}.")
    assert source is not None
    if eval_source is None and config.eval_data:
        eval_source = open_source(config.eval_data, tokenizer, config.seq_len)
    model = model or _drawn(_shape(config, source), config)
    _check(config, model, source, eval_source)
    adapt(model, config)
    return Parts(model, source, eval_source, tokenizer, notes)


def _recipe(name: str) -> Any:
    module = RECIPES.get(name)
    if module is None:
        raise UnknownNameError("recipe", name, list(RECIPES))
    return importlib.import_module(module).make


def _learned(data: str, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the beginning of the data, with the marks of conversations as its special tokens."""

    def texts() -> Iterator[str]:
        read = 0
        for document in documents(text_files(data), bad="skip", chat=ChatFormat(), skipped=Skipped()):
            for piece in document.pieces:
                read += len(piece.text)
                yield piece.text
            if read > _ENOUGH:
                return

    special = (END, "<|im_start|>", "<|im_end|>")
    return Tokenizer.train(texts(), vocab_size, special=special, chat_template=_CHATML)


def _shape(config: TrainConfig, source: Source) -> LlamaConfig:
    vocab = config.shape.get("vocab_size", source.vocab_size)
    if config.shape or config.model_size == _USUAL_SIZE:
        sizes: dict[str, Any] = {"context": max(config.seq_len, 256), **config.shape, "vocab_size": vocab}
        return LlamaConfig(**sizes)
    return shape_of(config.model_size, vocab, max(config.seq_len, 256))


def _drawn(shape: LlamaConfig, config: TrainConfig) -> Llama:
    """Make a llama whose weights the seed alone decides, and leave the process's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Llama(shape)


def _check(config: TrainConfig, model: nn.Module, source: Source, eval_source: Source | None) -> None:
    if len(source) < 1:
        raise ConfigError(f"{source.name} has no rows.", hint="Give more data or a shorter seq_len.")
    if not isinstance(model, Llama):
        if config.activation_checkpointing:
            raise ConfigError("activation_checkpointing is for llama models.")
        return
    for each in (source, *([eval_source] if eval_source is not None else [])):
        if each.vocab_size > model.config.vocab_size:
            raise ConfigError(
                f"{each.name} has {each.vocab_size} tokens, the model {model.config.vocab_size}.",
                hint="Use the tokenizer that the model was made for.",
            )
    model.checkpointing = config.activation_checkpointing
