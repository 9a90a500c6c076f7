"""`windlass local` as a user runs it, with the model that ships and files made from it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.apps.helpers import Cli
from windlass.local import Model, embedded_model, read_header

TINY = embedded_model().path


async def test_info_tells_of_a_file_without_loading_it(cli: Cli) -> None:
    done = await cli("local", "info", str(TINY), "--tensors")
    assert done.code == 0, done.err
    lines = dict(line.split(None, 1) for line in done.out.splitlines())
    assert lines["architecture"] == "llama" and lines["parameters"] == str(read_header(TINY).parameters)
    assert "token_embd.weight" in lines and "needs about" in done.out
    row = json.loads((await cli("llm", "info", "tiny", "--json")).out)
    assert row["size"] == TINY.stat().st_size and row["chat_template"] is True and row["memory"] > row["size"]


async def test_what_is_no_model_is_told(cli: Cli) -> None:
    bad = cli.folder / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(60))
    for verb in (["info"], ["generate"], ["tokenize"], ["bench"]):
        done = await cli("local", *verb, str(bad), *(["x"] if verb[0] in ("generate", "tokenize") else []))
        assert done.code == 1 and done.out == "" and "bad.gguf" in done.err, (verb, done.err)
        assert "Traceback" not in done.err
    done = await cli("local", "info", "nowhere.gguf")
    assert done.code != 0 and "nowhere.gguf" in done.err


async def test_generate_goes_on_with_a_text_as_the_library_does(cli: Cli) -> None:
    wanted = Model.load("tiny").generate("hello", max_tokens=8, temperature=0.0)
    done = await cli("local", "generate", "tiny", "hello", "--max-tokens", "8", "--temperature", "0", "--stats")
    assert done.code == 0 and done.out == wanted + "\n", done.err
    assert "tokens/s" in done.err
    piped = await cli("local", "generate", "tiny", "--max-tokens", "8", "--temperature", "0", piped=b"hello")
    assert piped.out == done.out


async def test_generate_writes_reference_e_s_events(cli: Cli) -> None:
    done = await cli("local", "generate", "tiny", "hello", "--max-tokens", "3", "--temperature", "0", "--sse")
    events = [json.loads(part.removeprefix("data: ")) for part in done.out.split("\n\n") if part]
    assert events[0] == {"token_id": 0, "position": 0, "is_final": False}
    assert [event["position"] for event in events[1:4]] == [0, 1, 2] and events[4]["is_final"] is True
    assert events[5]["event"] == "complete" and events[5]["tokens_generated"] == 3


async def test_a_grammar_and_a_schema_hold_the_answer(cli: Cli) -> None:
    (cli.folder / "yes.gbnf").write_text('root ::= "yes" | "no"')
    done = await cli("local", "generate", "tiny", "Is it?", "--grammar", "yes.gbnf")
    assert done.code == 0 and done.out.strip() in ("yes", "no"), done.err
    (cli.folder / "s.json").write_text('{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}')
    done = await cli("local", "generate", "tiny", "Give me JSON", "--schema", "s.json")
    assert json.loads(done.out)["a"] in (1, 2)
    (cli.folder / "broken.json").write_text("{")
    done = await cli("local", "generate", "tiny", "x", "--schema", "broken.json")
    assert done.code == 2 and "broken.json is not JSON" in done.err


async def test_tokens_are_those_of_the_file(cli: Cli) -> None:
    done = await cli("local", "tokenize", "tiny", "hello world", "--ids")
    with Model.load("tiny") as model:
        tokens = model.tokenize("hello world")
    assert [int(word) for word in done.out.split()] == tokens
    done = await cli("local", "tokenize", "tiny", piped="grün".encode())
    assert done.code == 0 and "tokens" in done.err


async def test_bench_measures_reading_and_writing(cli: Cli) -> None:
    args = ["--prompt-tokens", "32", "--tokens", "8", "--repeat", "1", "--threads", "1"]
    row = json.loads((await cli("local", "bench", "tiny", *args, "--json")).out)
    assert row["prefill_tokens_per_second"] > 0 and row["decode_tokens_per_second"] > 0
    assert row["device"] == "cpu" and row["prompt_tokens"] == 32
    assert (await cli("local", "bench", "tiny", "--tokens", "0")).code == 2


async def test_quantize_writes_a_smaller_file_and_overwrites_nothing_unasked(cli: Cli) -> None:
    whole = cli.folder / "whole.gguf"
    done = await cli("local", "quantize", "tiny", str(whole), "f32")
    assert done.code == 0, done.err
    done = await cli("local", "quantize", str(whole), "small.gguf", "q4_0")
    assert done.code == 0 and (cli.folder / "small.gguf").stat().st_size < whole.stat().st_size / 4
    answer = await cli("local", "generate", "small.gguf", "hello", "--max-tokens", "4")
    assert answer.code == 0, answer.err
    before = whole.read_bytes()
    done = await cli("local", "quantize", "tiny", str(whole), "q8_0", "--again")
    assert done.code == 2 and "nothing was written" in done.err and whole.read_bytes() == before
    done = await cli("local", "quantize", str(whole), "x.gguf", "q9_9")
    assert done.code == 2 and "Q9_9" in done.err and not (cli.folder / "x.gguf").exists()


async def test_embed_gives_vectors_and_likenesses(cli: Cli) -> None:
    done = await cli("local", "embed", "tiny", "read a.txt", "read b.txt", "--pooling", "mean")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and len(rows) == 2 and len(rows[0]) == 256, done.err
    done = await cli("local", "embed", "tiny", "--similarity", "--pooling", "mean", piped=b"read a.txt\n\nread a.txt\n")
    assert [line.split()[0] for line in done.out.splitlines()] == ["1.0000", "1.0000"]


async def test_list_names_the_files_of_a_folder(cli: Cli) -> None:
    folder = cli.home / "models"
    folder.mkdir(parents=True)
    shutil.copy(TINY, folder / "mine.gguf")
    (folder / "broken.gguf").write_bytes(b"no")
    done = await cli("local", "list")
    assert done.code == 0 and [line.split()[0] for line in done.out.splitlines()] == [
        "tiny", str(folder / "broken.gguf"), str(folder / "mine.gguf"),
    ]  # fmt: skip
    assert (await cli("local", "list", "nowhere")).code == 2


async def test_chat_says_one_thing(cli: Cli) -> None:
    done = await cli("local", "chat", "tiny", "-m", "hello")
    assert done.code == 0 and done.out.strip(), done.err


@pytest.mark.parametrize("args", [["local"], ["local", "generate"], ["llm", "nothing"]], ids=["none", "model", "verb"])
async def test_a_wrong_use_ends_with_2(cli: Cli, args: list[str]) -> None:
    assert (await cli(*args)).code == 2
