"""Permission: from the policy's decision, through what a person is shown, to what may run.

A call that needs asking is previewed where its tool can. The answer is bound to that exact call and to the files as
they were shown; what is remembered of it is one exact call, never a pattern. Several calls of one message are asked
together where the approver can do that (`async approve_batch(questions)`, an answer for each `Question`).
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, get_args

from msgspec import Struct

from windlass.agent.behavior import Behavior
from windlass.agent.bound import Bound
from windlass.agent.policy import Decider, Decision, call_digest, live, stricter
from windlass.agent.rules import PATCHES
from windlass.core import clock, registry
from windlass.core.errors import WindlassError
from windlass.core.events import Event, PermissionRequested, PermissionResolved
from windlass.core.messages import ResponseStatus, ToolCall
from windlass.core.ports import Approver, PermissionOption, Preview, ToolContext

__all__ = ["CHANGED", "Answer", "Asked", "Permission", "Question", "Verdict", "ask_person"]

log = logging.getLogger("windlass.agent")
NOBODY = "Blocked: it needs permission, and there is nobody to ask"
REFUSED = "Blocked: permission was refused"
CHANGED = "Blocked: the arguments changed after they were shown and allowed"
#: An option, or path -> content where only a part was accepted (None: the file may be deleted).
Answer = PermissionOption | Mapping[str, bytes | None]
_OPTIONS = get_args(PermissionOption)


class PermissionHost(Protocol):
    """What this step needs of the run that it serves."""

    policy: Decider
    approver: Approver | None
    behavior: Behavior
    refused: list[str]

    @property
    def state(self) -> dict[str, Any]: ...
    async def record(self, kept: Sequence[Event], shown: Sequence[Event] | None = None) -> None: ...


class Asked(Struct):
    """A checked call that wants to run; `context` is what its tool gets to make a preview."""

    call: ToolCall
    bound: Bound
    args: dict[str, Any]
    context: ToolContext


class Question(Struct, frozen=True):
    """What a person is asked about one call."""

    name: str
    input: dict[str, Any]
    reason: str
    previews: tuple[Preview, ...] = ()


class Verdict(Struct, frozen=True):
    """Whether a call may run. Otherwise `text` and `status` are its response."""

    allowed: bool
    text: str = ""
    status: ResponseStatus = "blocked"
    #: What a person saw of the files: path -> SHA-256, '' for none.
    expected: Mapping[str, str] = {}
    #: The identity of the call that was allowed, where somebody was asked; what runs must have the same.
    digest: str = ""
    #: What to do in place of the call, where only a part of it was accepted.
    instead: Callable[[dict[str, Any], ToolContext], Awaitable[Any]] | None = None


class _Waiting(Struct):
    """A question and where its answer goes."""

    asked: Asked
    question: Question
    answer: asyncio.Future[tuple[Answer, str]]


class Permission:
    """Decides about the calls of one run."""

    __slots__ = ("_complete", "_gathered", "_open", "host")

    def __init__(self, host: PermissionHost) -> None:
        self.host = host
        #: Calls of the message at hand that may still need asking, and the questions so far.
        self._open: set[str] = set()
        self._gathered: list[_Waiting] = []
        self._complete: asyncio.Future[None] | None = None

    def expect(self, calls: Sequence[ToolCall]) -> None:
        """Say which calls come at once: their questions are asked together, if the approver can do that."""
        if hasattr(self.host.approver, "approve_batch"):
            self._open = {call.id for call in calls}

    def settled(self, call_id: str) -> None:
        """Say that a call needs no asking (any more)."""
        if self._open:
            self._open.discard(call_id)
            self._ask_if_complete()

    async def check(self, asked: Asked) -> Verdict:
        """Decide about one call, asking where the policy says so; refusals are noted in the run."""
        host, name = self.host, asked.bound.name
        decision = await self._exactly(asked, self._decide(asked))
        if isinstance(decision, Verdict):
            return decision
        if decision.action == "allow":
            return self._allowed(asked, Verdict(True))
        if decision.action == "deny":
            return self._refused(asked, f"Blocked: {decision.reason}")
        digest = call_digest(name, asked.args)
        always: dict[str, str] = host.state.setdefault("permissions", {})
        known = always.get(digest)
        if known is not None and not (decision.anew and known == "allow_always"):
            if known == "allow_always":
                return self._allowed(asked, Verdict(True, digest=digest))
            return self._refused(asked, REFUSED)
        if host.approver is None:
            return self._refused(asked, NOBODY)
        previews = await self._previews(asked)
        if isinstance(previews, Verdict):
            return previews
        question = Question(name, copy.deepcopy(asked.args), decision.reason, previews)
        answer, why = await self._ask(asked, question)
        if call_digest(name, asked.args) != digest:
            return self._refused(asked, CHANGED)
        if isinstance(answer, str) and answer.endswith("_always"):
            always[digest] = answer
        return self._verdict(asked, previews, answer, why, digest)

    # -- deciding --------------------------------------------------------------------------------------------------

    def _decide(self, asked: Asked) -> Decision:
        policy, own = self.host.policy, asked.bound.tool.spec
        decision = policy.decide(own, asked.args)
        if asked.bound.name != own.name:
            # Rules may name a tool as it calls itself, or as the model sees it.
            other = policy.decide(asked.bound.spec, asked.args)
            if other.ruled:
                decision = stricter(decision, other) if decision.ruled or decision.action == "deny" else other
        permissions = live(policy)
        if permissions is not None and decision.action != "deny":
            gated = permissions.gate(own, asked.args, self.host.state.get("exposure", {}))
            decision = gated or decision
        return decision

    async def _exactly(self, asked: Asked, decision: Decision) -> Decision | Verdict:
        """Look at what a patch would change where its text alone was looked at."""
        permissions = live(self.host.policy)
        if decision.action != "allow" or permissions is None or not set(PATCHES) & asked.args.keys():
            return decision
        previews = await self._previews(asked)
        if isinstance(previews, Verdict):
            return previews
        return permissions.protects([each.path for each in previews]) or decision

    def _allowed(self, asked: Asked, verdict: Verdict) -> Verdict:
        permissions = live(self.host.policy)
        if permissions is not None and permissions.rule_of_two:
            exposure: dict[str, str] = self.host.state.setdefault("exposure", {})
            for trait, why in permissions.traits(asked.bound.tool.spec, asked.args).items():
                exposure.setdefault(trait, why)
        return verdict

    def _refused(self, asked: Asked, text: str) -> Verdict:
        self.host.refused.append(asked.bound.name)
        return Verdict(False, text)

    async def _previews(self, asked: Asked) -> tuple[Preview, ...] | Verdict:
        make = getattr(asked.bound.tool, "preview", None)
        if make is None:
            return ()
        try:
            async with clock.deadline(self.host.behavior.tool_timeout):
                return tuple(await make(copy.deepcopy(asked.args), asked.context))
        except WindlassError as error:
            # It cannot be done: nobody needs to be asked about it.
            return Verdict(False, f"Tool error: {error.message}" + (f" {error.hint}" if error.hint else ""), "error")
        except Exception as error:
            log.warning("The preview of %s raised %s: %s", asked.bound.name, type(error).__name__, error)
            return ()

    # -- asking ----------------------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked, question: Question) -> tuple[Answer, str]:
        waiting = _Waiting(asked, question, asyncio.get_running_loop().create_future())
        if asked.call.id not in self._open:
            return (await self._put([waiting]))[0]
        self._open.discard(asked.call.id)
        self._gathered.append(waiting)
        if len(self._gathered) > 1:
            self._ask_if_complete()
            return await waiting.answer
        # The first one asks for all, when all are there.
        self._complete = asyncio.get_running_loop().create_future()
        self._ask_if_complete()
        gathered = self._gathered
        try:
            await self._complete
            answers = await self._put(gathered)
        except BaseException:
            for other in gathered:
                other.answer.cancel()
            raise
        finally:
            self._gathered, self._complete = [], None
        for other, answer in zip(gathered, answers, strict=True):
            if not other.answer.done():
                other.answer.set_result(answer)
        return answers[0]

    def _ask_if_complete(self) -> None:
        if not self._open and self._complete is not None and not self._complete.done():
            self._complete.set_result(None)

    async def _put(self, waiting: list[_Waiting]) -> list[tuple[Answer, str]]:
        """Ask, with both the questions and the answers on record; returns each answer and, if asking failed, why."""
        host, approver = self.host, self.host.approver
        await host.record([_requested(each.asked.call.id, each.question) for each in waiting])
        answers, why = await _answers(approver, [each.question for each in waiting])
        by = type(approver).__name__
        resolved = zip(waiting, answers, strict=True)
        await host.record([_resolved(each.asked.call.id, answer, by) for each, answer in resolved])
        return [(answer, why) for answer in answers]

    def _verdict(self, asked: Asked, previews: tuple[Preview, ...], answer: Answer, why: str, digest: str) -> Verdict:
        seen = {each.path: each.before for each in previews}
        expected = {path: "" if data is None else hashlib.sha256(data).hexdigest() for path, data in seen.items()}
        if isinstance(answer, str):
            if not answer.startswith("allow"):
                return self._refused(asked, REFUSED + why)
            return self._allowed(asked, Verdict(True, expected=expected, digest=digest))
        shown = {each.path: each for each in previews}
        if not answer.keys() <= shown.keys():
            return self._refused(asked, f"{REFUSED}: the answer names files that were not shown")
        accepted = {path: data for path, data in answer.items() if data != shown[path].before}
        if not accepted:
            return self._refused(asked, REFUSED)
        if accepted == {path: each.after for path, each in shown.items()}:
            return self._allowed(asked, Verdict(True, expected=expected, digest=digest))
        # `expected` is not needed: the writes below compare with the previews themselves.
        instead = registry.load("windlass.agent.partial:write_part")(previews, accepted)
        return self._allowed(asked, Verdict(True, digest=digest, instead=instead))


async def ask_person(host: PermissionHost, call_id: str, question: Question) -> PermissionOption:
    """Ask about something that a tool found out only while it ran; without anybody to ask it is `reject_once`."""
    if host.approver is None:
        return "reject_once"
    await host.record([_requested(call_id, question)])
    [answer], _ = await _answers(host.approver, [question])
    outcome: PermissionOption = answer if isinstance(answer, str) else "reject_once"
    await host.record([_resolved(call_id, outcome, type(host.approver).__name__)])
    return outcome


def _requested(call_id: str, question: Question) -> PermissionRequested:
    return PermissionRequested(call_id=call_id, name=question.name, input=question.input, reason=question.reason)


def _resolved(call_id: str, answer: Answer, by: str) -> PermissionResolved:
    if isinstance(answer, str):
        return PermissionResolved(call_id=call_id, outcome=answer, by=by)
    return PermissionResolved(call_id=call_id, outcome="allow_once", by=f"{by}, in part")


async def _answers(approver: Any, questions: list[Question]) -> tuple[list[Answer], str]:
    """Return the answers; where asking fails they are refusals, and the text says why."""
    try:
        if len(questions) > 1:
            given = await approver.approve_batch(questions)
        elif (each := questions[0]).previews and hasattr(approver, "approve_changes"):
            given = [await approver.approve_changes(each.name, each.input, each.reason, each.previews)]
        else:
            given = [await approver.approve(each.name, each.input, each.reason)]
        answers: list[Answer] = [_known(answer) for answer in given]
        why = "" if len(answers) == len(questions) else ": the answers do not fit the questions"
    except Exception as error:
        log.warning("%s raised %s: %s", type(approver).__name__, type(error).__name__, error)
        answers, why = [], f": asking failed ({type(error).__name__})"
    refused: list[Answer] = ["reject_once"] * len(questions)
    return (refused if why else answers), why


def _known(answer: Any) -> Answer:
    return answer if answer in _OPTIONS or isinstance(answer, Mapping) else "reject_once"
