"""What a training run is told, checked before it starts; names and defaults are reference E's where it has any."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct

from windlass.core.errors import ConfigError

__all__ = ["SHAPE", "Optimizer", "Parallel", "Precision", "Schedule", "TrainConfig"]

Optimizer: TypeAlias = Literal["sgd", "adam", "adamw", "muon"]
Schedule: TypeAlias = Literal["constant", "cosine", "warmup_cosine", "step", "polynomial"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Parallel: TypeAlias = Literal["ddp", "fsdp"]
#: What `TrainConfig.shape` may say.
SHAPE: Final = ("vocab_size", "width", "layers", "heads", "kv_heads", "feed_forward", "context")
_CHOICES: Final = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision, "parallel": Parallel}
_AT_LEAST: Final = {
    "epochs": 1, "batch_size": 1, "sample_count": 1, "model_size": 64, "grad_accum": 1, "warmup_steps": 0,
    "decay_steps": 1, "checkpoint_interval": 0, "max_checkpoints": 1, "eval_interval": 0, "log_interval": 1,
    "early_stopping_patience": 0, "max_steps": 0, "seq_len": 2, "lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0,
    "gradient_clip": 0.0, "early_stopping_threshold": 0.0,
}  # fmt: skip


class TrainConfig(Struct, frozen=True, kw_only=True):
    """Options of a training run.

    `data` is a file or folder (tokens `.bin`, WDBX, JSONL, text) or None: then a small network of about `model_size`
    parameters learns a named generated task of `sample_count` rows, unless `recipe` names data and model. Text is read
    with the `tokenizer` (a tokenizer.json), or one that is learned from it. A new llama has the sizes in `shape` (names
    of `LlamaConfig`), else about `model_size` parameters where that is not 512, else 4 million. One step reads
    `batch_size` rows of `seq_len` tokens `grad_accum` times. It ends after `epochs`, after `max_steps` (0: no limit),
    or when the loss on `eval_data`, measured every `eval_interval` steps (0: after each epoch), has not fallen by
    `early_stopping_threshold` in `early_stopping_patience` evaluations (0: never).

    `base` is a model to go on with, a GGUF file or a folder with safetensors; with a `lora_rank` above 0 it stays as it
    is and adapters of that rank learn, scaled by `lora_alpha / lora_rank`, beside the matrices `lora_targets` (empty:
    all of a layer's; names of GGUF such as attn_q).

    `lr` rises over `warmup_steps` (schedule warmup_cosine) and reaches `min_lr` at step `decay_steps`, where it stays;
    `step` multiplies by 0.1 every `decay_steps`, `polynomial` has power 0.9 (see `learning_rate`). `momentum` is sgd's;
    muon has 0.95. `gradient_clip` bounds the gradient's norm (0:
    no bound). Under torchrun each process reads `batch_size` rows per pass, and `parallel` says whether it holds the
    whole model (ddp) or a part of it (fsdp). `precision` is that of the products; weights and optimiser stay in fp32.
    A checkpoint is written to `checkpoint_path` every `checkpoint_interval` steps (0: only at the end, and only if a
    path is given), of which the newest `max_checkpoints` are kept. `log_dir` takes `train.jsonl` and, where asked,
    TensorBoard's and W&B's files.
    """

    data: str | None = None
    eval_data: str | None = None
    epochs: int = 10
    batch_size: int = 32
    sample_count: int = 1024
    model_size: int = 512
    seq_len: int = 512
    grad_accum: int = 1
    max_steps: int = 0
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "warmup_cosine"
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int = 1000
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    label_smoothing: float = 0.0
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    parallel: Parallel = "ddp"
    seed: int = 0
    eval_interval: int = 0
    log_interval: int = 10
    early_stopping_patience: int = 5
    early_stopping_threshold: float = 1e-4
    checkpoint_path: str | None = None
    checkpoint_interval: int = 0
    max_checkpoints: int = 5
    log_dir: str | None = None
    tensorboard: bool = False
    wandb: bool = False
    export_gguf_path: str | None = None
    recipe: str | None = None
    tokenizer: str | None = None
    shape: dict[str, int] = {}
    base: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} is {getattr(self, name)!r}.", hint=f"One of {', '.join(get_args(choices))}.")
        for name, least in _AT_LEAST.items():
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} is {value}; it must be a number of at least {least}.")
        for name in ("momentum", "beta1", "beta2", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if unknown := set(self.shape) - set(SHAPE):
            raise ConfigError(f"shape has {', '.join(sorted(unknown))}.", hint=f"It may have {', '.join(SHAPE)}.")
        if self.epsilon <= 0 or not math.isfinite(self.epsilon):
            raise ConfigError(f"epsilon is {self.epsilon}; it must be above 0.")
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr {self.min_lr} is above lr {self.lr}.", hint="Lower it, or raise lr.")
        if (self.tensorboard or self.wandb) and not self.log_dir:
            raise ConfigError("TensorBoard and W&B logs need log_dir.", hint="Say where the log files go.")
        if self.checkpoint_interval and not self.checkpoint_path:
            raise ConfigError("checkpoint_interval needs checkpoint_path.", hint="Say where checkpoints go.")
