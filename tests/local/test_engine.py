"""The engine in this process, with the shipped model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.local.asking import ENDLESS, Answer, ask, function, said
from tests.local.gguf_bytes import gguf, string
from windlass.core.clock import deadline
from windlass.core.errors import BadRequestError, ConfigError, ContextExceededError, LocalModelError
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions, Native, count_tokens

TINY = embedded_model().path
ONE_SLOT = EngineOptions(context=4096, slots=1, threads=1, gpu_layers=0, memory_map=False)
TOOLS = [function("read_file", "path"), function("write_file", "path", "content"), function("echo", "text")]


@pytest.fixture(scope="module")
def native() -> Any:
    native = Native(str(TINY), ONE_SLOT)
    yield native
    native.close()


async def test_streams_text_then_usage_and_timings(engine: Engine) -> None:
    answer = await ask(engine, said("hello"))
    assert answer.text.startswith("Hello! I am the tiny built-in model")
    assert answer.reasons == ["stop"]
    assert len(answer.chunks) > 20
    assert not any("prompt_progress" in chunk for chunk in answer.chunks)
    assert answer.usage["prompt_tokens"] == 9
    assert answer.usage["completion_tokens"] == 38
    assert answer.chunks[-1]["timings"]["predicted_n"] == 38
    assert {chunk["model"] for chunk in answer.chunks} == {"tiny-0"}
    assert engine.loaded


async def test_same_request_gives_same_answer_at_temperature_0(engine: Engine) -> None:
    body = said("what is in notes.txt?", tools=TOOLS)
    first, second = await ask(engine, body), await ask(engine, body)
    assert first.calls == second.calls == [("read_file", {"path": "notes.txt"})]
    assert first.reasons == ["tool_calls"]


async def test_a_result_is_answered(engine: Engine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a.txt"}'}}
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "show a.txt"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "hello world"},
    ]
    answer = await ask(engine, said("", messages=messages, tools=TOOLS))
    assert (answer.text, answer.calls, answer.reasons) == ("a.txt contains:\nhello world", [], ["stop"])


async def test_no_tools_are_used_where_none_may_be(engine: Engine) -> None:
    answer = await ask(engine, said("show a.txt", tools=TOOLS, tool_choice="none"))
    assert (answer.calls, answer.reasons) == ([], ["stop"])
    assert "tool_call" not in answer.text
    assert answer.usage["prompt_tokens"] < 20


async def test_settings_reach_the_sampler(engine: Engine) -> None:
    cut = await ask(engine, said("hello", max_tokens=5))
    assert (cut.reasons, cut.usage["completion_tokens"]) == (["length"], 5)
    stopped = await ask(engine, said("hello", stop=["tiny"]))
    assert (stopped.text, stopped.reasons) == ("Hello! I am the ", ["stop"])
    hot: dict[str, Any] = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 40}
    texts = [(await ask(engine, said("why is the sky blue?", **hot, seed=seed))).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) >= 2
    greedy = await ask(engine, said("why is the sky blue?", temperature=2.0, top_k=1))
    assert greedy.text == (await ask(engine, said("why is the sky blue?"))).text


async def test_count_is_what_the_engine_reports(engine: Engine) -> None:
    body = said("show a.txt", tools=TOOLS)
    count = await count_tokens(engine, body)
    assert count == (await ask(engine, body)).usage["prompt_tokens"] > 50


async def test_context_overflow_names_both_counts(engine: Engine) -> None:
    with pytest.raises(ContextExceededError, match=r"has 10008 tokens; the context of tiny-0 holds 4096") as caught:
        await ask(engine, said("hello " * 5000))
    assert caught.value.provider == "local"
    with pytest.raises(ContextExceededError):
        await count_tokens(engine, said("hello " * 5000))
    # The engine goes on.
    assert (await ask(engine, said("hello"))).reasons == ["stop"]


async def test_an_answer_that_fills_the_context_ends_with_length() -> None:
    engine = Engine(TINY, EngineOptions(context=256, threads=1, gpu_layers=0))
    answer = await ask(engine, {**said("x"), **ENDLESS})
    assert answer.reasons == ["length"]
    assert answer.usage["total_tokens"] == 256
    engine.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "x"},
        {"temperature": "hot"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "bogus"}}}},
        {"tools": [function("f", type="bogus")]},
        {"tools": [function("f", type="bogus")], "tool_choice": "required"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://elsewhere/x"}}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        {"messages": [{"role": "user"}]},
    ],
)
async def test_bad_requests_are_typed(engine: Engine, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match="The engine refused the request"):
        await ask(engine, said("hello", **fields))


async def test_output_schema_holds_the_model(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await ask(engine, said("hello", response_format=form))
    assert answer.text in ('{"word": "yes"}', '{"word": "no"}')
    assert len(answer.chunks) > 4
    chosen = await ask(engine, said("hello", grammar='root ::= "left" | "right"'))
    assert chosen.text in ("left", "right")


async def test_many_requests_on_two_slots_do_not_mix(engine: Engine) -> None:
    words = ["hello", "milk", "bread", "tea", "apple", "river", "stone", "cloud", "green", "table", "paper", "music"]
    alone = [await ask(engine, said(f'say "{word}"', tools=TOOLS)) for word in words]
    together = await asyncio.gather(*[ask(engine, said(f'say "{word}"', tools=TOOLS)) for word in words])
    assert [answer.calls for answer in together] == [answer.calls for answer in alone]
    right = [word for word, answer in zip(words, together, strict=True) if answer.calls == [("echo", {"text": word})]]
    assert len(right) >= 10
    assert len({answer.chunks[0]["id"] for answer in together}) == len(words)


def test_a_taker_that_says_stop_is_called_no_more(native: Native) -> None:
    chunks: list[bytes] = []

    def take(chunk: bytes) -> bool:
        if chunk:
            chunks.append(chunk)
        return len(chunks) >= 3

    assert native.chat({**said("x"), **ENDLESS}, take) is None
    assert len(chunks) == 3
    # The only slot is free again: the next answer comes whole.
    rest: list[bytes] = []
    native.chat(said("hello"), lambda chunk: bool(chunk and rest.append(chunk)))
    assert Answer(rest).reasons == ["stop"]


def test_a_long_prompt_can_be_stopped_while_it_is_read(native: Native) -> None:
    asked: list[bytes] = []

    def take(chunk: bytes) -> bool:
        asked.append(chunk)
        return len(asked) == 2

    assert native.chat(said("river stone cloud " * 600), take) is None
    assert asked == [b"", b""]  # two reports of progress, not one token


def test_what_a_taker_raises_comes_back(native: Native) -> None:
    def take(chunk: bytes) -> bool:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        native.chat(said("hello"), take)


async def test_closing_the_stream_frees_the_slot() -> None:
    engine = Engine(TINY, ONE_SLOT)
    async with deadline(30):
        for _ in range(5):
            async with aclosing(engine.stream({**said("x"), **ENDLESS})) as chunks:
                assert await anext(chunks)
        assert (await ask(engine, said("hello"))).reasons == ["stop"]
    engine.close()


async def test_a_request_that_waits_for_a_slot_can_be_cancelled() -> None:
    engine = Engine(TINY, ONE_SLOT)
    async with deadline(30), aclosing(engine.stream({**said("x"), **ENDLESS})) as first:
        await anext(first)
        waiting = asyncio.create_task(ask(engine, said("hello")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (await ask(engine, said("hello"))).reasons == ["stop"]
    engine.close()


async def test_close_ends_what_is_under_way_and_a_later_request_loads_again() -> None:
    engine = Engine(TINY, ONE_SLOT)
    assert not engine.loaded
    async with aclosing(engine.stream({**said("x"), **ENDLESS})) as chunks:
        await anext(chunks)
        waiting = asyncio.create_task(ask(engine, said("hello")))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        with pytest.raises(LocalModelError, match="was unloaded"):
            async for _ in chunks:
                pass
        with pytest.raises(LocalModelError, match="was unloaded"):
            await waiting
    assert not engine.loaded
    assert (await ask(engine, said("hello"))).reasons == ["stop"]
    engine.close()
    engine.close()


def test_two_loops_in_two_threads_share_the_engine(engine: Engine) -> None:
    async def both() -> list[Answer]:
        threads = [asyncio.to_thread(asyncio.run, ask(engine, said(text))) for text in ("hello", "what time is it?")]
        return await asyncio.gather(*threads)

    answers = asyncio.run(both())
    assert [answer.reasons for answer in answers] == [["stop"], ["stop"]]


async def test_the_loop_is_free_while_the_engine_works(engine: Engine) -> None:
    await ask(engine, said("hello"))
    task = asyncio.create_task(ask(engine, {**said("x"), **ENDLESS, "max_tokens": 300}))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await task).usage["completion_tokens"] == 300
    assert turns > 300


async def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tiny-0.gguf"
    path.write_bytes(TINY.read_bytes()[:-1] + b"\x55")
    model = type(embedded_model())(path, embedded_model().sha256, embedded_model().profile)
    engine = Engine(path, ONE_SLOT, verify=model.verify)
    with pytest.raises(LocalModelError, match="has the SHA-256"):
        await ask(engine, said("hello"))
    assert not engine.loaded


async def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf([string("general.architecture", "llama")]))
    with pytest.raises(LocalModelError, match="holds no weights"):
        await ask(Engine(path), said("hello"))


async def test_a_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'windlass\[local\]'"):
        await ask(Engine(TINY), said("hello"))


def program(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own with an engine in it; warnings are errors there too."""
    head = """
        import asyncio, atexit, os, signal
        from windlass.local.embedded import embedded_model
        from windlass.local.engine import Engine, EngineOptions
        from tests.local.asking import ENDLESS, ask, said
        engine = Engine(embedded_model().path, EngineOptions(threads=1, gpu_layers=0))
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


def test_the_engine_prints_nothing_and_exit_is_clean() -> None:
    done = program(
        """
        asyncio.run(ask(engine, said("hello")))
        long = {"type": "object", "properties": {"a": {"type": "string", "minLength": 3000}}, "required": ["a"]}
        for bad in (
            said("hello " * 9000),
            said("hello", messages="x"),
            said("hello", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "bogus"}}}),
            said("hello", response_format={"type": "json_schema", "json_schema": {"schema": {"pattern": "((("}}}),
        ):
            try:
                asyncio.run(ask(engine, bad))
            except Exception as error:
                assert type(error).__name__ in ("ContextExceededError", "BadRequestError"), error
            else:
                raise AssertionError(bad)
        asyncio.run(ask(engine, said("x", response_format={"type": "json_schema", "json_schema": {"schema": long}})))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_amid_an_answer_neither_hangs_nor_crashes() -> None:
    done = program(
        """
        async def main():
            stream = engine.stream({**said("x"), **ENDLESS})
            await anext(stream)
            return stream

        loop = asyncio.new_event_loop()
        kept = loop.run_until_complete(main())
        channel = next(iter(engine._running._answering))
        # Runs after every thread has ended: the answer has not come to its 3000 tokens.
        atexit.register(lambda: print("left", len(channel._chunks) < 2500))
        """
    )
    assert (done.returncode, done.stdout) == (0, "left True\n")


def test_loading_leaves_signals_alone() -> None:
    done = program(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
        asyncio.run(ask(engine, said("hello")))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10**9):
                pass
        except KeyboardInterrupt:
            print("interrupted", flush=True)  # SIGTERM ends the program without flushing
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert (done.returncode, done.stdout) == (-15, "interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nobody_can_reach_the_engines_own_server() -> None:
    done = program(
        """
        asyncio.run(ask(engine, said("hello")))
        fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        links = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        ours = {link[8:-1] for link in links if link.startswith("socket:[")}
        rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/self/net/{name}")]
        print([row[1] for row in rows if row[3] == "0A" and row[9] in ours])
        paths = [row[-1] for row in map(str.split, open("/proc/self/net/unix")) if row[6] in ours and "/" in row[-1]]
        print(len(paths), [path for path in paths if os.path.exists(path) or os.path.exists(os.path.dirname(path))])
        """
    )
    assert done.stdout.splitlines() == ["[]", "1 []"], done.stderr
