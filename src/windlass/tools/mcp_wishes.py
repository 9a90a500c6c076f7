"""What a server may ask of us (S83): a model's answer, a user's answer, the workspace's folder. Off unless allowed.

Each is allowed per server; a model's answers have a budget of tokens, and a person is asked before each where there is
one. What a server asks for in a page of its own (elicitation by URL) is always declined: nothing opens a browser.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from windlass.core.errors import WindlassError
from windlass.core.items import Finish
from windlass.core.messages import Blob, Message, Part, Text
from windlass.core.ports import Approver, Provider, Workspace
from windlass.core.request import Request, Settings
from windlass.core.schema import compile_schema
from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_words import clean

__all__ = ["Ask", "Wishes"]

#: Asks the user what a server wants to know: (server, message, JSON Schema of a flat object) -> answer, None: declined.
Ask = Callable[[str, str, dict[str, Any]], Awaitable[Mapping[str, Any] | None]]
_MAX_TOKENS = 4096


class Wishes:
    """The callbacks of one server's session. `spent` counts the tokens of sampling.

    `provider` answers sampling; `ask` elicitation, else the approver, whose yes means the defaults.
    """

    def __init__(
        self, server: McpServer, provider: Provider | None, ask: Ask | None, place: Callable[[], Workspace | None]
    ) -> None:
        self.server, self._provider, self._ask, self._place = server, provider, ask, place
        self.approver: Approver | None = None
        self.spent = 0

    def callbacks(self) -> dict[str, Any]:
        """Return the keywords for the SDK's client: only what is allowed, so that nothing else is announced."""
        found: dict[str, Any] = {}
        if self.server.sampling and self._provider is not None:
            found["sampling_callback"] = self._sample
        if self.server.elicitation:
            found["elicitation_callback"] = self._elicit
        if self.server.roots:
            found["list_roots_callback"] = self._roots
        return found

    async def _refused(self, what: str, about: Mapping[str, Any]) -> bool:
        if self.approver is None:
            return False
        reason = f"the MCP server {self.server.name!r} asks for it"
        outcome = await self.approver.approve(f"mcp_{what}", {"server": self.server.name, **about}, reason)
        return not outcome.startswith("allow")

    async def _sample(self, context: Any, params: Any) -> Any:
        from mcp_types import INVALID_REQUEST, CreateMessageResult, ErrorData, TextContent

        del context
        left = self.server.sampling - self.spent
        if left <= 0:
            text = f"the budget of {self.server.sampling} tokens is used up"
            return ErrorData(code=INVALID_REQUEST, message=text)
        messages = [_message(item) for item in params.messages]
        said = [message.text[:400] for message in messages]
        if await self._refused("sampling", {"messages": said, "max_tokens": params.max_tokens}):
            return ErrorData(code=INVALID_REQUEST, message="the user refused")
        provider = self._provider
        assert provider is not None
        request = Request(
            model=str(getattr(provider, "model", "") or getattr(provider, "default_model", "")),
            messages=messages,
            system=clean(params.system_prompt or "", 16_384).text,
            settings=Settings(
                max_tokens=max(1, min(params.max_tokens, left, _MAX_TOKENS)),
                temperature=params.temperature,
                stop=tuple((params.stop_sequences or [])[:4]),
            ),
        )
        try:
            finish = await _answer(provider, request)
        except WindlassError as error:
            return ErrorData(code=INVALID_REQUEST, message=f"the model failed: {error.message}")
        self.spent += finish.usage.input_tokens + finish.usage.output_tokens
        stop = "maxTokens" if finish.reason == "length" else "endTurn"
        return CreateMessageResult(
            role="assistant", content=TextContent(text=finish.message.text), model=request.model, stop_reason=stop
        )

    async def _elicit(self, context: Any, params: Any) -> Any:
        from mcp_types import ElicitResult

        del context
        if params.mode != "form":
            return ElicitResult(action="decline")
        schema: dict[str, Any] = msgspec.convert(params.requested_schema, dict[str, Any])
        message = clean(params.message).text
        if self._ask is not None:
            answer = await self._ask(self.server.name, message, schema)
        elif self.approver is None or await self._refused("elicitation", {"message": message, "schema": schema}):
            answer = None
        else:
            answer = {}
        if answer is None:
            return ElicitResult(action="decline")
        fields: Mapping[str, Any] = schema.get("properties") or {}
        content = {key: field["default"] for key, field in fields.items() if "default" in field}
        content.update(answer)
        checked = compile_schema(schema, lenient=True).check(content)
        if checked.error is not None:
            return ElicitResult(action="decline")
        return ElicitResult(action="accept", content=checked.args)

    async def _roots(self, context: Any) -> Any:
        from mcp_types import ListRootsResult, Root

        del context
        place = self._place()
        folder = Path(place.root) if place is not None else None
        found: list[Any] = []
        if folder is not None and folder.is_absolute() and folder.is_dir():
            found.append(Root.model_validate({"uri": folder.as_uri(), "name": folder.name or "root"}))
        return ListRootsResult(roots=found)


async def _answer(provider: Provider, request: Request) -> Finish:
    finish: Finish | None = None
    stream: Any = provider.stream(request)
    async with aclosing(stream):
        async for item in stream:
            if isinstance(item, Finish):
                finish = item
    if finish is None:
        raise WindlassError("The model gave no answer.")
    return finish


def _message(item: Any) -> Message:
    blocks = item.content if isinstance(item.content, list) else [item.content]
    parts: list[Part] = []
    for block in blocks:
        if block.type == "text":
            parts.append(Text(clean(block.text, 65_536).text))
        elif block.type in ("image", "audio"):
            try:
                raw = base64.b64decode(block.data, validate=True)
            except (binascii.Error, ValueError):
                continue
            parts.append(Blob(raw, block.mime_type, block.type))
    return Message("assistant" if item.role == "assistant" else "user", tuple(parts))
