"""The official clients of the matrix, as they are but for their address, each behind the same few words."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import anthropic
import boto3
import ollama
import openai
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.server.matrix import ABOUT, PNG, SCHEMA, TOOL, WEATHER

_PNG = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{_PNG}"
_FUNCTION = {"name": TOOL, "description": ABOUT, "parameters": SCHEMA}


@dataclass
class Answer:
    """What a client shows of an answer. Tokens: read in all, read from a cache, written in all, thought."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    read: int = 0
    cached: int = 0
    wrote: int = 0
    thoughts: int = 0
    #: How many pieces of text a stream had.
    pieces: int = 0


@dataclass(frozen=True)
class Failure:
    """What a client's own exception says."""

    kind: str
    status: int
    retry_after: str | None
    text: str


class Face:
    """One client. `ask` sends one text; `round` declares a tool, runs what is called, and asks again."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        """Return the answer to `play:PLAY`."""
        raise NotImplementedError

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        """Return the answer that calls the tool, and the one after the results were sent."""
        raise NotImplementedError

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        """Return the client's own exception for a refused request."""
        raise NotImplementedError

    def close(self) -> None:
        """Close its connections."""


def said(play: str) -> str:
    """Return the text of a question."""
    return f"What about this? play:{play}"


def _ran(calls: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Run the tool for each call."""
    out: list[str] = []
    for name, args in calls:
        assert name == TOOL, name
        out.append(WEATHER[args["city"]])
    return out


def openai_failure(error: openai.APIStatusError) -> Failure:
    return Failure(type(error).__name__, error.status_code, error.response.headers.get("retry-after"), str(error))


class _OpenAI(Face):
    def __init__(self, url: str) -> None:
        self.sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        try:
            self.ask(model, play, stream=stream, image=image)
        except openai.APIStatusError as error:
            return openai_failure(error)
        raise AssertionError("nothing was raised")

    def close(self) -> None:
        self.sdk.close()


class OpenAIChat(_OpenAI):
    """`client.chat.completions.create`."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        content: Any = said(play)
        if image:
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
        more: dict[str, Any] = {"reasoning_effort": "low"} if think else {}
        return self._send(model, [{"role": "user", "content": content}], stream, **more)[0]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said("tool")}]
        tools = [{"type": "function", "function": _FUNCTION}]
        first, message = self._send(model, messages, stream, tools=tools)
        messages.append(message)
        for call, text in zip(message["tool_calls"], _ran(first.calls), strict=True):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        return first, self._send(model, messages, stream, tools=tools)[0]

    def _send(self, model: str, messages: list[Any], stream: bool, **more: Any) -> tuple[Answer, dict[str, Any]]:
        create: Any = self.sdk.chat.completions.create
        if not stream:
            done = create(model=model, messages=messages, **more)
            (choice,) = done.choices
            message = choice.message.model_dump(exclude_none=True)
            thought, usage, count, reason = message.pop("reasoning_content", ""), done.usage, 0, choice.finish_reason
        else:
            message, thought, usage, count, reason = _collected(
                create(model=model, messages=messages, stream=True, stream_options={"include_usage": True}, **more)
            )
        rows = [call["function"] for call in message.get("tool_calls", [])]
        assert reason == ("tool_calls" if rows else "stop")
        calls = [(row["name"], json.loads(row["arguments"])) for row in rows]
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        thoughts = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        text = message.get("content") or ""
        return Answer(text, thought, calls, usage.prompt_tokens, cached or 0, usage.completion_tokens, thoughts or 0,
                      count), message  # fmt: skip


def _collected(chunks: Any) -> tuple[dict[str, Any], str, Any, int, str | None]:
    """Return the message that the chunks of a stream make, its reasoning, usage, number of texts, and end."""
    text, thought, count = "", "", 0
    calls: dict[int, dict[str, Any]] = {}
    usage: Any = None
    reason: str | None = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            if choice.delta.content:
                text += choice.delta.content
                count += 1
            for delta in choice.delta.tool_calls or []:
                new = {"id": delta.id, "type": "function", "function": {"name": "", "arguments": ""}}
                call = calls.setdefault(delta.index, new)["function"]
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [calls[at] for at in sorted(calls)]
    return message, thought, usage, count, reason


class OpenAIResponses(_OpenAI):
    """`client.responses.create`."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        content: list[Any] = [{"type": "input_text", "text": said(play)}]
        if image:
            content.append({"type": "input_image", "image_url": DATA_URL, "detail": "auto"})
        more: dict[str, Any] = {"reasoning": {"effort": "low", "summary": "detailed"}} if think else {}
        return self._send(model, [{"role": "user", "content": content}], stream, **more)[0]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        tools = [{"type": "function", **_FUNCTION, "strict": True}]
        items: list[Any] = [{"role": "user", "content": said("tool")}]
        first, done = self._send(model, items, stream, tools=tools, instructions="Be brief.")
        items += [item.model_dump(exclude_none=True) for item in done.output]
        made = [item for item in done.output if item.type == "function_call"]
        for item, text in zip(made, _ran(first.calls), strict=True):
            items.append({"type": "function_call_output", "call_id": item.call_id, "output": text})
        return first, self._send(model, items, stream, tools=tools)[0]

    def _send(self, model: str, items: list[Any], stream: bool, **more: Any) -> tuple[Answer, Any]:
        create: Any = self.sdk.responses.create
        told, count = "", 0
        if not stream:
            done = create(model=model, input=items, store=False, **more)
        else:
            done = None
            for event in create(model=model, input=items, store=False, stream=True, **more):
                if event.type == "response.output_text.delta":
                    told, count = told + event.delta, count + 1
                elif event.type == "response.completed":
                    done = event.response
            assert done is not None and told == done.output_text
        assert done.status == "completed"
        calls = [(item.name, json.loads(item.arguments)) for item in done.output if item.type == "function_call"]
        thought = "".join([p.text for item in done.output if item.type == "reasoning" for p in item.summary])
        usage = done.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        return Answer(done.output_text, thought, calls, usage.input_tokens, usage.input_tokens_details.cached_tokens,
                      usage.output_tokens, usage.output_tokens_details.reasoning_tokens, count), done  # fmt: skip


class OpenAICompletions(_OpenAI):
    """`client.completions.create`."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        create: Any = self.sdk.completions.create
        if not stream:
            done = create(model=model, prompt=said(play))
            assert done.choices[0].finish_reason == "stop"
            return self._answer(done.choices[0].text, done.usage, 0)
        text, count, usage = "", 0, None
        for chunk in create(model=model, prompt=said(play), stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text, count = text + choice.text, count + bool(choice.text)
        return self._answer(text, usage, count)

    @staticmethod
    def _answer(text: str, usage: Any, count: int) -> Answer:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        thoughts = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
        return Answer(text, "", [], usage.prompt_tokens, cached or 0, usage.completion_tokens, thoughts or 0, count)


class Anthropic(Face):
    """`client.messages.create` and `.stream`."""

    def __init__(self, url: str) -> None:
        self.sdk = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        content: list[Any] = [{"type": "text", "text": said(play)}]
        if image:
            source = {"type": "base64", "media_type": "image/png", "data": _PNG}
            content.append({"type": "image", "source": source})
        more: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 2048}} if think else {}
        return self._send(model, [{"role": "user", "content": content}], stream, **more)[0]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        tools = [{"name": TOOL, "description": ABOUT, "input_schema": SCHEMA}]
        messages: list[Any] = [{"role": "user", "content": said("tool")}]
        first, done = self._send(model, messages, stream, tools=tools, system="Be brief.")
        assert done.stop_reason == "tool_use"
        messages.append({"role": "assistant", "content": done.content})
        used = [block for block in done.content if block.type == "tool_use"]
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": text}
            for block, text in zip(used, _ran(first.calls), strict=True)
        ]
        messages.append({"role": "user", "content": results})
        second, done = self._send(model, messages, stream, tools=tools)
        assert done.stop_reason == "end_turn"
        return first, second

    def _send(self, model: str, messages: list[Any], stream: bool, **more: Any) -> tuple[Answer, Any]:
        asked: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 4096, **more}
        told, count = "", 0
        if not stream:
            done: Any = self.sdk.messages.create(**asked)
        else:
            with self.sdk.messages.stream(**asked) as events:
                for piece in events.text_stream:
                    told, count = told + piece, count + 1
                done = events.get_final_message()
        text = "".join([block.text for block in done.content if block.type == "text"])
        assert not stream or told == text
        thought = "".join([block.thinking for block in done.content if block.type == "thinking"])
        calls = [(block.name, block.input) for block in done.content if block.type == "tool_use"]
        usage, cached = done.usage, done.usage.cache_read_input_tokens or 0
        read = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
        return Answer(text, thought, calls, read, cached, usage.output_tokens, 0, count), done

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        try:
            self.ask(model, play, stream=stream, image=image)
        except anthropic.APIStatusError as error:
            wait = error.response.headers.get("retry-after")
            return Failure(type(error).__name__, error.status_code, wait, str(error))
        raise AssertionError("nothing was raised")

    def close(self) -> None:
        self.sdk.close()


class _Ollama(Face):
    def __init__(self, url: str) -> None:
        self.sdk = ollama.Client(host=url)

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        try:
            self.ask(model, play, stream=stream, image=image)
        except ollama.ResponseError as error:
            return Failure(type(error).__name__, error.status_code, None, error.error)
        raise AssertionError("nothing was raised")

    def close(self) -> None:
        self.sdk.close()


class OllamaChat(_Ollama):
    """`client.chat`."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        message: dict[str, Any] = {"role": "user", "content": said(play)}
        if image:
            message["images"] = [PNG]
        return self._send(model, [message], stream, **({"think": True} if think else {}))[0]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        tools = [{"type": "function", "function": _FUNCTION}]
        messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said("tool")}]
        first, message = self._send(model, messages, stream, tools=tools)
        messages.append(message)
        messages += [{"role": "tool", "tool_name": TOOL, "content": text} for text in _ran(first.calls)]
        return first, self._send(model, messages, stream, tools=tools)[0]

    def _send(self, model: str, messages: list[Any], stream: bool, **more: Any) -> tuple[Answer, dict[str, Any]]:
        chat: Any = self.sdk.chat
        rows: list[Any] = list(chat(model=model, messages=messages, stream=True, **more)) if stream else [
            chat(model=model, messages=messages, **more)
        ]  # fmt: skip
        text = "".join([row.message.content or "" for row in rows])
        thought = "".join([row.message.thinking or "" for row in rows])
        made = [call for row in rows for call in row.message.tool_calls or []]
        last = rows[-1]
        assert last.done is True and [row.done for row in rows[:-1]] == [False] * (len(rows) - 1)
        calls = [(call.function.name, dict(call.function.arguments)) for call in made]
        message = {"role": "assistant", "content": text, "tool_calls": made}
        count = len([row for row in rows if row.message.content]) if stream else 0
        return Answer(text, thought, calls, last.prompt_eval_count, 0, last.eval_count, 0, count), message


class OllamaGenerate(_Ollama):
    """`client.generate`."""

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        more: dict[str, Any] = {**({"images": [PNG]} if image else {}), **({"think": True} if think else {})}
        generate: Any = self.sdk.generate
        rows: list[Any] = list(generate(model=model, prompt=said(play), stream=True, **more)) if stream else [
            generate(model=model, prompt=said(play), **more)
        ]  # fmt: skip
        last, text = rows[-1], "".join([row.response for row in rows])
        assert last.done is True and last.done_reason == "stop"
        count = len([row for row in rows if row.response]) if stream else 0
        thought = "".join([row.thinking or "" for row in rows])
        return Answer(text, thought, [], last.prompt_eval_count, 0, last.eval_count, 0, count)


class Boto3(Face):
    """`client.converse` and `converse_stream`."""

    def __init__(self, url: str) -> None:
        session: Any = boto3.Session(aws_access_key_id="AKIAEXAMPLE", aws_secret_access_key="none")
        config = Config(retries={"max_attempts": 0, "mode": "standard"})
        self.sdk: Any = session.client("bedrock-runtime", region_name="us-east-1", endpoint_url=url, config=config)

    def ask(self, model: str, play: str, *, stream: bool, image: bool = False, think: bool = False) -> Answer:
        content: list[Any] = [{"text": said(play)}]
        if image:
            content.append({"image": {"format": "png", "source": {"bytes": PNG}}})
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
        more: dict[str, Any] = {"additionalModelRequestFields": thinking} if think else {}
        return self._send(model, [{"role": "user", "content": content}], stream, **more)[0]

    def round(self, model: str, *, stream: bool) -> tuple[Answer, Answer]:
        spec = {"name": TOOL, "description": ABOUT, "inputSchema": {"json": SCHEMA}}
        more: dict[str, Any] = {"toolConfig": {"tools": [{"toolSpec": spec}]}, "system": [{"text": "Be brief."}]}
        messages: list[Any] = [{"role": "user", "content": [{"text": said("tool")}]}]
        first, message = self._send(model, messages, stream, **more)
        used = [block["toolUse"] for block in message["content"] if "toolUse" in block]
        results = [
            {"toolResult": {"toolUseId": block["toolUseId"], "content": [{"text": text}]}}
            for block, text in zip(used, _ran(first.calls), strict=True)
        ]
        messages += [message, {"role": "user", "content": results}]
        return first, self._send(model, messages, stream, **more)[0]

    def _send(self, model: str, messages: list[Any], stream: bool, **more: Any) -> tuple[Answer, dict[str, Any]]:
        if not stream:
            done = self.sdk.converse(modelId=model, messages=messages, **more)
            message, usage, reason, count = done["output"]["message"], done["usage"], done["stopReason"], 0
        else:
            events = list(self.sdk.converse_stream(modelId=model, messages=messages, **more)["stream"])
            message, count = _message_of(events), len([e for e in events if _delta(e).get("text")])
            (reason,) = [event["messageStop"]["stopReason"] for event in events if "messageStop" in event]
            usage = events[-1]["metadata"]["usage"]
        blocks = message["content"]
        used = [block["toolUse"] for block in blocks if "toolUse" in block]
        assert reason == ("tool_use" if used else "end_turn")
        thought = "".join([b["reasoningContent"]["reasoningText"]["text"] for b in blocks if "reasoningContent" in b])
        cached = usage.get("cacheReadInputTokens", 0)
        read = usage["inputTokens"] + cached + usage.get("cacheWriteInputTokens", 0)
        assert usage["totalTokens"] == read + usage["outputTokens"]
        calls = [(block["name"], block["input"]) for block in used]
        text = "".join([block.get("text", "") for block in blocks])
        return Answer(text, thought, calls, read, cached, usage["outputTokens"], 0, count), message

    def fail(self, model: str, play: str, *, stream: bool, image: bool = False) -> Failure:
        try:
            self.ask(model, play, stream=stream, image=image)
        except ClientError as error:
            row: Any = error.response
            meta = row["ResponseMetadata"]
            assert isinstance(error, getattr(self.sdk.exceptions, row["Error"]["Code"]))
            wait = meta["HTTPHeaders"].get("retry-after")
            return Failure(row["Error"]["Code"], meta["HTTPStatusCode"], wait, str(error))
        raise AssertionError("nothing was raised")

    def close(self) -> None:
        self.sdk.close()


def _delta(event: dict[str, Any]) -> dict[str, Any]:
    return event.get("contentBlockDelta", {}).get("delta", {})


def _message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that the events of a ConverseStream make."""
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        if start := event.get("contentBlockStart", {}).get("start"):
            blocks[event["contentBlockStart"]["contentBlockIndex"]] = {"toolUse": {**start["toolUse"], "input": ""}}
        if delta := _delta(event):
            block = blocks.setdefault(event["contentBlockDelta"]["contentBlockIndex"], {})
            if "text" in delta:
                block["text"] = block.get("text", "") + delta["text"]
            elif "toolUse" in delta:
                block["toolUse"]["input"] += delta["toolUse"]["input"]
            else:
                thought = block.setdefault("reasoningContent", {}).setdefault("reasoningText", {"text": ""})
                for key, value in delta["reasoningContent"].items():
                    thought[key] = thought.get(key, "") + value
    for block in blocks.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = json.loads(block["toolUse"]["input"] or "{}")
    return {"role": "assistant", "content": [blocks[at] for at in sorted(blocks)]}


FACES: dict[str, Callable[[str], Face]] = {
    "openai chat": OpenAIChat,
    "openai responses": OpenAIResponses,
    "openai completions": OpenAICompletions,
    "anthropic messages": Anthropic,
    "ollama chat": OllamaChat,
    "ollama generate": OllamaGenerate,
    "boto3 converse": Boto3,
}
