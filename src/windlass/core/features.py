"""The parts that the user's own file can switch off: `[features] llm, embeddings, agents, training = false`."""

from __future__ import annotations

from typing import Final

from windlass.core.errors import ConfigError

__all__ = ["FEATURES", "FeatureOff"]

#: Reference E's four gates, and what is said of each.
FEATURES: Final = {
    "llm": "Models on this machine are",
    "embeddings": "Embeddings are",
    "agents": "Agents are",
    "training": "Training is",
}


class FeatureOff(ConfigError):
    """Refuse what `[features]` switches off; `message` names the setting, the hint the file that holds it."""

    code = "feature_off"

    def __init__(self, feature: str, where: str) -> None:
        super().__init__(
            f"{FEATURES[feature]} switched off: [features] {feature} = false.", hint=f"It stands in {where}."
        )
        self.feature = feature
