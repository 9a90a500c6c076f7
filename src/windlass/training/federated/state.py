"""Keep a coordinator's state in a folder, so that whenever it is killed the next one goes on from what it said.

`state.json` is replaced in one step and names every other file by its SHA-256; those are written before it and removed
after it. So a crash leaves the old state or the new one, and files that nobody names, which the next write removes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core.errors import WindlassError
from windlass.core.private import replace_private
from windlass.local.safetensors import SafetensorsFile, write_safetensors
from windlass.training.federated.errors import StateError

__all__ = ["Keeper", "Kept", "KeptNode", "KeptUpdate", "digest_of", "load_weights", "save_weights", "write_file"]

#: A newer layout of the folder is refused.
VERSION = 1
_STATE = "state.json"


class KeptNode(Struct, forbid_unknown_fields=True):
    """A registered node: `last_step` of its newest update, and what its key is derived from ('' without enrolment)."""

    last_step: int = -1
    key: str = ""
    node_nonce: str = ""
    our_nonce: str = ""


class KeptUpdate(Struct, forbid_unknown_fields=True):
    """An update of this round without its weights, whose file is named after their SHA-256 `digest`."""

    node_id: str
    step: int
    sample_count: int
    received_ns: int
    digest: str
    metrics: dict[str, float] = {}


class Kept(Struct, forbid_unknown_fields=True):
    """All of a coordinator but the weights. `weights` is the digest of the global ones."""

    model_size: int
    round: int = 0
    weights: str = ""
    nodes: dict[str, KeptNode] = {}
    updates: list[KeptUpdate] = []
    counts: dict[str, int] = {}
    #: The newest rounds' averaged metrics, the oldest first.
    history: list[dict[str, float]] = []
    version: int = VERSION


def write_file(path: Path, data: bytes) -> None:
    """Replace a file, durably and in one step, readable by its user alone. Raises StateError."""
    try:
        replace_private(path, data)
    except OSError as error:
        raise StateError(f"Cannot write {path}: {error.strerror or error}.", hint="Nothing was changed.") from error


class Keeper:
    """Reads and writes one folder; one process at a time. Makes the folder. Raises StateError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"Cannot make the folder {folder}: {error.strerror}.") from error

    def read(self) -> tuple[Kept, dict[str, NDArray[np.float32]]] | None:
        """Return the state and its vectors by digest, or None where nothing was kept. Raises StateError."""
        path = self.folder / _STATE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"Cannot read {path}: {error.strerror}.") from error
        try:
            kept = msgspec.json.decode(data, type=Kept)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StateError(f"{path} is not a coordinator's state: {error}.") from None
        if kept.version != VERSION:
            raise StateError(f"{path} has version {kept.version}; this one reads {VERSION}.", hint="Update Windlass.")
        digests = [kept.weights, *[update.digest for update in kept.updates]]
        return kept, {digest: self._vector(digest, kept.model_size) for digest in digests}

    def _vector(self, digest: str, size: int) -> NDArray[np.float32]:
        path = self._path(digest)
        try:
            with SafetensorsFile(path) as file:
                vector = file.numpy("weights")
        except WindlassError as error:
            raise StateError(f"{path} cannot be read: {error}", hint="Restore the folder from a copy.") from error
        if vector.dtype != np.float32 or vector.shape != (size,) or digest_of(vector) != digest:
            raise StateError(f"{path} is not what was written.", hint="Restore the folder from a copy.")
        return vector

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise StateError(f"{self.folder / _STATE} names {digest!r}, which is no digest.")
        return self.folder / f"{digest}.safetensors"

    def write(self, kept: Kept, vectors: dict[str, NDArray[np.float32]]) -> None:
        """Keep a state: the files it names that are not there yet, then itself, then nothing else. Raises StateError.

        `vectors` holds at least the vectors that are new.
        """
        wanted = {self._path(digest).name for digest in (kept.weights, *[update.digest for update in kept.updates])}
        for digest, vector in vectors.items():
            path = self._path(digest)
            if path.name in wanted and not path.exists():
                _write_vector(path, vector)
        write_file(self.folder / _STATE, msgspec.json.encode(kept))
        for path in self.folder.iterdir():
            if path.name not in wanted and (path.suffix in (".safetensors", ".part")):
                path.unlink(missing_ok=True)


def save_weights(path: Path | str, vector: NDArray[np.float32]) -> None:
    """Write a safetensors file with one tensor, `weights`. Raises LocalModelError when it cannot be written."""
    write_safetensors(path, {"weights": vector})


def _write_vector(path: Path, vector: NDArray[np.float32]) -> None:
    try:
        save_weights(path, vector)
    except WindlassError as error:
        raise StateError(f"Cannot write {path}: {error}", hint="Nothing was changed.") from error


def digest_of(vector: NDArray[np.float32]) -> str:
    """Return the SHA-256 of a vector's little-endian bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()


def load_weights(path: Path | str) -> NDArray[np.float32]:
    """Read the tensor `weights` of a safetensors file, such as `save_weights` writes. Raises LocalModelError."""
    with SafetensorsFile(path) as file:
        return np.array(file.numpy("weights"), np.float32)
