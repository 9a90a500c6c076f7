"""Bedrock's Converse and ConverseStream, as AWS's SDKs ask for them: the model and the verb stand in the path."""

from __future__ import annotations

from windlass.server.answer import answer
from windlass.server.body import checked_model, peek
from windlass.server.endpoints import Endpoint
from windlass.server.gateway import Gateway
from windlass.server.http import Call
from windlass.server.ingress import Ingress
from windlass.server.job import job_for
from windlass.wire import bedrock

__all__ = ["ENDPOINTS"]

BEDROCK = Ingress("bedrock", bedrock.DIALECT, stream_kind=bedrock.DIALECT.stream_type, legible=False)


async def _serve(gateway: Gateway, call: Call, *, stream: bool) -> None:
    # By this name the SDKs know a request in what they report of it.
    call.extra_headers.append(("x-amzn-requestid", call.id))
    fields, model = peek(call.body), checked_model(call.params["model"])
    await answer(job_for(gateway, call, BEDROCK, model=model, stream=stream, fields=fields))


async def converse(gateway: Gateway, call: Call) -> None:
    """Answer `POST /model/{model}/converse`."""
    await _serve(gateway, call, stream=False)


async def converse_stream(gateway: Gateway, call: Call) -> None:
    """Answer `POST /model/{model}/converse-stream`."""
    await _serve(gateway, call, stream=True)


ENDPOINTS = (
    Endpoint("POST", "/model/{model}/converse", converse, ingress=BEDROCK, body=True,
             summary="Ask a model (Bedrock Converse)."),
    Endpoint("POST", "/model/{model}/converse-stream", converse_stream, ingress=BEDROCK, body=True,
             summary="Ask a model for a stream (Bedrock ConverseStream)."),
)  # fmt: skip
