"""Train one model on the data of many: nodes learn, a coordinator aggregates, nothing but weights travels."""

from __future__ import annotations

from windlass.core.lazy import face

#: Module -> the names it gives. `__init__.pyi` says the same to type checkers.
_FACE = {
    "windlass.training.federated.aggregate": (
        "clip_by_norm gaussian_noise krum krum_order mean median trimmed_mean weighted_mean"
    ),
    "windlass.training.federated.client": "Global Node Operator Train Trained",
    "windlass.training.federated.config": "FederatedConfig",
    "windlass.training.federated.coordinator": "Coordinator Receipt Update",
    "windlass.training.federated.errors": (
        "DuplicateUpdate FederatedError ForgedMessage InsufficientUpdates InvalidUpdate "
        "MalformedMessage MessageRefused NodeExists OversizedMessage ReplayedMessage RoundFull StaleUpdate "
        "StateError UnknownNode"
    ),
    "windlass.training.federated.flower": "client_app make_strategy server_app",
    "windlass.training.federated.messages": "Status",
    "windlass.training.federated.service": "Service",
    "windlass.training.federated.state": "load_weights save_weights",
    "windlass.training.federated.trainers": (
        "flatten from_config from_trainer initial_weights read_config save_model unflatten"
    ),
}
__all__ = sorted(name for names in _FACE.values() for name in names.split())  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = face(__name__, _FACE, "train")
