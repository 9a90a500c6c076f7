"""The three backends do what the port says, and agree where they run the same weights."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from windlass.core.errors import AuthError, ConfigError, LocalModelError
from windlass.local.backend import Backend, Generation
from windlass.local.backend_native import NativeBackend
from windlass.local.backend_server import ServerBackend, ServerProcess
from windlass.local.backend_torch import TorchBackend, choose
from windlass.local.embedded import embedded_model
from windlass.local.engine import EngineOptions
from windlass.local.quantize import quantize_model
from windlass.local.streaming import StreamingConfig, StreamingResponse
from windlass.testing.backends import Collected, check_backend

OPTIONS = EngineOptions(context=512, slots=2, threads=1, gpu_layers=0)
PATH = embedded_model().path

#: llama.cpp's own server, as `llama-server` would be: the same C++ behind the same flags.
SERVER = """#!{python}
import argparse, os, sys, threading, xllamacpp
parser = argparse.ArgumentParser()
for flag, kind in (("m", str), ("c", int), ("np", int), ("b", int), ("ub", int), ("t", int), ("ngl", int)):
    parser.add_argument("-" + flag, type=kind)
parser.add_argument("--host"); parser.add_argument("--port", type=int)
parser.add_argument("--jinja", action="store_true"); parser.add_argument("--no-mmap", action="store_true")
given = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = given.m, given.c, given.np
params.n_batch, params.n_ubatch, params.use_jinja = given.b, given.ub, given.jinja
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.t
params.n_gpu_layers, params.warmup, params.fit_params, params.verbosity = 0, False, False, -1
params.api_keys, params.hostnames, params.port = [os.environ["LLAMA_API_KEY"]], [given.host], given.port
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@pytest.fixture
def server_binary(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def native() -> NativeBackend:
    return NativeBackend(PATH, OPTIONS, in_process=True)


def worker() -> NativeBackend:
    return NativeBackend(PATH, OPTIONS)


def reference() -> TorchBackend:
    torch.set_num_threads(1)
    return TorchBackend.from_file(PATH, context=512)


@pytest.mark.parametrize("make", [native, worker, reference], ids=["native", "worker", "torch"])
def test_backend_keeps_the_port(make: Callable[[], Backend]) -> None:
    made = make()
    assert isinstance(made, Backend)
    made.close()
    assert len(check_backend(make, Generation)) == 13


def test_server_backend_keeps_the_port_and_stops_its_server(server_binary: Path) -> None:
    process = ServerProcess(PATH, OPTIONS, binary=str(server_binary))
    check_backend(lambda: ServerBackend(process), Generation, embeds=False)
    assert process.process is None


def test_the_kit_finds_what_is_wrong() -> None:
    class Wrong(NativeBackend):
        def logprobs(self, tokens: object) -> list[float]:
            del tokens
            return [0.0] * self.info.vocabulary

    with pytest.raises(AssertionError, match=r"log-probabilities .*: the probabilities add up to 2048"):
        check_backend(lambda: Wrong(PATH, OPTIONS, in_process=True), Generation)


def answer(backend: Backend, prompt: str, **options: object) -> list[tuple[int, str | None]]:
    config = StreamingConfig(temperature=0.0, **options)  # pyright: ignore[reportArgumentType]
    events = StreamingResponse(backend.start, config.asked(prompt), config)
    return [(event.token_id, event.text) for event in events]


def test_torch_says_what_the_engine_says_token_by_token(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"  # the engine rounds what goes through Q8_0 matrices, torch does not
    quantize_model(PATH, path, "F32")
    torch.set_num_threads(1)
    exact = replace(OPTIONS, cache="f32")
    one, other = NativeBackend(path, exact, in_process=True), TorchBackend.from_file(path, context=512)
    prompt = "<|im_start|>user\nlist files in src<|im_end|>\n<|im_start|>assistant\n"
    try:
        for text in (prompt, "Once upon a time", "grep é€😀 in a.txt"):
            tokens = one.tokenize(text, special=True)
            assert tokens == other.tokenize(text, special=True)
            assert one.tokenize(text) == other.tokenize(text)
            difference = [abs(a - b) for a, b in zip(one.logprobs(tokens), other.logprobs(tokens), strict=True)]
            assert max(difference) < 3e-5, max(difference)
            for penalty in (1.0, 1.1, 1.5):
                said = answer(one, text, max_tokens=48, repetition_penalty=penalty)
                assert said == answer(other, text, max_tokens=48, repetition_penalty=penalty)
    finally:
        one.close()


def test_a_dead_server_is_told(server_binary: Path) -> None:
    process = ServerProcess(PATH, OPTIONS, binary=str(server_binary))
    backend = ServerBackend(process)
    assert process.process is not None
    sink = Collected()
    backend.start(Generation(prompt="Once", max_tokens=400, grammar='root ::= "a" root'), sink)
    assert sink.begun.wait(60)
    os.kill(process.process.pid, signal.SIGKILL)
    assert isinstance(sink.wait(), LocalModelError)
    with pytest.raises(LocalModelError, match="cannot be asked"):
        backend.tokenize("a")
    backend.close()


def test_a_server_without_the_key_is_refused(server_binary: Path) -> None:
    process = ServerProcess(PATH, OPTIONS, binary=str(server_binary))
    backend = ServerBackend(process)
    other = ServerBackend(process.address, api_key=process.api_key)
    assert other.tokenize("Once upon") == backend.tokenize("Once upon")
    assert (other.info.vocabulary, other.info.context) == (2048, 512)
    other.close()
    with pytest.raises(AuthError, match="refused the key"):
        ServerBackend(process.address)
    backend.close()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, server_binary: Path) -> None:
    with pytest.raises(ConfigError, match="no llama-nothing on PATH"):
        ServerBackend(ServerProcess(PATH, OPTIONS, binary="llama-nothing"))
    server_binary.write_text(f"#!{sys.executable}\nraise SystemExit('no luck today')\n")
    with pytest.raises(LocalModelError, match=r"ended with status 1.*no luck today"):
        ServerBackend(ServerProcess(PATH, OPTIONS, binary=str(server_binary)))


def test_what_torch_cannot_do_is_told() -> None:
    backend = reference()
    with pytest.raises(ConfigError, match="hold a text to a grammar"):
        backend.start(Generation(prompt="a", grammar="root ::= [a]"), Collected())
    with pytest.raises(ConfigError, match="answer chat requests"):
        backend.chat_engine()
    backend.close()
    sink = Collected()
    backend.start(Generation(prompt="a"), sink)
    assert isinstance(sink.wait(), LocalModelError)


def test_samplers_leave_out_what_they_should() -> None:
    chance = torch.Generator().manual_seed(1)
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])

    def drawn(**options: object) -> set[int]:
        ask = Generation(prompt="", **{"repetition_penalty": 1.0, "temperature": 5.0, "top_p": 1.0, **options})  # pyright: ignore[reportArgumentType]
        return {choose(logits, ask, (), chance) for _ in range(300)}

    assert drawn(top_k=0) == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_k=0, top_p=0.5) == {1}
    assert drawn(top_k=0, min_p=0.2) == {1, 2}
    assert drawn(temperature=0.0) == {1}
    ask = Generation(prompt="", temperature=0.0, repetition_penalty=2.0)
    assert choose(logits, ask, (1,), chance) == 2


def test_many_threads_ask_one_backend() -> None:
    backend = native()
    texts: list[str] = []

    def ask() -> None:
        texts.append(str(answer(backend, "Once upon a time", max_tokens=6)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert len(texts) == 6
    assert len(set(texts)) == 1
