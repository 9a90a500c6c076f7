"""What is given as a model and is none, digests of manifests, and files that are replaced whole."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.local.gguf_bytes import small
from windlass.core.errors import LocalModelError
from windlass.local.gguf import read_header
from windlass.local.model_files import blob_path, kind_of, new_file, parse_digest, verify_digest
from windlass.local.safetensors import read_safetensors, write_safetensors


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(Path(os.environ["HARM"])),))


def _zip_with_traversal() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../escaped", "x")
    return out.getvalue()


def _tar_with_link() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("model.safetensors")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def _bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * (4 << 20))
    return out.getvalue()


def _torch() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.ones(3)}, out)
    return out.getvalue()


def _old_torch() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.ones(3)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _arrays(suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == "npz":
        np.savez(out, a=np.array([_Harm()], dtype=object))
    else:
        np.save(out, np.array([_Harm()], dtype=object), allow_pickle=True)
    return out.getvalue()


REFUSED = {
    "model.zip": (_zip_with_traversal, "a zip archive"),
    "bomb.zip": (_bomb, "a zip archive"),
    "model.tar": (_tar_with_link, "a tar archive"),
    "pytorch_model.bin": (_torch, "a zip archive (a PyTorch .pt or .bin checkpoint"),
    "old.pt": (_old_torch, "a pickled object, which runs code"),
    "model.pkl": (lambda: pickle.dumps(_Harm()), "a pickled object, which runs code"),
    "model.joblib": (lambda: pickle.dumps([_Harm()], protocol=2), "a pickled object, which runs code"),
    "weights.npz": (lambda: _arrays("npz"), "a zip archive"),
    "weights.npy": (lambda: _arrays("npy"), "a NumPy array file"),
    "text.pickle": (lambda: pickle.dumps(_Harm(), protocol=0), "a pickled object, which runs code"),
    "model.tar.gz": (lambda: b"\x1f\x8b\x08" + b"\0" * 60, "a gzip archive"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "an HDF5 file"),
    "model.onnx": (lambda: b"\x08\x07" + b"\0" * 60, "an ONNX graph"),
    "model.what": (lambda: b"hello" * 20, "neither GGUF nor safetensors"),
    "empty.gguf": (lambda: b"", "neither GGUF nor safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_s108_s109_what_is_no_model_is_named_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    make, what = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(LocalModelError) as caught:
        kind_of(path)
    assert what in caught.value.message and "is not opened" in caught.value.message
    assert "GGUF and safetensors only" in caught.value.hint
    for other in (name, "renamed.safetensors", "renamed.gguf"):
        path = path.rename(tmp_path / other)
        for opener in (kind_of, read_header, read_safetensors):
            with pytest.raises(LocalModelError) as caught:
                opener(path)
            assert caught.value.path == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["renamed.gguf"]


def test_models_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(small())
    assert kind_of(tmp_path / "a.bin") == "gguf"
    write_safetensors(tmp_path / "b.safetensors", {"a": np.ones(2)})
    assert kind_of(tmp_path / "b.safetensors") == "safetensors"
    with pytest.raises(LocalModelError, match=r"has no config\.json"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(tmp_path) == "folder"
    with pytest.raises(LocalModelError, match="No such file"):
        kind_of(tmp_path / "none")
    with pytest.raises(LocalModelError, match="cannot be read"):
        kind_of("a\0b")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(LocalModelError, match="not a regular file"):
        kind_of(tmp_path / "pipe.gguf")


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256:", HEX, f"sha256-{HEX}", f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"SHA256:{HEX}",
        f"sha256:{HEX.upper()}", f"sha256:{HEX}\n", f" sha256:{HEX}", f"sha512:{HEX}", "sha256:../../etc/passwd",
        f"sha256:{'../' * 21}x", f"sha256:{HEX[:-1]}/", f"sha256:{HEX[:-1]}\0", f"sha256:{'٣' * 64}",
        f"sha256:{HEX[:-1]}ａ",
    ],
)  # fmt: skip
def test_s106_digests_are_strict(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalModelError, match="is not sha256: with 64"):
        parse_digest(text)
    with pytest.raises(LocalModelError, match="is not sha256: with 64"):
        blob_path(tmp_path, text)


@given(
    st.text(max_size=80) | st.text("0123456789abcdefABCDEF/.:sha26", min_size=60, max_size=75).map("sha256:".__add__)
)
def test_s106_a_digest_never_leaves_the_folder(text: str) -> None:
    try:
        path = blob_path("/models/blobs", text)
    except LocalModelError:
        return
    assert path.parent == Path("/models/blobs") and path.name == f"sha256-{text[7:]}" and len(text) == 71


def test_s106_files_are_compared_with_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"model")
    digest = f"sha256:{hashlib.sha256(b'model').hexdigest()}"
    assert blob_path(tmp_path, digest) == tmp_path / digest.replace(":", "-")
    verify_digest(path, digest)
    with pytest.raises(LocalModelError, match="has the SHA-256"):
        verify_digest(path, f"sha256:{HEX}")
    with pytest.raises(LocalModelError, match="cannot be read"):
        verify_digest(tmp_path / "none", digest)


def test_a_new_file_takes_the_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with new_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), new_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"new" and [one.name for one in tmp_path.iterdir()] == ["a"]
    path.unlink()
    path.mkdir()
    with pytest.raises(LocalModelError, match="cannot be written"), new_file(path) as file:
        file.write(b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
