"""`windlass train`: train a model, go on with it, look at its checkpoints, write it as GGUF."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, get_args

from windlass import training
from windlass.apps.cli.common import INTERRUPTED, OK, Parser, plain, say
from windlass.core import json
from windlass.core.events import RunFinished, encode_event
from windlass.core.text import strip_escapes
from windlass.training.config import SHAPE, Optimizer, Parallel, Schedule, TrainConfig
from windlass.training.recipes import RECIPES, with_defaults

__all__ = ["main", "parser"]

#: Options that say how a run is shown, not what it is.
_NOT_CONFIG = ("verb", "json", "quiet", "path", *SHAPE)


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    made = parser(name)
    options = made.parse_args(args)
    if options.verb == "help":
        made.print_help()
        return OK
    return {"run": _run, "resume": _resume, "info": _info, "export": _export}[options.verb](options)


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Train a local model and go on with it.", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")
    text = "train a model; without data a small network learns a generated task"
    run = verbs.add_parser("run", help=text, description=f"Run: {text}.")
    _data_options(run)
    _learning_options(run)
    _model_options(run)
    _output_options(run)
    text = "go on from a checkpoint, bit by bit as if it had not ended"
    resume = verbs.add_parser("resume", help=text, description=f"Resume: {text}.", arguments="PATH")
    resume.add_argument("path", metavar="PATH", help="a checkpoint, or a folder of them: the newest")
    add = resume.add_argument
    add("-e", "--epochs", type=int, metavar="N", help="go on to this many epochs")
    add("--max-steps", type=int, metavar="N", help="go on to this many steps (0: no limit)")
    add("--device", type=plain, metavar="NAME", help="cpu, cuda, cuda:1 ...")
    _output_options(resume)
    text = "what a checkpoint holds: ours, or an ABIC or ABLC file of reference E"
    info = verbs.add_parser("info", help=text, description=f"Info: {text}.", arguments="CHECKPOINT")
    info.add_argument("path", metavar="CHECKPOINT", help="a checkpoint, a folder of them, or a file")
    info.add_argument("--json", action="store_true", help="one JSON object")
    text = "write a checkpoint's model as a GGUF file"
    export = verbs.add_parser("export", help=text, description=f"Export: {text}.", arguments="CHECKPOINT FILE")
    export.add_argument("path", metavar="CHECKPOINT", help="a checkpoint, or a folder of them: the newest")
    export.add_argument("file", metavar="FILE", help="the file to write")
    export.add_argument("--dtype", choices=("f32", "f16", "bf16", "q8_0", "q4_0"), default="f16",
                        help="type of the matrices (default: f16)")  # fmt: skip
    export.add_argument("--adapter", action="store_true",
                        help="the adapters alone: FILE.gguf for the engine, else a folder as PEFT has it")  # fmt: skip
    verbs.add_parser("help", help="this text", description="Help: the same as --help.")
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is learned").add_argument
    add("--data", metavar="PATH", help="tokens (.bin, .wdbx), text, JSONL, CSV, or a folder of text")
    add("--eval-data", metavar="PATH", help="the same, held out: loss is measured on it")
    add("--recipe", type=plain, metavar="NAME", help=f"data and model of a recipe: {', '.join(RECIPES) or 'none yet'}")
    add("--tokenizer", metavar="PATH", help="a tokenizer.json (text without one: it is learned)")
    add("--base", metavar="PATH", help="go on with this model: a GGUF file or a folder with safetensors")
    add("--lora-rank", type=int, metavar="N", help="train adapters of this rank beside the base, not the base")
    add("--lora-alpha", type=float, metavar="X", help="adapters are scaled by this over their rank (16)")
    add("--lora-dropout", type=float, metavar="X", help="share of its inputs that an adapter does not see (0)")
    add("--lora-targets", type=_names, metavar="NAMES", help="matrices with adapters: attn_q,attn_v ... (all)")
    add("--seq-len", type=int, metavar="N", help="tokens of a row (512)")
    add("--sample-count", type=int, metavar="N", help="rows of the generated task (1024)")
    add("--seed", type=int, metavar="N", help="decides weights, order of rows, all else that is random (0)")


def _names(text: str) -> tuple[str, ...]:
    return tuple([name for name in text.split(",") if name])


def _learning_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how").add_argument
    add("-e", "--epochs", type=int, metavar="N", help="times that all rows are read (10)")
    add("--max-steps", type=int, metavar="N", help="end after this many steps (0: no limit)")
    add("-b", "--batch-size", type=int, metavar="N", help="rows at once (32)")
    add("--grad-accum", type=int, metavar="N", help="batches of a step (1)")
    add("--optimizer", choices=get_args(Optimizer), help="default: adamw")
    add("--lr", type=float, metavar="RATE", help="highest learning rate (0.001)")
    add("--min-lr", type=float, metavar="RATE", help="lowest (1e-4, or --lr if that is less)")
    add("--lr-schedule", dest="schedule", choices=get_args(Schedule), help="default: warmup_cosine")
    add("--warmup-steps", type=int, metavar="N", help="steps to the highest rate (100)")
    add("--decay-steps", type=int, metavar="N", help="step at which the lowest is reached (1000)")
    add("--weight-decay", type=float, metavar="X", help="of matrices (0.01)")
    add("--gradient-clip", type=float, metavar="NORM", help="bound of the gradient (1.0; 0: none)")
    add("--label-smoothing", type=float, metavar="X", help="share of the target spread over all tokens (0)")
    add("--mixed-precision", dest="precision", nargs="?", const="bf16", choices=("bf16", "fp16", "fp32"),
        metavar="KIND", help="products in bf16 (as a flag), or fp16")  # fmt: skip
    add("--activation-checkpointing", action="store_true", default=None, help="less memory, more time")
    add("--compile", action="store_true", default=None, help="torch.compile")
    add("--device", type=plain, metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    add("--parallel", choices=get_args(Parallel), help="under torchrun: whole models or parts (ddp)")
    add("--eval-interval", type=int, metavar="N", help="steps between evaluations (0: after each epoch)")
    add("--patience", dest="early_stopping_patience", type=int, metavar="N",
        help="evaluations without gain before it ends (5; 0: never)")  # fmt: skip


def _model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add("--model-size", type=int, metavar="N", help="about this many parameters (without data: 512)")
    for name in SHAPE:
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{name.replace('_', ' ')} of the llama")


def _output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is kept and shown").add_argument
    add("--checkpoint-path", metavar="DIR", help="where checkpoints go; one is written at the end")
    add("--checkpoint-interval", type=int, metavar="N", help="steps between checkpoints (0: only at the end)")
    add("--max-checkpoints", type=int, metavar="N", help="how many are kept (5)")
    add("--log-dir", metavar="DIR", help="events as JSON lines, and the curves as SVG and PNG")
    add("--log-interval", type=int, metavar="N", help="steps between accuracies (10)")
    add("--tensorboard", action="store_true", default=None, help="TensorBoard's files too, in --log-dir")
    add("--wandb", action="store_true", default=None, help="W&B's files too, offline, in --log-dir")
    add("--export-gguf", dest="export_gguf_path", metavar="FILE", help="write the model as GGUF at the end")
    add("--json", action="store_true", help="every event as a line of JSON on stdout")
    add("-q", "--quiet", action="store_true", help="no progress")


# -- the verbs ---------------------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> TrainConfig:
    """Return the options of a run; what was not said has the default. Raises ConfigError."""
    said = _said(options)
    shape = {name: value for name in SHAPE if (value := getattr(options, name)) is not None}
    if "lr" in said and "min_lr" not in said:
        said["min_lr"] = min(TrainConfig().min_lr, said["lr"])
    return TrainConfig(**with_defaults(said), shape=shape)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in _NOT_CONFIG and value is not None}


def _run(options: argparse.Namespace) -> int:
    config = _config(options)
    with _team(config) as team:
        return _train(training.Trainer(config, team=team), options)


def _resume(options: argparse.Namespace) -> int:
    changes = _said(options)
    with _team(training.config_of(options.path, changes)) as team:
        return _train(training.Trainer.load(options.path, changes=changes, team=team), options)


def _team(config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    """Join the processes that torchrun started; alone, what they need is not loaded."""
    return training.joined(config) if "WORLD_SIZE" in os.environ else contextlib.nullcontext()


def _train(trainer: training.Trainer, options: argparse.Namespace) -> int:
    lead = trainer.team.rank == 0
    if lead and not options.json and not options.quiet:
        trainer.sinks.append(training.Progress(trainer.total_steps))

    def end(_number: int, _frame: FrameType | None) -> None:
        trainer.stop()

    # Whoever ends a job on a cluster sends this first: the step is finished and saved.
    before = signal.signal(signal.SIGTERM, end)
    last: RunFinished | None = None
    try:
        for event in trainer.run():
            if options.json and lead:
                sys.stdout.buffer.write(encode_event(event) + b"\n")
                sys.stdout.flush()
            last = event if isinstance(event, RunFinished) else None
    finally:
        signal.signal(signal.SIGTERM, before)
    stopped = last is not None and last.stop_reason == "cancelled"
    if last is not None and lead and not options.json:
        sys.stdout.write(_summary(last.output, trainer) + "\n")
    if stopped and lead:
        kept = trainer.config.checkpoint_path
        say(f"windlass: stopped. windlass train resume {kept} goes on." if kept else "windlass: stopped.")
    return INTERRUPTED if stopped else OK


def _summary(output: dict[str, Any], trainer: training.Trainer) -> str:
    parts = [f"{output['step']} steps", f"{output['tokens']} tokens"]
    parts += [f"loss {output['loss']:.4f}"] if "loss" in output else []
    if "eval_loss" in output:
        parts += [f"held-out loss {output['eval_loss']:.4f}", f"accuracy {output['eval_accuracy']:.1%}"]
    parts += ["ended early: nothing became better"] if output["reason"] == "early_stopping" else []
    parts += [f"wrote {trainer.config.export_gguf_path}"] if trainer.config.export_gguf_path else []
    return "; ".join(parts)


def _info(options: argparse.Namespace) -> int:
    found = training.describe(options.path)
    if options.json:
        sys.stdout.write(json.dumps(found).decode() + "\n")
        return OK
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join([f"{key}={_short(each)}" for key, each in value.items()]) or "-"
        sys.stdout.write(strip_escapes(f"{name:<11} {value}").replace("\n", " ") + "\n")
    return OK


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _export(options: argparse.Namespace) -> int:
    if options.adapter:
        written = training.export_adapter(options.path, options.file)
    else:
        written = training.export_checkpoint(options.path, options.file, dtype=options.dtype)
    sys.stdout.write(f"{written}\n")
    return OK
