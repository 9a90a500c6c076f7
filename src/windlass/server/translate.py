"""Ask a target in our own words and answer the client in its dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from windlass.core import clock
from windlass.core.errors import (
    ProviderError,
    ProviderTimeoutError,
    RequestRefused,
    StreamInterrupted,
    UnsupportedInputError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import dumps
from windlass.core.messages import Reasoning, Text, ToolCall
from windlass.core.request import Request
from windlass.providers.target import Target
from windlass.server.job import Job

__all__ = ["check_streamed", "continue_with", "deliver", "items_of", "translate"]

_CONTENT = (TextItem, ReasoningItem, ToolCallItem, Finish)


async def translate(job: Job, target: Target) -> None:
    """Answer with what a target says. Raises ProviderError kinds."""
    request = job.for_target(target)
    names = target.provider.dropped(request) if hasattr(target.provider, "dropped") else []
    if names and job.settings.unsupported == "refuse":
        raise UnsupportedInputError(
            f"{target.name} cannot take {', '.join(names)}.", provider=target.provider.name, model=target.model
        )
    job.dropped = names
    await _end(job, target, await _Reading(job, target).items(request))


async def continue_with(job: Job, target: Target, request: Request, blanks: str) -> None:
    """Go on with a begun stream: `request` ends with what was said, without the `blanks` at its end."""
    await _Reading(job, target, blanks).items(request)
    job.call.finish()


async def deliver(job: Job, target: Target, finish: Finish) -> None:
    """Answer with what came whole, or was put together, as the client asked for it. Raises StreamInterrupted."""
    _note(job, target, finish)
    _check(job, target, finish)
    if job.stream:
        job.begin()
        encoder = job.encoder()
        frames = b"".join([encoder.encode(item) for item in items_of(finish)])
        if job.keep is not None:
            await job.keep(None)
        job.call.write(frames)
    await _end(job, target, finish)


def items_of(finish: Finish) -> Iterator[Item]:
    """Yield the items that a stream of this answer would have had."""
    calls = 0
    for part in finish.message.parts:
        if isinstance(part, Text):
            yield TextItem(part.content)
        elif isinstance(part, Reasoning):
            yield ReasoningItem(part.content, part.provider_metadata)
        elif isinstance(part, ToolCall):
            text = part.arguments_text if part.arguments_text is not None else dumps(part.arguments or {}).decode()
            yield ToolCallItem(calls, part.id, part.name, text, part.provider_metadata)
            calls += 1
    yield UsageItem(finish.usage)
    yield finish


async def _end(job: Job, target: Target, finish: Finish) -> None:
    if job.stream:
        job.call.finish()
        if job.captured is not None:
            job.captured.append(_whole(job, target, finish))
        return
    body = _whole(job, target, finish)
    if job.keep is not None:
        await job.keep(body)
    job.answered(body)


def _whole(job: Job, target: Target, finish: Finish) -> bytes:
    made = clock.now_ns() // 1_000_000_000
    name, encode = finish.model or target.model, job.ingress.dialect.encode_response
    return encode(finish, model=name, response_id=job.response_id, created=made, **job.encoder_options())


def check_streamed(target: Target, finish: Finish) -> None:
    """Refuse the end of a chat stream that gave no reason: a mark alone makes no answer whole."""
    dialect = getattr(target.provider, "dialect", None)
    if finish.raw is None and dialect is not None and dialect.name == "openai_chat":
        raise StreamInterrupted(f"{target.name} ended its answer without a finish reason.")


def _check(job: Job, target: Target, finish: Finish) -> None:
    """Refuse an end that the client would take for that of a whole answer: its dialect may have no other word."""
    if finish.reason in ("interrupted", "error"):
        raise StreamInterrupted(f"{target.name} broke off its answer ({finish.raw or finish.reason}).")
    if finish.reason in ("content_filter", "refusal") and not job.ingress.filters:
        # Not a provider's error: what one model's filter stops is not asked of the next.
        raise RequestRefused(400, f"A content filter of {target.name} cut the answer.", reason="content_filter")


def _note(job: Job, target: Target, finish: Finish) -> None:
    report = job.report
    report.usage, report.finish_reason = finish.usage, finish.raw or finish.reason
    report.model, report.cost = finish.model or target.model, finish.cost
    if report.first_at is None:
        report.first_at = clock.monotonic()


class _Reading:
    """Reads one target's items, keeps its time limits, and writes them to a client that streams.

    `blanks` are those at the end of the text so far, which the target was not told: it says them again, or not.
    """

    def __init__(self, job: Job, target: Target, blanks: str = "") -> None:
        self._job, self._target, self._blanks = job, target, blanks
        self._first_due = clock.monotonic() + job.first_limit
        self._begun = False
        #: What the target said as text, to know how much of it an error still holds.
        self._said: list[str] = []
        self._held: list[Item] = []

    async def items(self, request: Request) -> Finish:
        """Return the end of a whole answer, whose items were written before. Raises ProviderError kinds."""
        finish: Finish | None = None
        report = self._job.report
        try:
            async with aclosing(self._target.provider.stream(request)) as items:
                while (item := await self._next(items)) is not None:
                    if isinstance(item, NoticeItem):
                        report.notices.append(item)
                        continue
                    if isinstance(item, Finish):
                        check_streamed(self._target, item)
                        _note(self._job, self._target, item)
                        _check(self._job, self._target, item)
                        if self._job.review is not None:
                            item = await self._job.review(item)
                        finish = item
                    elif isinstance(item, UsageItem):
                        report.usage = item.usage
                    report.events += 1
                    self._begun = self._begun or isinstance(item, _CONTENT)
                    if self._job.stream:
                        await self._write(item)
        except ProviderError as error:
            self._tell_rest(error)
            raise
        if finish is None:
            raise StreamInterrupted(f"{self._target.name} ended its answer without a terminal event.")
        return finish

    async def _next(self, items: AsyncGenerator[Item]) -> Item | None:
        """Return the next item, None at the end; the first content and every further item are due in their time."""
        begun = self._begun
        seconds = self._job.idle_timeout if begun else max(0.0, self._first_due - clock.monotonic())
        timer = clock.deadline(seconds)
        try:
            async with timer:
                return await anext(items, None)
        except TimeoutError:
            if not timer.expired():
                raise
        limit = self._job.idle_timeout if begun else self._job.first_limit
        what = "sent no more of its answer" if begun else "sent no content"
        raise ProviderTimeoutError(
            f"{self._target.name} {what} within {limit:.3g} s.", provider=self._target.provider.name,
            model=self._target.model,
        )  # fmt: skip

    async def _write(self, item: Item) -> None:
        job = self._job
        if not job.call.started:
            if not self._begun:
                # Until there is content, another target can still answer instead.
                self._held.append(item)
                return
            job.begin()
        if self._held:
            for early in self._held:
                job.call.write(job.encoder().encode(early))
            self._held = []
        if isinstance(item, TextItem):
            self._said.append(item.text)
            if self._blanks:
                item = TextItem(self._without_blanks(item.text))
            job.text.append(item.text)
        elif isinstance(item, ToolCallItem):
            job.calls_begun = True
        frames = job.encoder().encode(item)
        if isinstance(item, Finish) and job.keep is not None:
            await job.keep(None)
        slow = job.call.write(frames)
        if slow is not None:
            await slow

    def _without_blanks(self, text: str) -> str:
        """Take the blanks off that the client has already."""
        blanks, self._blanks = self._blanks, ""
        at = 0
        while at < len(blanks) and at < len(text) and blanks[at] == text[at]:
            at += 1
        if at == len(text):
            self._blanks = blanks[at:]
        return text[at:]

    def _tell_rest(self, error: ProviderError) -> None:
        """Write the text that came together with what broke the answer.

        Where the client has nothing yet it is kept back if another target can still answer.
        """
        job, said = self._job, "".join(self._said)
        if not job.stream or not error.partial.startswith(said):
            return
        if (rest := error.partial[len(said) :]) and (job.call.started or len(job.route.targets) == 1):
            job.begin()
            rest = self._without_blanks(rest) if self._blanks else rest
            job.text.append(rest)
            job.call.write(job.encoder().encode(TextItem(rest)))
