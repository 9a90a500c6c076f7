"""Flower: our ClientApp and strategies, message by message, and in a real SuperLink with two SuperNodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training import federated_toy as toy
from tests.training.flower import Array, ArrayRecord, ConfigRecord, Context, FedAvg, Message, RecordDict
from windlass.core.errors import ConfigError
from windlass.training import TrainConfig
from windlass.training.federated import (
    FederatedConfig,
    InvalidUpdate,
    Train,
    Trained,
    aggregate,
    client_app,
    from_config,
    initial_weights,
    load_weights,
    make_strategy,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated_flower"


def asked(weights: NDArray[np.float32], server_round: int) -> Message:
    content = RecordDict(
        {"arrays": ArrayRecord({"weights": Array(weights)}), "config": ConfigRecord({"server-round": server_round})}
    )
    return Message(content, message_type="train", dst_node_id=1)


def context(**node: Any) -> Context:
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={"who": "run", "rounds": 3})


def test_the_client_app_trains_from_what_it_got_and_replies_as_flower_expects() -> None:
    seen: list[tuple[Mapping[str, Any], list[float], int]] = []

    def make(config: Mapping[str, Any]) -> Train:
        def train(weights: NDArray[np.float32], number: int) -> Trained:
            seen.append((dict(config), weights.tolist(), number))
            return Trained(weights + 1, 7, {"loss": 0.5})

        return train

    reply = client_app(make)(asked(np.array([1, 2], np.float32), 3), context(who="node"))
    assert seen == [({"who": "node", "rounds": 3}, [1.0, 2.0], 2)]
    assert reply.content.array_records["arrays"]["weights"].numpy().tolist() == [2.0, 3.0]
    assert dict(reply.content.metric_records["metrics"]) == {"loss": 0.5, "num-examples": 7, "num-updates": 1}
    with pytest.raises(InvalidUpdate):
        client_app(lambda _: lambda weights, _: Trained(weights[:1]))(asked(np.zeros(2, np.float32), 1), context())


@pytest.mark.parametrize("strategy", ["mean", "weighted_mean", "median"])
def test_rounds_of_flower_s_strategy_over_our_client_app_are_our_coordinator_s(strategy: Any) -> None:
    app = client_app(lambda config: toy.local(config["node"]))
    made = make_strategy(FederatedConfig(strategy=strategy), 2)
    flower = ours = np.zeros(toy.SIZE, np.float32)
    for number in range(3):
        replies = [app(asked(flower, number + 1), context(node=node)) for node in "ab"]
        arrays, metrics = made.aggregate_train(number + 1, replies)
        assert arrays is not None and metrics is not None and float(str(metrics["loss"])) > 0
        flower = np.array(arrays["weights"].numpy(), np.float32)
        trained = [toy.local(node)(ours, number) for node in "ab"]
        updates, counts = [each.weights for each in trained], [each.sample_count for each in trained]
        whole = {"mean": aggregate.mean, "median": aggregate.median}.get(strategy)
        result = whole(updates) if whole else aggregate.weighted_mean(updates, counts)
        ours = result.astype(np.float32)
    np.testing.assert_allclose(flower, ours, 1e-5)


def test_options_that_flower_does_not_have_are_refused() -> None:
    for config in (
        FederatedConfig(clip=1.0, noise=1.0, seed=1),
        FederatedConfig(clip=1.0, noise=1.0, strategy="weighted_mean"),
        FederatedConfig(strategy="krum", malicious=1),
    ):
        with pytest.raises(ConfigError):
            make_strategy(config, 2)
    clipped = make_strategy(FederatedConfig(clip=1.0), 2)
    assert isinstance(vars(clipped)["strategy"], FedAvg)


def test_a_missing_flower_is_said_with_what_to_install() -> None:
    script = (
        "import sys; sys.modules['flwr'] = None\n"
        "from windlass.training import federated\n"
        "try: federated.client_app\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (
        done.stdout == "ConfigError Flower apps need flwr, which is not installed. pip install 'windlass[federated]'\n"
    )


# -- the real thing --------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def started(name: str, args: list[str], env: dict[str, str], folder: Path) -> Generator[Path]:
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(Path(sys.executable).parent / name.split(".")[0]), *args], env=env, cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def options(partition: int) -> TrainConfig:
    """What `options` of the example gives."""
    return TrainConfig(epochs=1, batch_size=16, sample_count=128 * (partition + 1), lr=0.01, warmup_steps=1,
                       seed=1000 * partition, device="cpu")  # fmt: skip


@pytest.mark.soak
def test_a_real_superlink_and_two_supernodes_learn_what_one_process_computes(tmp_path: Path) -> None:
    """On loopback, without a package index: nothing is installed, telemetry and update checks are off."""
    link, one, two = free_ports(3)
    (home := tmp_path / "flwr").mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    env = {
        **os.environ, "FLWR_HOME": str(home), "HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1", "NO_PROXY": "*",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    shutil.copytree(EXAMPLE, app := tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path / "out.safetensors"
    with contextlib.ExitStack() as stack:
        local = ["--insecure", "--host", "127.0.0.1"]
        said = stack.enter_context(
            started("flower-superlink", [*local, "--port", str(link), "--disable-runtime-dependency-installation"], env,
                    tmp_path)
        )  # fmt: skip
        for number, port in enumerate((one, two)):
            node = [*local, "--superlink", f"127.0.0.1:{link}", "--port", str(port), "--node-config",
                    f"partition-id={number}"]  # fmt: skip
            stack.enter_context(started(f"flower-supernode.{number}", node, env, tmp_path))
        end = time.monotonic() + 60
        while not answers(link) and time.monotonic() < end:
            time.sleep(0.2)
        run = subprocess.run(
            ["flwr", "run", str(app), "here", "--stream", "--run-config", f'out="{out}"'],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert run.returncode == 0 and out.exists(), run.stdout + run.stderr + said.read_text()
    weights = initial_weights(options(0))
    losses: list[float] = []
    for number in range(2):
        trained = [from_config(options(partition))(weights, number) for partition in range(2)]
        counts = [each.sample_count for each in trained]
        losses.append(float(np.average([each.metrics["loss"] for each in trained], weights=counts)))
        weights = aggregate.weighted_mean([each.weights for each in trained], counts).astype(np.float32)
    np.testing.assert_allclose(load_weights(out), weights, 1e-4, 1e-6)
    assert losses[1] < losses[0]
    assert [line for line in run.stdout.splitlines() if line.startswith("round ")] == [
        f"round {number + 1}: loss {loss:.3f}" for number, loss in enumerate(losses)
    ]
