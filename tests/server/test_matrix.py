"""Every official client against every vendor's dialect: what both can carry arrives, what one cannot is said.

Each test is one cell of `docs/matrix.md`. The vendors are fakes that look whether each request is one that they would
take, and whose answers are written by hand; the clients are the vendors' own.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.matrix import (
    ABOUT,
    AFTER,
    CACHED,
    CLIENTS,
    EGRESS,
    INPUT,
    LOOK,
    OUTPUT,
    SCHEMA,
    SEEN,
    SLOW,
    TEXT,
    THOUGHT,
    THOUGHT_TOKENS,
    TOOL,
    WAIT,
    WRONG,
    cells,
    table,
)
from tests.server.matrix_clients import Answer, Face
from tests.server.matrix_gateway import Matrix
from windlass.accounts.records import RequestRecord

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
#: What a client calls an error with the status 429, and one with 400.
KINDS = {
    "openai": ("RateLimitError", "BadRequestError"),
    "anthropic": ("RateLimitError", "BadRequestError"),
    "ollama": ("ResponseError", "ResponseError"),
    "boto3": ("ThrottlingException", "ValidationException"),
}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Generator[Matrix]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID"):
            patch.delenv(name, raising=False)
        with Matrix().serving(tmp_path_factory.mktemp("matrix")) as serving:
            yield serving


@pytest.fixture(autouse=True)
def _fresh(matrix: Matrix) -> None:  # pyright: ignore[reportUnusedFunction]
    matrix.forget()


def pairs(rows: list[tuple[str, str]], *, vendors: bool = True) -> Any:
    """Parametrise a test over cells; `vendors` leaves the built-in model out."""
    kept = [row for row in rows if not vendors or EGRESS[row[1]].errors]
    return pytest.mark.parametrize(("client", "egress"), kept, ids=["-".join(row).replace(" ", "_") for row in kept])


def counted(client: str, egress: str, *answers: Answer) -> None:
    """Check that each answer shows the tokens that the vendor reported."""
    caches = CLIENTS[client].caches and EGRESS[egress].caches
    thinks = CLIENTS[client].counts_thoughts and EGRESS[egress].counts_thoughts
    for answer in answers:
        shown = (answer.read, answer.cached, answer.wrote, answer.thoughts)
        assert shown == (INPUT, CACHED if caches else 0, OUTPUT, THOUGHT_TOKENS if thinks else 0)


def recorded(records: list[RequestRecord], egress: str) -> None:
    """Check what was written down of answers that went well."""
    for row in records:
        assert (row.outcome, row.status, row.estimated) == ("ok", 200, False)
        assert row.target.startswith(f"{egress}:") and row.attempts == 1
        if egress != "local":
            assert (row.input_tokens, row.output_tokens) == (INPUT, OUTPUT)
            assert row.cache_read_tokens == (CACHED if EGRESS[egress].caches else 0)


@STREAM
@pairs(cells(), vendors=False)
def test_text(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    if egress == "local":
        return built_in(matrix, matrix.face(client), client, stream)
    answer = matrix.face(client).ask(matrix.model(egress), "text", stream=stream)
    assert (answer.text, answer.thought, answer.calls) == (TEXT, "", [])
    assert answer.pieces > 5 if stream else answer.pieces == 0
    counted(client, egress, answer)
    recorded(matrix.take(1), egress)
    return None


def built_in(matrix: Matrix, face: Face, client: str, stream: bool) -> None:
    answer = face.ask(matrix.model("local"), "text", stream=stream)
    assert answer.text.strip() and answer.read > 0 and answer.wrote > 0
    (record,) = matrix.take(1)
    assert (record.input_tokens, record.output_tokens) == (answer.read, answer.wrote)
    recorded([record], "local")


@STREAM
@pairs(cells("tools"))
def test_a_tool_is_called_and_answered(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    first, second = matrix.face(client).round(matrix.model(egress), stream=stream)
    assert first.calls == [(TOOL, {"city": city}) for city in EGRESS[egress].calls]
    # TGI answers with a call or with text.
    assert first.text == ("" if egress == "huggingface" else LOOK)
    assert (second.text, second.calls) == (AFTER, [])
    counted(client, egress, first, second)
    recorded(matrix.take(2), egress)


@STREAM
@pairs(cells("images"))
def test_an_image_arrives(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    answer = matrix.face(client).ask(matrix.model(egress), "image", stream=stream, image=True)
    assert answer.text == SEEN
    recorded(matrix.take(1), egress)


@STREAM
@pairs(cells("reasoning"))
def test_reasoning_is_asked_for_and_shown(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    # Ollama's clients say that a model shall think, not how much.
    play = "ponder" if client.startswith("ollama") else "think"
    answer = matrix.face(client).ask(matrix.model(egress), play, stream=stream, think=True)
    assert (answer.thought, answer.text) == (THOUGHT, TEXT)
    counted(client, egress, answer)
    recorded(matrix.take(1), egress)


@STREAM
@pairs(cells())
def test_a_vendors_429_is_the_clients_own(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    failure = matrix.face(client).fail(matrix.other_model(egress), "limited", stream=stream)
    assert (failure.kind, failure.status) == (KINDS[client.split()[0].split("-")[0]][0], 429)
    # Ollama's own SDK keeps no headers.
    assert failure.retry_after == (None if client.startswith("ollama") else str(WAIT))
    assert SLOW in failure.text
    (record,) = matrix.take(1)
    assert (record.outcome, record.error, record.status) == ("error", "rate_limited", 429)


@STREAM
@pairs(cells())
def test_a_vendors_400_is_the_clients_own(matrix: Matrix, client: str, egress: str, stream: bool) -> None:
    failure = matrix.face(client).fail(matrix.other_model(egress), "wrong", stream=stream)
    assert (failure.kind, failure.status) == (KINDS[client.split()[0].split("-")[0]][1], 400)
    assert WRONG in failure.text
    (record,) = matrix.take(1)
    assert (record.outcome, record.error, record.status) == ("error", "bad_request", 400)


# ---------------------------------------------------------------------------------------------- what is not in a cell

DECLARED = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": SCHEMA}}]


@pytest.mark.parametrize("egress", EGRESS)
def test_tools_have_no_place_in_a_prompt(matrix: Matrix, egress: str) -> None:
    model = matrix.model(egress)
    with (
        openai.OpenAI(base_url=f"{matrix.url}/v1", api_key="any", max_retries=0) as sdk,
        pytest.raises(openai.BadRequestError) as refused,
    ):
        sdk.completions.create(model=model, prompt="hi", extra_body={"tools": DECLARED})
    assert refused.value.param == "tools" and "/v1/chat/completions" in refused.value.message
    # Ollama's own SDK has no such argument.
    answer = httpx.post(f"{matrix.url}/api/generate", json={"model": model, "prompt": "hi", "tools": DECLARED})
    assert answer.status_code == 400 and "/api/chat" in answer.json()["error"]
    assert [row.error for row in matrix.take(2)] == ["bad_request"] * 2


@STREAM
@pytest.mark.parametrize("client", [name for name, row in CLIENTS.items() if "images" in row.has])
def test_an_image_for_a_model_that_cannot_see_is_refused(matrix: Matrix, client: str, stream: bool) -> None:
    failure = matrix.face(client).fail(matrix.model("local"), "image", stream=stream, image=True)
    assert (failure.kind, failure.status) == (KINDS[client.split()[0].split("-")[0]][1], 400)
    assert "image" in failure.text
    assert [row.error for row in matrix.take(1)] == ["unsupported_input"]


@STREAM
@pytest.mark.parametrize(
    ("egress", "more", "dropped"),
    [
        ("local", {"tools": DECLARED}, "tools"),
        ("local", {"reasoning_effort": "low"}, "thinking"),
        ("anthropic", {"seed": 1}, "seed"),
    ],
)
def test_what_a_model_cannot_be_told_is_named_in_a_header(
    matrix: Matrix, egress: str, more: dict[str, Any], dropped: str, stream: bool
) -> None:
    with openai.OpenAI(base_url=f"{matrix.url}/v1", api_key="any", max_retries=0) as sdk:
        create: Any = sdk.chat.completions.with_streaming_response.create
        asked = [{"role": "user", "content": "hello"}]
        with create(model=matrix.model(egress), messages=asked, stream=stream, max_tokens=8, **more) as answer:
            assert answer.headers["x-windlass-dropped"] == dropped
            answer.read()
    recorded(matrix.take(1), egress)


def test_the_table_in_the_documents_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- matrix -->\n(.*?)\n<!-- end -->", page, re.DOTALL) == [table()]
