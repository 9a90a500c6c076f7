"""Run one scenario on several models and tell who did it: the same check for a script, the built-in model and yours.

python examples/compare_models.py [PROVIDER:MODEL ...]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from windlass.core import registry
from windlass.testing.scenario import Scenario, called, run_scenario, wrote
from windlass.testing.scripted import ScriptedProvider, call


def scenario(model: Any) -> Scenario:
    """Return the task for a model."""
    return Scenario(
        prompt='write "hello" to hello.txt and read it back',
        script=model,
        files={},
        tools=["write_file", "read_file"],
        expect=[called("write_file"), called("read_file", path="hello.txt"), wrote("hello.txt", "hello")],
        options={"max_turns": 6},
    )


async def main() -> None:
    """Try each model in turn."""
    script = [
        call("write_file", path="hello.txt", content="hello"),
        call("read_file", path="hello.txt"),
        "It says hello.",
    ]
    models: dict[str, Any] = {"a script": ScriptedProvider(script)}
    for name in sys.argv[1:] or ["local", "echo"]:
        models[name] = registry.model(name)[0]
    for name, model in models.items():
        try:
            outcome = await run_scenario(scenario(model))
            print(f"{name}: done, {outcome.text!r}")
        except AssertionError as error:
            print(f"{name}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    asyncio.run(main())
