"""What a file that is given as a model really is, digests that a manifest names, and files replaced whole.

Checkpoints that hold pickled objects run code when they are loaded, and archives bring paths and links of their own.
None of them is ever opened here: their first bytes are looked at, and the error says what they are and what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, Final, Literal

from windlass.core import clock
from windlass.core.errors import LocalModelError
from windlass.local.failures import InvalidModelFormat

__all__ = ["Kind", "blob_path", "kind_of", "new_file", "parse_digest", "read_at", "refused_kind", "verify_digest"]

Kind = Literal["gguf", "safetensors", "folder"]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_HEAD: Final = 512
_ARCHIVE: Final = "an archive of files"
_PICKLE: Final = "a pickled object, which runs code when it is loaded"
#: Where in the file -> what stands there -> what it is.
_MAGIC: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch .pt or .bin checkpoint, or .npz), which may hold pickled objects"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array file, which may hold pickled objects"),
    *[(0, bytes((0x80, protocol)), _PICKLE) for protocol in range(2, 6)],
)
_SUFFIXES: Final[dict[str, str]] = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".zst"), _ARCHIVE),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"), _PICKLE),
    ".bin": "a PyTorch checkpoint or unnamed data",
    ".npz": "an archive of NumPy arrays",
    ".npy": "a NumPy array file",
    ".h5": "an HDF5 file",
    ".onnx": "an ONNX graph",
    ".tflite": "a TensorFlow Lite graph",
}
_ADVICE: Final = (
    "Windlass reads GGUF and safetensors only. Take the model in one of these, or have the tool that made the file "
    "save it so (safetensors.torch.save_file)."
)


def refused_kind(path: str | os.PathLike[str], head: bytes) -> str | None:
    """Return what a file is that is neither GGUF nor safetensors, from its first 512 bytes, else from its name.

    None: nothing known. The file is not opened.
    """
    for at, magic, what in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return what
    return _SUFFIXES.get(Path(path).suffix.lower())


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Return what kind of model is at `path`: a GGUF file, a safetensors file, or a folder with a `config.json`.

    Only the first 512 bytes are read; `read_header` and `read_safetensors` check the rest. Raises LocalModelError that
    says what the file is instead (an archive, a pickle, ...) and what to do; links are followed, pipes not opened.
    """
    where = Path(path)
    try:
        mode = where.stat().st_mode
        if stat.S_ISDIR(mode):
            if (where / "config.json").is_file():
                return "folder"
            raise LocalModelError(
                f"The folder {where} has no config.json: it is not a model.",
                path=str(where),
                hint="Name a .gguf or .safetensors file, or a folder with config.json and *.safetensors.",
            )
        if not stat.S_ISREG(mode):
            raise LocalModelError(f"{where} is not a regular file.", path=str(where), hint="Name a model file.")
        with where.open("rb", buffering=0) as file:
            head = file.read(_HEAD)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LocalModelError(f"{where} cannot be read: {reason}.", path=str(where)) from error
    if head.startswith(b"GGUF"):
        return "gguf"
    what = refused_kind(where, head)
    # A header of safetensors is the length of a JSON object and the object.
    if head[8:9] == b"{" and (what is None or where.suffix == ".safetensors"):
        return "safetensors"
    raise InvalidModelFormat(
        f"{where} is {what or 'neither GGUF nor safetensors'}: it is not opened.", path=str(where), hint=_ADVICE
    )


def parse_digest(text: str) -> str:
    """Return the 64 hex digits of a manifest's digest, which must be `sha256:` and 64 small hex digits, nothing else.

    Raises LocalModelError: a digest becomes a file name, and `sha256:../../x` must not.
    """
    if not isinstance(text, str) or _DIGEST.fullmatch(text) is None:
        raise LocalModelError(
            f"The digest {str(text)[:100]!r} is not sha256: with 64 hexadecimal digits.",
            hint="The manifest is damaged or not to be trusted; fetch it again.",
        )
    return text.removeprefix("sha256:")


def blob_path(folder: str | os.PathLike[str], digest: str) -> Path:
    """Return where a blob with this digest is kept: `FOLDER/sha256-HEX`. Raises as `parse_digest`."""
    return Path(folder) / f"sha256-{parse_digest(digest)}"


def verify_digest(path: str | os.PathLike[str], digest: str) -> None:
    """Compare the file with a manifest's digest. Blocking, about 1 s per 2 GB. Raises LocalModelError."""
    wanted = parse_digest(digest)
    try:
        with Path(path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LocalModelError(f"{path} cannot be read: {error.strerror}.", path=os.fspath(path)) from error
    if found != wanted:
        raise LocalModelError(
            f"{path} has the SHA-256 {found}, not {wanted}.", path=os.fspath(path), hint="Fetch the file again."
        )


def read_at(descriptor: int, offset: int, size: int, path: str) -> bytes:
    """Return `size` bytes of an open file at `offset`. Raises LocalModelError, naming `path`, when there are fewer."""
    pieces: list[bytes] = []
    while size > 0:
        try:
            if hasattr(os, "pread"):
                piece = os.pread(descriptor, size, offset)
            else:  # Windows; there a file is read by one thread at a time
                os.lseek(descriptor, offset, os.SEEK_SET)
                piece = os.read(descriptor, size)
        except OSError as error:
            raise LocalModelError(f"{path} cannot be read: {error.strerror}.", path=path) from error
        if not piece:
            raise LocalModelError(
                f"{path} became shorter while it was read, at byte {offset}.",
                path=path,
                hint="Nobody may write to a model that is in use.",
            )
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Give a file to write, which takes the place of `path` when the block ends, whole, durably and at once.

    It is written beside `path` under a hidden name, synchronised and renamed; when the block raises it is removed and
    what was at `path` stays. Its folder must exist. Raises LocalModelError when it cannot be written.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name[:80]}.{clock.new_id()}.part")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        with contextlib.suppress(OSError):  # not every system opens folders
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise LocalModelError(
                f"{target} cannot be written: {error.strerror or error}.",
                path=str(target),
                hint="Check the folder and the free space.",
            ) from error
        raise
