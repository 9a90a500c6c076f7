"""The shipped model, loaded once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions


@pytest.fixture(scope="session")
def engine() -> Generator[Engine]:
    """An engine in this process with two slots."""
    model = embedded_model()
    options = EngineOptions(context=4096, slots=2, threads=1, gpu_layers=0, memory_map=False)
    engine = Engine(model.path, options, verify=model.verify)
    yield engine
    engine.close()
