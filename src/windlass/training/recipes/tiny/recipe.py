"""The embedded model's training plan: `make(config)` gives the model, its rows, held-out rows and the tokenizer."""

from __future__ import annotations

from typing import Final

import torch

from windlass.core.errors import ConfigError
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.recipes.tiny.grammar import Split
from windlass.training.recipes.tiny.rows import Mix, Rows
from windlass.training.recipes.tiny.vocabulary import make_tokenizer, twins
from windlass.training.tokenizer import Tokenizer

__all__ = ["CONTEXT", "SHAPE", "STAGES", "make"]

#: Tokens of context in the file; rows are shorter, their positions go up to 2000.
CONTEXT: Final = 4096
SHAPE: Final = {"width": 256, "layers": 6, "heads": 4, "kv_heads": 2, "feed_forward": 640}
#: Copying first, with few tools; then the whole mix.
STAGES: Final = (
    (8000, Mix(copying=0.75, off_topic=0.03, missing=0.0, steps=(1, 0, 0), most_tools=3, errors=0.0, follow=0.0)),
    (8000, Mix(copying=0.3, off_topic=0.06, missing=0.03, steps=(0.8, 0.2, 0), most_tools=6)),
    (0, Mix()),
)


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
    shape = LlamaConfig(**{"vocab_size": tokenizer.vocab_size, "context": CONTEXT, **SHAPE, **config.shape})
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
