"""`make run`: the built-in model does a small task with real tools in a new folder, and the bytes are checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: A task that the built-in model is measured to do, whatever tools it is offered beside these.
TASK = 'create notes.txt with "hello" and read it back'
EXPECTED = b"hello"


def main() -> int:
    """Run the task as a user would, show what happens, and compare the file with what it must hold."""
    with tempfile.TemporaryDirectory(prefix="windlass-demo-") as folder:
        print(f"$ cd {folder}\n$ windlass run --yes {TASK!r}\n", flush=True)
        # No key and no setting of the person's own: this shows what a fresh machine does.
        environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        environ.update(WINDLASS_HOME=str(Path(folder) / ".windlass"), WINDLASS_MODEL="local")
        command = [sys.executable, "-m", "windlass", "run", "--yes", TASK]
        code = subprocess.run(command, cwd=folder, env=environ).returncode
        made = Path(folder) / "notes.txt"
        found = made.read_bytes() if made.exists() else None
        print(f"\nexit code {code}; notes.txt holds {found!r}", flush=True)
        if code != 0 or found != EXPECTED:
            print(f"expected exit code 0 and {EXPECTED!r}", file=sys.stderr)
            return 1
    print("The agent asked a real (tiny) model in this process, and the model's tool calls wrote and read a real file.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
