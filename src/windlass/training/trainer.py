"""The training loop: rows in, one optimiser step after the other, events out."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
import torch
from msgspec import Struct
from torch import nn

from windlass.core import clock
from windlass.core.errors import ConfigError, WindlassError
from windlass.core.events import CheckpointSaved, Event, Log, RunFinished, RunStarted, StopReason, TrainStep
from windlass.core.ports import Sink
from windlass.core.usage import Usage
from windlass.local.llama import Llama, LlamaConfig
from windlass.training import checkpoint
from windlass.training.config import TrainConfig
from windlass.training.curves import draw
from windlass.training.data import Batch, Place, Source, collate, places
from windlass.training.errors import CheckpointError, TrainingError
from windlass.training.export import Dtype, export_gguf
from windlass.training.finetune import tokenizer_file
from windlass.training.logs import Logs
from windlass.training.loss import Sums, perplexity
from windlass.training.parts import gather
from windlass.training.schedule import learning_rate
from windlass.training.team import Alone
from windlass.training.tokenizer import Tokenizer
from windlass.training.updates import Made, Updates

__all__ = ["Trainer"]

#: Options that may differ when a run is taken up again without a change in what is computed.
_FREE: Final = frozenset(
    {
        "epochs", "max_steps", "checkpoint_path", "checkpoint_interval", "max_checkpoints", "log_dir", "log_interval",
        "tensorboard", "wandb", "export_gguf_path", "device",
    }
)  # fmt: skip
Reason = Literal["epochs", "max_steps", "early_stopping", "stopped"]
_STOP: Final[dict[Reason, StopReason]] = {
    "epochs": "end_turn", "max_steps": "max_turns", "early_stopping": "end_turn", "stopped": "cancelled",
}  # fmt: skip


class _Progress(Struct):
    """How far a run is."""

    step: int = 0
    place: Place = Place()
    tokens: int = 0
    best: float | None = None
    waited: int = 0
    metrics: dict[str, float] = {}


class Trainer:
    """Train a model on rows; `run()` gives the events, `resume()` takes up a checkpoint, `export_gguf()` writes it.

    Without `source` the rows come from `config.recipe`, `config.data` or a generated task; without `model` a llama of
    `config.shape` is made for them, its weights drawn from `config.seed`. `model` is changed in place. A model of
    another kind takes `(tokens, positions=, mask=)` and returns logits. `sinks` are called with every event. `team`
    spreads the run over processes. One trainer is for one thread; `stop()` alone may come from another.

    Raises ConfigError for options that do not fit the model or the data, and where a package is missing.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module | None = None,
        source: Source | None = None,
        eval_source: Source | None = None,
        tokenizer: Tokenizer | None = None,
        sinks: Sequence[Sink] = (),
        team: Alone | None = None,
    ) -> None:
        self.config, self.sinks, self.team = config, list(sinks), team or Alone()
        self.model, self.source, self.eval_source, self.tokenizer, notes = gather(
            config, model, source, eval_source, tokenizer
        )
        self.updates = Updates(self.model, config, self.team)
        self.run_id = clock.new_id()
        self._notes: list[Log] = [Log(message=note) for note in notes]
        self._seq, self._stop, self._now = 0, threading.Event(), _Progress()
        self._folder: checkpoint.Folder | None = None
        self._saved = -1

    @classmethod
    def load(cls, path: str | Path, *, changes: dict[str, Any] | None = None, **given: Any) -> Self:
        """Return a trainer that goes on from a checkpoint with its own options, tokenizer and data.

        `changes` replaces options (`{"epochs": 20}`); `given` is passed to `Trainer`. Raises CheckpointError.
        """
        found = checkpoint.find(path)
        config = checkpoint.config_of(found, changes)
        if given.get("tokenizer") is None and (found / "tokenizer.json").is_file():
            given["tokenizer"] = Tokenizer.load(found)
        trainer = cls(config, **given)
        trainer.resume(found)
        return trainer

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return self.updates.device

    @property
    def step(self) -> int:
        """Return how many updates were made."""
        return self._now.step

    @property
    def total_steps(self) -> int:
        """Return how many updates there are when the run ends, unless it stops early."""
        config, rows = self.config, len(self.source)
        total = config.epochs * math.ceil(rows / (config.batch_size * config.grad_accum))
        return min(total, config.max_steps) if config.max_steps else total

    def stop(self) -> None:
        """End the run after the step that is under way, with a checkpoint; may be called from any thread."""
        self._stop.set()

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Train, and yield what happens: RunStarted, then TrainStep, CheckpointSaved and Log, at last RunFinished.

        A step's metrics: `loss` (nats per weighted token, as minimised), `lr`, `grad_norm` (before clipping), `tokens`
        (predictions so far), `tokens_per_second` (of this step), `epoch` (with its fraction); every `log_interval`
        steps `accuracy` and `perplexity`; after an evaluation `eval_loss`, `eval_perplexity`, `eval_accuracy`.

        Ctrl-C ends the run as `stop()` does where nobody else takes it, a second one at once. Raises TrainingError,
        after RunFinished, for a loss that is no number (the last good checkpoint stays) and when memory runs out;
        CheckpointError and ConfigError before the first step.
        """
        self._stop.clear()
        lead = self.team.rank == 0
        if self.config.export_gguf_path and not (
            isinstance(self.model, Llama) and (self.tokenizer or tokenizer_file(self.config))
        ):
            raise ConfigError("export_gguf_path needs a llama model and a tokenizer.", hint="Give tokenizer=.")
        with contextlib.ExitStack() as stack:
            if self.config.checkpoint_path and lead:
                self._folder = stack.enter_context(
                    checkpoint.Folder(self.config.checkpoint_path, self.config.max_checkpoints)
                )
                self._folder.expect(self.step)
            sinks = list(self.sinks)
            if self.config.log_dir and lead:
                sinks.append(stack.enter_context(Logs(self.config, self.run_id, self.step)))
            stack.enter_context(_interrupts(self.stop))
            for event in self._events():
                self._seq += 1
                event = msgspec.structs.replace(event, run_id=self.run_id, seq=self._seq, time=clock.now_ns())
                for sink in sinks:
                    sink(event)
                yield event

    def _events(self) -> Iterator[Event]:
        yield RunStarted(session_id=self.run_id, model=type(self.model).__name__, prompt=self.source.name)
        yield from self._notes
        self._notes.clear()
        try:
            reason = yield from self._train()
            if self.config.checkpoint_path and self._saved != self.step:
                yield self._save()
        except WindlassError as error:
            yield self._finished("error", "error", error)
            raise
        if self.config.export_gguf_path and reason != "stopped":
            self.export_gguf(self.config.export_gguf_path)
            yield Log(message=f"Wrote {self.config.export_gguf_path}.")
        if self.config.log_dir and self.team.rank == 0 and self.step:
            picture = draw(self.config.log_dir, title=self.source.name)[1]
            yield Log(message=f"Drew {picture}.")
        yield self._finished(_STOP[reason], reason)

    def _finished(self, stop: StopReason, reason: str, error: WindlassError | None = None) -> RunFinished:
        now = self._now
        return RunFinished(
            stop_reason=stop,
            usage=Usage(input_tokens=now.tokens),
            turns=now.step,
            error=error.to_dict() if error else None,
            output={**now.metrics, "reason": reason, "step": now.step, "epoch": now.place.epoch, "tokens": now.tokens},
        )

    def _train(self) -> Generator[Event, None, Reason]:
        config, now = self.config, self._now
        size = config.batch_size * config.grad_accum * self.team.size
        ordered: bool = getattr(self.source, "ordered", False)
        walk = places(len(self.source), size, config.epochs, config.seed, now.place, ordered=ordered)
        batches, after = self._next(walk)
        while after is not None:
            if ended := self._ended():
                return ended
            began = clock.monotonic()
            measured = (now.step + 1) % config.log_interval == 0
            rate = learning_rate(config, now.step)
            done, now.place = batches, after
            try:
                made = self.updates.update(done, now.step, rate, count=measured)
                # The next rows are made ready while the device still computes: only then is it asked for numbers.
                batches, after = self._next(walk)
                metrics = self._read(made, done, measured)
            except torch.OutOfMemoryError as error:
                raise TrainingError(
                    f"Step {now.step + 1} does not fit into the memory of {self.device}.",
                    step=now.step + 1,
                    hint="Lower batch_size and raise grad_accum, or turn on activation_checkpointing.",
                ) from error
            metrics |= {"lr": rate, "epoch": now.place.epoch + now.place.position / len(self.source)}
            metrics["tokens_per_second"] = metrics.pop("read") / max(clock.monotonic() - began, 1e-9)
            if self._due(now.place):
                metrics |= self._judge()
            now.metrics = metrics
            yield TrainStep(step=now.step, metrics=metrics)
            if config.checkpoint_interval and now.step % config.checkpoint_interval == 0:
                yield self._save()
        return self._ended() or "epochs"

    def _ended(self) -> Reason | None:
        config, now = self.config, self._now
        if self.team.agree(self._stop.is_set(), self.device):
            return "stopped"
        if config.early_stopping_patience and now.waited >= config.early_stopping_patience:
            return "early_stopping"
        return "max_steps" if config.max_steps and now.step >= config.max_steps else None

    def _next(self, walk: Iterator[tuple[list[int], Place]]) -> tuple[list[Batch], Place | None]:
        """Return the batches of this process for the next step, and the place after it (None: there is none)."""
        found = next(walk, None)
        return ([], None) if found is None else (self._load(self.source, found[0]), found[1])

    def _load(self, source: Source, numbers: list[int]) -> list[Batch]:
        team, size = self.team, self.config.batch_size
        rows = [source.row(number) for number in numbers[team.rank :: team.size]]
        batches = [collate(rows[at : at + size], self.device) for at in range(0, len(rows), size)]
        # Every process makes as many passes as the one with the most rows; one without weights says nothing.
        if len(batches) < math.ceil(math.ceil(len(numbers) / team.size) / size):
            row = source.row(numbers[0])
            idle = collate([row._replace(weights=0 * row.tokens.astype("f4"))], self.device)
            batches.append(idle._replace(tokens=0))
        return batches

    def _read(self, made: Made, batches: list[Batch], measured: bool) -> dict[str, float]:
        """Wait for a step's numbers and count it. Raises TrainingError when the loss is none."""
        now = self._now
        loss, entropy, correct, weight, tokens = self._totals(made.sums, batches)
        norm = float(made.norm) if made.norm is not None else 0.0
        now.step += 1
        if not math.isfinite(loss) or (self.config.precision != "fp16" and not math.isfinite(norm)):
            kept = self._folder.latest() if self._folder else None
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise TrainingError(
                f"The {what} of step {now.step} is {loss if what == 'loss' else norm}, not a number to go on with.",
                step=now.step,
                checkpoint=str(kept) if kept else None,
                hint=f"Lower lr, or resume from {kept}." if kept else "Lower lr.",
            )
        now.tokens += int(tokens)
        metrics = {"loss": loss / weight, "grad_norm": norm, "tokens": float(now.tokens), "read": tokens}
        if measured:
            metrics |= {"accuracy": correct / weight, "perplexity": perplexity(entropy / weight)}
        return metrics

    def _totals(self, sums: list[Sums], batches: list[Batch]) -> list[float]:
        """Return loss, entropy, correct tokens, weight and tokens of all processes; the device is asked once."""
        parts = torch.stack([torch.stack(each) for each in sums]).sum(0, dtype=torch.float64).tolist()
        counts = [sum([batch.weight for batch in batches]), float(sum([batch.tokens for batch in batches]))]
        loss, entropy, correct, weight, tokens = self.team.total([*parts, *counts], self.device)
        return [loss, entropy, correct, weight or 1.0, tokens]

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Return `eval_loss` (nats per weighted token, without smoothing), `eval_perplexity`, `eval_accuracy`.

        Raises ConfigError when there is no evaluation data.
        """
        source, size = self.eval_source, self.config.batch_size * self.team.size
        if source is None or len(source) == 0:
            raise ConfigError("There is no data to evaluate on.", hint="Give eval_data or eval_source.")
        found = [0.0] * 5
        for at in range(0, len(source), size):
            batches = self._load(source, list(range(at, min(at + size, len(source)))))
            totals = self._totals([self.updates.look(batch) for batch in batches], batches)
            found = [a + b for a, b in zip(found, totals, strict=True)]
        _, entropy, correct, weight, _ = found
        mean = entropy / weight
        return {"eval_loss": mean, "eval_perplexity": perplexity(mean), "eval_accuracy": correct / weight}

    def _due(self, place: Place) -> bool:
        if self.eval_source is None:
            return False
        every = self.config.eval_interval
        return self.step % every == 0 if every else place.position == 0

    def _judge(self) -> dict[str, float]:
        """Evaluate, and count how long nothing has become better."""
        now, metrics = self._now, self.evaluate()
        if now.best is None or now.best - metrics["eval_loss"] > self.config.early_stopping_threshold:
            now.best, now.waited = metrics["eval_loss"], 0
        else:
            now.waited += 1
        return metrics

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save(self) -> CheckpointSaved:
        now, config = self._now, self.config
        scaler: dict[str, Any] = self.updates.scaler.state_dict()
        weights, memory = self.updates.weights(), self.updates.memory()
        shape = self.model.config if isinstance(self.model, Llama) else None
        state = checkpoint.State(
            step=now.step, place=now.place, seed=config.seed, tokens=now.tokens, best=now.best, waited=now.waited,
            scale=scaler.get("scale"), growth=scaler.get("_growth_tracker", 0), config=config,
            shape=msgspec.to_builtins(shape) if shape else None, source=self.source.name, rows=len(self.source),
            metrics=now.metrics, time=clock.now_ns(),
        )  # fmt: skip
        path = f"{config.checkpoint_path}"
        if self._folder is not None:
            texts = self.tokenizer.files() if self.tokenizer else {}
            path = str(self._folder.save(state, weights, memory, texts))
        self.team.wait()
        self._saved = now.step
        return CheckpointSaved(path=path, step=now.step)

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint, or the newest of a folder: the run that follows is bit by bit the one that ended.

        Options that change what is computed and are not those of the checkpoint are told in a Log event. Raises
        CheckpointError when it is damaged or of another model.
        """
        found = checkpoint.read(checkpoint.find(path))
        state = found.state
        self._same_model(state, found.path)
        try:
            self.updates.restore(found.model, found.optimiser)
        except (RuntimeError, KeyError, ValueError) as error:
            text = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{found.path} is not of this model: {text}", path=str(found.path)) from error
        if state.scale is not None and self.config.precision == "fp16":
            kept: dict[str, Any] = self.updates.scaler.state_dict()
            self.updates.scaler.load_state_dict({**kept, "scale": state.scale, "_growth_tracker": state.growth})
        self._now = _Progress(state.step, state.place, state.tokens, state.best, state.waited, dict(state.metrics))
        self._saved = state.step
        self._notes += self._differences(state)

    def _same_model(self, state: checkpoint.State, path: Path) -> None:
        if state.shape is not None and isinstance(self.model, Llama):
            other = msgspec.convert(state.shape, LlamaConfig)
            if other != self.model.config:
                raise CheckpointError(f"{path} is of another model: {other}, not {self.model.config}.", path=str(path))

    def export_gguf(self, path: str | Path, *, dtype: Dtype = "f16") -> Path:
        """Write the model as it is now to a GGUF file, its matrices as f32, f16, bf16, q8_0 or q4_0; return the path.

        Adapters are merged. Every process of a team calls it, the first one writes. Raises ConfigError for a model that
        is no llama or has no tokenizer, LocalModelError when it cannot be written.
        """
        if not isinstance(self.model, Llama):
            raise ConfigError("Only a llama model can be exported to GGUF.")
        weights = self.updates.weights()
        if self.team.rank == 0:
            known = tokenizer_file(self.config)
            export_gguf(self.model, self.tokenizer, path, dtype=dtype, tokenizer_of=known, state=weights)
        self.team.wait()
        return Path(path)

    def _differences(self, state: checkpoint.State) -> list[Log]:
        before, after = msgspec.to_builtins(state.config), msgspec.to_builtins(self.config)
        found = [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in after.items()
            if name not in _FREE and before.get(name) != value
        ]
        if state.rows != len(self.source):
            found.append(f"the data had {state.rows} rows and has {len(self.source)}")
        text = f"This run goes on from step {state.step} with other options: {'; '.join(found)}."
        return [Log(message=text, level="warning")] if found else []


@contextlib.contextmanager
def _interrupts(stop: Callable[[], None]) -> Generator[None]:
    """Let the first Ctrl-C stop a run in an orderly way, if this is the main thread and nobody else wants it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def once(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
