"""Change the metadata of a GGUF file; every tensor is copied byte by byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.gguf import GgufArray, GgufInfo
from windlass.local.gguf_data import GgufFile
from windlass.local.gguf_write import GgufFileWriter

__all__ = ["copy_metadata", "edit_metadata"]


def edit_metadata(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    remove: Iterable[str] = (),
    progress: Callable[[int, int], object] | None = None,
) -> GgufInfo:
    """Write `source` with other metadata to `target` (None: in place), at once and durably; return the new header.

    `set` gives values by key; one that is there keeps its type and place, a new one gets that of
    `gguf_write.value_type`. `remove` names keys to leave out. `progress(done, total)` is called in bytes. Blocking.
    Raises UnknownNameError for a key to remove that is not there, ConfigError for a value that does not fit,
    LocalModelError when a file cannot be read or written; `source` is then unchanged.
    """
    changes, gone = dict(set or {}), [*remove]
    with GgufFile(source) as file:
        info = file.info
        for key in gone:
            if key not in info.metadata:
                raise UnknownNameError("metadata key", key, info.metadata)
            if key in changes:
                raise ConfigError(f"The metadata key {key!r} is both set and removed.")
        for key in [*changes, *gone]:
            if key == "general.alignment":
                raise ConfigError("general.alignment says where the tensors lie: it is not changed here.")
        if "general.architecture" in gone:
            raise ConfigError("Without general.architecture no engine loads the model: it is not removed.")
        writer = GgufFileWriter(changes.pop("general.architecture", info.architecture), alignment=info.alignment)
        copy_metadata(file, writer, changes, gone)
        writer.add_all(changes)
        for tensor in info.tensors:
            shape = tensor.dims[::-1]
            writer.add_tensor(tensor.name, shape, tensor.type, partial(file.raw, tensor.name), raw=True)
        return writer.write(target or source, progress=progress)


def copy_metadata(
    file: GgufFile, writer: GgufFileWriter, changes: dict[str, Any] | None = None, without: Iterable[str] = ()
) -> None:
    """Add a file's metadata to a writer, with their types, but for keys `without` and those that the writer has.

    A key of `changes` gets the value there, in its old place and type, and is taken out of `changes`.
    """
    left_out = frozenset(without)
    for key, value in file.info.metadata.items():
        if key in left_out or key in writer:
            continue
        kind = value.type if isinstance(value, GgufArray) else file.info.types[key]
        if changes and key in changes:
            new = changes.pop(key)
            if isinstance(new, list | tuple) != isinstance(value, GgufArray):
                raise ConfigError(f"The metadata key {key!r} is {'a list' if isinstance(value, GgufArray) else kind}.")
            writer.add(key, new, kind)
            continue
        if isinstance(value, GgufArray) and not value.count:
            raise LocalModelError(
                f"{file.info.path} has an empty list as {key!r}, which cannot be written again.",
                path=file.info.path,
                hint="Remove that key.",
            )
        writer.add(key, file.raw_value(key), kind)
