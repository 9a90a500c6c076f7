"""Tool calls: validate, gate, permission, run, answer.

Every accepted call gets exactly one response, whatever happens: a cancel, a refusal, a deadline and a crash of the tool
write one too. A hook can forbid a call or answer in its place; it can never grant what the policy forbids.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from windlass.agent.behavior import Behavior
from windlass.agent.bound import Bound
from windlass.agent.conversation import Conversation
from windlass.agent.hooks import Hooks
from windlass.agent.ledger import GRACE, Ledger, output_bytes
from windlass.agent.permission import CHANGED, Asked, Permission, Question, Verdict, ask_person
from windlass.agent.policy import Decider, call_digest
from windlass.agent.snapshots import keep_change, named
from windlass.core import clock, json, registry
from windlass.core.errors import SessionError, ToolError, WindlassError
from windlass.core.events import Event, FileChanged, ToolFinished, ToolProgress, ToolStarted
from windlass.core.messages import Blob, ResponseStatus, Text, ToolCall, ToolResponse, Uri
from windlass.core.ports import Approver, PermissionOption, ToolResult, Workspace

__all__ = ["CANCELLED", "SKIPPED", "Dispatcher", "ToolHost"]

log = logging.getLogger("windlass.agent")
SKIPPED = "Skipped: steering message received"
CANCELLED = "Cancelled: the run was stopped before this call finished; it may or may not have taken effect."
NOT_RUN = "Not run: the answer was cut off before this call was complete. Make the call again, shorter."
CUT_OFF = "Outcome unknown: the tool passed its deadline of {:g} s and could not be stopped. Check the state."

Content = str | tuple[Text | Blob | Uri, ...]


class ToolHost(Protocol):
    """What dispatch needs of the run that it serves."""

    id: str
    hooks: Hooks
    behavior: Behavior
    policy: Decider
    approver: Approver | None
    conversation: Conversation
    tool_counts: dict[str, int]
    refused: list[str]
    turn_id: str

    @property
    def session_id(self) -> str: ...
    @property
    def workspace(self) -> Workspace | None: ...
    @property
    def state(self) -> dict[str, Any]: ...

    @property
    def ledger(self) -> Ledger: ...

    def emit(self, event: Event) -> None: ...
    async def record(self, kept: Sequence[Event], shown: Sequence[Event] | None = None) -> None: ...
    async def run_child(self, spec: dict[str, Any]) -> Any: ...
    def steering(self) -> bool: ...


class CallContext:
    """The ToolContext of one call."""

    __slots__ = ("_host", "_kept", "_noted", "call_id", "deadline", "expected")

    def __init__(
        self, host: ToolHost, call_id: str, deadline: float | None, noted: set[str], expected: Mapping[str, str]
    ) -> None:
        self._host, self.call_id, self.deadline = host, call_id, deadline
        self._noted = noted
        self.expected = expected
        self._kept: list[FileChanged] = []

    @property
    def run_id(self) -> str:
        return self._host.id

    @property
    def session_id(self) -> str:
        return self._host.session_id

    @property
    def workspace(self) -> Workspace | None:
        return self._host.workspace

    @property
    def state(self) -> dict[str, Any]:
        return self._host.state

    def progress(self, text: str = "", data: Any = None) -> None:
        self._host.emit(ToolProgress(call_id=self.call_id, text=text, data=data))
        if text:
            self._noted.add(self.call_id)
            self._host.ledger.note(self.call_id, text)

    async def emit(self, event: Event) -> None:
        if not isinstance(event, FileChanged):
            await self._host.record([event])
            return
        if not any(event is kept for kept in self._kept):
            await self._host.ledger.files.commit([event])
        if event.status != "failed":
            self._host.emit(event)

    async def keep(self, path: str, before: bytes | None, after: bytes | None) -> FileChanged:
        ledger = self._host.ledger.files
        change = await keep_change(ledger, self.call_id, named(path, self.workspace), before, after)
        self._kept.append(change)
        return change

    async def run_child(self, **spec: Any) -> Any:
        return await self._host.run_child(spec)

    async def fire(self, hook: str, /, **values: Any) -> Any:
        return await self._host.hooks.fire(hook, **values)

    async def ask(self, name: str, input: dict[str, Any], reason: str) -> PermissionOption:
        return await ask_person(self._host, self.call_id, Question(name, input, reason))


class _Ready(Struct):
    """A call that was checked and may run."""

    call: ToolCall
    bound: Bound
    args: dict[str, Any]
    coercions: tuple[str, ...]
    verdict: Verdict = Verdict(True)


class _Answer(Struct):
    """A response before it is written: content, status, and how long the tool itself took."""

    content: Content
    status: ResponseStatus = "ok"
    duration_ns: int = 0


def _content(output: Any) -> tuple[Content, ResponseStatus]:
    if isinstance(output, str):
        return output, "ok"
    if output is None:
        return "", "ok"
    if isinstance(output, ToolResult):
        return output.content, output.status
    if isinstance(output, (Text, Blob, Uri)):
        return (output,), "ok"
    if isinstance(output, (list, tuple)) and output and all(isinstance(part, (Text, Blob, Uri)) for part in output):
        return tuple(output), "ok"
    dump: Any = getattr(output, "model_dump", None)
    try:
        return json.dumps(output if dump is None else dump(mode="json")).decode(), "ok"
    except (TypeError, ValueError, RecursionError):
        return str(output), "ok"


class Dispatcher:
    """Runs the calls of a run's assistant messages."""

    __slots__ = ("_asking", "_noted", "discipline", "host", "tools")

    def __init__(self, host: ToolHost, tools: Mapping[str, Bound]) -> None:
        self.host, self.tools = host, tools
        #: Calls whose output so far is kept beside the ledger.
        self._noted: set[str] = set()
        self._asking = Permission(host)
        mode = host.behavior
        #: By name: few agents ask for it. A `Discipline`, None where nothing of the kind is asked for.
        self.discipline: Any = None
        if mode.tool_budgets or mode.dedup_tools or mode.tool_output_budget is not None:
            self.discipline = registry.load("windlass.agent.discipline:Discipline")(host)

    def starts_at_once(self, calls: Sequence[ToolCall]) -> bool:
        """Tell whether all calls can start without asking anybody: then the intent and the start are one commit."""
        host = self.host
        if host.behavior.tool_execution == "sequential" and len(calls) > 1:
            return False
        if host.behavior.tool_budgets:
            return False
        wants = host.hooks.wants
        if wants("tool:gate") or wants("validation:reject") or wants("validation:coerce") or wants("tool:unknown"):
            return False
        specs = [spec for bound in self.tools.values() for spec in (bound.spec, bound.tool.spec)]
        return not host.policy.may_ask(specs)

    async def run(self, calls: Sequence[ToolCall], *, started: bool) -> None:
        """Run the calls of one message and write a response for each.

        `started` says that their start is already on record. Raises what ends the run (StoreError, HookError) and
        CancelledError, always after every response was written that still can be.
        """
        if len(calls) == 1:
            await self._one(calls[0], started)
        elif self.host.behavior.tool_execution == "sequential":
            for call in calls:
                if self.host.steering():
                    await self._write(call, _Answer(SKIPPED, "skipped"))
                else:
                    await self._one(call, started)
        else:
            await self._parallel(calls, started)

    async def refuse(self, calls: Sequence[ToolCall], text: str = NOT_RUN) -> None:
        """Answer calls that must not run."""
        for call in calls:
            await self._write(call, _Answer(text, "error"))

    async def answer(self, call: ToolCall, text: str) -> None:
        """Answer a call that the loop itself took."""
        await self._write(call, _Answer(text))

    async def abandon(self) -> None:
        """Answer what is still open when a run ends early."""
        for item in self.host.conversation.open_calls:
            text = CANCELLED if item.started else SKIPPED.replace("steering message received", "the run was stopped")
            await self._write(item.call, _Answer(text, "cancelled" if item.started else "skipped"))

    async def _parallel(self, calls: Sequence[ToolCall], started: bool) -> None:
        self._asking.expect(calls)
        tasks = [asyncio.create_task(self._one(call, started)) for call in calls]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _settle(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _one(self, call: ToolCall, started: bool) -> None:
        ready = self._check(call)
        if isinstance(ready, Bound):
            # No extra await where nobody asks: this is every call of an undecorated agent.
            answer = await self._rejected(call, ready)
        elif isinstance(ready, str):
            answer = await self._unknown(call)
        else:
            held = self.discipline
            answer = None if held is None else await self._admit(ready, held)
            if answer is None and not (started and not ready.coercions):
                answer = await self._gate(ready)
                if answer is not None and held is not None:
                    held.release(ready.bound)
            if answer is None:
                answer = await self._execute(ready, started)
            elif answer.status == "ok":
                answer = await self._transform(ready, answer)
            await self._write(call, answer, ready)
            return
        await self._write(call, answer)

    # -- before ---------------------------------------------------------------------------------------------------

    def _check(self, call: ToolCall) -> _Ready | Bound | str:
        bound = self.tools.get(call.name) or self._nearest(call.name)
        if bound is None:
            return call.name
        if call.arguments is None:
            return bound
        checked = bound.validator.check(call.arguments)
        if checked.error is not None:
            return bound
        return _Ready(call, bound, checked.args, checked.coercions)

    def _nearest(self, name: str) -> Bound | None:
        """Find the one tool that a slightly wrong name can only mean: other case, dashes, a `functions.` prefix."""
        plain = _plain(name.rsplit(".", 1)[-1])
        found = [bound for key, bound in self.tools.items() if _plain(key) == plain]
        return found[0] if len(found) == 1 else None

    async def _rejected(self, call: ToolCall, bound: Bound) -> _Answer:
        if call.arguments is None:
            text = (call.arguments_text or "")[:200]
            reason = f"The arguments are not a JSON object: {text!r}"
        else:
            reason = bound.validator.check(call.arguments).error or ""
        hooks = self.host.hooks
        if hooks.wants("validation:reject"):
            await hooks.fire(
                "validation:reject",
                **self._ids(call, call.arguments or {}),
                reason=reason,
                schema=bound.spec.input_schema,
            )
        return _Answer(f"Validation error: {reason}", "error")

    async def _unknown(self, call: ToolCall) -> _Answer:
        near = difflib.get_close_matches(call.name, self.tools, n=1, cutoff=0.5)
        text = f"Unknown tool: {call.name}" + (f". Did you mean {near[0]}?" if near else "")
        if not near and self.tools:
            text += f". Available: {', '.join(sorted(self.tools)[:20])}"
        hooks, answer, suppress = self.host.hooks, _Answer(text, "error"), False
        if hooks.wants("tool:unknown"):
            ctx = await hooks.fire(
                "tool:unknown", **self._ids(call, call.arguments or {}), result=text, suppress_error=False
            )
            answer.content, suppress = _content(ctx.result)[0], bool(ctx.suppress_error)
        if hooks.wants("tool:error") and not suppress:
            answer = await self._error_hook(call, call.arguments or {}, ToolError(text), answer)
        return answer

    async def _gate(self, ready: _Ready) -> _Answer | None:
        host, call = self.host, ready.call
        hooks = host.hooks
        if ready.coercions and hooks.wants("validation:coerce"):
            await hooks.fire("validation:coerce", **self._ids(call, ready.args), coercions=list(ready.coercions))
        if hooks.wants("tool:gate"):
            ctx = await hooks.fire(
                "tool:gate",
                **self._ids(call, ready.args),
                run_tool_counts=dict(host.tool_counts),
                block=False,
                reason=None,
                result=None,
            )
            if ctx.block:
                host.refused.append(ready.bound.name)
                return _Answer(f"Blocked: {ctx.reason or 'Tool execution was blocked'}", "blocked")
            if ctx.result is not None:
                content, status = _content(ctx.result)
                return _Answer(content, status)
        return await self._permission(ready)

    async def _permission(self, ready: _Ready) -> _Answer | None:
        context = CallContext(self.host, ready.call.id, None, self._noted, {})
        verdict = await self._asking.check(Asked(ready.call, ready.bound, ready.args, context))
        ready.verdict = verdict
        return None if verdict.allowed else _Answer(verdict.text, verdict.status)

    async def _admit(self, ready: _Ready, held: Any) -> _Answer | None:
        reason = await held.admit(ready.bound, ready.args)
        return None if reason is None else _Answer(f"Blocked: {reason}", "blocked")

    # -- the call itself ------------------------------------------------------------------------------------------

    async def _execute(self, ready: _Ready, started: bool) -> _Answer:
        host, call, bound = self.host, ready.call, ready.bound
        self._asking.settled(call.id)
        event = ToolStarted(call_id=call.id, name=bound.name, input=ready.args, coercions=ready.coercions)
        if started:
            host.emit(event)
        else:
            host.conversation.start(call.id)
            await host.record([ToolStarted(call_id=call.id, name="")], [event])
        host.tool_counts[bound.name] = host.tool_counts.get(bound.name, 0) + 1
        if host.hooks.wants("tool:before"):
            await host.hooks.fire("tool:before", **self._ids(call, ready.args), **_coerced(ready))
        begun = clock.monotonic()
        try:
            held = self.discipline
            answer = await (self._call(ready) if held is None else self._call_once(ready, held))
        except (Exception, SystemExit) as error:
            if isinstance(error, SessionError):
                raise
            text = error.message if isinstance(error, WindlassError) else f"{type(error).__name__}: {error}"
            hint = f" {error.hint}" if isinstance(error, WindlassError) and error.hint else ""
            answer = _Answer(f"Tool error: {text}{hint}", "error")
            if host.hooks.wants("tool:error"):
                answer = await self._error_hook(call, ready.args, error, answer)
        answer.duration_ns = int((clock.monotonic() - begun) * 1e9)
        return await self._transform(ready, answer)

    async def _call_once(self, ready: _Ready, held: Any) -> _Answer:
        """Give the result of an equal call again where `dedup_tools` says that it is equal."""
        if (key := held.key(ready.bound, ready.args)) is None:
            return await self._call(ready)
        if (content := held.recall(key)) is not None:
            return _Answer(content)
        answer = await self._call(ready)
        if answer.status == "ok":
            held.remember(key, answer.content)
        return answer

    async def _call(self, ready: _Ready) -> _Answer:
        tool, call = ready.bound.tool, ready.call
        limit = tool.timeout if tool.timeout is not None else self.host.behavior.tool_timeout
        end = None if limit is None else clock.monotonic() + limit
        verdict = ready.verdict
        if verdict.digest and call_digest(ready.bound.name, ready.args) != verdict.digest:
            return _Answer(CHANGED, "blocked")
        context = CallContext(self.host, call.id, end, self._noted, verdict.expected)
        scope = clock.deadline(limit)
        try:
            async with scope:
                output = await (verdict.instead or tool.call)(ready.args, context)
        except TimeoutError:
            if not scope.expired():
                raise
            if getattr(tool, "runs_in_thread", False):
                return _Answer(CUT_OFF.format(limit), "unknown")
            return _Answer(f"Tool error: no result within {limit:g} s; the tool was stopped.", "timeout")
        except asyncio.CancelledError:
            # Ours (the run is being stopped), or the tool's own: an inner task of it was cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _Answer("Tool error: the tool cancelled itself.", "error")
        return _Answer(*_content(output))

    # -- after ----------------------------------------------------------------------------------------------------

    async def _error_hook(self, call: ToolCall, args: dict[str, Any], error: BaseException, answer: _Answer) -> _Answer:
        ctx = await self.host.hooks.fire("tool:error", **self._ids(call, args), error=error, result=answer.content)
        answer.content = _content(ctx.result)[0]
        return answer

    async def _transform(self, ready: _Ready, answer: _Answer) -> _Answer:
        if self.host.hooks.wants("tool:transform"):
            ctx = await self.host.hooks.fire(
                "tool:transform",
                **self._ids(ready.call, ready.args),
                result=answer.content,
                is_error=answer.status != "ok",
                output_bytes=output_bytes(answer.content),
                **_coerced(ready),
            )
            answer.content = _content(ctx.result)[0]
            if bool(ctx.is_error) != (answer.status != "ok"):
                answer.status = "error" if ctx.is_error else "ok"
        return answer

    async def _write(self, call: ToolCall, answer: _Answer, ready: _Ready | None = None) -> None:
        host = self.host
        self._asking.settled(call.id)
        size = output_bytes(answer.content)
        shown = ToolFinished(
            call_id=call.id,
            name=call.name,
            response=answer.content,
            status=answer.status,
            output_bytes=size,
            duration_ns=answer.duration_ns,
        )
        call_id = "" if host.conversation.one_call else call.id
        # First the memory, then the disk: a cancellation between them must not find the call open and answer it twice.
        # A tool that was left behind comes too late: its call was answered for it.
        if not host.conversation.respond(ToolResponse(call.id, answer.content, answer.status)):
            return
        if self.discipline is not None:
            self.discipline.written += size
        await host.record([ToolFinished(call_id=call_id, response=answer.content, status=answer.status)], [shown])
        if call.id in self._noted:
            host.ledger.forget(call.id)
        if ready is not None and host.hooks.wants("tool:after"):
            await host.hooks.fire(
                "tool:after",
                **self._ids(call, ready.args),
                result=answer.content,
                output_bytes=size,
                run_tool_counts=dict(host.tool_counts),
                **_coerced(ready),
            )

    def _ids(self, call: ToolCall, args: dict[str, Any]) -> dict[str, Any]:
        return {"turn_id": self.host.turn_id, "call_id": call.id, "name": call.name, "input": args}


def _coerced(ready: _Ready) -> dict[str, Any]:
    return {"coercions": list(ready.coercions)} if ready.coercions else {}


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


async def _settle(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel what still runs and wait for it, through any further cancellation: responses are being written.

    A tool that swallows its cancellation is waited for `GRACE` seconds, then left behind: the run answers for it.
    """
    for task in tasks:
        if not task.done():
            task.cancel()
    again: asyncio.CancelledError | None = None
    end = clock.monotonic() + GRACE
    while (left := end - clock.monotonic()) > 0 and any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks, timeout=left)
        except asyncio.CancelledError as error:
            again = error
    if any(not task.done() for task in tasks):
        log.warning("A tool ignores its cancellation; it is left behind after %g s.", GRACE)
    if again is not None:
        raise again
