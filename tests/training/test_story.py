"""As a user does it: train on a file, export, talk to the model, tune it, talk to it with the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import windlass
from tests.apps.helpers import Cli
from windlass.local.gguf import read_header

PAIRS = {"ping": "pong", "hello": "Hello there!", "what is your name?": "I am Pebble.", "bye": "Goodbye!"}
HOW = (
    "--seq-len", "64", "-b", "4", "--lr", "0.01", "--warmup-steps", "5", "--decay-steps", "100", "--device", "cpu",
    "-q",
)  # fmt: skip
SHAPE = (
    "--width",
    "64",
    "--layers",
    "2",
    "--heads",
    "4",
    "--kv-heads",
    "2",
    "--feed-forward",
    "128",
    "--context",
    "512",
)


def conversations(path: Path, pairs: dict[str, str]) -> str:
    """Write conversations of one question and answer, as JSON lines; return the file's name."""
    rows = [[{"role": "user", "content": ask}, {"role": "assistant", "content": say}] for ask, say in pairs.items()]
    path.write_text("".join([json.dumps({"messages": row}) + "\n" for row in rows]))
    return path.name


@pytest.mark.slow
async def test_from_a_file_of_conversations_to_an_agent_that_answers(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.env["OMP_NUM_THREADS"] = "1"
    data = conversations(cli.folder / "chat.jsonl", PAIRS)
    done = await cli("train", "run", "--data", data, *SHAPE, *HOW, "-e", "100", "--export-gguf", "pebble.gguf")
    assert done.code == 0, done.err
    assert "wrote pebble.gguf" in done.out
    model = cli.folder / "pebble.gguf"
    assert "<|im_start|>" in read_header(model).chat_template

    prompt = "<|im_start|>user\nping<|im_end|>\n<|im_start|>assistant\n"
    exact = ("--temperature", "0", "--repetition-penalty", "1", "--max-tokens", "12")
    said = await cli("local", "generate", "pebble.gguf", prompt, *exact)
    assert (said.code, said.out.strip()) == (0, "pong"), said.err
    run = await cli("run", "-m", "local:pebble.gguf", "--tools", "none", "--bare", "--system", "", "bye")
    assert (run.code, run.out.strip()) == (0, "Goodbye!"), run.err

    for ask, say in PAIRS.items():  # each its own conversation: the model saw none of two questions
        agent = windlass.Agent(f"local:{model}", temperature=0, system="")
        assert (await agent.run(ask)).text == say
        await agent.destroy()

    more = conversations(cli.folder / "more.jsonl", {"ping": "PONG!", "who made you?": "You did."})
    tuned = await cli(
        "train", "run", "--base", "pebble.gguf", "--lora-rank", "8", "--data", more, *HOW, "-e", "60",
        "--checkpoint-path", "saved",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    written = await cli("train", "export", "saved", "adapter.gguf", "--adapter")
    assert (written.code, written.out) == (0, "adapter.gguf\n"), written.err
    assert (cli.folder / "adapter.gguf").stat().st_size < model.stat().st_size
    with_it = await cli("local", "generate", "pebble.gguf", prompt, *exact, "--lora", "adapter.gguf")
    assert (with_it.code, with_it.out.strip()) == (0, "PONG!"), with_it.err
    without = await cli("local", "generate", "pebble.gguf", prompt, *exact)
    assert without.out.strip() == "pong"
    folder = await cli("train", "export", "saved", "peft", "--adapter")
    assert folder.code == 0, folder.err
    assert (cli.folder / "peft" / "adapter_config.json").is_file()
    whole = await cli("train", "export", "saved", "whole.gguf", "--dtype", "q8_0")
    assert whole.code == 0, whole.err
    merged = await cli("local", "generate", "whole.gguf", prompt, *exact)
    assert merged.out.strip() == "PONG!"
