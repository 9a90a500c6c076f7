"""Confine this process by Landlock and a system call filter, then become the program named, a long-lived one.

Run as `python -I -m windlass.workspaces.sandbox_enter --filter=FILE --network=none --read=PATH ... -- PROGRAM ...`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from windlass.workspaces.landlock import restrict_thread
from windlass.workspaces.seccomp import apply_filter

__all__ = ["main"]


def main(words: list[str]) -> None:
    """Do what the words say; ends with exit code 126 and the reason on stderr when it cannot."""
    end = words.index("--")
    given = [word.removeprefix("--").partition("=") for word in words[:end]]
    read = [value for name, _, value in given if name == "read"]
    write = [value for name, _, value in given if name == "write"]
    options = {name: value for name, _, value in given}
    program = words[end + 1 :]
    try:
        code = Path(options["filter"]).read_bytes()
        restrict_thread(read=read, write=write, network=options["network"] == "host")
        apply_filter(code)
        os.execvp(program[0], program)  # noqa: S606  # that is what this is for
    except OSError as error:
        sys.stderr.write(f"windlass sandbox: {program[0]} was not started: {error}\n")
        sys.exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
