"""The llama architecture in torch, small enough to read in one sitting: trained here, and the reference for the engine.

Module names are the tensor names of GGUF (`blk.0.attn_q.weight`), and the layout is GGUF's too: rotary embeddings turn
*neighbouring* pairs of a head (GGML's NORMAL order), not its halves as in Hugging Face's files, so that a state dict
is a GGUF model without a permutation. Sources: Touvron et al. 2023 (arXiv:2302.13971), RoPE: Su et al. 2021
(arXiv:2104.09864), grouped queries: Ainslie et al. 2023 (arXiv:2305.13245).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from windlass.core.errors import ConfigError

__all__ = ["KvCache", "Llama", "LlamaConfig", "rotary", "segment_mask"]


class LlamaConfig(Struct, frozen=True, kw_only=True):
    """Sizes of a model. Defaults make one of 4.2 million parameters.

    `vocab_size` tokens; `width` of the residual stream; `layers`; `heads` of queries and `kv_heads` of keys and values
    (a divisor of `heads`); `feed_forward` is the inner width of the gated layer; `context` in tokens (rotary tables
    are made for it); `rope_theta`, `norm_eps` as in GGUF; `tied`: the output matrix is the embedding.
    """

    vocab_size: int = 1024
    width: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 640
    context: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "feed_forward", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads cannot share {self.kv_heads} key heads: use a divisor.")
        if self.width % (2 * self.heads):
            raise ConfigError(f"A width of {self.width} cannot be cut into {self.heads} heads of even size.")

    @property
    def head_size(self) -> int:
        """Return how many numbers one head holds."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Return how many numbers the model learns."""
        keys = self.kv_heads * self.head_size
        block = 2 * self.width * self.width + 2 * self.width * keys + 3 * self.width * self.feed_forward
        embeddings = self.vocab_size * self.width * (1 if self.tied else 2)
        return embeddings + self.layers * (block + 2 * self.width) + self.width


class KvCache:
    """Keys and values of the tokens read so far, for decoding token by token: per layer (batch, heads, t, size)."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Return how many tokens are kept."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new keys and values of a layer and return all of them."""
        if layer in self.layers:
            before = self.layers[layer]
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        self.layers[layer] = keys, values
        return keys, values


def rotary(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the turns, each (context, head_size / 2)."""
    half = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), config.rope_theta**-half)
    return angles.cos().float(), angles.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of x (batch, heads, t, size) by their angle, (t, size/2) or with the batch before it."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.size = layer, config.heads, config.kv_heads, config.head_size
        keys = config.kv_heads * config.head_size
        self.attn_q = nn.Linear(config.width, config.width, bias=False)
        self.attn_k = nn.Linear(config.width, keys, bias=False)
        self.attn_v = nn.Linear(config.width, keys, bias=False)
        self.attn_output = nn.Linear(config.width, config.width, bias=False)

    def attend(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: KvCache | None) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (heads, self.size)).transpose(1, 2)
            for linear, heads in ((self.attn_q, self.heads), (self.attn_k, self.kv_heads), (self.attn_v, self.kv_heads))
        )
        q, k = _rotate(q, *turn), _rotate(k, *turn)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        # Without a mask: causal. With a cache, several new tokens need a mask and one needs none.
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=self.heads != self.kv_heads
        )
        return self.attn_output(out.transpose(1, 2).flatten(-2))


class _Block(_Attention):
    """One layer; attention's and the feed-forward's matrices are siblings, as their names in GGUF are."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn_gate = nn.Linear(config.width, config.feed_forward, bias=False)
        self.ffn_up = nn.Linear(config.width, config.feed_forward, bias=False)
        self.ffn_down = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: KvCache | None) -> Tensor:
        x = x + self.attend(self.attn_norm(x), turn, mask, cache)
        y = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


class Llama(nn.Module):
    """A llama model. `checkpointing` keeps no activations of the layers but makes them again in the backward pass."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.checkpointing = config, checkpointing
        self.token_embd = nn.Embedding(config.vocab_size, config.width)
        self.blk = nn.ModuleList([_Block(config, layer) for layer in range(config.layers)])
        self.output_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        # GGUF leaves the tensor out when it is tied; so does the state dict here.
        self.output = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        for name, table in zip(("cos", "sin"), rotary(config), strict=True):
            self.register_buffer(name, table, persistent=False)
        self._start()

    def _start(self) -> None:
        """Draw weights: normal with deviation 0.02, less in what adds to the residual stream (GPT-2's rule)."""
        residual = 0.02 / math.sqrt(2 * self.config.layers)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=residual if deep else 0.02)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """Return the last layer's normed output, (batch, t, width); see `forward`."""
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if positions is None:
            if end > self.config.context:
                raise ConfigError(f"{end} tokens do not fit into a context of {self.config.context}.")
            turn = self.cos[start:end], self.sin[start:end]
        else:
            turn = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        if cache is not None and mask is None and start and tokens.shape[1] > 1:
            ones = torch.ones(tokens.shape[1], end, dtype=torch.bool, device=tokens.device)
            mask = ones.tril(diagonal=start)
        x: Any = self.token_embd(tokens)
        for block in self.blk:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, turn, mask, cache, use_reentrant=False)
            else:
                x = block(x, turn, mask, cache)
        return self.output_norm(x)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """Return logits (batch, t, vocab_size) for tokens (batch, t).

        `positions` (batch, t) stand instead of 0, 1, 2...; `mask` is bool, True where a token may look, and broadcasts
        to (batch, heads, t, all tokens); without it a token sees itself and what is before it. With `cache` only new
        tokens are given. Raises ConfigError when more tokens come than `context`.
        """
        x = self.hidden(tokens, positions=positions, mask=mask, cache=cache)
        return F.linear(x, self.token_embd.weight) if self.output is None else self.output(x)


def segment_mask(segments: Tensor) -> Tensor:
    """Return the mask (batch, 1, t, t) for rows that hold several texts; `segments` (batch, t) numbers each token's.

    A token sees earlier tokens of its own segment and all of segment 0, which is the beginning they share; -1 is
    padding, which sees and is seen by its like alone.
    """
    own, other = segments.unsqueeze(2), segments.unsqueeze(1)
    earlier = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return ((own == other) | ((other == 0) & (own > 0))).logical_and(earlier).unsqueeze(1)
