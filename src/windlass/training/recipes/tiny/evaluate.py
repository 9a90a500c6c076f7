"""Measure an embedded model: real requests to the real local provider, on data that no training row holds.

`python -m windlass.training.recipes.tiny.evaluate MODEL.gguf` prints the table as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from windlass.core import clock, registry
from windlass.core.items import Finish
from windlass.core.messages import Message, ToolResponse, user
from windlass.core.request import Request, Settings, ToolSpec
from windlass.training.recipes.tiny import grammar
from windlass.training.recipes.tiny.card import FORMS, card, table
from windlass.training.recipes.tiny.chat import HONEST, NO_TOOL, parameters
from windlass.training.recipes.tiny.grammar import PARAMETERS, Split, Step, Task
from windlass.training.recipes.tiny.results import ERROR, Folder, told
from windlass.training.recipes.tiny.rows import DESCRIPTIONS, offered, system_text
from windlass.training.recipes.tiny.wild import WILD

__all__ = ["Score", "main", "measure", "sets"]

_SEEN, _UNSEEN = Split(False, True), Split(True, True)
ONE_SEEN, ONE_UNSEEN = "one call, trained phrasings", "one call, unseen phrasings"
TWO_SEEN, TWO_UNSEEN = "two calls, trained phrasings", "two calls, unseen phrasings"
OUTSIDE, BY_HAND = "outside the family (honest sentence)", "written by hand, outside the grammar"
Case = tuple[tuple[str, ...], Task, int]


class Score(Struct):
    """Counts over a set."""

    n: int = 0
    calls_exact: int = 0
    finished: int = 0
    final_exact: int = 0
    well_formed: int = 0
    median_ms: float = 0.0


class _Outcome(Struct):
    exact: bool
    finished: bool
    final: bool
    formed: bool
    times: list[float]
    said: list[str]


def sets(n: int, seed: int) -> dict[str, list[Case]]:
    """Return the held-out sets: (tools offered, task, seed of its folder)."""
    made: dict[str, list[Case]] = {}
    for name, split, steps in (
        (ONE_SEEN, _SEEN, 1), (ONE_UNSEEN, _UNSEEN, 1), (TWO_SEEN, _SEEN, 2), (TWO_UNSEEN, _UNSEEN, 2),
    ):  # fmt: skip
        rng = Random(f"{seed} {name}")
        made[name] = []
        while len(made[name]) < n:
            names = offered(rng)
            task = grammar.asked(rng, names, split, steps)
            if len(task.steps) == steps:
                made[name].append((names, task, len(made[name])))
    rng = Random(f"{seed} {OUTSIDE}")
    made[OUTSIDE] = [_outside(rng, number) for number in range(n)]
    made[BY_HAND] = [
        (tuple(PARAMETERS), Task(prompt, tuple([Step(*step) for step in steps])), number)
        for number, (prompt, *steps) in enumerate(WILD)
    ]
    return made


def _outside(rng: Random, number: int) -> Case:
    names = offered(rng)
    others = tuple([name for name in PARAMETERS if name not in names])
    if number % 3 or not others:
        return names, grammar.off_topic(rng, _UNSEEN), number
    return names, Task(grammar.asked(rng, others, _SEEN, 1).prompt, (), "", NO_TOOL), number


def _specs(names: Iterable[str]) -> tuple[ToolSpec, ...]:
    return tuple([ToolSpec(name, DESCRIPTIONS[name][0], parameters(PARAMETERS[name])) for name in names])


async def _answer(provider: Any, request: Request) -> Finish:
    async with aclosing(provider.stream(request)) as stream:
        async for item in stream:
            if isinstance(item, Finish):
                return item
    raise RuntimeError("The provider's answer has no end.")


async def _run(provider: Any, case: Case, extra: dict[str, Any]) -> _Outcome:
    names, task, seed = case
    rng = Random(seed)
    folder, system = Folder(rng, True, 0.04), system_text(rng, True)
    messages: list[Message] = [user(task.prompt)]
    done: list[tuple[Step, str]] = []
    outcome = _Outcome(True, False, False, True, [], [])
    steps = list(task.steps)
    while True:
        request = Request(
            model="", messages=tuple(messages), tools=_specs(names), system=system, settings=Settings(extra=extra)
        )
        began = clock.monotonic()
        finish = await _answer(provider, request)
        outcome.times.append(1000 * (clock.monotonic() - began))
        messages.append(finish.message)
        calls, text = finish.message.tool_calls, finish.message.text
        outcome.said.append(text or repr([(call.name, call.arguments) for call in calls]))
        outcome.formed &= finish.reason in ("stop", "tool_call") and all(call.arguments is not None for call in calls)
        if not calls or not outcome.formed:
            failed = bool(done) and done[-1][1].startswith(ERROR)
            outcome.exact &= not steps or failed
            outcome.finished = outcome.exact and not calls
            wanted = told(done, task.marker) if task.steps else task.opening + HONEST
            outcome.final = outcome.finished and text == wanted
            return outcome
        call = calls[0]
        if not steps or len(calls) > 1 or (call.name, call.arguments) != (steps[0].tool, steps[0].arguments):
            outcome.exact = False
            return outcome
        step = steps.pop(0)
        result = folder.run(step)
        done.append((step, result))
        failed = result.startswith(ERROR)
        steps = [] if failed else steps
        # The provider puts the prefix before a failure; here it is taken off again.
        told_result = result.removeprefix(ERROR)
        messages.append(Message("tool", (ToolResponse(call.id, told_result, status="error" if failed else "ok"),)))


async def measure(
    model: Path, n: int, seed: int, *, copying: bool | None = None, wrong: int = 0, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what a model does on the held-out sets: `sets` (name -> counts) and `tools` (name -> (right, n) per set).

    `copying` turns copy-guided decoding on or off; None: as the model's card says. `wrong` prints so many failures of
    each set to stderr; `only` names the sets to measure. A model without a card gets the recipe's.
    """
    extra: dict[str, Any] = (
        {} if copying is None else {"copy_arguments": copying, "answer_forms": list(FORMS) * copying}
    )
    found: dict[str, Any] = {
        "model": model.name,
        "seed": seed,
        "copying": copying is not False,
        "sets": {},
        "tools": {},
    }
    with tempfile.TemporaryDirectory(prefix="windlass-tiny-") as scratch:
        path = model
        if not model.with_suffix(".json").exists():
            path = Path(scratch) / model.name
            shutil.copyfile(model, path)
            path.with_suffix(".json").write_text(json.dumps(card(model.stem, "", {})))
        provider = registry.load("windlass.providers.local:LocalProvider")(path)
        try:
            for name, cases in sets(n, seed).items():
                if only and name not in only:
                    continue
                outcomes = [await _run(provider, case, extra) for case in cases]
                found["sets"][name] = msgspec.to_builtins(_score(outcomes))
                _by_tool(found["tools"], name, cases, outcomes)
                _tell(name, cases, outcomes, wrong)
        finally:
            provider.close()
    return found


def _score(outcomes: list[_Outcome]) -> Score:
    times = [time for outcome in outcomes for time in outcome.times]
    return Score(
        n=len(outcomes),
        calls_exact=sum([outcome.exact for outcome in outcomes]),
        finished=sum([outcome.finished for outcome in outcomes]),
        final_exact=sum([outcome.final for outcome in outcomes]),
        well_formed=sum([outcome.formed for outcome in outcomes]),
        median_ms=round(statistics.median(times), 1) if times else 0.0,
    )


def _by_tool(tools: dict[str, Any], name: str, cases: list[Case], outcomes: list[_Outcome]) -> None:
    if name not in (ONE_SEEN, ONE_UNSEEN):
        return
    for tool in PARAMETERS:
        right = [outcome.exact for case, outcome in zip(cases, outcomes, strict=True) if case[1].steps[0].tool == tool]
        tools.setdefault(tool, []).append([sum(right), len(right)])


def _tell(name: str, cases: list[Case], outcomes: list[_Outcome], wrong: int) -> None:
    failures = [(case, outcome) for case, outcome in zip(cases, outcomes, strict=True) if not outcome.final]
    for (_, task, _), outcome in failures[:wrong]:
        wanted = [*[tuple(step) for step in task.steps], task.marker]
        sys.stderr.write(f"{name}\n  asked  {task.prompt!r}\n  wanted {wanted}\n  said   {outcome.said}\n")


def main(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="tiny.evaluate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("-n", type=int, default=200, help="tasks in each set (default: 200)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--copying", action=argparse.BooleanOptionalAction, default=None, help="copy-guided decoding")
    parser.add_argument("--wrong", type=int, default=0, help="show so many failures of each set")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    options = parser.parse_args(args)
    found = asyncio.run(measure(options.model, options.n, options.seed, copying=options.copying, wrong=options.wrong))
    text = json.dumps(found, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    sys.stdout.write(f"{text}\n\n{table(found['sets'])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
