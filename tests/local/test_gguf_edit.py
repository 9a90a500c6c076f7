"""Metadata that change and tensors that do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants

from tests.local.asking import ask, said
from tests.local.gguf_bytes import STRING, array, gguf, small, string, tensor, u32
from windlass.core.errors import ConfigError, LocalModelError, UnknownNameError
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions
from windlass.local.gguf import GgufArray, GgufInfo, read_header
from windlass.local.gguf_data import GgufFile
from windlass.local.gguf_edit import edit_metadata

TINY = embedded_model().path


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with GgufFile(path) as file:
        return {t.name: (t.type, t.dims, b"".join(p.tobytes() for p in file.raw(t.name))) for t in file.info.tensors}


def values(path: Path) -> dict[str, object]:
    with GgufFile(path) as file:
        return {key: (file.info.types[key], file.raw_value(key)) for key in file.info.metadata}


def test_set_and_remove_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new.gguf"
    info = edit_metadata(
        TINY,
        target,
        set={"general.name": "other", "llama.context_length": 2048, "my.list": ["a", "b"]},
        remove=["tokenizer.ggml.padding_token_id"],
    )
    assert tensors(target) == tensors(TINY)
    before, after = values(TINY), values(target)
    assert before.keys() - after.keys() == {"tokenizer.ggml.padding_token_id"}
    assert after.keys() - before.keys() == {"my.list"}
    assert {key for key in before.keys() & after.keys() if before[key] != after[key]} == {
        "general.name",
        "llama.context_length",
    }
    assert after["llama.context_length"] == ("uint32", 2048)
    assert info == read_header(target)
    assert info.metadata["my.list"] == GgufArray("string", 2)
    kept = [key for key in before if key in after]
    assert [key for key in after if key in before] == kept  # in the same order


async def test_the_engine_loads_an_edited_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copyfile(TINY, path)
    edit_metadata(path, set={"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    engine = Engine(path, EngineOptions(context=256, threads=1, gpu_layers=0, memory_map=False))
    assert (await ask(engine, said("read a.txt", max_tokens=1))).usage["prompt_tokens"] < 8
    engine.close()


def test_every_kind_of_value_is_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source.write_bytes(small())
    edit_metadata(source, target, set={"scalar.2": 9})
    before, after = values(source), values(target)
    assert after.pop("scalar.2") == ("uint16", 9) and before.pop("scalar.2") == ("uint16", 7)
    assert before == after
    assert tensors(source) == tensors(target)


def test_a_text_that_is_no_text_is_kept_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf([string("general.architecture", "x"), string("a", b"x\xff\0"), string("b", "")]))
    edit_metadata(path, set={"c": 1})
    assert values(path)["a"] == ("string", b"x\xff\0") and values(path)["b"] == ("string", b"")
    with GgufFile(path) as file, pytest.raises(LocalModelError, match="'a' is not UTF-8"):
        file.value("a")


def test_another_alignment_is_kept(tmp_path: Path) -> None:
    pairs = [string("general.architecture", "x"), u32("general.alignment", 4)]
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf(pairs, [tensor("a", [1]), tensor("b", [1], offset=4)], b"\1" * 8, alignment=4))
    before = tensors(path)
    info: GgufInfo = edit_metadata(path, set={"c": 1})
    assert info.alignment == 4 and tensors(path) == before
    with pytest.raises(ConfigError, match="says where the tensors lie"):
        edit_metadata(path, set={"general.alignment": 64})


def test_what_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small())
    before = path.read_bytes()
    with pytest.raises(UnknownNameError, match=r"scalar\.5"):
        edit_metadata(path, remove=["scalar.55"])
    with pytest.raises(ConfigError, match="both set and removed"):
        edit_metadata(path, set={"flag": False}, remove=["flag"])
    with pytest.raises(ConfigError, match="no engine loads"):
        edit_metadata(path, remove=["general.architecture"])
    with pytest.raises(ConfigError, match="not a uint16"):
        edit_metadata(path, set={"scalar.2": 1 << 20})
    with pytest.raises(ConfigError, match="'tokens' is a list"):
        edit_metadata(path, set={"tokens": "a"})
    with pytest.raises(ConfigError, match="'flag' is bool"):
        edit_metadata(path, set={"flag": [True]})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


def test_an_empty_list_cannot_be_written_but_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf([string("general.architecture", "x"), array("none", STRING, 0, b"")]))
    with pytest.raises(LocalModelError, match="empty list as 'none'"):
        edit_metadata(path, set={"c": 1})
    assert "none" not in edit_metadata(path, remove=["none"]).metadata


def test_numbers_of_the_shipped_model_are_as_the_gguf_package_has_them() -> None:
    with GgufFile(TINY) as file:
        for theirs in GGUFReader(TINY).tensors[:8]:
            wanted = quants.dequantize(theirs.data, theirs.tensor_type)
            assert np.array_equal(file.array(theirs.name), wanted.reshape(file.array(theirs.name).shape))
