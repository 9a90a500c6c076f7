"""The shipped model and the cards of model files."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from windlass.core.errors import LocalModelError
from windlass.local.embedded import EmbeddedModel, embedded_model, load_profile
from windlass.local.gguf import read_header


def test_the_card_names_the_file_beside_it() -> None:
    model = embedded_model()
    assert model.path.name == "tiny-0.gguf"
    assert model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    model.verify()
    assert embedded_model() is model


def test_the_model_is_package_data_with_a_model_card() -> None:
    folder = resources.files("windlass.local") / "data"
    assert sorted(entry.name for entry in folder.iterdir()) == ["tiny-0.gguf", "tiny-0.json", "tiny-0.md"]
    assert "Known failures" in (folder / "tiny-0.md").read_text()


def test_the_profile_agrees_with_the_file() -> None:
    profile = embedded_model().profile
    info = read_header(embedded_model().path)
    assert profile.context == info.context_length == 4096
    assert profile.name == info.text("general.name") == "tiny-0"
    assert (profile.license, profile.purpose) == ("MIT", "demonstration, fallback and test model")
    assert profile.tools == {
        "read_file": ("path",),
        "write_file": ("path", "content"),
        "edit": ("path", "old_string", "new_string"),
        "list_files": ("path",),
        "grep": ("pattern", "path"),
        "shell": ("command",),
        "utc": (),
        "echo": ("text",),
    }
    assert profile.notice.startswith("tiny-0 is the built-in demonstration model")
    assert profile.measured["one call, plain family"]["calls_exact"] == 61


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    model = embedded_model()
    for path in (tmp_path / "missing.gguf", tmp_path / "other.gguf"):
        (tmp_path / "other.gguf").write_bytes(b"GGUF")
        with pytest.raises(LocalModelError, match="Install windlass again") as caught:
            EmbeddedModel(path, model.sha256, model.profile).verify()
        assert caught.value.path == str(path)


def test_a_file_without_a_card_or_with_other_json_has_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert load_profile(path) is None
    for other in (b"", b"{", b"[1]", b'{"name": "x"}', b'{"windlass_card": 1, "name": "' + b"x" * (257 << 10) + b'"}'):
        path.with_suffix(".json").write_bytes(other)
        if other in (b"", b"{"):
            with pytest.raises(LocalModelError, match="is malformed"):
                load_profile(path)
        else:
            assert load_profile(path) is None


def test_a_card_is_data_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    card = path.with_suffix(".json")
    fields = {"windlass_card": 1, "name": "m", "tools": {"f": ["a"]}, "later": {"kept": "unread"}}
    card.write_bytes(msgspec.json.encode(fields))
    profile = load_profile(path)
    assert profile is not None
    assert (profile.name, profile.tools, profile.max_output) == ("m", {"f": ("a",)}, None)
    card.write_bytes(msgspec.json.encode({**fields, "tools": {"f": "a"}}))
    with pytest.raises(LocalModelError, match=r"malformed.*tools"):
        load_profile(path)
    card.write_bytes(msgspec.json.encode({**fields, "windlass_card": 2}))
    with pytest.raises(LocalModelError, match="has version 2"):
        load_profile(path)
