"""Serve a chat request that has something of reference A's: a session, a loop, the server's tools, an empty answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from msgspec.structs import replace

from windlass.agent.ledger import settled
from windlass.core import clock
from windlass.core.errors import RequestRefused, WindlassError
from windlass.core.items import Finish, TextItem
from windlass.core.messages import Message, Reasoning, Text, system
from windlass.core.models import cost_of, facts_of
from windlass.core.request import Request
from windlass.core.usage import Usage
from windlass.server.answer import answer, attempt
from windlass.server.body import Fields
from windlass.server.extras import Asked, read
from windlass.server.history import fit
from windlass.server.http import Call
from windlass.server.ingress import CHAT
from windlass.server.job import Job, job_for
from windlass.server.loops import run_loop
from windlass.server.refusals import switched_off
from windlass.server.server_tools import FALLBACK, NAMES, prompt_tools, run_tool
from windlass.server.sessions import Turn, tenant_of

__all__ = ["serve_extended"]

log = logging.getLogger("windlass.server")


async def serve_extended(gateway: Any, call: Call, fields: Fields) -> bool:
    """Answer the request; False when it has nothing of A's, and nothing was done. Raises RequestRefused."""
    asked = read(fields, gateway.config)
    if asked is None:
        return False
    if "agents" in gateway.config.off and (asked.loop is not None or asked.session_id):
        raise switched_off("agents", "session_id" if asked.loop is None else "loop_mode")
    job = job_for(
        gateway, call, CHAT, model=asked.model, stream=asked.stream, fields=fields, translated=asked.decoded
    )  # fmt: skip
    if asked.choice in NAMES:
        await _answer_with_tool(job, asked)
        return True
    # Each turn of a loop is paid for when it is asked.
    job.by_turns = asked.loop is not None
    extended = _Extended(job, asked)
    try:
        await answer(job, work=extended.work, prepare=extended.prepare)
    finally:
        await settled(extended.over())
    return True


async def _answer_with_tool(job: Job, asked: Asked) -> None:
    """Let a server tool answer: no model is asked, nothing is used, nothing is kept in a session."""
    report, name = job.report, f"debug-tools/{asked.choice}"
    report.target, report.usage, report.cost = name, Usage(), 0
    try:
        text = await run_tool(asked.choice, asked.prompt, asked.count, job.settings)
        job.answered(_body(job, _told(text, "tool"), name))
    except asyncio.CancelledError:
        report.outcome = "client_gone" if job.call.ending is None else "interrupted"
        if job.call.ending is not None:
            job.fail(job.call.ending)
        raise
    except Exception as error:
        job.fail(error)
        raise
    finally:
        job.write_down(None)


def _told(text: str, reason: str) -> Finish:
    """Return an answer of the server's own, which ends for a reason that only A knows."""
    own = {"windlass": {"finish_reason": reason}}
    return Finish(Message("assistant", (Text(text),)), Usage(), provider_metadata=own)


def _body(job: Job, finish: Finish, model: str) -> bytes:
    made = clock.now_ns() // 1_000_000_000
    return job.ingress.dialect.encode_response(finish, model=model, response_id=job.response_id, created=made)


class _Extended:
    """What such a request does before the model is asked, when it has answered, and when it is over."""

    def __init__(self, job: Job, asked: Asked) -> None:
        self.job, self.asked = job, asked
        self.turn: Turn | None = None
        self.summary = ""

    async def prepare(self, job: Job) -> None:
        """Take the session, run the tools that the prompt calls for, and make the request that is sent."""
        asked = self.asked
        request: Request = asked.decoded.request
        if asked.session_id or asked.tenant_id:
            identity, accounts = job.call.identity, job.gateway.accounts
            tenant = tenant_of(identity, asked.tenant_id, accounts.claims(asked.tenant_id))
            if asked.session_id:
                job.report.session_id = asked.session_id
                left = job.budget.remaining()
                self.turn = await job.gateway.sessions.enter(tenant, asked.session_id, left)
        if asked.loop is None and asked.tools and asked.choice != "none":
            self.summary = await prompt_tools([name for name, _ in asked.tools], asked.prompt, job.settings)
        notes = [system(self.summary)] if self.summary else []
        if self.turn is not None:
            request = await self.turn.load(request, notes)
        elif notes:
            request = replace(request, messages=[*request.messages, *notes])
        self._send(request)
        job.review = self.review

    def _send(self, request: Request) -> None:
        job, most = self.job, self.asked.max_context_tokens
        if most is not None:
            request = fit(request, most)
        job.translated = replace(self.asked.decoded, request=request)
        # What a session adds is not in the body, by which requests are reserved for.
        job.history = max(0, sum([_size(message) for message in request.messages]) - len(job.call.body))

    async def work(self, job: Job) -> None:
        """Ask the model, once or in a loop. An answer is never one of the cache's: it depends on more than the body."""
        if self.asked.loop is not None:
            await run_loop(job, self.asked, self.turn)
            return
        if self.turn is not None and (again := await self.turn.begin(job.route.name)) is not None:
            self._send(again)
        await attempt(job)

    async def review(self, finish: Finish) -> Finish:
        """Look at an answer before its end is told: an empty one gets another end, a session's is kept."""
        job = self.job
        text = "".join(job.text) or finish.message.text
        if _is_empty(finish, text):
            if not self.summary:
                _refuse_empty(finish)
            else:
                text = f"{FALLBACK}\n\n{self.summary}"
                told = _told(text, "tool_fallback")
                finish = replace(finish, message=told.message, provider_metadata=told.provider_metadata)
                if job.stream:
                    job.begin()
                    job.text.append(text)
                    job.call.write(job.encoder().encode(TextItem(text)))
        if self.turn is not None and self.asked.loop is None:
            await self.turn.complete(finish, text, _cost(job, finish))
        return finish

    async def over(self) -> None:
        """Keep what is left to keep, and let the next request of the session in."""
        turn, job = self.turn, self.job
        if turn is None:
            return
        try:
            if turn.begun and not turn.ended:
                text, why = "".join(job.text), job.report.error or job.report.outcome
                await (turn.interrupted(text, why) if text else turn.failed(why))
        except WindlassError as error:
            log.warning("session %r: what became of %s was not kept: %s", turn.id, job.call.id, error)
        finally:
            turn.leave()


def _is_empty(finish: Finish, text: str) -> bool:
    """Tell whether a model that ended as if it had answered said nothing at all."""
    said = [part for part in finish.message.parts if not isinstance(part, (Text, Reasoning))]
    return not text.strip() and not said and finish.reason in ("stop", "length")


def _refuse_empty(finish: Finish) -> None:
    # An answer that was cut while the model thought says so itself: `length`.
    if finish.reason == "stop":
        raise RequestRefused(502, "Provider returned empty assistant content", kind="provider_error",
                             reason="empty_model_response")  # fmt: skip


def _cost(job: Job, finish: Finish) -> int | None:
    if finish.cost is not None:
        return finish.cost
    provider, _, model = job.report.target.rpartition(", ")[2].partition(":")
    return cost_of(finish.usage, facts_of(provider, finish.model or model).prices)


def _size(message: Message) -> int:
    return len(message.text) + sum([len(call.arguments_text or "") + 64 for call in message.tool_calls])
