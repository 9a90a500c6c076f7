"""R01 to R29 through the gateway: what a vendor or the network does wrong, and what the client is given.

R07, R08, R11, R15, R16, R17, R29 and R30 are with what is done for broken answers; R13 is with the watchers of bytes;
R31 to R34 need the real program.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.breaking import ASK, Records, begun, chunk, events, post, read, said, two
from tests.server.conftest import Serve, StartGateway
from tests.server.upstreams import USAGE, chat, chat_stream, refusal, reply, sent, up
from windlass.accounts.book import Accounts
from windlass.testing.faults import BlackHole, FaultServer, Fin, Part, Received, Reply, Rst, Step, Stream, drip, sse

FINE = chat_stream("fine")
WHOLE: dict[str, Any] = {**ASK, "stream": False}


@pytest.mark.parametrize("step", [Fin(), Rst()], ids=["r01 fin", "r02 rst"])
async def test_r01_r02_a_connection_lost_before_the_head_is_tried_again(gateway: StartGateway, step: Step) -> None:
    async with FaultServer([step, FINE]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        records = Records(made)
        answer = await post(made)
        assert (said(answer.text), answer.headers["x-windlass-attempts"]) == ("fine", "2")
        assert vendor.connections == 2
        assert (records.all[0].outcome, records.all[0].attempts) == ("ok", 2)


async def test_r01_a_server_that_always_hangs_up_is_given_up(gateway: StartGateway) -> None:
    async with FaultServer([Fin()]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": {"targets": ["up:m"], "attempts": 3}})
        answer = await post(made)
        assert answer.status_code == 502 and answer.json()["error"]["code"] == "provider_transport_error"
        assert 1 < len(vendor.requests) <= 3


async def test_r03_a_black_hole_is_left_in_time_and_its_connection_closed(gateway: StartGateway) -> None:
    async with two(gateway, BlackHole(), FINE, limits={"first_token_timeout": 0.3}) as (made, one, *_):
        answer = await post(made)
        assert (said(answer.text), answer.headers["x-windlass-model"]) == ("fine", "two:b")
        async with asyncio.timeout(5):
            await one.wait(open=0)


async def test_r04_nobody_listens_or_the_name_is_unknown(gateway: StartGateway) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with FaultServer([FINE]) as vendor:
        providers = {
            "refused": {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "k"},
            "unknown": {"base_url": "http://windlass.invalid/v1", "api_key": "k"},
            **up(vendor),
        }
        made = await gateway(providers=providers, routes={"r": ["refused:m", "unknown:m", "up:m"]})
        answer = await post(made)
        assert (said(answer.text), answer.headers["x-windlass-attempts"]) == ("fine", "3")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("certificate")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    made = ["openssl", "req", "-x509", *kind, "-days", "2", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    yield context


async def test_r05_a_certificate_that_proves_nothing_is_not_asked_again(
    gateway: StartGateway, certificate: ssl.SSLContext
) -> None:
    async with FaultServer([FINE], ssl_context=certificate) as secret, FaultServer([FINE]) as vendor:
        providers = {"tls": {"base_url": f"{secret.url}/v1", "api_key": "k"}, **up(vendor)}
        made = await gateway(providers=providers, routes={"r": ["tls:m", "up:m"], "alone": "tls:m"})
        assert said((await post(made)).text) == "fine"
        answer = await post(made, {**ASK, "model": "alone"})
        assert answer.status_code == 502 and "certificate" in answer.json()["error"]["message"].lower()
        assert answer.headers["x-should-retry"] == "false"
        assert secret.requests == []


async def test_r06_a_kept_connection_that_the_vendor_closed_is_replaced_unseen(gateway: StartGateway) -> None:
    closing = Reply(200, chat("hi").body, {"content-type": "application/json"}, end="fin", idle=0.05)
    async with FaultServer([closing, chat("again")]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        first = await post(made, WHOLE)
        async with asyncio.timeout(5):
            await vendor.wait(open=0)
        second = await post(made, WHOLE)
        assert [answer.json()["choices"][0]["message"]["content"] for answer in (first, second)] == ["hi", "again"]
        assert "x-windlass-attempts" not in second.headers


async def test_r09_a_cut_that_only_closes_the_connection_is_no_end(gateway: StartGateway) -> None:
    go, _ = begun()
    first = Stream([*sse(chunk("one"), chunk(" two")), go], framing="close")
    async with two(gateway, first, chat_stream(" three")) as (made, *_):
        _, text = await read(made, go)
        assert said(text) == "one two three"


@pytest.mark.parametrize("dialect", ["anthropic", "ollama"])
async def test_r10_a_clean_end_without_its_mark_is_an_error_in_every_dialect(
    gateway: StartGateway, dialect: str
) -> None:
    async with FaultServer([chat_stream("half", end=False)]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": {"targets": ["up:m"], "attempts": 1}})
        path = {"anthropic": "/v1/messages", "ollama": "/api/chat"}[dialect]
        answer = await post(made, {**ASK, "max_tokens": 9}, path)
        assert answer.status_code == 200 and "half" in answer.text
        assert "message_stop" not in answer.text and '"done":true' not in answer.text
        assert '"error"' in answer.text.splitlines()[-1 if dialect == "ollama" else -2]


async def test_r12_a_drip_of_single_bytes_ends_with_the_first_tokens_time(gateway: StartGateway) -> None:
    first = Stream(drip(b"data: " + chunk("never whole").encode(), 0.02), finish=False, end="hang")
    async with two(gateway, first, FINE, limits={"first_token_timeout": 0.4}) as (made, *_):
        assert said((await post(made)).text) == "fine"


async def test_r14_a_malformed_chunk_keeps_what_came_and_quotes_it(gateway: StartGateway) -> None:
    go, first = begun(chunk("one"), then=sse('{"id":"x","choi'))
    async with FaultServer([first]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        records = Records(made)
        _, text = await read(made, go)
        assert said(text) == "one" and "[DONE]" not in text
        assert "choi" in events(text)[-1]["error"]["message"]
        assert (records.all[0].outcome, records.all[0].error) == ("interrupted", "wire")


async def test_r18_an_outage_costs_one_call_in_ten_and_the_fallback_answers(gateway: StartGateway) -> None:
    async with two(gateway, refusal(503, "overloaded"), FINE) as (made, one, other, _records):
        for _ in range(40):
            assert said((await post(made)).text) == "fine"
        # After five failures in a row the target rests, and is not asked.
        assert len(one.requests) == 5 and len(other.requests) == 40
        async with httpx.AsyncClient(verify=False) as client:
            assert (await client.get(f"{made.url}/ready")).status_code == 200


@pytest.mark.parametrize(
    ("status", "code", "asked", "told"), [(500, "server_error", 2, 200), (400, "bad", 1, 400), (401, "no", 1, 502)]
)
async def test_r19_what_is_asked_again_and_what_is_not(
    gateway: StartGateway, status: int, code: str, asked: int, told: int
) -> None:
    async with FaultServer([refusal(status, code), FINE]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        answer = await post(made)
        assert (answer.status_code, len(vendor.requests)) == (told, asked)
        if told != 200:
            assert answer.headers["x-should-retry"] == "false"


async def test_r20_a_hundred_clients_make_no_storm(gateway: StartGateway) -> None:
    async with FaultServer([refusal(503, "overloaded")]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(timeout=20.0, verify=False, limits=limits) as client:
            url = f"{made.url}/v1/chat/completions"
            answers = await asyncio.gather(*[client.post(url, json=ASK) for _ in range(100)])
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["x-should-retry"] for answer in answers} <= {"true", "false"}
        assert len(vendor.requests) <= 110


@pytest.mark.parametrize("counts", ["missing", "twice", "with every chunk", "late"])
async def test_r21_usage_is_counted_once_or_said_to_be_estimated(gateway: StartGateway, counts: str) -> None:
    counted = {"id": "c", "choices": [], "usage": USAGE}
    rows: list[dict[str, Any]] = [json.loads(chunk("hi")), json.loads(chunk(reason="stop"))]
    if counts == "with every chunk":
        rows = [{**row, "usage": USAGE} for row in rows]
    elif counts != "missing":
        rows += [counted] * (2 if counts == "twice" else 1)
    frames = sse(*[json.dumps(row) for row in rows], "[DONE]")
    parts: list[Part] = [*frames[:-2], 0.05, *frames[-2:]] if counts == "late" else list(frames)
    async with FaultServer([Stream(parts)]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        records = Records(made)
        await post(made)
        (record,) = records.all
        if counts == "missing":
            assert record.estimated and record.output_tokens > 0
        else:
            assert (record.estimated, record.input_tokens, record.output_tokens) == (False, 3, 2)


async def test_r22_calls_that_come_in_pieces_arrive_whole(gateway: StartGateway) -> None:
    def piece(index: int, text: str, **more: Any) -> str:
        return chunk("", tool_calls=[{"index": index, "function": {"arguments": text, **more.pop("f", {})}, **more}])

    parts = sse(
        piece(0, "", id="call_a", type="function", f={"name": "f"}),
        piece(1, "", id="call_b", type="function", f={"name": "g"}),
        piece(0, '{"a"'), piece(1, "{}"), piece(0, ":1}"), chunk(reason="tool_calls"), "[DONE]",
    )  # fmt: skip
    async with FaultServer([Stream(parts)]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        done = (await post(made, {**WHOLE, "max_tokens": 9}, "/v1/messages")).json()
        calls = [(block["name"], block["input"]) for block in done["content"] if block["type"] == "tool_use"]
        assert calls == [("f", {"a": 1}), ("g", {})]
        assert done["stop_reason"] == "tool_use"


async def test_r25_a_call_cut_by_the_length_says_so(gateway: StartGateway) -> None:
    call = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    parts = sse(chunk("", tool_calls=[call]), chunk(reason="length"), "[DONE]")
    async with FaultServer([Stream(parts)]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        assert events((await post(made)).text)[-1]["choices"][0]["finish_reason"] == "length"
        done = (await post(made, {**WHOLE, "max_tokens": 9}, "/v1/messages")).json()
        assert done["stop_reason"] == "max_tokens"


async def test_r26_a_model_that_is_gone_is_replaced_and_a_changed_one_is_told(gateway: StartGateway) -> None:
    async with two(gateway, refusal(404, "model_not_found"), chat("fine")) as (made, one, _, records):
        models = [(await post(made, WHOLE)).json()["model"] for _ in range(2)]
        # The one that does not have the model is asked last from then on.
        assert len(one.requests) == 1
        assert models == ["m-1", "m-1"] and [record.target for record in records.all] == ["two:b", "two:b"]


async def test_r27_a_refusal_and_an_empty_answer_are_passed_as_they_are(gateway: StartGateway) -> None:
    filtered = Stream(sse(chunk("I"), chunk(reason="content_filter"), "[DONE]"))
    empty = Stream(sse(chunk("", role="assistant"), chunk(reason="stop"), "[DONE]"))
    async with FaultServer([filtered, empty]) as vendor:
        made = await gateway(providers=up(vendor), routes={"r": "up:m"})
        assert events((await post(made)).text)[-1]["choices"][0]["finish_reason"] == "content_filter"
        answer = await post(made)
        assert (said(answer.text), answer.text.count("[DONE]")) == ("", 1)


async def test_r28_thoughts_with_anothers_signature_are_not_sent_to_the_fallback(gateway: StartGateway) -> None:
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "text", "text": "yes"}]},
        {"role": "user", "content": "more"},
    ]  # fmt: skip
    busy = reply({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529)
    async with FaultServer([busy]) as first, FaultServer([chat_stream("fine")]) as second:
        providers = {"one": {"base_url": first.url, "api_key": "k", "dialect": "anthropic"}, **up(second)}
        made = await gateway(providers=providers, routes={"r": ["one:claude", "up:m"]})
        answer = await post(made, {"model": "r", "max_tokens": 9, "messages": history}, "/v1/messages")
        assert answer.json()["content"][0]["text"] == "fine"
        assert "c2ln" in first.requests[0].body.decode() and "c2ln" not in second.requests[0].body.decode()
        assert sent(second)["messages"][1] == {"role": "assistant", "content": "yes"}


async def test_r29_a_stream_without_end_is_bounded_by_its_time(gateway: StartGateway) -> None:
    endless: list[Part] = [part for _ in range(2000) for part in (*sse(chunk("x")), 0.01)]
    async with FaultServer([Stream(endless)]) as vendor:
        routes = {"r": {"targets": ["up:m"], "timeout": 0.5}}
        made = await gateway(providers=up(vendor), routes=routes)
        answer = await post(made)
        assert "[DONE]" not in answer.text and events(answer.text)[-1]["error"]["code"] == "provider_timeout"


async def test_the_official_sdk_raises_its_own_errors(gateway: StartGateway) -> None:
    def step(request: Received) -> Step:
        wanted = json.loads(request.body)["model"]
        return refusal(int(wanted), "x", **({"retry-after": "7"} if wanted == "429" else {}))

    kinds = {"400": openai.BadRequestError, "404": openai.NotFoundError, "429": openai.RateLimitError}
    async with FaultServer(step) as vendor:
        routes = {name: {"targets": [f"up:{name}"], "attempts": 1} for name in kinds}
        made = await gateway(providers=up(vendor), routes=routes)
        async with openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="any", max_retries=0) as client:
            ask: Any = client.chat.completions.create
            for name, kind in kinds.items():
                with pytest.raises(kind) as caught:
                    await ask(model=name, messages=ASK["messages"])
                assert caught.value.response.headers.get("retry-after") == ("7" if name == "429" else None)


async def test_r81_an_older_gateway_refuses_a_newer_database_in_a_sentence(serve: Serve) -> None:
    served = serve()
    assert served.stop() == 0
    accounts = await Accounts.open(f"sqlite:{served.home / 'accounts.db'}")
    await accounts.tables.execute("UPDATE windlass_rooms SET version = version + 1000")
    await accounts.close()
    with pytest.raises(AssertionError) as caught:
        serve(home=served.home)
    text = str(caught.value)
    assert "exited with" in text and "Upgrade windlass" in text and "Traceback" not in text


async def test_r34_a_killed_gateway_starts_again_and_knows_what_was_acknowledged(serve: Serve) -> None:
    config = '[routes]\nr = "fault:ok"\nslow = "fault:ok?delay=5"\n'
    served = serve(config)
    admin = {"authorization": f"Bearer {(served.home / 'admin-token').read_text()}"}
    async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
        made = await client.post(f"{served.url}/v1/keys", json={"name": "ann"}, headers=admin)
        key = {"authorization": f"Bearer {made.json()['secret']}"}
        url = "/v1/chat/completions"
        assert (await client.post(f"{served.url}{url}", json=WHOLE, headers=key)).status_code == 200
        while not (await client.get(f"{served.url}/v1/usage", headers=admin)).json()["data"]:
            pass
        body = {**ASK, "model": "slow"}
        with pytest.raises(httpx.TransportError):
            async with client.stream("POST", f"{served.url}{url}", json=body, headers=key) as answer:
                async for _ in answer.aiter_bytes():
                    served.process.kill()
        served.process.wait(20)
        again = serve(config, home=served.home)
        assert (await client.post(f"{again.url}{url}", json=WHOLE)).status_code == 401
        assert (await client.post(f"{again.url}{url}", json=WHOLE, headers=key)).status_code == 200
        used = (await client.get(f"{again.url}/v1/usage", headers=admin)).json()["data"]
        assert sum([row["requests"] for row in used]) == 2
    assert again.stop() == 0
