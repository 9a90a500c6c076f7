"""Reference A's loops over HTTP: an agent of the server's goes on until a marker appears or its turns are used up.

It is the agent that the command line runs, with the route of the request as its provider: every turn has the retries
and fallbacks of any other request, the server tools that were named are real tools, and the last turn is the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from windlass.agent.agent import Agent
from windlass.agent.conversation import Conversation, repair
from windlass.agent.ledger import settled
from windlass.agent.run import Run
from windlass.agent.session import Session
from windlass.core import clock
from windlass.core.errors import ConfigError, ProviderError, StoreConflict, UnsupportedInputError
from windlass.core.events import MessageAdded, StepFinished, TextDelta
from windlass.core.items import Finish, FinishReason, Item, NoticeItem, TextItem
from windlass.core.messages import Message, Part, Text
from windlass.core.request import Budget, Request
from windlass.providers.attempts import Attempts
from windlass.providers.route import Needs
from windlass.providers.routed import RouteProvider
from windlass.server.extras import Asked, LoopAsked
from windlass.server.hiding import hidden, hide
from windlass.server.history import fit, recent
from windlass.server.job import Job
from windlass.server.server_tools import loop_tools
from windlass.server.sessions import Turn, busy

__all__ = ["run_loop"]


class _Watched:
    """The route of a job, with the gateway's own limits of time, and the attempts of the turn that is under way."""

    def __init__(self, job: Job) -> None:
        self.route, self.first_token_timeout, self.idle_timeout = job.route, job.first_token_timeout, job.idle_timeout
        self.last: Attempts | None = None

    def attempts(self, needs: Needs | None = None, budget: Budget | None = None) -> Attempts:
        """Begin a turn."""
        self.last = self.route.attempts(needs, budget)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.route, name)


class _Turns:
    """The provider of a loop: the route of a request, asked with the request's own settings, paid turn by turn."""

    name = "gateway"

    def __init__(self, job: Job, asked: Asked, stored: int, task: tuple[Part, ...]) -> None:
        self.job, self.asked = job, asked
        #: How many messages in front come from the session, and what the task is, which always stays.
        self.stored, self.task = stored, task
        self.route, self.model = _Watched(job), job.route.name
        self.provider = RouteProvider(self.route)  # pyright: ignore[reportArgumentType]
        self.reason: FinishReason = "stop"
        self.answered_by: str | None = None

    def stream(self, request: Request) -> AsyncIterator[Item]:
        """Return the items of one turn."""
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncGenerator[Item]:
        job, gateway = self.job, self.job.gateway
        request = self._request(request)
        job.translated = replace(self.asked.decoded, request=request)
        reservation, spent = await gateway.reserve(job), None
        job.upstream_since = clock.monotonic()
        try:
            async with aclosing(self.provider.stream(request)) as items:  # pyright: ignore[reportArgumentType, reportUnknownVariableType, reportGeneralTypeIssues]
                async for item in items:
                    if isinstance(item, Finish):
                        spent = item
                        self._finished(item)
                    elif isinstance(item, NoticeItem):
                        item = replace(item, message=self._hidden(item.message))
                        job.report.notices.append(item)
                    yield item
        except (ProviderError, ConfigError) as error:
            # Some repeat a credential in what they say of it, and the ledger keeps this.
            for target in job.route.targets:
                hide(error, target.provider)
            raise
        finally:
            job.upstream_done()
            self._count()
            if reservation is not None and spent is None:
                gateway.accounts.release(reservation)
            elif reservation is not None and spent is not None:
                gateway.accounts.settle(reservation, spent.usage.total_tokens, spent.cost)

    def _hidden(self, text: str) -> str:
        for target in self.job.route.targets:
            text = hidden(text, target.provider)
        return text

    def _request(self, request: Request) -> Request:
        """Return the request of a turn with what the client asked for, and no more history than it may have."""
        job, asked, wanted = self.job, self.asked, self.asked.decoded.request
        messages = recent(request.messages, self.stored, job.settings.retention_messages)
        if self.stored:
            messages, _ = repair(messages)
        request = replace(
            request,
            messages=messages,
            system=(request.system or "").strip() or None,
            settings=replace(wanted.settings, extra=self._extra()),
            output_schema=wanted.output_schema,
            metadata=wanted.metadata,
            encoded=None if self.stored else request.encoded,
            # What a client waits for its first byte bounds no turn after that.
            budget=Budget(job.left if job.call.started else job.budget.remaining(), job.settings.attempts),
        )
        if asked.max_context_tokens is not None:
            task = [at for at, message in enumerate(messages) if message.parts == self.task]
            request = fit(request, asked.max_context_tokens, task[-1] if task else None)
        return request

    def _extra(self) -> dict[str, Any]:
        """Return the fields that only OpenAI's dialect knows, where every target speaks it."""
        chat = self.job.ingress.dialect.name
        spoken = {getattr(getattr(t.provider, "dialect", None), "name", "") for t in self.job.route.targets}
        ours = ("stream_options", "store", "n")
        extra = {key: value for key, value in self.asked.decoded.extra.items() if key not in ours}
        return extra if spoken == {chat} else {}

    def _finished(self, finish: Finish) -> None:
        self.reason, self.answered_by = finish.reason, finish.model
        report, attempts = self.job.report, self.route.last
        if attempts is not None:
            # Who is asked after a failure, or instead of one that rests, is told by a notice; else it is the first.
            told = [item for item in attempts.notices if item.kind in ("retry", "switched")]
            names = {(target.provider.name, target.model): target.name for target in attempts.order}
            report.target = names[told[-1].provider or "", told[-1].model or ""] if told else attempts.order[0].name
        report.model, report.finish_reason = finish.model, finish.raw or finish.reason
        report.events += 1

    def _count(self) -> None:
        if (attempts := self.route.last) is not None:
            self.job.report.attempts += attempts.count
            self.job.attempts, self.route.last = attempts, None


async def run_loop(job: Job, asked: Asked, turn: Turn | None) -> None:
    """Run the loop of a request and send its answer. Raises what makes a turn of it fail.

    In a session every row is kept as it is made. What came to nothing before the client was told anything does not
    count in it; what the client was told does, and an answer that broke off is marked as interrupted.
    """
    assert asked.loop is not None
    request = job.decoded.request
    _check_settings(job, request)
    if turn is not None:
        await turn.put_down()
    messages = request.messages if turn is None else turn.conversation.messages
    users = [message.parts for message in messages if message.role == "user"]
    provider = _Turns(job, asked, 0 if turn is None else turn.stored, users[-1] if users else ())
    agent = _agent(provider, asked, asked.loop, request, job)
    if turn is None:
        session = Session(agent)
        session.conversation = Conversation(messages)
    else:
        session = Session(agent, turn.id, turn.ledger.store, tenant=turn.tenant)
    try:
        await _turns(job, asked.loop, provider, session.run())
    except BaseException as error:
        if turn is not None:
            await settled(turn.take_back("".join(job.text), told=job.call.started))
        if isinstance(error, StoreConflict):
            raise busy(session.id) from None
        raise


def _agent(provider: _Turns, asked: Asked, loop: LoopAsked, request: Request, job: Job) -> Agent:
    choice = "none" if asked.choice == "none" else "auto"
    return Agent(
        provider,
        name="gateway",
        system=request.system or "",
        tools=loop_tools(asked.tools, job.settings) if choice != "none" else [],
        loop_mode=loop.mode,
        loop_until=loop.until,
        loop_max_turns=loop.max_turns,
        # A turn that broke is a failure of the request: what was left of it must not pass for an answer.
        stream_retries=0,
    )


def _check_settings(job: Job, request: Request) -> None:
    """Note what the first target cannot be told. Raises UnsupportedInputError where that is not allowed."""
    target = job.route.targets[0]
    if hasattr(target.provider, "dropped"):
        job.dropped = target.provider.dropped(replace(request, model=target.model))
    if job.dropped and job.settings.unsupported == "refuse":
        names = ", ".join(job.dropped)
        raise UnsupportedInputError(f"{target.name} cannot take {names}.", provider=target.provider.name)


async def _turns(job: Job, loop: LoopAsked, provider: _Turns, run: Run) -> None:
    """Read a run to its end, telling of every turn as it ends where that is wanted, then answer with the last one."""
    index, text, untold = 1, "", False
    progress = job.stream and job.settings.loop_progress
    try:
        async with run:
            async for event in run:
                if isinstance(event, TextDelta):
                    job.text.append(event.text)
                elif isinstance(event, MessageAdded) and event.message.role == "assistant":
                    text, untold = event.message.text, True
                    job.text.clear()
                elif isinstance(event, StepFinished) and event.name == "iteration":
                    if progress:
                        await _say(job, f"[loop turn {index}/{loop.max_turns}]\n{text}\n")
                    index, untold = index + 1, False
        result = run.result
    finally:
        job.report.usage, job.report.cost = run.stats.usage, run.stats.cost
    finish = Finish(
        Message("assistant", (Text(result.text),)),
        run.stats.usage,
        provider.reason if provider.reason != "tool_call" else "stop",
        model=provider.answered_by,
        cost=run.stats.cost,
    )
    assert job.review is not None
    finish = await job.review(finish)
    if not job.stream:
        made = clock.now_ns() // 1_000_000_000
        name, encode = finish.model or job.model, job.ingress.dialect.encode_response
        job.answered(encode(finish, model=name, response_id=job.response_id, created=made))
        return
    if not progress:
        await _say(job, finish.message.text)
    elif untold:
        # The last turn ended otherwise than by the loop's rules: it was cut, or refused.
        await _say(job, f"[loop turn {index}/{loop.max_turns}]\n{text}\n")
    job.call.write(job.encoder().encode(finish))
    job.call.finish()


async def _say(job: Job, text: str) -> None:
    job.begin()
    slow = job.call.write(job.encoder().encode(TextItem(text)))
    if slow is not None:
        await slow
