"""A client from npm, in the version that stands here, in a folder that git ignores; no script of a package runs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["ACPX", "installed"]

CACHE = Path(__file__).parents[3] / ".build" / "acp"
#: A command-line client of the protocol, https://www.npmjs.com/package/acpx; it uses the official TypeScript SDK.
ACPX = ("acpx", "0.19.1", "dist/cli.js")
_SECONDS = 300


def installed(package: str, version: str, entry: str) -> Path:
    """Return a file of a package, fetched from npm unless it is there already."""
    kept = CACHE / f"{package}-{version}"
    if not kept.exists():
        npm = shutil.which("npm")
        assert npm, "npm is needed to fetch the client: install nodejs and npm"
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
