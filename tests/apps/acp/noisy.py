"""A tool that writes on stdout in every way there is, and reads stdin: neither may touch the protocol."""

from __future__ import annotations

import os
import subprocess
import sys

from windlass.tools.function import as_tool


def make_noise() -> str:
    """Print, write to descriptor 1, start a program that does, and read stdin."""
    print("noise: print")
    sys.stdout.flush()
    os.write(1, b"noise: descriptor\n")
    subprocess.run(["sh", "-c", "echo noise: child; cat"], check=True)
    return f"read {os.read(0, 100)!r}"


noise = as_tool(make_noise)
