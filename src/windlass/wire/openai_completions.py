"""The legacy OpenAI dialect of `/v1/completions`: one prompt in, one text out.

Source: platform.openai.com/docs/api-reference/completions; vLLM, llama.cpp and Ollama serve it too. Log probabilities
are neither asked for nor read. Without `max_tokens` the server's default holds, which at OpenAI is 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from windlass.core.errors import ProviderError, StreamInterrupted, UnsupportedInputError, WindlassError
from windlass.core.items import Finish, Item, TextItem
from windlass.core.json import dumps
from windlass.core.messages import Message, Text
from windlass.core.models import Capabilities
from windlass.core.request import Request, Settings
from windlass.wire.base import DecodedRequest, as_dict, as_list, bad_field, load_object
from windlass.wire.fields import MOST_TOKENS, flag, load_fields, number, object_of, text, whole
from windlass.wire.media import marker
from windlass.wire.openai_chat_answer import decode_error, encode_error, encode_usage, wire_finish_reason
from windlass.wire.openai_chat_read import AnswerReader
from windlass.wire.openai_chat_stream import ChatStreamDecoder
from windlass.wire.prompt import only_calls, single_prompt
from windlass.wire.sse import encode_sse

__all__ = ["DIALECT", "CompletionStreamEncoder", "DecodedCompletion", "OpenAICompletions", "dropped_settings"]

_WHERE: Final = "/v1/completions"
_SENT: Final = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_KNOWN: Final = frozenset(
    (*_SENT, "model", "prompt", "stream", "max_tokens", "stop", "echo", "n", "best_of", "suffix", "logprobs")
)


class DecodedCompletion(DecodedRequest, frozen=True):
    """A client's request. `echo` is the prompt where the client wants it in front of the answer, else ""."""

    echo: str = ""


class OpenAICompletions:
    """The dialect. It has no options: what a model wants differently is in its `Capabilities`."""

    name: ClassVar[str] = "openai_completions"

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body; `settings.extra` is merged last.

        The system prompt stands in front of the prompt, an empty line between, and a last assistant message right
        behind it. Raises UnsupportedInputError for tools, images and earlier turns.
        """
        prompt = single_prompt(request, _WHERE, prefill=True)
        if prompt.images:
            raise UnsupportedInputError(
                f"The request holds {marker(prompt.images[0])}, but {_WHERE} takes text only.",
                model=request.model or None,
                hint="Use the chat endpoint of this provider.",
            )
        settings = request.settings
        said = "\n\n".join([piece for piece in (prompt.system, prompt.text) if piece])
        fields: dict[str, Any] = {"model": request.model, "prompt": said}
        if stream:
            fields["stream"] = True
            if caps.stream_usage:
                fields["stream_options"] = {"include_usage": True}
        if settings.max_tokens is not None:
            fields["max_tokens"] = settings.max_tokens
        fields.update({name: value for name in _SENT if (value := getattr(settings, name)) is not None})
        if settings.stop:
            fields["stop"] = list(settings.stop)
        extra = dict(settings.extra)
        if stream and isinstance(extra.get("stream_options"), dict):
            # The user's options may not turn off the usage we count on.
            extra["stream_options"] = {**extra["stream_options"], **fields.get("stream_options", {})}
        return dumps({**fields, **extra})

    def decode_request(self, body: bytes) -> DecodedCompletion:
        """Read a client's body: its prompt becomes one user message. Raises BadRequestError that names the field.

        Several prompts, token arrays, tools, `n` or `best_of` above 1, `suffix` and `logprobs` are refused. `extra`
        keeps what has no word of ours, `stream_options` and `user` among it.
        """
        fields = load_fields(body)
        model = text(fields, "model", required=True)
        prompt = _prompt(fields.get("prompt"))
        for name in ("n", "best_of"):
            if fields.get(name, 1) != 1 or isinstance(fields.get(name), bool):
                raise bad_field(name, "must be 1: one answer is given to a request")
        for name in ("tools", "functions"):
            if fields.get(name):
                raise bad_field(name, "cannot be given here: send them to /v1/chat/completions")
        if text(fields, "suffix"):
            raise bad_field("suffix", "cannot be honoured: nothing can be inserted before a suffix; leave it out")
        if fields.get("logprobs", False) is not False:
            raise bad_field("logprobs", "cannot be given: answers hold no log probabilities; leave it out")
        object_of(fields, "stream_options")
        echo = flag(fields, "echo")
        request = Request(
            model=model,
            messages=[Message("user", (Text(prompt),) if prompt else ())],
            settings=_settings(fields),
        )
        extra = {key: value for key, value in fields.items() if key not in _KNOWN}
        return DecodedCompletion(request, flag(fields, "stream") or False, extra, prompt if echo else "")

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:  # noqa: ARG002
        """Return the names of the settings that are given and that this dialect cannot tell."""
        settings = request.settings
        out = [name for name in ("top_k", "repeat_penalty") if getattr(settings, name) is not None]
        if settings.thinking_budget or settings.thinking not in (None, "off"):
            out.append("thinking")
        if request.output_schema is not None:
            out.append("output_schema")
        return out

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        finish = _Reader().take_whole(load_object(body))[-1]
        assert isinstance(finish, Finish)
        return finish

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int, echo: str = "") -> bytes:
        """Return a whole answer, `echo` in front of its text; reasoning has no place in this dialect.

        Raises WireError for an answer that holds tool calls and no text.
        """
        if error := only_calls(finish, _WHERE):
            raise error
        answer = {
            **_head(model, response_id, created),
            "choices": [_choice(echo + finish.message.text, _reason(finish))],
            "usage": encode_usage(finish.usage, finish.cost),
        }
        return dumps(answer)

    def stream_decoder(self) -> ChatStreamDecoder:
        """Make a decoder for one stream."""
        return _StreamDecoder()

    def stream_encoder(
        self, *, model: str, response_id: str, created: int, include_usage: bool = True, echo: str = ""
    ) -> CompletionStreamEncoder:
        """Make an encoder for one stream; `include_usage` is the client's own, `echo` that of `DecodedCompletion`."""
        head = _head(model, response_id, created)
        return CompletionStreamEncoder(head, include_usage=include_usage, echo=echo)

    def decode_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        provider: str | None,
        model: str | None,
        endpoint: str | None,
    ) -> ProviderError:
        """Return the typed error of an answer that is not 2xx. Never raises."""
        return decode_error(status, headers, body, provider=provider, model=model, endpoint=endpoint)

    def encode_error(self, error: WindlassError) -> tuple[int, bytes]:
        """Return the HTTP status and body that tell a client of this error."""
        return encode_error(error)


# --------------------------------------------------------------------------------------------------------- requests


def _prompt(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise bad_field("prompt", "must be given")
    rows = as_list(value)
    if not rows:
        raise bad_field("prompt", "must be a text or an array of one text")
    if isinstance(rows[0], (int, float, list)):
        raise bad_field("prompt", "is an array of tokens, which differ from model to model; send text")
    if not isinstance(rows[0], str):
        raise bad_field("prompt[0]", "must be a text; this endpoint takes no other parts")
    if len(rows) > 1:
        raise bad_field("prompt", f"holds {len(rows)} prompts; send one request for each")
    return rows[0]


def _settings(fields: dict[str, Any]) -> Settings:
    stop = fields.get("stop")
    words = [stop] if isinstance(stop, str) else as_list(stop)
    if (stop is not None and not isinstance(stop, (str, list))) or any(not isinstance(word, str) for word in words):
        raise bad_field("stop", "must be a string or an array of strings")
    return Settings(
        max_tokens=whole(fields, "max_tokens", 1, MOST_TOKENS),
        temperature=number(fields, "temperature", 0, 2),
        top_p=number(fields, "top_p", 0, 1),
        seed=whole(fields, "seed", -(1 << 63), (1 << 63) - 1),
        presence_penalty=number(fields, "presence_penalty", -2, 2),
        frequency_penalty=number(fields, "frequency_penalty", -2, 2),
        stop=tuple(words),
    )


# ---------------------------------------------------------------------------------------------------------- answers


class _Reader(AnswerReader):
    """Read text completions: a choice's `text` is what a chat's delta holds as content."""

    def take(self, data: dict[str, Any], key: str = "delta") -> list[Item]:
        """Return the items of one chunk; `key` is `message` for a whole answer. Raises the error a chunk holds."""
        return super().take(_as_chat(data, key), key)

    def take_whole(self, data: dict[str, Any]) -> list[Item]:
        """Return the items and the Finish of a whole answer. Raises WireError when it is none."""
        return super().take_whole(_as_chat(data, "message"))


def _as_chat(data: dict[str, Any], key: str) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list):
        return data
    return {**data, "choices": [_chat_choice(as_dict(choice), key) for choice in choices]}


def _chat_choice(choice: dict[str, Any], key: str) -> dict[str, Any]:
    if "text" not in choice:
        return choice
    # Log probabilities have another form here than in a chat: they must not go out as those of one.
    rest = {name: value for name, value in choice.items() if name not in ("text", "logprobs")}
    return {**rest, key: {"role": "assistant", "content": choice["text"]}}


class _StreamDecoder(ChatStreamDecoder):
    """Read one stream (`StreamDecoder`)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self._reader = _Reader()


def _head(model: str, response_id: str, created: int) -> dict[str, Any]:
    return {"id": response_id, "object": "text_completion", "created": created, "model": model}


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}


def _reason(finish: Finish) -> str:
    # Text beside tool calls is an answer that stopped: this dialect knows no other word for it.
    return "stop" if finish.reason == "tool_call" else wire_finish_reason(finish.reason)


class CompletionStreamEncoder:
    """Write one stream (`StreamEncoder`). Reasoning and tool calls are left out: they have no form here."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool, echo: str) -> None:
        # Everything but the text is the same in every chunk: encoded once.
        self._head = b"data: " + dumps(head)[:-1] + b',"choices":['
        self._usage, self._echo, self._said = include_usage, echo, False

    def encode(self, item: Item) -> bytes:
        """Return the chunks of one item; usage goes out at the end, notices not at all."""
        if isinstance(item, TextItem):
            self._said = self._said or bool(item.text)
            return self._echoed() + (self._chunk(item.text) if item.text else b"")
        return self._finish(item) if isinstance(item, Finish) else self._echoed()

    def error(self, exc: WindlassError) -> bytes:
        """Return the error event; no `[DONE]` follows, so that no client takes the answer for whole."""
        return encode_sse(encode_error(exc)[1])

    def _chunk(self, text: str, reason: str | None = None) -> bytes:
        return self._head + dumps(_choice(text, reason)) + b"]}\n\n"

    def _echoed(self) -> bytes:
        echo, self._echo = self._echo, ""
        return self._chunk(echo) if echo else b""

    def _finish(self, finish: Finish) -> bytes:
        out = self._echoed()
        if not self._said and finish.message.text:
            out += self.encode(TextItem(finish.message.text))
        if finish.reason in ("interrupted", "error"):
            return out + self.error(
                StreamInterrupted("The answer was cut short upstream; what came before is partial.")
            )
        if not self._said and (error := only_calls(finish, _WHERE)):
            return out + self.error(error)
        out += self._chunk("", _reason(finish))
        if self._usage:
            out += self._head + b'],"usage":' + dumps(encode_usage(finish.usage, finish.cost)) + b"}\n\n"
        return out + b"data: [DONE]\n\n"


DIALECT = OpenAICompletions()
dropped_settings = DIALECT.dropped_settings
