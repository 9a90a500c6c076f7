"""What a run leaves in `log_dir`: its events as JSON lines, and where asked TensorBoard's and W&B's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from windlass.core.errors import ConfigError
from windlass.core.events import Event, TrainStep, decode_event, encode_event
from windlass.training.config import TrainConfig

__all__ = ["FILE", "TAGS", "Logs", "read_log"]

FILE: Final = "train.jsonl"
#: Metric of a step -> its tag, as reference E names them.
TAGS: Final = {
    "loss": "train/loss", "accuracy": "train/accuracy", "perplexity": "train/perplexity", "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm", "eval_loss": "val/loss", "eval_perplexity": "val/perplexity",
    "eval_accuracy": "val/accuracy",
}  # fmt: skip
_Writer = Callable[[TrainStep], None]


class Logs:
    """A sink that writes a run's events to `config.log_dir`: `train.jsonl`, and where asked TensorBoard and W&B.

    A run that goes on from step `step` is appended; what an earlier one wrote of later steps, before it was killed, is
    taken out first (TensorBoard is told to). W&B is used offline: nothing is sent, `wandb sync` sends it when the user
    wants that. Raises ConfigError when there is no log_dir, it cannot be written or a package is missing.
    """

    def __init__(self, config: TrainConfig, run_id: str, step: int = 0) -> None:
        if not config.log_dir:
            raise ConfigError("Logs need log_dir.", hint="Say where the log files go.")
        folder = Path(config.log_dir).expanduser()
        self._stack = contextlib.ExitStack()
        self._writers: list[_Writer] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _forget(folder / FILE, step)
            self._file = self._stack.enter_context(open(folder / FILE, "ab", buffering=0))  # noqa: SIM115 - the stack closes it
            if config.tensorboard:
                self._writers.append(_tensorboard(folder, step, self._stack))
            if config.wandb:
                self._writers.append(_wandb(folder, config, run_id, self._stack))
        except OSError as error:
            self._stack.close()
            raise ConfigError(f"Cannot write logs to {folder}: {error.strerror}.") from error
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Finish all files."""
        self._stack.close()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self._file.write(encode_event(event) + b"\n")
        if isinstance(event, TrainStep):
            for write in self._writers:
                write(event)


def read_log(path: str | Path) -> Iterator[Event]:
    """Yield the events of a `train.jsonl`, or of the one in a folder; a last line that was cut off ends it.

    Raises ConfigError when it cannot be read or has a line that is no event.
    """
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(f"Cannot read {file}: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield decode_event(line)
        except (ValueError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{file}, line {number}, is no event: {error}.") from error


def _forget(file: Path, step: int) -> None:
    """Keep, of a log that is there, what was before `step` was done; a run from the beginning starts a new one."""
    if not file.exists():
        return
    kept: list[bytes] = []
    if step:
        kept = [encode_event(each) + b"\n" for each in read_log(file) if getattr(each, "step", 0) <= step]
    fresh = file.with_name(f".{FILE}.new")
    fresh.write_bytes(b"".join(kept))
    fresh.replace(file)


def _tensorboard(folder: Path, step: int, stack: contextlib.ExitStack) -> _Writer:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise _missing("TensorBoard", "tensorboard") from error
    proto: Any = event_pb2
    values: Any = summary_pb2
    files = EventFileWriter(str(folder))
    stack.callback(files.close)
    if step:
        # TensorBoard drops what it has of later steps when a session starts at this one.
        started = proto.SessionLog(status=proto.SessionLog.START)
        files.add_event(proto.Event(step=step + 1, session_log=started))

    def write(event: TrainStep) -> None:
        found = [values.Summary.Value(tag=tag, simple_value=event.metrics[key])
                 for key, tag in TAGS.items() if key in event.metrics]  # fmt: skip
        summary = values.Summary(value=found)
        files.add_event(proto.Event(wall_time=event.time / 1e9, step=event.step, summary=summary))

    return write


def _wandb(folder: Path, config: TrainConfig, run_id: str, stack: contextlib.ExitStack) -> _Writer:
    # Read when the package is imported: else it would report its own errors to its makers.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb
    except ImportError as error:
        raise _missing("W&B", "wandb") from error
    module: Any = wandb
    settings = module.Settings(
        console="off", disable_git=True, disable_code=True, save_code=False, silent=True, x_disable_meta=True,
        x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    run = module.init(
        mode="offline", dir=str(folder), project="windlass", id=run_id, config=msgspec.to_builtins(config),
        reinit="create_new", settings=settings,
    )  # fmt: skip
    stack.callback(run.finish)

    def write(event: TrainStep) -> None:
        run.log({tag: event.metrics[key] for key, tag in TAGS.items() if key in event.metrics}, step=event.step)

    return write


def _missing(what: str, package: str) -> ConfigError:
    return ConfigError(f"{what} logs need {package}, which is not installed.", hint="pip install 'windlass[logs]'")
