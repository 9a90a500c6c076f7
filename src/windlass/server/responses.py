"""`/v1/responses`, with stored responses: made, gone on from, read, listed and deleted.

As at OpenAI a response is stored unless `store` is false, and `previous_response_id` puts the conversation up to that
response in front of the input; its instructions are not taken over. What belongs to another tenant is answered exactly
as what is not there. Source: platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import logging
from typing import Any

from windlass.core import clock
from windlass.core.errors import RequestRefused, WindlassError
from windlass.core.json import dumps, loads
from windlass.server.answer import answer
from windlass.server.body import Fields, asked_model, asked_stream, field_value, peek, rebuild
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import Job, job_for
from windlass.server.models import query_of, whole_of
from windlass.server.stored import MAX_BYTES, MAX_TURNS, StoredResponse
from windlass.wire.base import as_list, as_str, bad_field
from windlass.wire.openai_responses import DIALECT, echo_fields

__all__ = ["ENDPOINTS"]

log = logging.getLogger("windlass.server")
#: Seconds that storing may hold up the end of an answer.
_PATIENCE = 5.0
_MAX_REFERENCES = 1000
#: What is kept by OpenAI alone.
_REFUSED = (
    ("background", "responses are made while the client waits; leave it out and stream instead"),
    ("conversation", "conversations are kept by OpenAI alone; go on with previous_response_id"),
    ("prompt", "prompt templates are kept by OpenAI alone; send their text as instructions and input"),
)


def _options(job: Job) -> dict[str, Any]:
    said = {name: field_value(job.fields, name) for name in job.fields if name != "input"}
    return {"echo": {**echo_fields(said), "store": job.keep is not None}}


RESPONSES = Ingress("openai-responses", DIALECT, prefix="resp_", encoder_options=_options)


async def create(gateway: Gateway, call: Call) -> None:
    """Answer `POST /v1/responses`."""
    fields = peek(call.body)
    model, stream = asked_model(fields), asked_stream(fields, False)
    for name, why in _REFUSED:
        if field_value(fields, name) not in (None, False):
            raise RequestRefused(400, f"{name}: is not served: {why}.", reason="unsupported_parameter", param=name)
    store, previous = _flag(fields, "store"), field_value(fields, "previous_response_id")
    if previous is not None and not isinstance(previous, str):
        raise bad_field("previous_response_id", "must be a string")
    job = job_for(gateway, call, RESPONSES, model=model, stream=stream, fields=fields)
    if store is False and not previous and b"item_reference" not in call.body:
        await answer(job)
        return
    turn = _Turn(job, previous or "", kept=store is not False and gateway.settings.responses_ttl > 0)
    await answer(job, prepare=turn.prepare)
    await turn.ended()


def _flag(fields: Fields, name: str) -> bool | None:
    value = field_value(fields, name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, "must be true or false")
    return value


class _Turn:
    """One request that goes on from a stored response, or whose response is to be stored."""

    def __init__(self, job: Job, previous: str, *, kept: bool) -> None:
        self._job, self._previous, self._wanted = job, previous, kept
        self._store, self._tenant = job.gateway.stored, job.call.identity.tenant
        self._before: StoredResponse | None = None
        self._asked: list[Any] = []
        self._kept = False

    async def prepare(self, job: Job) -> None:
        """Put what is stored in front of the request, and items in the place of references to them."""
        body = job.call.body
        if self._wanted and len(body) > MAX_BYTES:
            text = f"Responses to more than {MAX_BYTES} bytes are not stored."
            raise RequestRefused(413, text, reason="request_too_large", param="input", hint="Send store: false.")
        # Whatever is wrong with the client's own items is told by their own places.
        decoded = DIALECT.decode_request(body)
        earlier = await self._earlier()
        self._asked, changed = await self._resolved(_items(job.fields))
        if earlier or changed:
            body = rebuild(job.fields, {"input": dumps([*earlier, *self._asked])})
            decoded = DIALECT.decode_request(body)
            job.history = max(0, len(body) - len(job.call.body))
        job.translated = decoded
        if self._wanted:
            job.answer_id, job.keep = clock.new_id(), self._keep

    async def _earlier(self) -> list[Any]:
        """Return the conversation up to the previous response. Raises RequestRefused 404 and 400."""
        if not self._previous:
            return []
        before = self._before = await self._store.get(self._tenant, self._previous)
        if before is None:
            raise _no_previous(self._previous)
        where: dict[str, Any] = {"param": "previous_response_id"}
        if before.status == "failed":
            text = f"The response '{self._previous}' failed; go on from the one before it."
            raise RequestRefused(400, text, reason="previous_response_failed", **where)
        if before.size > self._job.settings.max_body_bytes or before.turns >= MAX_TURNS:
            text = f"The conversation up to '{self._previous}' is too long to go on from."
            raise RequestRefused(400, text, reason="conversation_too_large", **where)
        found = await self._store.conversation(self._tenant, before)
        if found is None:
            raise _no_previous(self._previous)
        return found

    async def _resolved(self, items: list[Any]) -> tuple[list[Any], bool]:
        """Return the items with what references stand for, and whether there were any. Raises RequestRefused 404."""
        wanted = [as_str(item.get("id")) for item in items if _is_reference(item)]
        if not wanted:
            return items, False
        if len(wanted) > _MAX_REFERENCES:
            raise bad_field("input", f"holds {len(wanted)} references; at most {_MAX_REFERENCES} are looked up")
        found = await self._store.items(self._tenant, wanted, self._job.settings.max_body_bytes)
        if missing := next((name for name in wanted if name not in found), None):
            raise RequestRefused(404, f"Item with id '{missing[:200]}' not found.", param="input")
        return [found[item["id"]] if _is_reference(item) else item for item in items], True

    async def _keep(self, body: bytes | None) -> None:
        """Store the response; an answer is not lost because it cannot be: the log and the record tell of it."""
        job = self._job
        response: dict[str, Any] = loads(body) if body is not None else getattr(job.frames, "response", {})
        try:
            async with clock.deadline(_PATIENCE):
                await self._store.keep(self._tenant, response, self._asked, self._before, job.settings.responses_ttl)
            self._kept = True
        except (WindlassError, TimeoutError) as error:
            log.warning("the response %s could not be stored: %s", job.response_id, error or "the database is slow")
            job.report.error = job.report.error or "not_stored"

    async def ended(self) -> None:
        """Store a stream that ended in an error as the failed response it was told to be."""
        told = getattr(self._job.frames, "response", {})
        if self._job.keep is not None and not self._kept and told.get("status") == "failed":
            await self._keep(None)


def _items(fields: Fields) -> list[Any]:
    given = field_value(fields, "input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return as_list(given)


def _is_reference(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    kind: Any = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item)


def _no_previous(response_id: str) -> RequestRefused:
    return RequestRefused(
        404, f"Previous response with id '{response_id[:200]}' not found.", reason="previous_response_not_found",
        param="previous_response_id",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- what is stored


async def _found(gateway: Gateway, call: Call) -> StoredResponse:
    response_id = call.params["response"]
    found = await gateway.stored.get(call.identity.tenant, response_id)
    if found is None:
        raise _not_found(response_id)
    return found


def _not_found(response_id: str) -> RequestRefused:
    return RequestRefused(404, f"Response with id '{response_id[:200]}' not found.")


async def retrieve(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/responses/{response}`."""
    if query_of(call).get("stream", "false").lower() not in ("false", "0", ""):
        text = "stream: is not served: a stored response comes whole."
        raise RequestRefused(400, text, reason="unsupported_parameter", param="stream")
    found = await _found(gateway, call)
    call.respond(200, dumps(found.response), [("x-request-id", call.id)])


async def delete(gateway: Gateway, call: Call) -> None:
    """Answer `DELETE /v1/responses/{response}`; a conversation cannot go on past a deleted response."""
    response_id = call.params["response"]
    if not await gateway.stored.delete(call.identity.tenant, response_id):
        raise _not_found(response_id)
    told = {"id": response_id, "object": "response", "deleted": True}
    call.respond(200, dumps(told), [("x-request-id", call.id)])


async def input_items(gateway: Gateway, call: Call) -> None:
    """Answer `GET /v1/responses/{response}/input_items`: those of its own request, by default the last first."""
    query = query_of(call)
    limit, order, after = whole_of(query, "limit", 20), query.get("order", "desc"), query.get("after")
    if not 1 <= limit <= 100:
        raise bad_field("limit", "must be a whole number from 1 to 100")
    if order not in ("asc", "desc"):
        raise bad_field("order", "must be asc or desc")
    found = await _found(gateway, call)
    rows = [_listed(item, found.id, place) for place, item in enumerate(found.asked)]
    if order == "desc":
        rows.reverse()
    ids = [row["id"] for row in rows]
    if after is not None and after not in ids:
        raise bad_field("after", "is not the id of an item")
    start = 0 if after is None else ids.index(after) + 1
    page = rows[start : start + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    told = {"object": "list", "data": page, "has_more": start + limit < len(rows), **ends}
    call.respond(200, dumps(told), [("x-request-id", call.id)])


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _listed(item: dict[str, Any], response_id: str, place: int) -> dict[str, Any]:
    """Return an input item with what a client left out of it: kind, id, status, and text as a part."""
    kind = as_str(item.get("type")) or "message"
    made = f"{_PREFIXES.get(kind, 'item')}_{response_id.removeprefix('resp_')}_in{place}"
    out = {"id": as_str(item.get("id")) or made, **item, "type": kind}
    out["id"] = out["id"] or made
    if kind == "message":
        out.setdefault("status", "completed")
        if isinstance(text := item.get("content"), str):
            said = {"type": "output_text", "text": text, "annotations": []}
            out["content"] = [said if item.get("role") == "assistant" else {"type": "input_text", "text": text}]
    return out


ENDPOINTS = (
    Endpoint("POST", "/v1/responses", create, ingress=RESPONSES, body=True,
             summary="Ask a model (OpenAI responses)."),
    Endpoint("GET", "/v1/responses/{response}", retrieve, ingress=RESPONSES, summary="Read a stored response."),
    Endpoint("DELETE", "/v1/responses/{response}", delete, ingress=RESPONSES, summary="Delete a stored response."),
    Endpoint("GET", "/v1/responses/{response}/input_items", input_items, ingress=RESPONSES,
             summary="List the input items of a stored response."),
)  # fmt: skip
