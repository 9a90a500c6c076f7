"""Serve one model request: try targets in order, rescue what broke, write down what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from windlass.core import clock
from windlass.core.errors import ConfigError, ProviderError, RequestRefused, TransportError, WindlassError
from windlass.core.http import Exchange
from windlass.providers.target import Target
from windlass.server.hiding import hide
from windlass.server.job import Job
from windlass.server.relay import as_provider_error, located, relay
from windlass.server.rescue import rescue
from windlass.server.translate import translate
from windlass.wire.openai_chat import DIALECT, OPENROUTER

__all__ = ["Work", "answer", "attempt", "passes", "resumed"]

#: Something that is done for a job: it sends the answer, or raises.
Work: TypeAlias = Callable[[Job], Awaitable[None]]

#: How vendors speak OpenAI's dialect who take it as clients write it, and what the others want told otherwise.
_AS_WRITTEN = (DIALECT, OPENROUTER)
_OTHERWISE = frozenset(("seed", "top_p", "tools", "tool_choice", "response_format"))


async def answer(job: Job, work: Work | None = None, prepare: Work | None = None, *, reservation: Any = None) -> None:
    """Serve the request; whatever happens, one record is written and what was reserved is settled.

    `work` answers it in place of `attempt`; `prepare` runs once the route is known and before anything is reserved;
    `reservation` is what was reserved before. A route that was chosen before stays, whatever was configured since.
    """
    call, report = job.call, job.report
    try:
        if job.chosen is None:
            job.gateway.check_model(call.identity, job.model)
            job.chosen = job.gateway.router.route(job.model)
        if prepare is not None:
            await prepare(job)
        if not job.by_turns and reservation is None:
            reservation = await job.gateway.reserve(job)
        if work is None and (cache := job.gateway.cache) is not None:
            work = cache.serve
        await (work or attempt)(job)
    except asyncio.CancelledError:
        report.outcome = "client_gone" if call.ending is None else "interrupted"
        if call.ending is not None:
            job.fail(call.ending)
        raise
    except RequestRefused as error:
        report.outcome = "refused" if error.status < 500 else "error"
        job.fail(error)
        _forget(error)
    except WindlassError as error:
        job.fail(error)
        _forget(error)
    except Exception as error:
        job.fail(error)
        raise
    finally:
        job.write_down(reservation)


async def attempt(
    job: Job,
    ask: Callable[[Job, Target], Awaitable[None]] | None = None,
    able: Callable[[Target], bool] | None = None,
    made: Target | None = None,
) -> None:
    """Ask targets in turn until one has answered. `ask` asks one, in place of a model; `able` leaves some out.

    `made` is who was asked already: its turn is first. Raises the preferred target's error when nobody could answer.
    """
    report = job.report
    attempts = job.attempts = job.route.attempts(job.needs(), job.budget)
    if made is not None:
        attempts.resume(made)
    while (target := await attempts.next()) is not None:
        if able is not None and not able(target):
            attempts.skip()
            continue
        report.attempts += 1
        try:
            await (ask or _try)(job, target)
        except (ProviderError, ConfigError) as error:
            hide(error, target.provider)
            attempts.failed(error)
            _forget(error)
            if job.call.started:
                job.upstream_done()
                await rescue(job, target, error)
                return
        except BaseException:
            attempts.abandoned()
            raise
        else:
            job.upstream_done()
            attempts.answered(None if report.first_at is None else report.first_at - job.call.received)
            return
    job.upstream_done()
    raise attempts.last_error


def _forget(error: BaseException) -> None:
    """Take the frames off an error that is told: they hold the request, which holds the error, until a collection."""
    told: BaseException | None = error
    while told is not None and told.__traceback__ is not None:
        told.__traceback__ = None
        told = told.__cause__ or told.__context__


def resumed(given: Exchange | TransportError | ProviderError | None) -> Work:
    """Return the work that goes on with what came of a first try: an answer to read, an error, or nothing."""

    async def work(job: Job) -> None:
        first = given

        async def ask(job: Job, target: Target) -> None:
            nonlocal first
            came, first = first, None
            if came is None:
                await _try(job, target)
            elif isinstance(came, Exchange):
                _begin(job, target)
                await relay(job, target, came)
            elif isinstance(came, TransportError):
                raise as_provider_error(came, job, target) from came
            else:
                raise located(came, target)

        # Where nothing came, nobody has seen the request: it begins anew.
        await attempt(job, ask, made=None if given is None else job.route.targets[0])

    return work


def _begin(job: Job, target: Target) -> None:
    report = job.report
    report.target, report.model, report.usage, report.cost = target.name, target.model, None, None
    if job.dropped:
        job.dropped = []
    if not job.upstream_since:
        # Waits between two attempts are theirs, not ours.
        job.upstream_since = clock.monotonic()


async def _try(job: Job, target: Target) -> None:
    _begin(job, target)
    if passes(job, target):
        await relay(job, target)
    else:
        await translate(job, target)


def passes(job: Job, target: Target) -> bool:
    """Tell whether the client's bytes can go to a target, and its answer come back, as they are."""
    dialect: Any = getattr(target.provider, "dialect", None)
    if dialect is None or dialect.name != job.ingress.dialect.name or not job.passable:
        return False
    if job.ingress.name != "openai-chat":
        # Only the chat dialect's frames stand alone: the others are written by our own encoder, which can go on. A
        # vendor that takes its dialect only with fields of its own cannot be sent the client's bytes.
        return not (job.continuable or getattr(dialect, "forced", ()))
    return dialect in _AS_WRITTEN or (_OTHERWISE.isdisjoint(job.fields) and b'"tool_call' not in job.call.body)
