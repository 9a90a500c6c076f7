"""A user's model in its worker process, and what becomes of us when that process dies."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Generator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.local.asking import ENDLESS, ask, function, said
from tests.local.gguf_bytes import gguf, string, tensor, u32
from windlass.core.clock import deadline, monotonic, sleep
from windlass.core.errors import BadRequestError, ConfigError, ContextExceededError, LocalModelError
from windlass.local.embedded import embedded_model
from windlass.local.engine import EngineOptions
from windlass.local.gguf import read_header
from windlass.local.supervisor import WorkerEngine

TINY = embedded_model().path
OPTIONS = EngineOptions(context=4096, slots=2, threads=1, gpu_layers=0, log=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder") / "mödel.gguf"
    shutil.copyfile(TINY, path)
    return path


@pytest.fixture(scope="module")
def worker(model: Path) -> Generator[WorkerEngine]:
    """One worker for the tests that do it no harm."""
    worker = WorkerEngine(model, OPTIONS)
    yield worker
    worker.close()


def gone(pid: int) -> bool:
    """Whether a process no longer exists or is a zombie that its new parent has not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until_gone(pid: int) -> None:
    async with deadline(30):
        while not gone(pid):
            await asyncio.sleep(0.02)


async def test_answers_as_the_engine_in_process_does(worker: WorkerEngine) -> None:
    assert worker.pid is None
    answer = await ask(worker, said("hello"))
    assert answer.text.startswith("Hello! I am the tiny built-in model")
    assert (answer.reasons, answer.usage["prompt_tokens"], answer.usage["completion_tokens"]) == (["stop"], 9, 38)
    assert {chunk["model"] for chunk in answer.chunks} == {"mödel"}
    assert worker.pid is not None
    tools = [function("read_file", "path")]
    called = await ask(worker, said("what is love?", tools=tools, tool_choice="required"))
    assert [name for name, _ in called.calls] == ["read_file"]


async def test_many_requests_do_not_mix(worker: WorkerEngine) -> None:
    tools = [function("echo", "text")]
    words = ["hello", "milk", "bread", "tea"]
    alone = [(await ask(worker, said(f'say "{word}"', tools=tools))).calls for word in words]
    together = await asyncio.gather(*[ask(worker, said(f'say "{word}"', tools=tools)) for word in words])
    assert [answer.calls for answer in together] == alone
    assert alone[0] == [("echo", {"text": "hello"})]


async def test_errors_cross_the_pipe_typed(worker: WorkerEngine) -> None:
    with pytest.raises(ContextExceededError, match=r"has 10008 tokens; the context of mödel holds 4096"):
        await ask(worker, said("hello " * 5000))
    with pytest.raises(BadRequestError, match="must be number"):
        await ask(worker, said("hello", temperature="hot"))
    with pytest.raises(BadRequestError, match="grammar"):
        await ask(worker, said("hello", grammar="root ::= ((("))
    assert (await ask(worker, said("hello"))).reasons == ["stop"]


async def test_closing_the_stream_stops_the_worker_but_does_not_end_it(worker: WorkerEngine) -> None:
    await ask(worker, said("hello"))
    pid = worker.pid
    async with deadline(30):
        for _ in range(6):
            async with aclosing(worker.stream({**said("x"), **ENDLESS})) as chunks:
                await anext(chunks)
        assert (await ask(worker, said("hello"))).reasons == ["stop"]
    assert worker.pid == pid


async def test_one_cancelled_while_it_waits_for_a_slot_does_no_harm_to_the_others(model: Path) -> None:
    worker = WorkerEngine(model, EngineOptions(context=4096, slots=1, threads=1), grace=0.2)
    try:
        async with aclosing(worker.stream({**said("x"), **ENDLESS})) as first:
            await anext(first)
            pid = worker.pid
            waiting = asyncio.ensure_future(ask(worker, said("hello")))
            await sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            until = monotonic() + 0.6  # three times the grace
            while monotonic() < until:
                await anext(first)
        assert (await ask(worker, said("hello"))).reasons == ["stop"]
        assert worker.pid == pid
    finally:
        worker.close()


def test_two_loops_share_a_worker(worker: WorkerEngine) -> None:
    for _ in range(2):
        assert asyncio.run(ask(worker, said("hello"))).reasons == ["stop"]
    pid = worker.pid
    assert asyncio.run(ask(worker, said("hello"))).reasons == ["stop"]
    assert worker.pid == pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_worker_gets_no_keys_and_goes_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    worker = WorkerEngine(model, OPTIONS)
    await ask(worker, said("hello"))
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"sk-secret" not in environment
    assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) == 1000
    worker.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
async def test_r77_worker_killed_amid_an_answer(model: Path, worker: WorkerEngine, number: signal.Signals) -> None:
    victim = WorkerEngine(model, OPTIONS)
    async with aclosing(victim.stream({**said("x"), **ENDLESS})) as chunks:
        await anext(chunks)
        first = victim.pid
        assert first is not None
        os.kill(first, number)
        with pytest.raises(LocalModelError, match=f"was killed by {number.name}") as caught:
            async for _ in chunks:
                pass
    assert caught.value.path == str(model)
    assert "The next request starts it again" in caught.value.hint
    assert victim.pid is None
    # Others live, and the next request gets a new worker.
    assert (await ask(worker, said("hello"))).reasons == ["stop"]
    assert (await ask(victim, said("hello"))).reasons == ["stop"]
    assert victim.pid not in (None, first)
    victim.close()


async def test_close_ends_the_worker_and_its_requests(model: Path) -> None:
    worker = WorkerEngine(model, OPTIONS)
    async with aclosing(worker.stream({**said("x"), **ENDLESS})) as chunks:
        await anext(chunks)
        pid = worker.pid
        assert pid is not None
        await asyncio.to_thread(worker.close)
        with pytest.raises(LocalModelError, match="was unloaded"):
            async for _ in chunks:
                pass
    assert gone(pid)
    worker.close()


async def test_no_worker_outlives_its_parent(model: Path) -> None:
    code = """
        import asyncio, os, signal, sys
        from tests.local.asking import ENDLESS, said
        from windlass.local.supervisor import WorkerEngine

        async def main():
            worker = WorkerEngine(sys.argv[1])
            await anext(worker.stream({**said("x"), **ENDLESS}))
            print(worker.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(model)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9, done.stderr
    await until_gone(int(done.stdout))


async def test_exit_with_a_worker_is_clean_and_silent(model: Path) -> None:
    code = """
        import asyncio, sys
        from tests.local.asking import ask, said
        from windlass.local.supervisor import WorkerEngine

        worker = WorkerEngine(sys.argv[1])
        asyncio.run(ask(worker, said("hello")))
        print(worker.pid)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(model)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))


async def test_a_bad_header_starts_no_process(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY.read_bytes()[:50_000])
    worker = WorkerEngine(path)
    before = {one.name for one in threading.enumerate()}
    with pytest.raises(LocalModelError, match="not a usable GGUF file"):
        await ask(worker, said("hello"))
    new = {one.name for one in threading.enumerate()} - before
    assert not [name for name in new if name.startswith("windlass")]
    assert worker.pid is None


async def test_a_model_the_engine_cannot_load_says_why(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    pairs = [string("general.architecture", "nonsense"), u32("nonsense.context_length", 64)]
    path.write_bytes(gguf(pairs, [tensor("a", [16])], b"\0" * 64))
    worker = WorkerEngine(path)
    with pytest.raises(LocalModelError, match=r"could not load .*strange\.gguf") as caught:
        await ask(worker, said("hello"))
    assert "unknown model architecture: 'nonsense'" in caught.value.hint
    assert worker.pid is None


async def test_loading_has_a_deadline(model: Path) -> None:
    worker = WorkerEngine(model, OPTIONS, load_timeout=0.001)
    with pytest.raises(LocalModelError, match=r"was not loaded within 0\.001 s"):
        await ask(worker, said("hello"))


async def test_s104_file_cut_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(TINY, path)
    worker = WorkerEngine(path, OPTIONS)
    await ask(worker, said("hello"))
    os.truncate(path, 0)
    # Whether the engine had copied the weights decides what happens to it; we live, and are told.
    try:
        assert (await ask(worker, said("what time is it?"))).reasons
    except LocalModelError as error:
        assert re.search("was killed by SIG(BUS|SEGV)", error.message)
    with pytest.raises(LocalModelError, match="does not start with GGUF"):
        worker.close()
        await ask(worker, said("hello"))


def with_template(path: Path, template: str) -> Path:
    """Write the shipped model with another chat template, padded to the length of its own."""
    data, own = TINY.read_bytes(), read_header(TINY).chat_template.encode()
    assert data.count(own) == 1
    padding = b"{#" + b" " * (len(own) - len(template) - 4) + b"#}"
    path.write_bytes(data.replace(own, template.encode() + padding))
    return path


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a + b %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    ],
)
async def test_s107_template_without_end(tmp_path: Path, worker: WorkerEngine, loop: str) -> None:
    trap = "{% for m in messages %}{{ m.content }}{% if m.content == 'spring' %}" + loop + "{% endif %}{% endfor %}"
    path = with_template(tmp_path / "model.gguf", trap)
    trapped = WorkerEngine(path, OPTIONS, memory=1 << 30, grace=0.2)
    await ask(trapped, said("hello", max_tokens=3))
    pid = trapped.pid
    assert pid is not None
    try:
        async with deadline(1):
            await ask(trapped, said("spring"))
    except TimeoutError:
        await until_gone(pid)  # it would not stop: the worker was given up
    except (LocalModelError, BadRequestError) as error:
        assert error.message  # the memory limit stopped it
    assert (await ask(worker, said("hello"))).reasons == ["stop"]
    assert (await ask(trapped, said("hello", max_tokens=3))).reasons == ["length"]
    trapped.close()


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}", "{{ cycler.__init__.__globals__.os.system('id') }}"],
)
async def test_s107_template_reaches_for_the_host(tmp_path: Path, template: str) -> None:
    path = with_template(tmp_path / "model.gguf", template)
    worker = WorkerEngine(path, OPTIONS)
    try:
        answer = await ask(worker, said("hello", max_tokens=3))
        # The engine's templates have no such attributes: whatever it rendered, it is not a file or a command's output.
        assert answer.usage["prompt_tokens"] < 40
    except (LocalModelError, BadRequestError) as error:
        assert "root:" not in str(error)
        assert "uid=" not in str(error)
    worker.close()


async def test_a_missing_engine_is_a_setting_to_mend(model: Path, tmp_path: Path) -> None:
    # A worker whose interpreter finds a broken `xllamacpp` first.
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('broken build')")
    worker = WorkerEngine(model, OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises((ConfigError, LocalModelError), match="broken build"):
            await ask(worker, said("hello"))
