"""The dialect of Ollama's `/api/generate`: one prompt in, one text out.

Source: docs.ollama.com/api/generate. A request without a prompt asks to load (or, with `keep_alive` 0, to unload) the
model: `load_reason` finds it, `encode_load` answers it, for `/api/chat` too. The durations of an answer go out where
its `provider_metadata["ollama"]` has them, in nanoseconds, as Ollama measures them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from msgspec.structs import replace

from windlass.core.clock import rfc3339
from windlass.core.errors import ProviderError, StreamInterrupted, UnsupportedInputError, WindlassError, WireError
from windlass.core.items import Finish, Item, TextItem, ToolCallItem
from windlass.core.json import dumps
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall
from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.wire import ollama
from windlass.wire.base import DecodedRequest, as_str, bad_field, excerpt, load_object
from windlass.wire.fields import flag, load_fields, text
from windlass.wire.media import marker
from windlass.wire.ollama_answer import (
    MAX_LINE,
    OllamaReader,
    OllamaStreamDecoder,
    OllamaStreamEncoder,
    decode_error,
    encode_error,
    encode_tail,
)
from windlass.wire.ollama_request import decode_format, decode_images, decode_settings
from windlass.wire.prompt import only_calls, single_prompt

__all__ = ["DIALECT", "GenerateStreamEncoder", "OllamaGenerate", "dropped_settings", "encode_load", "load_reason"]

_WHERE: Final = "/api/generate"
_KNOWN: Final = frozenset(
    (
        "model", "prompt", "system", "images", "suffix", "template", "raw", "context", "format", "think", "options",
        "stream", "logprobs", "top_logprobs",
    )
)  # fmt: skip
#: Fields that ask for what no model behind us can be told, or no answer of ours can hold.
_REFUSED: Final = (
    ("tools", "cannot be given here: send them to /api/chat"),
    ("suffix", "cannot be honoured: nothing can be inserted before a suffix"),
    ("template", "cannot be honoured: the model's own template is used"),
    ("raw", "cannot be honoured: the model's own template is used"),
    ("context", "is an array of tokens, which differ from model to model; send a conversation to /api/chat"),
    ("logprobs", "cannot be given: answers hold no log probabilities"),
    ("top_logprobs", "cannot be given: answers hold no log probabilities"),
)


class OllamaGenerate:
    """The dialect. It has no options: what a model wants differently is in its `Capabilities`."""

    name: ClassVar[str] = "ollama_generate"

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body; `settings.extra` is merged last.

        Raises UnsupportedInputError for tools and earlier turns, and for images where the model cannot see.
        """
        prompt = single_prompt(request, _WHERE, prefill=False)
        if prompt.images and not caps.vision:
            raise UnsupportedInputError(
                f"The request holds {marker(prompt.images[0])}, but {request.model or 'the model'} takes no images.",
                model=request.model or None,
                hint="Use a model that takes it, or leave it out.",
            )
        fields: dict[str, Any] = {"prompt": prompt.text}
        if prompt.system:
            fields["system"] = prompt.system
        if prompt.images:
            fields["images"] = [base64.b64encode(image.content).decode() for image in prompt.images]
        return dumps({**fields, **ollama.encode_settings(request, caps, stream=stream)})

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body; a missing `stream` means true there. Raises BadRequestError that names the field.

        The prompt becomes one user message; without one there is none (see `load_reason`). Tools, `suffix`,
        `template`, `raw`, `context` and log probabilities are refused unless they are empty. `extra` keeps
        what has no word of ours, `keep_alive` among it.
        """
        fields = load_fields(body)
        model = text(fields, "model", required=True)
        for name, problem in _REFUSED:
            if fields.get(name) not in (None, "", False, 0, []):
                raise bad_field(name, problem)
        extra = {key: value for key, value in fields.items() if key not in _KNOWN}
        prompt = text(fields, "prompt")
        images = decode_images(fields.get("images"), "images")
        said: tuple[Part, ...] = (*([Text(prompt)] if prompt else []), *images)
        request = Request(
            model=model,
            messages=[Message("user", said)] if said else [],
            system=text(fields, "system") or None,
            settings=decode_settings(fields, extra),
            output_schema=decode_format(fields.get("format"), extra),
        )
        return DecodedRequest(request, flag(fields, "stream") is not False, extra)

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this server or model cannot be told."""
        return ollama.dropped_settings(replace(request, tools=()), caps)

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        data = load_object(body)
        if "error" not in data and not isinstance(data.get("response"), str):
            raise WireError(f"The answer has no response: {excerpt(body)!r}.")
        out: list[Item] = []
        _Reader().take({**data, "done": True}, out)
        finish = out[-1]
        assert isinstance(finish, Finish)
        if data.get("done") is False:
            raise StreamInterrupted("The answer says that it is not done.", partial=finish.message.text)
        return finish

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:  # noqa: ARG002
        """Return a whole answer; `created` is in Unix seconds, and ids have no place in this dialect.

        Raises WireError for an answer that holds tool calls and no text.
        """
        if error := only_calls(finish, _WHERE):
            raise error
        said = {"response": finish.message.text}
        if thought := "".join([part.content for part in finish.message.parts if isinstance(part, Reasoning)]):
            said["thinking"] = thought
        return dumps({**_head(model, created), **said, **encode_tail(finish)})

    def stream_decoder(self) -> OllamaStreamDecoder:
        """Make a decoder for one stream."""
        return OllamaStreamDecoder(MAX_LINE, _Reader())

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> GenerateStreamEncoder:  # noqa: ARG002
        """Make an encoder for one stream; `created` is in Unix seconds, and ids have no place in this dialect."""
        return GenerateStreamEncoder(model=model, created=created)

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


# ---------------------------------------------------------------------------------------------------------- loading


def load_reason(decoded: DecodedRequest) -> Literal["load", "unload"] | None:
    """Return what a request without a prompt asks for, by its `keep_alive`; None for one that has a prompt."""
    if decoded.request.messages:
        return None
    keep: Any = decoded.extra.get("keep_alive")
    if isinstance(keep, str):
        # A duration as Go writes it: "0", "0s", "0h0m0s".
        return "unload" if "0" in keep and not re.search("[1-9]", keep) else "load"
    return "unload" if keep == 0 and not isinstance(keep, bool) else "load"


def encode_load(model: str, created: int, reason: str, *, chat: bool = False) -> bytes:
    """Return the answer to a request to load or unload a model, of `/api/chat` with `chat`; one object, a line's end.

    `created` is in Unix seconds.
    """
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return dumps({**_head(model, created), **said, "done": True, "done_reason": reason}) + b"\n"


# ---------------------------------------------------------------------------------------------------------- answers


def _head(model: str, created: int) -> dict[str, Any]:
    return {"model": model, "created_at": rfc3339(created * 1_000_000_000)}


class _Reader(OllamaReader):
    """Read lines whose text stands at the top."""

    # `context` is the conversation as tokens of that one model: nothing for anybody else.
    known: ClassVar[frozenset[str]] = OllamaReader.known | {"response", "thinking", "tool_calls", "context"}

    def message_of(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the message of a line: its content, thinking and tool_calls."""
        said, calls = as_str(data.get("response")), data.get("tool_calls")
        return {"content": said, "thinking": data.get("thinking"), "tool_calls": calls}


class GenerateStreamEncoder(OllamaStreamEncoder):
    """Write one stream (`StreamEncoder`). Tool calls are left out: they have no form here."""

    def __init__(self, *, model: str, created: int) -> None:
        super().__init__(model=model, created=created)
        self._texts = False

    def encode(self, item: Item) -> bytes:
        """Return the lines of one item; usage goes out at the end, notices not at all."""
        if isinstance(item, ToolCallItem):
            return b""
        if isinstance(item, TextItem):
            self._texts = self._texts or bool(item.text)
        elif isinstance(item, Finish):
            error = None if self._texts else only_calls(item, _WHERE)
            if error and item.reason not in ("interrupted", "error"):
                return self.error(error)
            parts = tuple([part for part in item.message.parts if not isinstance(part, ToolCall)])
            item = replace(item, message=replace(item.message, parts=parts))
        return super().encode(item)

    def _message(self, fields: dict[str, Any]) -> dict[str, Any]:
        thought = {"thinking": fields["thinking"]} if "thinking" in fields else {}
        return {"response": fields["content"], **thought}


DIALECT = OllamaGenerate()
dropped_settings = DIALECT.dropped_settings
