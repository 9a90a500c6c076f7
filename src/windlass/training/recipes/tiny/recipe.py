"""The embedded model's training plan: `make(config)` gives the model, its rows, held-out rows and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from windlass.core.errors import ConfigError
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.recipes.tiny.grammar import Split
from windlass.training.recipes.tiny.rows import Mix, Rows
from windlass.training.recipes.tiny.vocabulary import make_tokenizer, twins
from windlass.training.tokenizer import Tokenizer

__all__ = ["CONTEXT", "SHAPE", "STAGES", "defaults", "make"]

#: Tokens of context in the file; rows are shorter, their positions go up to 2000.
CONTEXT: Final = 4096
SHAPE: Final = {"width": 256, "layers": 6, "heads": 4, "kv_heads": 2, "feed_forward": 640}
#: Copying first, with few tools; then the whole mix.
STAGES: Final = (
    (
        8000,
        Mix(
            repeats=0.4,
            copying=0.75,
            off_topic=0.03,
            missing=0.0,
            steps=(1, 0, 0),
            most_tools=3,
            errors=0.0,
            follow=0.0,
        ),
    ),
    (8000, Mix(copying=0.3, off_topic=0.06, missing=0.03, steps=(0.8, 0.2, 0), most_tools=6)),
    (0, Mix()),
)


#: Options found right for two processors: some 40 million tokens.
_OPTIONS: Final[dict[str, Any]] = {
    "epochs": 1, "sample_count": 100_000, "seq_len": 448, "batch_size": 8, "optimizer": "muon", "lr": 0.008,
    "min_lr": 0.00008, "schedule": "warmup_cosine", "warmup_steps": 60, "weight_decay": 0.01, "beta2": 0.95,
    "precision": "bf16", "eval_interval": 500, "early_stopping_patience": 0, "checkpoint_interval": 250,
    "max_checkpoints": 3,
}  # fmt: skip


def defaults(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run: what was said, else the recipe's; the rate falls over all rows."""
    options = {**_OPTIONS, **said}
    steps = options["sample_count"] // (options["batch_size"] * options.get("grad_accum", 1))
    options.setdefault("decay_steps", max(1, options.get("max_steps") or steps))
    options["min_lr"] = min(options["min_lr"], options["lr"])
    if not options.get("checkpoint_path"):
        options["checkpoint_interval"] = said.get("checkpoint_interval", 0)
    return options


def make(config: TrainConfig) -> tuple[Llama, Rows, Rows, Tokenizer]:
    """Make the parts of a run. `config.sample_count` rows of `config.seq_len` tokens are read once, in their order.

    `config.shape` may change the sizes of the model. The held-out rows are new in phrases and in arguments. Raises
    ConfigError for more than one epoch: there is no row to be read twice.
    """
    if config.epochs != 1:
        raise ConfigError(
            "The recipe's rows are read once.", hint="Set epochs = 1 and sample_count to the rows wanted."
        )
    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "context": CONTEXT, **SHAPE, **config.shape}
    shape = LlamaConfig(**sizes)
    torch.manual_seed(config.seed)
    model = Llama(shape)
    _pair(model, tokenizer)
    rows = Rows(tokenizer, config.sample_count, STAGES, seq_len=config.seq_len, seed=config.seed)
    held = Rows(tokenizer, 64, ((0, Mix()),), seq_len=config.seq_len, seed=config.seed + 1, split=Split(True, True))
    return model, rows, held, tokenizer


@torch.no_grad()
def _pair(model: Llama, tokenizer: Tokenizer) -> None:
    """Start each token with a space as its twin without one, plus what all of them share: the space."""
    pairs = twins(tokenizer)
    table = model.token_embd.weight
    space = torch.randn(table.shape[1]) * 0.01
    plain, spaced = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    table[spaced] = table[plain] + space
