"""How a run begins and ends: the opening rows, and the hooks that watch both."""

from __future__ import annotations

from windlass.agent.run import Run
from windlass.core.errors import ConfigError
from windlass.core.events import Event, MessageAdded, RunStarted, SessionCreated, StopReason
from windlass.core.messages import Message, user

__all__ = ["begin_run", "end_run"]

CONTINUE = "Continue."


async def begin_run(run: Run) -> str:
    """Put the opening of a run on record in one commit; returns the system text after its hook.

    Calls that an earlier program left open are answered first. Raises ConfigError when there is nothing to resume.
    """
    plan, hooks, conversation = run.plan, run.hooks, run.conversation
    prompt = None if plan.prompt is None else Message("user", plan.prompt)
    if prompt is None and not conversation.messages:
        raise ConfigError("There is nothing to resume: the session is empty.", hint="Give a prompt.")
    if hooks.wants("session:start"):
        text = "" if prompt is None else prompt.text
        await hooks.fire("session:start", session_id=run.session_id, run_id=run.id, prompt=text)
    mode = run.behavior
    run.state["discipline"] = {
        "dedup_reads": mode.dedup_reads, "require_read_before_edit": mode.require_read_before_edit,
    }  # fmt: skip
    system = plan.system
    if hooks.wants("system:before"):
        system = (await hooks.fire("system:before", system=system)).system
    opening: list[Event] = []
    if plan.ledger.pos == 0:
        opening.append(SessionCreated(session_id=run.session_id, title=_title(prompt), metadata=plan.metadata))
    opening.extend(conversation.close(plan.ledger.printed))
    source = plan.prompt_source
    if prompt is None and conversation.messages[-1].role == "assistant":
        prompt, source = user(CONTINUE), "loop"
    plan.ledger.run_pos = plan.ledger.pos + len(opening)
    opening.append(RunStarted(session_id=run.session_id, model=plan.model_name, agent=plan.agent_name, run_id=run.id))
    if prompt is not None:
        opening.append(MessageAdded(message=prompt, source=source))
        conversation.add(prompt)
    await run.record(opening)
    return system


async def end_run(run: Run, stop: StopReason, first_message: int) -> None:
    """Tell the hooks that watch the end of a run; `first_message` is where its part of the conversation begins.

    It counts what compaction took out of the view, too.
    """
    fire, wants = run.hooks.fire, run.hooks.wants
    messages = run.conversation.messages
    first_message = max(0, first_message - run.conversation.dropped)
    new = messages[first_message:]
    if wants("session:turns"):
        await fire("session:turns", session_id=run.session_id, turns=new, count=len(new))
    if wants("session:end"):
        span = (first_message, len(messages))
        await fire("session:end", session_id=run.session_id, run_id=run.id, status=stop, turn_range=span)
    if wants("agent:done"):
        await fire("agent:done", stats=run.stats)


def _title(prompt: Message | None) -> str:
    return "" if prompt is None else " ".join(prompt.text.split())[:80]
