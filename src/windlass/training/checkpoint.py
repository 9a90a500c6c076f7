"""Checkpoints: a folder per step that is there whole or not at all, and is checked before it is used.

A folder `step-00000100` holds `model.safetensors`, `optimiser.safetensors`, `tokenizer.json` where there is one, and
`state.json`: everything else a run needs to go on, and the SHA-256 of the other files and of itself. It is written as
a temporary folder, forced to the disk and renamed; which is the newest is found by looking. No pickle.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from windlass.core import clock
from windlass.training.config import TrainConfig
from windlass.training.data import Place
from windlass.training.errors import CheckpointError

__all__ = ["MODEL", "OPTIMISER", "SCHEMA", "Checkpoint", "Folder", "State", "config_of", "find", "read", "read_state"]

#: The version of `state.json`. Readers accept lower ones and refuse higher ones.
SCHEMA: Final = 1
MODEL, OPTIMISER, STATE = "model.safetensors", "optimiser.safetensors", "state.json"
_NAME: Final = re.compile(r"step-([0-9]{8,})")
_fcntl: Any = importlib.import_module("fcntl") if sys.platform != "win32" else None


class State(Struct, frozen=True, kw_only=True):
    """What `state.json` says, files aside.

    `step` counts updates, and with it the schedule; `place` is where the data is read on. The randomness of a step is
    drawn anew from `seed` and the step, so these two are the state of the generators. `tokens` counts predictions;
    `best` and `waited` belong to early stopping, `scale` and `growth` to fp16; `shape` is the LlamaConfig, if the
    model is one; `source` and `rows` name the data.
    """

    step: int = 0
    place: Place = Place()
    seed: int = 0
    tokens: int = 0
    best: float | None = None
    waited: int = 0
    scale: float | None = None
    growth: int = 0
    config: TrainConfig = TrainConfig()
    shape: dict[str, Any] | None = None
    source: str = ""
    rows: int = 0
    metrics: dict[str, float] = {}
    time: int = 0


class _File(Struct, frozen=True):
    sha256: str
    bytes: int


class _Document(Struct, frozen=True, kw_only=True):
    schema: int
    files: dict[str, _File]
    state: msgspec.Raw
    sha256: str


class Checkpoint(Struct, frozen=True):
    """A checkpoint that was read and checked: tensors by name, on the CPU."""

    path: Path
    state: State
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]


def find(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint that `path` is, or the newest in it. Raises CheckpointError when there is none."""
    folder = Path(path).expanduser()
    if (folder / STATE).is_file():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; a checkpoint is a folder.",
            path=str(folder),
            hint="windlass train info shows what files of reference E hold.",
        )
    found = _steps(folder) if folder.is_dir() else {}
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder}.", path=str(folder))
    return found[max(found)]


def read_state(path: Path) -> State:
    """Return a checkpoint's state without its tensors. Raises CheckpointError when it is damaged or too new."""
    return _document(path)[0]


def config_of(path: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the options of the run that wrote a checkpoint, some of them replaced. Raises CheckpointError."""
    return msgspec.structs.replace(read_state(find(path)).config, **(changes or {}))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify all its sums. Raises CheckpointError that names the file which is wrong."""
    state, files = _document(path)
    for name, kept in files.items():
        try:
            same = (path / name).stat().st_size == kept.bytes and _digest(path / name) == kept.sha256
        except OSError as error:
            raise CheckpointError(f"{path / name}: {error.strerror}.", path=str(path)) from error
        if not same:
            raise CheckpointError(
                f"{path / name} is not what was written.", path=str(path), hint="Resume from the checkpoint before it."
            )
    tensors: list[dict[str, Tensor]] = []
    for name in (MODEL, OPTIMISER):
        try:
            tensors.append(load_file(path / name))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path / name}: {error}.", path=str(path)) from error
    return Checkpoint(path, state, *tensors)


def _document(path: Path) -> tuple[State, dict[str, _File]]:
    file = path / STATE
    try:
        document = msgspec.json.decode(file.read_bytes(), type=_Document)
        if document.schema > SCHEMA:
            raise CheckpointError(
                f"{file} has schema {document.schema}, newer than {SCHEMA}.", hint="Upgrade windlass."
            )
        if _seal(document.files, document.state) != document.sha256:
            raise CheckpointError(f"{file} is not what was written.", path=str(path))
        if not {MODEL, OPTIMISER} <= set(document.files) or any(Path(name).name != name for name in document.files):
            raise CheckpointError(f"{file} names other files than a checkpoint has.", path=str(path))
        return msgspec.json.decode(document.state, type=State), document.files
    except OSError as error:
        raise CheckpointError(f"Cannot read {file}: {error.strerror}.", path=str(path)) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise CheckpointError(f"{file} is not a checkpoint's state: {error}.", path=str(path)) from error


def _seal(files: Mapping[str, _File], state: bytes | msgspec.Raw) -> str:
    return hashlib.sha256(msgspec.json.encode(files, order="sorted") + bytes(state)).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _steps(folder: Path) -> dict[int, Path]:
    """Return the finished checkpoints of a folder by step."""
    named = [(_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir()]
    return {int(match[1]): entry for match, entry in named if match and (entry / STATE).is_file()}


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows has no handle for that; its rename is kept in a journal
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Folder:
    """The checkpoints of one run, for writing: one process at a time. What an earlier one left unfinished is removed.

    Raises CheckpointError when another run writes here or the folder cannot be made.
    """

    def __init__(self, path: str | Path, keep: int = 5) -> None:
        self.path, self.keep = Path(path).expanduser(), keep
        self._lock = -1
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise CheckpointError(
                f"Cannot write checkpoints to {self.path}: {error.strerror}.", path=str(self.path)
            ) from error
        try:
            if _fcntl is not None:
                _fcntl.flock(self._lock, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise CheckpointError(
                f"Another run writes checkpoints to {self.path}.", path=str(self.path), hint="Choose another folder."
            ) from error
        self._clean()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others write here."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def latest(self) -> Path | None:
        """Return the newest finished checkpoint."""
        found = _steps(self.path)
        return found[max(found)] if found else None

    def expect(self, step: int) -> None:
        """Refuse a folder with checkpoints of later steps than `step`, of another run or of a future given up."""
        newest = self.latest()
        if newest is not None and max(_steps(self.path)) > step:
            raise CheckpointError(
                f"{self.path} holds {newest.name}, later than step {step} from where this run starts.",
                path=str(self.path),
                hint="Resume from it, or choose another folder.",
            )
        # A process that was killed after its last checkpoint left one too many.
        self._trim()

    def save(
        self, state: State, model: dict[str, Tensor], optimiser: dict[str, Tensor], texts: Mapping[str, bytes]
    ) -> Path:
        """Write a checkpoint, then remove the oldest over `keep`; return its folder.

        `texts` are small files beside the tensors. Whatever ends the process meanwhile, what was there stays. Raises
        CheckpointError when the disk refuses.
        """
        target = self.path / f"step-{state.step:08}"
        made = self.path / f".new-{clock.new_id()}"
        try:
            made.mkdir()
            save_file(model, made / MODEL)
            save_file(optimiser, made / OPTIMISER)
            for name, data in texts.items():
                (made / name).write_bytes(data)
            files: dict[str, _File] = {}
            for file in sorted(made.iterdir()):
                _sync(file)
                files[file.name] = _File(_digest(file), file.stat().st_size)
            body = msgspec.json.encode(state)
            document = _Document(schema=SCHEMA, files=files, state=msgspec.Raw(body), sha256=_seal(files, body))
            (made / STATE).write_bytes(msgspec.json.encode(document))
            _sync(made / STATE)
            _sync(made)
            self._put(made, target)
            self._trim()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(made, ignore_errors=True)
            raise CheckpointError(f"Cannot write the checkpoint {target}: {error}.", path=str(target)) from error
        return target

    def _put(self, made: Path, target: Path) -> None:
        """Rename; an older checkpoint of this step goes aside first, and comes back if that is all there is."""
        aside = self.path / f".old-{target.name}"
        if target.exists():
            target.rename(aside)
        made.rename(target)
        _sync(self.path)
        if aside.exists():
            self._remove(aside)

    def _trim(self) -> None:
        found = _steps(self.path)
        for step in sorted(found)[: -self.keep]:
            self._remove(found[step])

    def _remove(self, path: Path) -> None:
        # Under another name first: a half removed folder must not look like a checkpoint.
        gone = self.path / f".gone-{clock.new_id()}"
        path.rename(gone)
        shutil.rmtree(gone)

    def _clean(self) -> None:
        """Take back what a killed process had put aside, and remove what it had not finished."""
        for entry in sorted(self.path.iterdir()):
            if entry.name.startswith(".old-") and not (self.path / entry.name[5:]).exists():
                entry.rename(self.path / entry.name[5:])
            elif entry.name.startswith((".new-", ".old-", ".gone-")):
                shutil.rmtree(entry)
