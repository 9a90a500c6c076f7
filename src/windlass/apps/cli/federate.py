"""`windlass federate`: federated training, as the coordinator, as a node, or looking on."""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any, get_args

from windlass.apps.cli.common import OK, Parser, plain, read_text, run_async, say
from windlass.apps.federated import PORT, serve_federated
from windlass.core import json
from windlass.core.errors import ConfigError, MissingKeyError
from windlass.core.http import Client
from windlass.training import federated
from windlass.training.federated.config import FederatedConfig, Strategy, UpdateKind

__all__ = ["main", "parser"]

TOKEN_VARIABLE = "WINDLASS_FEDERATED_TOKEN"  # noqa: S105 - the name of a variable


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    if options.what == "token":
        sys.stdout.write(f"{secrets.token_urlsafe(32)}\n")
        return OK
    work = {"serve": _serve, "join": _join, "status": _status, "aggregate": _status}[options.what]
    return run_async(lambda: work(options))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}",
        "Train one model on the data of many. serve: be the coordinator. join URL: be a node. status URL: see where it "
        "stands. aggregate URL: end the round now. token: make an enrolment token.",
        "serve|join|status|aggregate|token [URL]",
    )
    parser.add_argument("what", choices=("serve", "join", "status", "aggregate", "token"), metavar="WHAT")
    parser.add_argument("url", nargs="?", default=f"http://127.0.0.1:{PORT}", metavar="URL")
    add = parser.add_argument
    add("--token-file", metavar="FILE", help=f"a file with the enrolment token (else {TOKEN_VARIABLE})")
    add("--config", metavar="FILE", help="a TOML file with options of the training run: the model, and what a round is")
    serve = parser.add_argument_group("serve").add_argument
    defaults = FederatedConfig()
    serve("--host", type=plain, default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve("--port", type=int, default=PORT, help=f"port to listen on ({PORT}); 0 chooses a free one")
    serve("--folder", metavar="DIR", help="keep the state here; a coordinator that was killed goes on (serve, join)")
    serve("--model-size", type=int, default=128, metavar="N", help="weights, where no --config says the model (128)")
    serve("--init", metavar="FILE", help="a safetensors file with the first weights")
    serve("--out", metavar="FILE", help="write the global weights here, as safetensors, when it ends")
    serve("--rounds", type=int, default=0, metavar="N", help="end after N rounds (0: never); of join: N updates")
    serve("--strategy", choices=get_args(Strategy), default="mean", metavar="NAME",
          help=f"one of {', '.join(get_args(Strategy))} (mean)")  # fmt: skip
    serve("--update", choices=get_args(UpdateKind), default="weights", metavar="KIND",
          help="what nodes send: weights or delta (weights)")  # fmt: skip
    serve("--min-updates", type=int, default=1, metavar="N", help="updates that end a round (1)")
    serve("--max-updates", type=int, default=64, metavar="N", help="updates that a round takes (64)")
    serve("--staleness", type=float, default=defaults.staleness_seconds, metavar="SECONDS",
          help="an update that waited longer does not count (300)")  # fmt: skip
    serve("--trim", type=float, default=defaults.trim, metavar="SHARE", help="trimmed_mean: cut at either end (0.2)")
    serve("--malicious", type=int, default=0, metavar="N", help="krum: hostile nodes to stand up to (0)")
    serve("--keep", type=int, default=1, metavar="N", help="krum: the best N are averaged (1)")
    serve("--clip", type=float, default=0.0, metavar="NORM", help="bound what one update changes (0: no bound)")
    serve("--noise", type=float, default=0.0, metavar="Z", help="Gaussian noise, in units of the clip (0: none)")
    join = parser.add_argument_group("join").add_argument
    join("--node", type=plain, metavar="NAME", help="the node's name")
    join("--train", metavar="MODULE:NAME", help="a function in place of the trainer: (weights, round) -> Trained")
    parser.add_argument_group("status").add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _token(options: argparse.Namespace) -> str:
    if options.token_file:
        return read_text(options.token_file, "the token").strip()
    if found := os.environ.get(TOKEN_VARIABLE, "").strip():
        return found
    raise MissingKeyError(
        "There is no enrolment token.",
        hint=f"Give --token-file, or set {TOKEN_VARIABLE}; `windlass federate token` makes one.",
    )


def _coordinator(options: argparse.Namespace) -> federated.Coordinator:
    config = FederatedConfig(
        min_updates=options.min_updates, max_updates=options.max_updates, staleness_seconds=options.staleness,
        strategy=options.strategy, update=options.update, trim=options.trim, malicious=options.malicious,
        keep=options.keep, clip=options.clip, noise=options.noise,
    )  # fmt: skip
    weights: Any = None
    if options.init:
        weights = federated.load_weights(options.init)
    elif options.config:
        weights = federated.initial_weights(federated.read_config(options.config))
    size = options.model_size if weights is None else len(weights)
    return federated.Coordinator(config, size, weights=weights, folder=options.folder)


async def _serve(options: argparse.Namespace) -> int:
    if not 0 <= options.port < 65_536:
        raise ConfigError(f"There is no port {options.port}.")
    token = _token(options)
    coordinator = _coordinator(options)
    service = federated.Service(coordinator, token, rounds=options.rounds)
    if coordinator.resumed:
        say(f"Going on in round {coordinator.round} with {len(coordinator.waiting())} updates.")
    await serve_federated(service, options.host, options.port, ready=lambda url: say(f"windlass federate serves {url}"))
    say(f"{coordinator.round} rounds, {coordinator.counts['accepted']} updates.")
    if options.out and options.config:
        federated.save_model(options.out, coordinator.weights, federated.read_config(options.config))
    elif options.out:
        federated.save_weights(options.out, coordinator.weights)
    return OK


async def _join(options: argparse.Namespace) -> int:
    if not options.node:
        raise ConfigError("A node needs a name.", hint="--node NAME")
    if bool(options.train) == bool(options.config):
        raise ConfigError("A node needs --config FILE or --train MODULE:NAME, not both.")
    train: federated.Train = (
        _function(options.train) if options.train else federated.from_config(federated.read_config(options.config))
    )
    node = federated.Node(options.url, options.node, _token(options), train, folder=options.folder)
    taken = await node.run(options.rounds)
    say(f"{taken} updates of {options.node} were taken.")
    return OK


def _function(path: str) -> federated.Train:
    module, _, name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path} is no function that can be imported: {error}.", hint="MODULE:NAME") from error


async def _status(options: argparse.Namespace) -> int:
    async with Client() as http:
        operator = federated.Operator(options.url, _token(options))
        status = await (operator.status(http) if options.what == "status" else operator.aggregate(http))
    if options.json:
        sys.stdout.write(json.dumps(status).decode() + "\n")
    else:
        sys.stdout.write(_shown(status))
    return OK


def _shown(status: federated.Status) -> str:
    lines = [
        f"round {status.round}{', done' if status.done else ''}: {status.model_size} weights, {status.strategy}",
        f"nodes: {', '.join(status.nodes) or 'none'}",
        f"updates waiting: {', '.join(status.waiting) or 'none'}",
    ]
    if status.counts:
        lines.append("counts: " + ", ".join(f"{name} {value}" for name, value in sorted(status.counts.items())))
    for entry in status.history[-5:]:
        rest = {name: value for name, value in entry.items() if name not in ("round", "updates")}
        shown = "".join([f", {name} {value:.4g}" for name, value in rest.items()])
        lines.append(f"  round {entry['round']:.0f}: {entry['updates']:.0f} updates{shown}")
    return "\n".join(lines) + "\n"
