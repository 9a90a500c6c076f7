"""The row of openai-agents: the tool round is the SDK's own loop, over its chat model and its responses model."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

import agents
import openai
from openai.types.shared import Reasoning

from tests.server.matrix import ABOUT, SCHEMA, TOOL, WEATHER
from tests.server.matrix_clients import DATA_URL, Answer, Face, Failure, openai_failure, said

agents.set_tracing_disabled(True)
#: Made once: a client of its own for each run would read the certificates each time.
_TLS = ssl.create_default_context()


async def _tool(_: Any, text: str) -> str:
    return WEATHER[json.loads(text)["city"]]


TOOLS: list[Any] = [agents.FunctionTool(TOOL, ABOUT, dict(SCHEMA), _tool)]


class Agents(Face):
    """`Runner.run` and `run_streamed`, with a client of its own for each run, as loops come and go."""

    def __init__(self, url: str, *, responses: bool) -> None:
        self._url, self._responses = url, responses

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        content: list[Any] = [{"type": "input_text", "text": said(play)}]
        if image:
            content.append({"type": "input_image", "image_url": DATA_URL, "detail": "auto"})
        asked: Any = [{"role": "user", "content": content}]
        return asyncio.run(self._run(model, asked, stream, think=think))[-1]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        first, second = asyncio.run(self._run(model, said("tool"), stream, tools=TOOLS))
        return first, second

    async def _run(self, name: str, asked: Any, stream: bool, *, think: bool = False, **more: Any) -> list[Answer]:
        http = openai.DefaultAsyncHttpxClient(verify=_TLS)
        async with openai.AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="any", max_retries=0, http_client=http
        ) as client:
            kind = agents.OpenAIResponsesModel if self._responses else agents.OpenAIChatCompletionsModel
            settings = agents.ModelSettings(
                include_usage=True,
                store=False,
                reasoning=Reasoning(effort="low", summary="detailed") if think else None,
            )
            model: Any = kind(name, client)
            agent: Any = agents.Agent(
                name="matrix", instructions="Be brief.", model=model, model_settings=settings, **more
            )
            if not stream:
                done: Any = await agents.Runner.run(agent, asked)
                return [_answer(response, 0) for response in done.raw_responses]
            running: Any = agents.Runner.run_streamed(agent, asked)
            raw = [event.data async for event in running.stream_events() if event.type == "raw_response_event"]
            told = [data.delta for data in raw if data.type == "response.output_text.delta"]
            answers = [_answer(response, len(told)) for response in running.raw_responses]
            assert "".join(told) == "".join([answer.text for answer in answers])
            return answers

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        try:
            self.ask(model, play, stream=stream, image=image)
        except openai.APIStatusError as error:
            return openai_failure(error)
        raise AssertionError("nothing was raised")


def _answer(response: Any, pieces: int) -> Answer:
    made = Answer(pieces=pieces)
    for item in response.output:
        if item.type == "message":
            made.text += "".join([part.text for part in item.content])
        elif item.type == "function_call":
            made.calls.append((item.name, json.loads(item.arguments)))
        elif item.type == "reasoning":
            made.thought += "".join([part.text for part in item.summary])
    usage = response.usage
    made.read, made.wrote = usage.input_tokens, usage.output_tokens
    made.cached = usage.input_tokens_details.cached_tokens
    made.thoughts = usage.output_tokens_details.reasoning_tokens
    return made


def chat(url: str) -> Face:
    """Return the row over the chat model."""
    return Agents(url, responses=False)


def responses(url: str) -> Face:
    """Return the row over the responses model."""
    return Agents(url, responses=True)
