"""How much a start of the command line loads; how long that takes is what `bench/startup.py` measures."""

from __future__ import annotations

import pytest

from bench import startup

#: What a round with a file tool may import in all; more than a tenth above what it was, and it is worth a look.
MOST_MODULES = 440
#: What a folder without any of it does not need.
NOT_NEEDED = (
    "windlass.tools.mcp", "windlass.tools.skills", "windlass.tools.instructions", "windlass.core.trust",
    "windlass.workspaces.docker", "windlass.server", "windlass.accounts", "windlass.apps.tui", "windlass.apps.acp",
    "windlass.stores.postgres", "windlass.testing", "windlass.local.engine", "mcp", "acp", "pydantic", "httpx",
    "prompt_toolkit", "rich", "keyring", "xllamacpp", "numpy", "opentelemetry", "importlib.metadata", "unittest",
)  # fmt: skip


@pytest.mark.parametrize("row", ["windlass run: a file tool", "windlass run: a command in the sandbox"])
def test_a_tool_round_loads_what_it_uses(row: str) -> None:
    names = [name for _, name in startup.imports(row)]
    assert 150 < len(names) <= MOST_MODULES, len(names)
    loaded = [name for name in names if any(name == each or name.startswith(f"{each}.") for each in NOT_NEEDED)]
    assert loaded == []


def test_one_round_of_each_row_is_measured_and_bounds_are_told() -> None:
    """Real starts; the bounds are checked with `--check`, here only with a ceiling ten times as wide."""
    times = startup.measure(1)
    assert list(times) == list(startup.ROWS) and all(len(values) == 1 for values in times.values())
    bare = times["python -c pass"][0]
    assert all(values[0] - bare < 5 for values in times.values()), times
    lines, passed = startup.table(
        {"python -c pass": [0.01], "windlass --help": [0.05], "windlass run: a file tool": [0.6]}
    )
    assert len(lines) == 4 and passed == [
        "windlass --help: 5.0 times bare Python, at most 3",
        "windlass run: a file tool: 0.59 s beside bare Python, at most 0.5",
    ]
