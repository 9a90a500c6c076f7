"""`windlass federate` as people use it: what is wrong is said in one line, with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from windlass.apps.cli import main
from windlass.training.federated import load_weights, save_weights

TOKEN = "a token of 32 characters or more"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.delenv("WINDLASS_FEDERATED_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["serve"], 2, "no enrolment token. Give --token-file, or set WINDLASS_FEDERATED_TOKEN"),
        (["serve", "--token-file", "short"], 2, "has 5 characters, and needs 16"),
        (["serve", "--token-file", "none"], 2, "Cannot read the token none: No such file"),
        (["serve", "--token-file", "token", "--port", "70000"], 2, "no port 70000"),
        (["serve", "--token-file", "token", "--min-updates", "0"], 2, "min_updates is 0"),
        (["serve", "--token-file", "token", "--noise", "1"], 2, "noise needs clip"),
        (["serve", "--token-file", "token", "--strategy", "sum"], 2, "invalid choice: 'sum'"),
        (["serve", "--token-file", "token", "--init", "none.safetensors"], 1, "none.safetensors cannot be read"),
        (["serve", "--token-file", "token", "--config", "bad.toml"], 2, "bad.toml holds no options"),
        (["join", "--token-file", "token"], 2, "A node needs a name. --node NAME"),
        (["join", "--token-file", "token", "--node", "a"], 2, "needs --config FILE or --train"),
        (["join", "--token-file", "token", "--node", "a", "--train", "no.where:x"], 2, "no.where:x is no function"),
        (["join", "--token-file", "token", "--node", "a", "--train", "math"], 2, "math is no function"),
        (["join", "nowhere", "--token-file", "token", "--node", "a", "--train", "math:sqrt"], 2, "no address"),
        (["status", "ftp://x", "--token-file", "token"], 2, "no address of a coordinator"),
        (["fly"], 2, "invalid choice: 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_uses_are_told(
    args: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text(TOKEN + "\n")
    Path("short").write_text("12345")
    Path("bad.toml").write_text("epochs = 'two'")
    assert main(["federate", *args]) == code
    said = capsys.readouterr()
    assert says in said.err and said.out == "" and "internal" not in said.err


def test_tokens_are_long_and_never_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["federate", "token"]) for _ in range(2)] == [0, 0]
    one, two = capsys.readouterr().out.split()
    assert one != two and len(one) >= 43


def test_weights_files_come_back(tmp_path: Path) -> None:
    vector = np.array([1.5, -0.25, 3e38], np.float32)
    save_weights(tmp_path / "w.safetensors", vector)
    assert np.array_equal(load_weights(tmp_path / "w.safetensors"), vector)
