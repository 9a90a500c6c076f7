"""Federated training for real: a coordinator and nodes in processes of their own, over HTTP on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.training import federated_toy as toy
from windlass.apps.federated import serve_federated
from windlass.core.errors import ConfigError, TransportTimeout
from windlass.core.http import Client
from windlass.training import federated
from windlass.training.federated import (
    Coordinator,
    FederatedConfig,
    ForgedMessage,
    InvalidUpdate,
    NodeExists,
    Operator,
    Service,
    StateError,
    Trained,
    messages,
)
from windlass.training.federated.client import Node

ROOT = Path(__file__).parents[2]
TOKEN = "a token of 32 characters or more"


class Command:
    """A `windlass federate` in a process of its own."""

    def __init__(self, *args: str, **environ: str) -> None:
        self.args, self.environ = args, environ
        self.said = ""

    async def __aenter__(self) -> Command:
        env = {**os.environ, "WINDLASS_FEDERATED_TOKEN": TOKEN, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "windlass", "federate", *self.args,
            env={**env, **self.environ}, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        return self

    async def line(self, holding: str) -> str:
        """Return the next line that holds a text."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while raw := await self.process.stdout.readline():
                self.said += raw.decode()
                if holding in raw.decode():
                    return raw.decode().strip()
        raise AssertionError(f"no {holding!r} in\n{self.said}")

    async def url(self) -> str:
        """Return where a coordinator listens."""
        return (await self.line("serves http")).rsplit(" ", 1)[1]

    async def end(self) -> str:
        """Return everything it said; it must have ended well."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            self.said += (await self.process.stdout.read()).decode()
            assert await self.process.wait() == 0, self.said
        return self.said

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            await self.kill()
        assert self.process.stdout is not None
        await self.process.stdout.read()


def coordinator_command(folder: Path, port: int = 0, rounds: int = 4) -> Command:
    return Command(
        *("serve", "--port", str(port), "--model-size", "3", "--folder", str(folder), "--rounds", str(rounds)),
        *("--min-updates", "2", "--strategy", "weighted_mean", "--out", f"{folder}.safetensors"),
    )


def node_command(url: str, node: str, folder: Path, **environ: str) -> Command:
    return Command("join", url, "--node", node, "--train", f"tests.training.federated_toy:train_{node}",
                   "--folder", str(folder / node), **environ)  # fmt: skip


async def test_three_processes_learn_what_one_computes(tmp_path: Path) -> None:
    async with coordinator_command(tmp_path / "c") as serve:
        url = await serve.url()
        async with node_command(url, "a", tmp_path) as a, node_command(url, "b", tmp_path) as b:
            assert "4 updates of a were taken" in await a.end()
            assert "4 updates of b were taken" in await b.end()
        assert "4 rounds, 8 updates" in await serve.end()
    weights, losses = toy.offline(4)
    assert np.array_equal(federated.load_weights(tmp_path / "c.safetensors"), weights)
    kept = Coordinator(FederatedConfig(), 3, folder=tmp_path / "c")
    np.testing.assert_allclose([entry["loss"] for entry in kept.history], losses, 1e-12)
    assert losses[-1] < 0.1 * losses[0], losses
    assert kept.counts == {"accepted": 8, "rounds": 4}


async def test_a_coordinator_that_is_killed_in_a_round_goes_on_without_a_lost_or_doubled_update(tmp_path: Path) -> None:
    """Killed in round 1 with the update of one node taken, and in round 2 at whatever it was doing."""
    async with coordinator_command(tmp_path / "c") as first:
        url = await first.url()
        port = int(url.rsplit(":", 1)[1])
        held = {"TOY_GATE": str(tmp_path / "gate"), "TOY_LOG": str(tmp_path / "log")}
        async with (
            node_command(url, "a", tmp_path, TOY_LOG=str(tmp_path / "log")) as a,
            node_command(url, "b", tmp_path, **held) as b,
            Client(proxies={}) as http,
        ):
            operator = Operator(url, TOKEN, deadline_seconds=60)
            while (status := await operator.status(http)).round < 1 or status.waiting != ["a"]:
                await asyncio.sleep(0.01)
            await first.kill()
            async with coordinator_command(tmp_path / "c", port) as second:
                assert await second.line("Going on in round 1 with 1 updates")
                (tmp_path / "gate").touch()
                while (await operator.status(http)).round < 2:
                    await asyncio.sleep(0.01)
                await second.kill()
                async with coordinator_command(tmp_path / "c", port) as third:
                    await asyncio.gather(a.end(), b.end())
                    assert "4 rounds, 8 updates" in await third.end()
    weights, _ = toy.offline(4)
    assert np.array_equal(federated.load_weights(tmp_path / "c.safetensors"), weights)
    trained = (tmp_path / "log").read_text().split("\n")
    assert sorted(filter(None, trained)) == [f"{node} {number}" for node in "ab" for number in range(4)]


async def test_a_node_that_is_killed_sends_what_it_had_trained(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    async with coordinator_command(tmp_path / "c", rounds=2) as serve:
        url = await serve.url()
        async with Client(proxies={}) as http:
            operator = Operator(url, TOKEN, deadline_seconds=60)
            async with node_command(url, "a", tmp_path, TOY_LOG=log) as a:
                while (await operator.status(http)).waiting != ["a"]:
                    await asyncio.sleep(0.01)
                await a.kill()
        async with node_command(url, "a", tmp_path, TOY_LOG=log) as a, node_command(url, "b", tmp_path) as b:
            await asyncio.gather(a.end(), b.end())
        await serve.end()
    assert np.array_equal(federated.load_weights(tmp_path / "c.safetensors"), toy.offline(2)[0])
    assert (tmp_path / "log").read_text().split("\n")[:2] == ["a 0", "a 1"], "round 0 was trained once"


# -- in this process, the coordinator on a real socket ---------------------------------------------------------------


@asynccontextmanager
async def serving(rounds: int = 2, size: int = 3, **config: object) -> AsyncGenerator[tuple[str, Service]]:
    made = Coordinator(msgspec.convert(config, FederatedConfig), size)
    service = Service(made, TOKEN, rounds=rounds)
    here: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_federated(service, port=0, ready=here.set_result, linger_seconds=0.3))
    try:
        await asyncio.wait([here, task], return_when=asyncio.FIRST_COMPLETED)
        yield here.result(), service
    finally:
        task.cancel()
        await asyncio.wait([task])


def node(url: str, name: str, train: federated.Train, **more: object) -> Node:
    return Node(url, name, TOKEN, train, poll_seconds=0.02, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("update", ["weights", "delta"])
async def test_weights_and_deltas_learn_the_same(update: str) -> None:
    async with serving(3, strategy="weighted_mean", min_updates=2, update=update) as (url, service):
        taken = await asyncio.gather(node(url, "a", toy.train_a).run(), node(url, "b", toy.train_b).run())
        assert taken == [3, 3]
        np.testing.assert_allclose(service.coordinator.weights, toy.offline(3)[0], 1e-5)


async def test_a_node_that_comes_too_late_takes_part_in_the_next_round() -> None:
    late = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(weights: toy.F32, number: int) -> Trained:
        if number == 0:
            asyncio.run_coroutine_threadsafe(late.wait(), loop).result(30)
        return Trained(weights + 1)

    def fast(weights: toy.F32, number: int) -> Trained:
        if number == 1:
            loop.call_soon_threadsafe(late.set)
        return Trained(weights + 1)

    # A round ends with one update; the slow node's first is of a round that is over.
    async with serving(40, min_updates=1) as (url, service):
        taken = await asyncio.gather(node(url, "slow", slow).run(), node(url, "fast", fast).run())
        assert service.coordinator.weights.tolist() == [40.0] * 3
        assert service.coordinator.counts["stale_update"] >= 1
        assert taken[0] >= 1 and sum(taken) == 40 == service.coordinator.counts["accepted"]


async def test_refusals_end_a_node_with_their_own_error(tmp_path: Path) -> None:
    async with serving(min_updates=2) as (url, service):
        with pytest.raises(InvalidUpdate, match="What training gave holds 2 weights, and the model has 3"):
            await node(url, "a", lambda weights, _: Trained(weights[:2])).run()
        with pytest.raises(InvalidUpdate, match="NaN"):
            await node(url, "b", lambda weights, _: Trained(weights * np.nan)).run()
        with pytest.raises(ZeroDivisionError):
            await node(url, "c", lambda weights, _: Trained(weights * (1 // 0))).run()
        with pytest.raises(NodeExists):
            await node(url, "a", toy.train_a).run()
        with pytest.raises(ForgedMessage):
            await Node(url, "d", TOKEN + "x", toy.train_a).run()
        assert service.coordinator.counts == {"forged_message": 1}
        node(url, "e", toy.train_a, folder=tmp_path / "e")
        with pytest.raises(StateError, match="that of the node 'e'"):
            node(url, "f", toy.train_a, folder=tmp_path / "e")
    for bad in ("", "ftp://x", "http://h/?q"):
        with pytest.raises(ConfigError):
            node(bad, "a", toy.train_a)
    with pytest.raises(ConfigError, match="no name"):
        node("http://127.0.0.1:1", "a b", toy.train_a)


async def test_nobody_there_is_told_after_the_deadline() -> None:
    with pytest.raises(TransportTimeout, match=r"in 0\.5 s: Cannot connect"):
        await node("http://127.0.0.1:9", "a", toy.train_a, deadline_seconds=0.5).run()


async def test_s116_over_http_oversized_unknown_and_unsigned_requests_are_refused_before_their_body() -> None:
    async with serving(min_updates=2) as (url, service), Client(proxies={}) as http:
        most = messages.vector_limit(3)
        cases = (
            ("POST", "updates", bytes(most + 1), 413, "oversized_message"),
            ("POST", "updates", bytes(most), 400, "malformed_message"),
            ("GET", "weights", b"", 400, "malformed_message"),
            ("POST", "nothing", b"", 404, "malformed_message"),
            ("DELETE", "weights", b"", 404, "malformed_message"),
        )
        for method, what, body, status, code in cases:
            answer = await http.request(method, f"{url}/federated/v1/{what}", body=body)
            told = msgspec.json.decode(answer.body, type=messages.Refused)
            assert (answer.status, told.code) == (status, code), what
        assert service.coordinator.counts == {"oversized_message": 1, "malformed_message": 4}


async def test_s116_an_answer_of_somebody_else_is_not_believed() -> None:
    """Whoever sits between may answer, but not as the coordinator: no weights of his are trained on."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = msgspec.json.encode(messages.Enrolled("0" * 32, 3, "weights"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nx-windlass-mac: %s\r\ncontent-length: %d\r\n\r\n%s" % (b"0" * 64, len(body), body)
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(lie, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ForgedMessage, match="does not come from the coordinator"):
            await node(f"http://127.0.0.1:{port}", "a", toy.train_a).run()


async def test_a_coordinator_that_began_anew_is_enrolled_with_again(tmp_path: Path) -> None:
    kept = node("http://127.0.0.1:9", "a", toy.train_a, folder=tmp_path / "a")
    del kept
    for _ in range(2):
        async with serving(1) as (url, service):
            assert await node(url, "a", toy.train_a, folder=tmp_path / "a").run() == 1
            assert service.coordinator.counts["accepted"] == 1
