"""Programs from npm, in the versions that stand here, in a folder that git ignores; no script of a package runs."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["CONFORMANCE", "EVERYTHING", "FILESYSTEM", "installed", "node"]

CACHE = Path(__file__).parents[2] / ".build" / "mcp"
EVERYTHING = ("@modelcontextprotocol/server-everything", "2026.8.31", "dist/index.js")
FILESYSTEM = ("@modelcontextprotocol/server-filesystem", "2026.8.31", "dist/index.js")
CONFORMANCE = ("@modelcontextprotocol/conformance", "0.1.16", "dist/index.js")
#: Stands in for a Node that is too old for the suite.
_NODE = (22, f"node-linux-{'arm64' if platform.machine() == 'aarch64' else 'x64'}", "22.23.3")
_SECONDS = 300


def installed(package: str, version: str, entry: str = "") -> Path:
    """Return a file of a package, fetched from npm unless it is there already."""
    kept = CACHE / f"{package.rpartition('/')[2]}-{version}"
    if not kept.exists():
        npm = shutil.which("npm")
        assert npm, "npm is needed to fetch the official servers: install nodejs and npm"
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as folder:
            asked = [npm, "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund",
                     "--no-update-notifier", f"{package}@{version}"]  # fmt: skip
            done = subprocess.run(
                asked, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
            )
            assert done.returncode == 0, f"npm could not fetch {package}@{version}: {done.stdout}{done.stderr}"
            with contextlib.suppress(OSError):  # somebody else was first
                Path(folder).rename(kept)
        assert kept.exists(), f"{kept} cannot be written"
    return kept / "node_modules" / package / entry


def node() -> str:
    """Return a Node that is new enough."""
    least, package, version = _NODE
    found = shutil.which("node")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30).stdout
        if int(said.removeprefix("v").partition(".")[0]) >= least:
            return found
    return str(installed(package, version) / "bin" / "node")
