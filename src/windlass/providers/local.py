"""A model on this machine as a provider: the built-in one, or any GGUF file.

The built-in model runs in this process; a user's file runs in a worker process, because the engine may abort on it. A
card beside the file says which tools the model knows: it is offered only those, with their required string parameters.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from windlass.core.clock import deadline
from windlass.core.errors import (
    LocalModelError,
    ModelNotFoundError,
    ProviderError,
    ProviderTimeoutError,
    StreamInterrupted,
    UnsupportedInputError,
    WindlassError,
)
from windlass.core.items import Finish, Item, NoticeItem, TextItem
from windlass.core.messages import Message, ToolResponse
from windlass.core.models import Capabilities
from windlass.core.ports import Embeddings
from windlass.core.request import Budget, Request, ToolSpec
from windlass.local.embedded import ModelProfile, embedded_model, load_profile
from windlass.local.engine import ChatEngine, Engine, EngineOptions, count_tokens, require_engine
from windlass.local.failures import OutOfMemory
from windlass.providers.local_models import LocalModel, shipped_model
from windlass.providers.local_settings import LocalSettings, ModelSettings
from windlass.providers.local_slots import NoRoom
from windlass.wire.openai_chat import DIALECT, OpenAIChat

__all__ = ["LocalProvider"]

_NAME: Final = "local"
_CAPABILITIES: Final = Capabilities(vision=False, documents=False)
#: llama.cpp's server parses the arguments of calls in the history, and knows two settings that OpenAI does not.
_DIALECT: Final = OpenAIChat(
    fields=(*DIALECT.fields, ("top_k", "top_k"), ("repeat_penalty", "repeat_penalty")), valid_arguments=True
)


class LocalProvider:
    """Answer with a model on this machine.

    `path` is the GGUF file that the model ids "" and "default" stand for; without it they are the built-in model, which
    is also "tiny" and "tiny-0". `settings` name further models; they are the `[providers.local]` table. An id that ends
    in `.gguf` is a path itself, unless `any_path` is False: a gateway must not let its clients choose files. `options`
    say how files are loaded, `load_timeout` (seconds) and `memory` (bytes besides the mapped file) bound their worker
    processes. With `engine` all this is settled: it answers as `model`, whatever id is asked for, under the card
    `profile`, and stays its owner's to close. Usage is exact; the engine's timings are in the `Finish`, under
    `provider_metadata["local"]["timings"]`.

    As many requests are answered at a time as a model has slots; others wait in order, within the request's budget.

    `stream` raises ContextExceededError with the token counts, UnsupportedInputError for images and documents,
    ModelNotFoundError for an unknown id or file, ProviderError (its cause a LocalModelError) for a file that is not a
    usable model, StreamInterrupted when a worker dies amid an answer, and NoRoom, an OverloadedError, when too many
    wait or the model would need more memory than is free. Raises ConfigError when the engine is not installed.
    """

    name = _NAME
    structured_output = True

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        options: EngineOptions | None = None,
        any_path: bool = True,
        load_timeout: float | None = None,
        memory: int | None = None,
        settings: LocalSettings | None = None,
        engine: ChatEngine | None = None,
        profile: ModelProfile | None = None,
        model: str = "",
    ) -> None:
        if engine is None:
            require_engine()
        settings = settings or LocalSettings()
        default = settings.default
        if options is not None:
            default = replace(default, options=replace(options, log=True))
        if path is not None:
            default = replace(default, path=str(Path(path).expanduser()), base_url="")
        if load_timeout is not None:
            default = replace(default, load_timeout=load_timeout)
        if memory is not None:
            default = replace(default, memory=memory)
        self._given = None if engine is None else LocalModel(model, default, profile, engine=engine)
        self._default, self._named, self._default_name = default, settings.models, settings.default_name
        self._any_path, self._shipped_slots = any_path, settings.slots or 2
        self._models: dict[str, LocalModel] = {}
        self._told: set[tuple[str, ...]] = set()

    @property
    def notice(self) -> str:
        """One sentence for the user about the default model, from its card; empty when there is nothing to say."""
        profile = self._serve("").profile
        return profile.notice if profile is not None else ""

    def stream(self, request: Request) -> AsyncIterator[Item]:
        """Return the items of one answer; closing the iterator stops the engine at its next token."""
        return self._stream(request)

    async def count(self, request: Request) -> int:
        """Return the exact number of tokens of the request's prompt. Raises as `stream`."""
        served = self._serve(request.model)
        body = _body(_adapted(request, served), served)
        try:
            engine = await _entered(served, request.budget)
            try:
                return await count_tokens(engine, body)
            finally:
                served.leave()
        except (LocalModelError, TimeoutError) as error:
            raise _provider_error(error, served, "") from error

    def dropped(self, request: Request) -> list[str]:
        """Return the names of what this model cannot be told: settings, and `tools` that its card does not know.

        Raises as `stream`.
        """
        adapted = _adapted(request, self._serve(request.model))
        names = _DIALECT.dropped_settings(adapted, _CAPABILITIES)
        return [*names, "tools"] if len(adapted.tools) < len(request.tools) else names

    async def embed(self, texts: Sequence[str], model: str = "", *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts by a model's own pooling (the mean where it has none), with exact usage.

        Raises as `stream`, ContextExceededError for a text that does not fit.
        """
        served = self._serve(model)
        try:
            return await served.embed(texts, dimensions)
        except LocalModelError as error:
            raise _provider_error(error, served, "") from error

    def capabilities(self, model: str = "") -> Capabilities:
        """Return what a model can take, and its context: what its file states, bounded by the settings.

        Blocking at first use of a model: the header of its file is read. Raises as `stream` for an unknown id.
        """
        return replace(_CAPABILITIES, context=self._serve(model).context)

    async def models(self) -> list[str]:
        """Return the ids of the models that are named: those of the settings, then the built-in one."""
        return [*self._named, embedded_model().profile.name]

    def plans(self) -> list[tuple[str, bool]]:
        """Return for each model file of the settings what it will need, in a sentence, and whether that can be had.

        Blocking: the headers of the files are read.
        """
        named = list(self._named)
        if (self._default.path or self._default.base_url) and not self._default_name:
            named.insert(0, "")
        out: list[tuple[str, bool]] = []
        for name in named:
            try:
                out.append(self._serve(name).outlook())
            except WindlassError as error:
                out.append((str(error), False))
        return out

    def close(self) -> None:
        """End the worker processes; a later request starts them again. The built-in model stays for the process."""
        for served in self._models.values():
            served.close()

    def _serve(self, model: str) -> LocalModel:
        if self._given is not None:
            return self._given
        default = self._default
        if model in ("", "default") and (default.path or default.base_url):
            model = self._default_name or default.path or default.base_url
            return self._model(model, default)
        if model in self._named:
            return self._model(model, self._named[model])
        if model in ("", "default", "tiny", embedded_model().profile.name):
            return shipped_model(self._shipped_slots, default.queue)
        if model.endswith(".gguf") and (self._any_path or Path(model) == Path(default.path)):
            path = str(Path(model).expanduser())
            for name, named in self._named.items():
                if named.path == path:
                    return self._model(name, named)
            if path == default.path:
                return self._model(path, default)
            own = replace(default.options, adapters=())
            return self._model(path, replace(default, path=path, base_url="", api_key="", options=own))
        known = ", ".join([repr(name) for name in (*self._named, embedded_model().profile.name)])
        raise ModelNotFoundError(
            f"There is no local model {model!r}.",
            provider=_NAME,
            model=model,
            hint=f"Use {known}{' or the path of a .gguf file' if self._any_path else ''}.",
        )

    def _model(self, key: str, settings: ModelSettings) -> LocalModel:
        if key not in self._models:
            id = key if key in self._named else Path(settings.path or settings.base_url).stem
            try:
                profile = load_profile(settings.path) if settings.path else None
            except LocalModelError as error:
                raise ProviderError(error.message, provider=_NAME, model=id, hint=error.hint) from error
            self._models[key] = LocalModel(id, settings, profile)
        return self._models[key]

    async def _stream(self, request: Request) -> AsyncGenerator[Item]:
        served = self._serve(request.model)
        adapted = _adapted(request, served)
        for notice in self._dropped(request, adapted, served):
            yield notice
        body = _body(adapted, served)
        decoder = _DIALECT.stream_decoder()
        partial: list[str] = []
        try:
            engine = await _entered(served, request.budget)
            try:
                async with aclosing(engine.stream(body)) as chunks:
                    while (chunk := await _next(chunks, request.budget)) is not None:
                        for item in decoder.feed(b"data: " + chunk + b"\n\n"):
                            if isinstance(item, TextItem):
                                partial.append(item.text)
                            yield item
            finally:
                served.leave()
            for item in decoder.close():
                yield _finished(item, served) if isinstance(item, Finish) else item
        except (LocalModelError, TimeoutError) as error:
            raise _provider_error(error, served, "".join(partial)) from error

    def _dropped(self, request: Request, adapted: Request, served: LocalModel) -> list[NoticeItem]:
        kept = {tool.name for tool in adapted.tools}
        names = tuple([tool.name for tool in request.tools if tool.name not in kept])
        if not names or names in self._told:
            return []
        self._told.add(names)  # once is enough: every turn would say the same
        text = f"{served.id} does not know these tools and was not offered them: {', '.join(names)}."
        return [NoticeItem("warning", text, _NAME, served.id)]


def _left(budget: Any) -> float | None:
    return budget.remaining() if isinstance(budget, Budget) else None


async def _entered(served: LocalModel, budget: Any) -> ChatEngine:
    """Return what answers, once there is a slot and the model is loaded. Raises as `_next` and `LocalModel.enter`."""
    async with deadline(_left(budget)):
        return await served.enter()


async def _next(chunks: AsyncGenerator[bytes], budget: Any) -> bytes | None:
    """Return the next chunk, None at the end. Raises TimeoutError when the request's budget of time is used up."""
    async with deadline(_left(budget)):
        return await anext(chunks, None)


def _adapted(request: Request, served: LocalModel) -> Request:
    """Return the request as the model's card wants it."""
    # The whole history is encoded each time: the engine parses all of it anyhow, and its context bounds it.
    request = replace(request, model=served.id, encoded=None)
    profile = served.profile
    if profile is None:
        return request
    settings = request.settings
    if settings.max_tokens is None and profile.max_output is not None:
        settings = replace(settings, max_tokens=profile.max_output)
    if settings.temperature is None and profile.temperature is not None:
        settings = replace(settings, temperature=profile.temperature)
    messages = request.messages
    if profile.error_prefix:
        messages = tuple([_marked(message, profile.error_prefix) for message in messages])
    tools, choice = request.tools, request.tool_choice
    if profile.tools is not None:
        known = profile.tools
        tools = tuple([_reduced(tool, known[tool.name], profile.descriptions) for tool in tools if tool.name in known])
        wanted = None if choice in ("auto", "none", "required") else choice
        if (choice == "required" and not tools) or (wanted and wanted not in {tool.name for tool in tools}):
            raise UnsupportedInputError(
                f"{served.id} cannot be made to call {wanted or 'any of these tools'}.",
                provider=_NAME,
                model=served.id,
                hint=f"It knows {', '.join(known)}.",
            )
    return replace(request, settings=settings, messages=messages, tools=tools)


def _reduced(tool: ToolSpec, names: tuple[str, ...], described: bool) -> ToolSpec:
    properties = {name: {"type": "string"} for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": list(names)}
    return ToolSpec(tool.name, tool.description if described else "", schema)


def _marked(message: Message, prefix: str) -> Message:
    def mark(part: Any) -> Any:
        if not isinstance(part, ToolResponse) or not part.is_error or not isinstance(part.response, str):
            return part
        return part if part.response.startswith(prefix) else replace(part, response=prefix + part.response)

    return replace(message, parts=tuple([mark(part) for part in message.parts])) if message.role == "tool" else message


def _body(request: Request, served: LocalModel) -> dict[str, Any]:
    """Return the chat request in the engine's own dialect."""
    body: dict[str, Any] = msgspec.json.decode(_DIALECT.encode_request(request, _CAPABILITIES, stream=False))
    del body["model"]
    if request.settings.thinking == "off":
        body["chat_template_kwargs"] = {"enable_thinking": False, **body.get("chat_template_kwargs", {})}
    profile = served.profile
    if profile is not None and profile.copy_arguments and request.tools and "grammar" not in body:
        body = {"copy_arguments": True, "answer_forms": list(profile.answer_forms), **body}
    if "grammar" in body and isinstance(served.engine, Engine):
        # A grammar with an error makes the engine print to this process's stderr.
        raise UnsupportedInputError(
            f"{served.id} takes no grammar of yours.", provider=_NAME, model=served.id, hint="Use an output schema."
        )
    return body


def _finished(finish: Finish, served: LocalModel) -> Finish:
    extras: dict[str, Any] = (finish.provider_metadata or {}).get("openai", {})
    metadata = {_NAME: {"timings": extras["timings"]}} if "timings" in extras else None
    return replace(finish, model=served.id, provider_metadata=metadata)


def _provider_error(error: LocalModelError | TimeoutError, served: LocalModel, partial: str) -> ProviderError:
    if isinstance(error, TimeoutError):
        return ProviderTimeoutError(
            f"{served.id} did not answer in the time given.", provider=_NAME, model=served.id, partial=partial
        )
    if partial:
        return StreamInterrupted(error.message, provider=_NAME, model=served.id, partial=partial, hint=error.hint)
    if isinstance(error, OutOfMemory):
        return NoRoom(error.message, provider=_NAME, model=served.id, status=503, hint=error.hint)
    kind = ModelNotFoundError if isinstance(error.__cause__, FileNotFoundError) else ProviderError
    return kind(error.message, provider=_NAME, model=served.id, hint=error.hint)
