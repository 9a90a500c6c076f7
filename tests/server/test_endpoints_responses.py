"""`/v1/responses` and its stored responses through OpenAI's SDK."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import PNG, answering, chat, chat_stream, refusal, reply, sent, up
from windlass.core import clock
from windlass.server import stored
from windlass.server.stored import StoredResponses
from windlass.stores.tables import open_tables
from windlass.testing.faults import FaultServer, Stream, sse

ADD: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}


def client_of(made: InProcess, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key=key, max_retries=0)


def said(body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what a vendor was sent as (role, content)."""
    return [(row["role"], row.get("content")) for row in body["messages"]]


# --------------------------------------------------------------------------------------------------- making responses


async def test_a_response_with_an_image_and_a_tool(gateway: StartGateway) -> None:
    async with FaultServer(answering(call=("add", '{"a":1}'))) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        content: Any = [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": image}]
        async with client_of(made) as client:
            raw = await client.responses.with_raw_response.create(
                model="fast",
                instructions="be brief",
                input=[{"role": "user", "content": content}],
                tools=[ADD],
                max_output_tokens=99,
                metadata={"team": "a"},
            )
            done = raw.parse()
        (call,) = done.output
        assert call.type == "function_call" and (call.name, call.arguments) == ("add", '{"a":1}')
        assert done.usage is not None and done.usage.total_tokens == 5 and done.status == "completed"
        assert done.metadata == {"team": "a"} and done.instructions == "be brief" and done.to_dict()["store"] is True
        assert raw.headers["x-windlass-model"] == "up:big"
        asked = sent(upstream)
        assert asked["max_tokens"] == 99 and said(asked)[0] == ("system", "be brief")
        assert asked["messages"][1]["content"][1]["image_url"]["url"] == image


async def test_a_streamed_response_is_stored_before_its_last_event(gateway: StartGateway) -> None:
    async with FaultServer(answering("hel", "lo")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            kinds: list[str] = []
            whole: Response | None = None
            async for event in await client.responses.create(model="fast", input="hi", stream=True):
                kinds.append(event.type)
                if event.type == "response.completed":
                    whole = event.response
                    assert (await client.responses.retrieve(whole.id)).to_dict() == whole.to_dict()
        assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
        assert whole is not None and whole.output_text == "hello"


async def test_a_conversation_goes_on_from_a_stored_response(gateway: StartGateway) -> None:
    steps = iter([chat("one"), chat(call=("add", '{"a":1}')), chat_stream("th", "ree")])
    async with FaultServer(lambda _: next(steps)) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            first = await client.responses.create(
                model="fast", instructions="only now", input=[{"role": "developer", "content": "always"},
                                                              {"role": "user", "content": "a"}],
            )  # fmt: skip
            second = await client.responses.create(model="fast", input="b", previous_response_id=first.id, tools=[ADD])
            call = second.output[0]
            assert call.type == "function_call" and second.previous_response_id == first.id
            result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
            stream = await client.responses.create(
                model="fast", input=[result], previous_response_id=second.id, tools=[ADD], stream=True
            )
            assert [event.type async for event in stream][-1] == "response.completed"
        assert said(sent(upstream, 0)) == [("system", "only now\n\nalways"), ("user", "a")]
        assert said(sent(upstream, 1)) == [("system", "always"), ("user", "a"), ("assistant", "one"), ("user", "b")]
        last = sent(upstream, 2)["messages"]
        assert [row["role"] for row in last] == ["system", "user", "assistant", "user", "assistant", "tool"]
        assert last[4]["tool_calls"][0]["id"] == last[5]["tool_call_id"] and last[5]["content"] == "2"


async def test_references_to_items_stand_for_the_items(gateway: StartGateway) -> None:
    async with FaultServer([chat("one")]) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        async with client_of(made) as client:
            first = await client.responses.create(model="fast", input="a")
            again: Any = [
                {"role": "user", "content": "a"}, {"type": "item_reference", "id": first.output[0].id},
                {"role": "user", "content": "b"},
            ]  # fmt: skip
            await client.responses.create(model="fast", input=again, store=False)
            assert said(sent(upstream)) == [("user", "a"), ("assistant", "one"), ("user", "b")]
            with pytest.raises(openai.NotFoundError) as missing:
                await client.responses.create(model="fast", input=[{"type": "item_reference", "id": "msg_x"}])
            assert missing.value.param == "input" and "msg_x" in str(missing.value)


async def test_bytes_pass_only_where_nothing_is_stored_or_gone_on_from(gateway: StartGateway) -> None:
    answer = {"id": "resp_theirs", "object": "response", "created_at": 1, "model": "m", "status": "completed", "odd": 1,
              "output": [{"id": "m", "type": "message", "role": "assistant", "status": "completed",
                          "content": [{"type": "output_text", "text": "x", "annotations": []}]}],
              "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}}  # fmt: skip
    done = {"type": "response.completed", "response": answer, "sequence_number": 0}
    steps = iter([reply(answer), Stream(sse(json.dumps(done))), reply(answer), reply(answer)])
    async with FaultServer(lambda _: next(steps)) as upstream, httpx.AsyncClient() as client:
        made = await gateway(providers=up(upstream, dialect="openai-responses"), routes={"fast": "up:gpt"})
        url, kind = f"{made.url}/v1/responses", {"content-type": "application/json"}
        body = b'{"model":"fast",  "input":"hi","store":false,"truncation":"auto"}'
        passed = await client.post(url, content=body, headers=kind)
        assert passed.json() == answer and json.loads(upstream.requests[0].body) == {
            **json.loads(body), "model": "gpt"
        }  # fmt: skip
        streamed = await client.post(url, content=body[:-1] + b',"stream":true}', headers=kind)
        assert streamed.content == b"".join([part for part in sse(json.dumps(done)) if isinstance(part, bytes)])
        kept = (await client.post(url, json={"model": "fast", "input": "hi"})).json()
        assert kept["id"] != "resp_theirs" and kept["store"] is True and sent(upstream)["store"] is False
        on = await client.post(
            url, json={"model": "fast", "input": "b", "previous_response_id": kept["id"], "store": False}
        )
        assert on.json()["store"] is False and "previous_response_id" not in sent(upstream)
        assert [item["role"] for item in sent(upstream)["input"]] == ["user", "assistant", "user"]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("background", True, "background"),
        ("conversation", "conv_1", "conversation"),
        ("prompt", {"id": "p"}, "prompt"),
        ("store", 1, "store"),
        ("previous_response_id", 5, "previous_response_id"),
        ("input", [{"role": "nobody", "content": ""}], "input[0].role"),
        ("temperature", 9, "temperature"),
        ("stream", "yes", "stream"),
    ],
)
async def test_what_is_not_served_is_refused_by_its_field(
    gateway: StartGateway, field: str, value: object, param: str
) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with httpx.AsyncClient() as client:
        body = {"model": "parrot", "input": "x", field: value}
        answer = await client.post(f"{made.url}/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")


async def test_errors_of_vendors_are_openai_s(gateway: StartGateway) -> None:
    async with FaultServer([refusal(429, "rate_limit_exceeded"), refusal(500, "server_error")]) as upstream:
        for kind in (openai.RateLimitError, openai.InternalServerError):
            made = await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1})
            async with client_of(made) as client:
                with pytest.raises(kind):
                    await client.responses.create(model="fast", input="x")
                with pytest.raises(openai.NotFoundError):
                    await client.responses.create(model="nobody", input="x")


async def test_a_broken_stream_ends_as_failed_and_is_stored_as_failed(gateway: StartGateway) -> None:
    async with FaultServer([chat_stream("hel", end=False)]) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1})
        async with httpx.AsyncClient() as plain, client_of(made) as client:
            answer = await plain.post(f"{made.url}/v1/responses", json={"model": "fast", "input": "x", "stream": True})
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            assert [event["type"] for event in events][-2:] == ["error", "response.failed"]
            kept = await client.responses.retrieve(events[-1]["response"]["id"])
            assert kept.status == "failed" and kept.error is not None and kept.to_dict() == events[-1]["response"]
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="fast", input="y", previous_response_id=kept.id)
            assert refused.value.code == "previous_response_failed"
            with pytest.raises(openai.APIError):
                async for _ in await client.responses.create(model="fast", input="x", stream=True):
                    pass


# -------------------------------------------------------------------------------------------------- stored responses


async def test_stored_responses_are_read_listed_and_deleted(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with client_of(made) as client:
        first = await client.responses.create(
            model="parrot", input=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                   {"role": "user", "content": [{"type": "input_text", "text": "c"}]}],
        )  # fmt: skip
        second = await client.responses.create(model="parrot", input="d", previous_response_id=first.id)
        assert (await client.responses.retrieve(first.id)).output_text == "Echo: c"
        items = [item async for item in client.responses.input_items.list(first.id, order="asc", limit=2)]
        assert [getattr(item, "role", "") for item in items] == ["user", "assistant", "user"]
        assert len({item.id for item in items}) == 3 and items[0].to_dict()["content"] == [
            {"type": "input_text", "text": "a"}
        ]
        page = await client.responses.input_items.list(first.id, limit=1)
        assert page.has_more and page.data[0].id == items[2].id
        await client.responses.delete(first.id)
        for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await gone(first.id)
        # What stood before is gone too, so that the rest cannot be gone on from.
        with pytest.raises(openai.NotFoundError) as broken:
            await client.responses.create(model="parrot", input="e", previous_response_id=second.id)
        assert broken.value.code == "previous_response_not_found"
        rows = await made.gateway.accounts.tables.fetch("SELECT count(*) FROM response_items")
        assert rows == [(1,)]


async def test_s43_another_tenant_s_response_is_answered_as_one_that_is_not_there(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    _, ours = await made.gateway.accounts.create("a", tenant="a")
    _, theirs = await made.gateway.accounts.create("b", tenant="b")
    async with client_of(made, ours) as client:
        kept = await client.responses.create(model="parrot", input="secret words")
    unknown = "resp_" + "0" * (len(kept.id) - 5)
    item = kept.output[0].id
    assert item is not None
    requests: list[tuple[str, str, Callable[[str, str], Any]]] = [
        ("GET", "/v1/responses/{}", lambda _r, _i: None),
        ("DELETE", "/v1/responses/{}", lambda _r, _i: None),
        ("GET", "/v1/responses/{}/input_items?after=msg_1", lambda _r, _i: None),
        ("POST", "/v1/responses", lambda r, _: {"model": "parrot", "input": "x", "previous_response_id": r}),
        ("POST", "/v1/responses", lambda _, i: {"model": "parrot", "input": [{"type": "item_reference", "id": i}]}),
    ]
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {theirs}"}) as plain:
        for method, path, body in requests:
            told: list[tuple[int, str]] = []
            for response_id, item_id in ((kept.id, item), (unknown, item[:-1] + "9")):
                answer = await plain.request(
                    method, made.url + path.format(response_id), json=body(response_id, item_id)
                )
                told.append((answer.status_code, answer.text.replace(response_id, "ID").replace(item_id, "ID")))
            assert told[0] == told[1] and told[0][0] == 404 and "secret" not in told[0][1], (method, path)
    async with client_of(made, ours) as client:
        assert (await client.responses.retrieve(kept.id)).output_text == "Echo: secret words"


async def test_responses_are_stored_for_as_long_as_the_setting_says(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"}, server={"responses_ttl": 0.0})
    async with client_of(made) as client:
        done = await client.responses.create(model="parrot", input="a")
        assert done.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(done.id)
    made = await gateway(routes={"parrot": "echo"})
    async with client_of(made) as client:
        kept = await client.responses.create(model="parrot", input="a")
        tables = made.gateway.accounts.tables
        ((created, expires),) = await tables.fetch("SELECT created, expires FROM responses")
        assert expires - created == 30 * 86_400 * 10**9
        await tables.execute("UPDATE responses SET expires = ?", (clock.now_ns(),))
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(kept.id)


async def test_what_is_too_large_to_store_is_refused_before_a_model_is_asked(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("windlass.server.responses.MAX_BYTES", 3000)
    made = await gateway(routes={"parrot": "echo"}, server={"max_body_bytes": 4000})
    async with client_of(made) as client:
        with pytest.raises(openai.APIStatusError) as large:
            await client.responses.create(model="parrot", input="x" * 3100)
        assert large.value.status_code == 413 and "store: false" in str(large.value)
        kept = await client.responses.create(model="parrot", input="x" * 2500)
        with pytest.raises(openai.BadRequestError) as long:
            await client.responses.create(model="parrot", input="y", previous_response_id=kept.id)
        assert long.value.code == "conversation_too_large"
    rows = await made.gateway.accounts.usage()
    assert sum([row.requests for row in rows]) == 3


async def test_a_database_that_fails_does_not_lose_the_answer(
    gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with client_of(made) as client:
        await client.responses.create(model="parrot", input="a")
        await made.gateway.accounts.tables.execute("DROP TABLE response_items")
        done = await client.responses.create(model="parrot", input="b")
        assert done.output_text == "Echo: b" and "could not be stored" in caplog.text
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(done.id)


async def test_conversations_on_postgresql(database_url: str) -> None:
    tables = open_tables(database_url)
    try:
        store = StoredResponses(tables)
        before = None
        for turn in range(3):
            output = [{"id": f"msg_{turn}", "type": "message"}]
            response = {"id": f"resp_{turn}", "status": "completed", "output": output}
            await store.keep("t", response, [{"turn": turn, "text": "\0"}], before, 60.0)
            before = await store.get("t", f"resp_{turn}")
        assert before is not None and before.turns == 3 and await store.get("other", "resp_2") is None
        found = await store.conversation("t", before)
        assert found is not None and [item.get("turn", item.get("id")) for item in found] == [
            0, "msg_0", 1, "msg_1", 2, "msg_2"
        ]  # fmt: skip
        assert await store.items("t", ["msg_1", "msg_9"], stored.MAX_BYTES) == {
            "msg_1": {"id": "msg_1", "type": "message"}
        }
        assert await store.delete("t", "resp_0") and not await store.delete("t", "resp_0")
        assert await store.conversation("t", before) is None
    finally:
        await tables.close()
