"""Flower, imported once and quietly: it must not phone home, and its command line's library warns of itself."""

from __future__ import annotations

import os
import warnings

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
with warnings.catch_warnings():
    # typer 0.2x uses names that click 8.2 calls deprecated; nothing of ours does.
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.server.strategy import aggregate as old
    from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
    from flwr.supercore.differential_privacy import compute_clip_model_update
    from flwr.supercore.task_identity import TaskIdentity

# Messages are made inside a task of a run, as the processes of Flower are.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

__all__ = [
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "Context",
    "FedAvg",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "Message",
    "MetricRecord",
    "MultiKrum",
    "RecordDict",
    "compute_clip_model_update",
    "old",
]
