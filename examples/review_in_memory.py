"""Let an agent change files that exist only in memory, look at the difference, and only then write them.

python examples/review_in_memory.py
"""

from __future__ import annotations

import asyncio
import difflib

import windlass
from windlass.testing.scripted import ScriptedProvider, call

BEFORE = {"lib/area.py": "def area(r):\n    return 3.14 * r * 2\n"}
SCRIPT = [
    call("read_file", path="lib/area.py"),
    call("edit", path="lib/area.py", old_string="r * 2", new_string="r ** 2"),
    "The area is pi r squared, not pi r times two: fixed.",
]


async def main() -> None:
    """Run the fix on a virtual file system and print it as a diff."""
    space = windlass.MemoryWorkspace(BEFORE)
    agent = windlass.Agent(ScriptedProvider(SCRIPT), tools="files", workspace=space, max_turns=10)
    result = await agent.run("Fix lib/area.py.")
    print(result.text)
    for path, content in space.changed.items():
        assert isinstance(content, str)
        old = BEFORE.get(path, "").splitlines(keepends=True)
        print("".join(difflib.unified_diff(old, content.splitlines(keepends=True), path, path)), end="")
    assert list(space.changed) == ["lib/area.py"]


if __name__ == "__main__":
    asyncio.run(main())
