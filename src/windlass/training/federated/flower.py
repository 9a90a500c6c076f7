"""The same training as apps of Flower (flower.ai), for federations across machines; extra `federated`.

    app = client_app(lambda config: from_config(options_of(config)))     # in the module that the SuperNodes load
    app = server_app(lambda config: initial_weights(options), FederatedConfig(strategy="median"))

Weights travel as one float32 array. What a round makes of them is what Flower's own strategies make, which equals what
our coordinator makes (`aggregate.py`). Flower opens its own connections: gRPC and HTTP of its own, not `core/http`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.training.federated.aggregate import check_vector
from windlass.training.federated.client import Train, Trained
from windlass.training.federated.config import FederatedConfig

try:
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import (
        DifferentialPrivacyServerSideFixedClipping,
        FedAvg,
        FedMedian,
        FedTrimmedAvg,
        MultiKrum,
        Result,
        Strategy,
    )
except ModuleNotFoundError as missing:
    raise ConfigError(
        f"Flower apps need {(missing.name or 'flwr').partition('.')[0]}, which is not installed.",
        hint="pip install 'windlass[federated]'",
    ) from missing

__all__ = ["client_app", "make_strategy", "server_app"]

#: Names of records and of the array in them. The counts are those that Flower weighs by.
ARRAYS, CONFIG, METRICS, WEIGHTS = "arrays", "config", "metrics", "weights"
SAMPLES, ONE = "num-examples", "num-updates"


def client_app(make: Callable[[Mapping[str, Any]], Train]) -> ClientApp:
    """Return a ClientApp that trains as `make(config)` says: the run's settings and, over them, the node's.

    A reply holds all weights, `num-examples`, `num-updates` (1) and the metrics of training.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        content = message.content
        weights = np.array(content.array_records[ARRAYS][WEIGHTS].numpy(), np.float32)
        # Flower counts rounds from 1.
        number = int(str(content.config_records[CONFIG]["server-round"])) - 1
        learn = make({**context.run_config, **context.node_config})
        trained = Trained(*learn(weights, number))
        check_vector(np.asarray(trained.weights), len(weights), "What training gave")
        metrics: dict[str, Any] = {**trained.metrics, SAMPLES: int(trained.sample_count), ONE: 1}
        reply = RecordDict({ARRAYS: _record(np.asarray(trained.weights)), METRICS: MetricRecord(metrics)})
        return Message(reply, reply_to=message)

    return app


def _record(weights: NDArray[np.floating]) -> ArrayRecord:
    return ArrayRecord({WEIGHTS: Array(np.ascontiguousarray(weights, np.float32))})


def make_strategy(config: FederatedConfig, nodes: int) -> Strategy:
    """Return Flower's strategy for our options, over `nodes` nodes in each round, all of them.

    mean and weighted_mean are FedAvg, trimmed_mean FedTrimmedAvg, median FedMedian, krum MultiKrum; `clip` and `noise`
    are DifferentialPrivacyServerSideFixedClipping. Raises ConfigError for a seed, which Flower's noise does not have,
    and for Krum with too few nodes.
    """
    if config.noise and (config.seed is not None or config.strategy != "mean"):
        raise ConfigError("Flower's noise takes no seed, and is made for strategy mean.")
    if config.strategy == "krum" and config.malicious and nodes < 2 * config.malicious + 3:
        raise ConfigError(f"Krum needs {2 * config.malicious + 3} nodes for {config.malicious} malicious ones.")
    common: dict[str, Any] = {
        "fraction_evaluate": 0.0, "min_train_nodes": nodes, "min_available_nodes": nodes,
        "weighted_by_key": ONE if config.strategy == "mean" else SAMPLES,
        "arrayrecord_key": ARRAYS, "configrecord_key": CONFIG,
    }  # fmt: skip
    made: Strategy
    if config.strategy == "trimmed_mean":
        made = FedTrimmedAvg(beta=config.trim, **common)
    elif config.strategy == "median":
        made = FedMedian(**common)
    elif config.strategy == "krum":
        made = MultiKrum(num_malicious_nodes=config.malicious, num_nodes_to_select=config.keep, **common)
    else:
        made = FedAvg(**common)
    if config.clip:
        made = DifferentialPrivacyServerSideFixedClipping(made, config.noise, config.clip, nodes)
    return made


def server_app(
    weights: Callable[[Mapping[str, Any]], NDArray[np.floating]],
    config: FederatedConfig | Callable[[Mapping[str, Any]], FederatedConfig] | None = None,
    *,
    nodes: int = 2,
    rounds: int = 3,
    done: Callable[[Mapping[str, Any], NDArray[np.float32], Sequence[Mapping[str, Any]]], None] | None = None,
) -> ServerApp:
    """Return a ServerApp that begins with `weights(run_config)` and runs Flower's strategy for `config`.

    `config` may be a function of the run's settings; their `nodes` and `rounds` replace the arguments.
    `done(run_config, weights, metrics)` gets the last weights (model_size,) and each round's averaged metrics.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        told = context.run_config
        count = int(str(told.get("nodes", nodes)))
        chosen = config(told) if callable(config) else config or FederatedConfig()
        result: Result = make_strategy(chosen, count).start(
            grid=grid, initial_arrays=_record(weights(told)), num_rounds=int(str(told.get("rounds", rounds)))
        )
        if done is not None:
            metrics = [dict(record) for _, record in sorted(result.train_metrics_clientapp.items())]
            done(told, np.array(result.arrays[WEIGHTS].numpy(), np.float32), metrics)

    return app
