"""`windlass.local.Model` as its users have it: from text and chat to LoRA adapters, with real models."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gguf import GGUFWriter

import windlass
from windlass.core.errors import (
    BadRequestError,
    ConfigError,
    ContextExceededError,
    LocalModelError,
    ModelNotFoundError,
)
from windlass.core.messages import user
from windlass.core.request import Request, Settings
from windlass.local import InferenceConfig, InvalidModelFormat, Model, StreamState, UnsupportedQuantization
from windlass.local.embedded import embedded_model
from windlass.local.engine import Adapter
from windlass.local.supervisor import WorkerEngine
from windlass.testing.provider_kit import check_provider

PATH = embedded_model().path
UTC: dict[str, Any] = {
    "type": "function",
    "function": {"name": "utc", "description": "the time", "parameters": {"type": "object", "properties": {}}},
}
ENDLESS: dict[str, Any] = {"grammar": 'root ::= "a" root', "max_tokens": 1800}


@pytest.fixture(scope="module")
def model() -> Generator[Model]:
    with Model.load("tiny", slots=2, threads=1) as model:
        yield model


def test_quickstart_from_outside(tmp_path: Path) -> None:
    link = tmp_path / "tiny.gguf"
    link.symlink_to(PATH)
    script = """
    import windlass
    from windlass.local import Model

    model = Model.load("tiny.gguf")
    for token in model.stream("Once upon a time", max_tokens=64, temperature=0.8, top_k=40):
        print(token.text, end="")
    print()
    agent = windlass.Agent(model)
    print(agent.run_sync("hello").text)
    model.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "None" not in done.stdout.splitlines()[0]
    assert "I am the tiny built-in model" in done.stdout.splitlines()[-1]


def test_generate_is_greedy_at_temperature_0(model: Model) -> None:
    first = model.generate("Once upon a time", {"max_tokens": 12, "temperature": 0})
    assert first
    assert first == model.generate("Once upon a time", max_tokens=12, temperature=0)
    assert first == model.generate(model.tokenize("Once upon a time"), max_tokens=12, temperature=0)
    pieces: list[str] = []
    stats = model.generate_streaming("Once upon a time", pieces.append, max_tokens=12, temperature=0)
    assert "".join(pieces) == first
    assert (stats.tokens_generated, stats.reason) == (12, "length")
    assert stats.tokens_per_second > 0


def test_seeds_repeat_and_differ(model: Model) -> None:
    def said(seed: int) -> str:
        return model.generate("Once", max_tokens=16, temperature=1.5, top_k=0, top_p=1.0, seed=seed)

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(5)}) > 1


def test_the_end_token_is_not_told(model: Model) -> None:
    prompt = "<|im_start|>user\nwhat time is it?<|im_end|>\n<|im_start|>assistant\n"
    events = list(model.respond(prompt, temperature=0, repetition_penalty=1.0, max_tokens=100))
    assert events[-1].is_final
    assert not {event.token_id for event in events[1:-1]} & set(model.info.end_tokens)
    assert all(event.text is not None and "<|im_end|>" not in event.text for event in events[1:-1])


def test_stop_strings_and_tokens(model: Model) -> None:
    whole = model.generate("Once upon a time", max_tokens=30, temperature=0)
    stop = whole[7:10]
    cut = model.generate("Once upon a time", max_tokens=30, temperature=0, stop=(stop,))
    assert cut == whole[: whole.index(stop)]
    events = list(model.respond("Once upon a time", max_tokens=30, temperature=0))
    third = events[3].token_id
    ended = list(model.respond("Once upon a time", max_tokens=30, temperature=0, stop_tokens=(third,)))
    told = [event.token_id for event in ended[1:-1]]
    assert third not in told
    assert told == [event.token_id for event in events[1:-1]][: len(told)]
    assert ended[-1].is_final


def test_characters_come_whole(model: Model) -> None:
    response = model.respond("x", grammar='root ::= "é€😀" root', temperature=0, max_tokens=25)
    texts = [event.text for event in response if event.text]
    assert "".join(texts).startswith("é€😀é€😀")
    assert all("\ufffd" not in text for text in texts)
    assert set("".join(texts)) <= set("é€😀")


def test_grammar_and_schema_hold(model: Model) -> None:
    assert model.generate("x", grammar='root ::= "yes" | "no"', max_tokens=8) in ("yes", "no")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    for _ in range(3):
        assert model.generate("x", json_schema=schema, max_tokens=60) in ('{"ok": true}', '{"ok": false}')
    with pytest.raises(BadRequestError, match="grammar"):
        model.generate("x", grammar="root ::= nothing")


def test_logprobs_are_told_where_asked(model: Model) -> None:
    events = list(model.respond("Once upon a time", max_tokens=3, temperature=0, logprobs=4, repetition_penalty=1.0))
    for event in events[1:-1]:
        assert len(event.top) == 4
        assert event.top[0] == (event.token_id, event.logprob)
        values = [value for _, value in event.top]
        assert values == sorted(values, reverse=True)
        assert values[0] <= 0
    found = model.logprobs(model.tokenize("Once upon a time"))
    assert found[events[1].token_id] == max(found)
    assert abs(max(found) - (events[1].logprob or 0)) < 1e-3


def test_chat_calls_tools_and_holds_schemas(model: Model) -> None:
    answer = model.chat("what time is it?", tools=[UTC], temperature=0)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("utc", {})]
    assert answer.reason == "tool_call"
    assert answer.usage.input_tokens > 20
    history: list[Any] = [
        {"role": "user", "content": "what time is it?"},
        answer.to_openai(),
        {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "2026-01-02T03:04:05Z"},
    ]
    pieces: list[str] = []
    closing = model.chat(history, tools=[UTC], temperature=0, on_text=pieces.append)
    assert closing.text == "".join(pieces)
    assert closing.text.startswith("It is 2026-")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert set(msgspec.json.decode(model.chat("hello", schema=schema, max_tokens=60).text)) == {"ok"}
    forced = model.chat("hello", tools=[UTC], tool_choice="utc", temperature=0)
    assert [call.name for call in forced.tool_calls] == ["utc"]


def test_chat_takes_functions_as_tools(model: Model) -> None:
    def read_file(path: str) -> str:
        """Read a file."""
        return path

    answer = model.chat("read notes.txt", tools=[read_file], tool_choice="required", temperature=0)
    assert [call.name for call in answer.tool_calls] == ["read_file"]
    assert set(answer.tool_calls[0].arguments or {}) == {"path"}


def test_chat_refuses_what_it_does_not_know(model: Model) -> None:
    with pytest.raises(ConfigError, match="no stop_tokens"):
        model.chat("hello", stop_tokens=(3,))
    with pytest.raises(ConfigError, match="no option 'colour'"):
        model.generate("hello", colour=3)
    with pytest.raises(ConfigError, match="no option 'colour'"):
        Model.load("tiny", colour=3)
    with pytest.raises(ConfigError, match="no backend 'magic'"):
        Model.load("tiny", backend="magic")


def test_chat_ends_at_its_timeout(model: Model) -> None:
    answer = model.chat("hello", grammar='root ::= "a" root', max_tokens=1800, generation_timeout_ns=100_000_000)
    assert answer.reason == "length"
    assert set(answer.text) <= {"a"}


async def test_it_is_a_provider(model: Model) -> None:
    assert await check_provider(lambda: _Shared(model), streams=2)
    agent = windlass.Agent(model, tools=["utc"])
    result = await agent.run("what time is it?")
    assert "It is " in result.text
    assert await model.count(Request(model="", messages=[user("hello")])) > 3
    assert model.dropped(Request(model="", messages=[user("x")], settings=Settings(presence_penalty=1.0))) == []


class _Shared:
    """The kit closes what it is given; this model stays."""

    def __init__(self, model: Model) -> None:
        self.name, self.stream = model.name, model.stream


def test_cancel_from_another_thread_while_it_generates(model: Model) -> None:
    response = model.respond("x", **ENDLESS)
    for _ in range(4):
        assert response.next() is not None
    threading.Thread(target=response.cancel).start()
    while response.next() is not None:
        pass
    assert (response.state, response.is_cancelled) == (StreamState.CANCELLED, True)
    assert response.stats.tokens_generated < 1800


def test_cancelled_answers_free_their_slots(model: Model) -> None:
    for _ in range(6):  # three times as many as there are slots
        response = model.respond("x", **ENDLESS)
        assert response.next() is not None
        response.cancel()
    assert model.generate("x", max_tokens=2, temperature=0)


def test_timeout_while_it_generates(model: Model) -> None:
    response = model.respond("x", **ENDLESS, generation_timeout_ns=150_000_000)
    events = list(response)
    assert events[-1].is_final
    assert 1 < len(events) < 1800
    assert (response.state, response.stats.reason) == (StreamState.COMPLETED, "timeout")


def test_leaving_a_loop_ends_the_answer(model: Model) -> None:
    stream = model.stream("x", **ENDLESS)
    for token in stream:
        assert token.text == "a"
        break
    stream.cancel()
    assert stream.response.is_cancelled


async def test_async_for_reads_tokens(model: Model) -> None:
    texts = [token.text or "" async for token in model.stream("Once upon a time", max_tokens=8, temperature=0)]
    assert "".join(texts) == model.generate("Once upon a time", max_tokens=8, temperature=0)


def test_batch_keeps_the_order(model: Model) -> None:
    prompts = ["Once upon a time", "read a.txt", "grep x", "list files", "echo"]
    alone = [model.generate(prompt, max_tokens=6, temperature=0) for prompt in prompts]
    assert model.batch(prompts, max_tokens=6, temperature=0) == alone
    assert model.batch([]) == []
    with pytest.raises(ContextExceededError):
        model.batch(["a", "a " * 5000, "b"], max_tokens=4)


def test_two_models_at_once(model: Model) -> None:
    with Model.load(PATH, context_length=512, threads=1) as other:
        assert (model.info.backend, other.info.backend) == ("native", "worker")
        with other.respond("x", **ENDLESS) as busy, model.respond("x", **ENDLESS) as too:
            for _ in range(5):
                assert busy.next() is not None
                assert too.next() is not None
        prompt = {"max_tokens": 8, "temperature": 0}
        assert other.generate("Once upon a time", prompt) == model.generate("Once upon a time", prompt)
        assert (other.info.context, model.info.context) == (512, 2048)


def test_a_file_runs_in_a_worker_unless_said_otherwise() -> None:
    with Model.load(PATH, context_length=256) as model:
        engine = model.backend.chat_engine()
        assert isinstance(engine, WorkerEngine)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(LocalModelError, match="SIGKILL"):
            for _ in range(50):  # the answer that is under way when it dies
                model.generate("x", max_tokens=200, temperature=0)
        assert model.generate("Once", max_tokens=2, temperature=0)
    with Model.load(PATH, context_length=256, in_process=True) as model:
        assert model.info.backend == "native"


def test_closing_ends_what_is_under_way() -> None:
    model = Model.load("tiny", threads=1)
    response = model.respond("x", **ENDLESS)
    response.next()
    response.next()
    model.close()
    with pytest.raises(LocalModelError, match="unloaded"):
        while response.next() is not None:
            pass
    assert response.state is StreamState.ERRORED
    assert model.generate("x", max_tokens=1)
    model.close()


def test_what_does_not_fit_is_told(model: Model) -> None:
    with pytest.raises(ContextExceededError, match=r"5000 tokens; the context of tiny-0 holds 2048") as error:
        model.generate([5] * 5000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match="no token"):
        model.detokenize([5, 2048])
    with pytest.raises(BadRequestError):
        model.generate([5000])
    assert model.detokenize(model.tokenize("é€😀 x")) == "é€😀 x"


def test_the_last_tokens_of_the_context_end_the_text() -> None:
    with Model.load("tiny", context_length=256, threads=1) as model:
        response = model.respond("x", grammar='root ::= "a" root', max_tokens=10_000)
        events = list(response)
    assert 200 < response.stats.tokens_generated <= 256
    assert (events[-1].is_final, response.stats.reason) == (True, "length")


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no model"):
        Model.load("nothing.gguf")
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF nonsense that is long enough to be read")
    with pytest.raises(InvalidModelFormat) as error:
        Model.load(path)
    assert error.value.code == "invalid_model_format"
    data = bytearray(PATH.read_bytes())
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    data[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UnsupportedQuantization, match="unknown type 99") as unknown:
        Model.load(path)
    assert unknown.value.code == "unsupported_quantization"


def test_the_memory_is_told_before_anything_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "windlass.local"), Model.load("tiny", context_length=128) as model:
        assert model.plan is not None
        assert model.plan.message in caplog.text
        assert model.plan.message.startswith("tiny-0 needs about ")
    with pytest.raises(LocalModelError, match=r"needs about .* are free\. Use a smaller context") as error:
        Model.load("tiny", context_length=1 << 30)
    assert error.value.code == "out_of_memory"


def test_embeddings_are_of_length_1_and_alike_in_any_batch(model: Model) -> None:
    texts = ["Once upon a time", "a b c d e f g h i j", "x"]
    together = model.embed(texts).vectors
    assert len(together[0]) == model.info.embedding_width == 256
    for text, vector in zip(texts, together, strict=True):
        alone = model.embed(text).vectors[0]
        assert sum(a * b for a, b in zip(alone, vector, strict=True)) > 0.9999
    with pytest.raises(ContextExceededError, match="Text 1 has"):
        model.embed(["a", "a b " * 3000])
    with pytest.raises(ConfigError, match="no pooling 'loud'"):
        model.embed("a", pooling="loud")


def adapter(path: Path, strength: float) -> Path:
    """Write a LoRA adapter for the last layer's output: rank 2, from a fixed seed."""
    chance = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    name = "blk.5.ffn_down.weight"
    writer.add_tensor(f"{name}.lora_a", chance.normal(size=(2, 640)).astype(np.float32))
    writer.add_tensor(f"{name}.lora_b", (strength * chance.normal(size=(256, 2))).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_adapters_change_the_answer_by_their_scale(tmp_path: Path, model: Model) -> None:
    path = adapter(tmp_path / "lora.gguf", 3.0)
    plain = model.generate("Once upon a time", max_tokens=12, temperature=0)
    with Model.load(PATH, threads=1, adapters=(str(path),)) as changed:
        assert changed.info.adapters == (str(path),)
        loud = changed.generate("Once upon a time", max_tokens=12, temperature=0)
        assert loud != plain
        assert changed.generate("Once upon a time", max_tokens=12, temperature=0, scales=(0.0,)) == plain
        assert changed.generate("Once upon a time", max_tokens=12, temperature=0, scales=(1.0,)) == loud
    with Model.load(PATH, threads=1, adapters=(Adapter(str(path), 0.0),)) as silent:
        assert silent.generate("Once upon a time", max_tokens=12, temperature=0) == plain
    path.write_bytes(b"no adapter")
    with pytest.raises(LocalModelError, match="not a usable GGUF file"):
        Model.load(PATH, adapters=(str(path),))


def test_torch_backend_by_name() -> None:
    with Model.load("tiny", backend="torch", context_length=256) as model:
        assert model.info.backend == "torch"
        assert model.stream("Once", max_tokens=4, temperature=0).text
        with pytest.raises(ConfigError, match="cannot answer chat requests"):
            model.chat("hello")


def test_defaults_are_those_of_the_reference() -> None:
    config = InferenceConfig()
    assert (config.context_length, config.max_new_tokens, config.temperature) == (2048, 256, 0.7)
    assert (config.top_p, config.top_k, config.repetition_penalty, config.batch_size) == (0.9, 40, 1.1, 512)
    assert (config.threads, config.use_gpu) == (None, True)
    wrong: tuple[dict[str, Any], ...] = ({"context_length": 0}, {"slots": 0}, {"temperature": -1.0}, {"threads": 0})
    for bad in wrong:
        with pytest.raises(ConfigError):
            InferenceConfig(**bad)
