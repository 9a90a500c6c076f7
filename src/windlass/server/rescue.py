"""A begun stream broke: let another model go on with what the client has, or tell the client that it is not whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import BadRequestError, ConfigError, ProviderError, WindlassError
from windlass.core.items import TextItem, ToolCallItem
from windlass.core.json import JsonError, loads
from windlass.core.messages import Message, Text, assistant
from windlass.core.models import cost_of, facts_of
from windlass.core.request import Budget, Request
from windlass.core.usage import Usage
from windlass.providers.target import Needs, Target
from windlass.server.hiding import hide
from windlass.server.job import Job
from windlass.server.translate import continue_with
from windlass.wire.base import StreamEncoder, as_int, as_str
from windlass.wire.sse import SseDecoder

__all__ = ["rescue"]

#: Bytes of a token, for an answer whose server broke off before it said how many there were.
_BYTES = 5


async def rescue(job: Job, target: Target, error: WindlassError) -> None:
    """End a begun stream with the rest of its answer from another target, else with an error.

    Only text can be gone on with; half a tool call cannot.
    """
    if job.continuable and _take_over(job) and await _Rescue(job, target).run():
        return
    job.report.outcome, job.report.error = "interrupted", error.code
    await job.broken(error)


def _take_over(job: Job) -> bool:
    """Read what passed to the client as bytes, so that our own encoder can go on; False where that cannot be."""
    if job.kept is None:
        return not job.calls_begun
    sent = b"".join(job.kept)
    try:
        for item in job.ingress.dialect.stream_decoder().feed(sent):
            if isinstance(item, TextItem):
                job.text.append(item.text)
            elif isinstance(item, ToolCallItem):
                job.calls_begun = True
    except ProviderError:
        return False
    if job.calls_begun:
        return False
    job.report.events = len(job.text)
    encoder: Callable[..., StreamEncoder] = job.ingress.dialect.stream_encoder
    job.frames = encoder(
        model=job.report.model or job.model, include_usage=bool(job.stream_options().get("include_usage")),
        begun=True, **_identity(job, sent),
    )  # fmt: skip
    return True


def _identity(job: Job, sent: bytes) -> dict[str, Any]:
    """Return the id and time of the answer that the client knows: all its chunks are one answer's."""
    found: Any = {}
    for _, data in SseDecoder().feed(sent)[:1]:
        try:
            found = loads(data)
        except JsonError:
            break
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    made = as_int(fields.get("created")) or clock.now_ns() // 1_000_000_000
    return {"response_id": as_str(fields.get("id")) or job.response_id, "created": made}


class _Rescue:
    """Asks the other targets in turn to go on, and adds up what all of them used."""

    def __init__(self, job: Job, broken: Target) -> None:
        self._job, self._broken = job, {broken.name}
        #: Who gave a part of the answer, and what that used and cost (None: unknown).
        self._givers = [broken.name]
        self._used = _usage(job)
        self._cost = _cost(job, broken, self._used)

    async def run(self) -> bool:
        """Return whether the answer is whole now."""
        job = self._job
        job.budget = Budget(min(job.left, job.idle_timeout), job.budget.attempts)
        needs = replace(job.needs() or Needs(), prefill=bool(self._text().strip()))
        try:
            attempts = job.attempts = job.route.attempts(needs, job.budget)
        except ProviderError:
            return False  # nobody can go on
        while (target := await attempts.next()) is not None:
            if target.name in self._broken:
                attempts.skip()
                continue
            had = len(job.text)
            try:
                await self._ask(target)
            except (ProviderError, ConfigError) as error:
                hide(error, target.provider)
                if isinstance(error, BadRequestError):
                    # The begun text at the end is ours: who refuses it says nothing of what the others take.
                    attempts.skip()
                else:
                    attempts.failed(error)
                self._broken.add(target.name)
                self._count(target, gave=len(job.text) > had)
                if job.calls_begun:
                    return False
                continue
            except BaseException:
                attempts.abandoned()
                self._count(target, gave=True)
                raise
            finally:
                job.upstream_done()
            attempts.answered(None)
            self._count(target, gave=True)
            return True
        return False

    def _text(self) -> str:
        return "".join(self._job.text)

    async def _ask(self, target: Target) -> None:
        job, report = self._job, self._job.report
        report.attempts += 1
        report.target, report.model = ", ".join([*self._givers, target.name]), target.model
        report.usage, report.cost, report.events = None, None, 0
        job.upstream_since = clock.monotonic()
        text = self._text()
        told = text.rstrip()
        await continue_with(job, target, _going_on(job.for_target(target), text, len(job.text)), text[len(told) :])

    def _count(self, target: Target, *, gave: bool) -> None:
        """Add what a target used to what the answer used."""
        report = self._job.report
        if gave:
            self._givers.append(target.name)
            used = _usage(self._job)
            cost = _cost(self._job, target, used)
            self._used += used
            self._cost = None if self._cost is None or cost is None else self._cost + cost
        report.target, report.usage, report.cost = ", ".join(self._givers), self._used, self._cost


def _usage(job: Job) -> Usage:
    """Return what the target asked last used, as it said itself, else by what came."""
    told = job.report.usage
    if told is not None and told.total_tokens and not told.estimated:
        return told
    return Usage(len(job.call.body) // 4, job.report.events, estimated=True)


def _cost(job: Job, target: Target, used: Usage) -> int | None:
    told = job.report.cost
    return told if told is not None else cost_of(used, facts_of(target.provider.name, target.model).prices)


def _going_on(request: Request, text: str, pieces: int) -> Request:
    """Return the request with the answer so far, which came in so many pieces, and no more output than is left.

    It ends without blanks, which many refuse there. A beginning that the client itself gave stays in front of it.
    """
    text = text.rstrip()
    if not text:
        return request
    messages: list[Message] = list(request.messages)
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant" and not last.tool_calls:
        said = last.parts[-1] if last.parts else None
        parts = (*last.parts[:-1], Text(said.content + text)) if isinstance(said, Text) else (*last.parts, Text(text))
        messages[-1] = replace(last, parts=parts)
    else:
        messages.append(assistant(text))
    settings = request.settings
    if settings.max_tokens is not None:
        written = max(pieces, len(text.encode("utf-8", "surrogatepass")) // _BYTES)
        settings = replace(settings, max_tokens=max(1, settings.max_tokens - written))
    return replace(request, messages=messages, settings=settings)
