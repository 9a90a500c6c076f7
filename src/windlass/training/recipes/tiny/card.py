"""The embedded model's cards, made from what was measured: the JSON for programs and the Markdown for people."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from windlass.training.recipes.tiny.chat import HONEST, NO_TOOL
from windlass.training.recipes.tiny.grammar import PARAMETERS
from windlass.training.recipes.tiny.results import ERROR

__all__ = ["FORMS", "card", "main", "model_card", "table", "write"]

#: The forms of every answer that is no call; `{}` is copied out of the conversation.
FORMS: Final = (
    "That failed: {}", "Created {}.", "Updated {}.", "No change needed: {}.", "Edited {}.", "{} is empty.",
    "{} contains:\n{}", "Files in {}:\n{}", "Found:\n{}", "No match for {} in {}.", "Output:\n{}",
    "The command ran and printed nothing.", "The command failed:\n{}", "It is {}.", "{}",
    HONEST, NO_TOOL + HONEST, "Hello! " + HONEST,
)  # fmt: skip
PURPOSE: Final = "demonstration, fallback and test model"


def card(name: str, sha256: str, measured: Mapping[str, Any], size: int = 0) -> dict[str, Any]:
    """Return the card that lies beside the model file (see `windlass.local.embedded.ModelProfile`)."""
    notice = (
        f"{name} is the built-in demonstration model ({size / 1e6:.0f} MB). It knows no facts and understands only "
        'short English commands such as: write "hello" to hello.txt and read it back. '
        "Configure a real model for anything else."
    )
    return {
        "windlass_card": 1,
        "name": name,
        "purpose": PURPOSE,
        "license": "MIT",
        "sha256": sha256,
        "family": "chatml-hermes",
        "context": 4096,
        "max_output": 512,
        "temperature": 0.0,
        "error_prefix": ERROR,
        "descriptions": False,
        "copy_arguments": True,
        "answer_forms": list(FORMS),
        "tools": {tool: list(names) for tool, names in PARAMETERS.items()},
        "notice": notice,
        "measured": dict(measured),
    }


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the measured sets as a Markdown table."""
    lines = [
        "| set | n | calls exact | task finished | answer exact | well-formed | median ms per call |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in measured.items():
        shown = [
            f"{100 * row[key] / max(row['n'], 1):.1f} %"
            for key in ("calls_exact", "finished", "final_exact", "well_formed")
        ]
        lines.append(f"| {name} | {row['n']} | {' | '.join(shown)} | {row['median_ms']:.0f} |")
    return "\n".join(lines)


def model_card(name: str, measured: Mapping[str, Any], trained: Mapping[str, Any], size: int) -> str:
    """Return the model card: what it is, what was measured, how it was made (`trained`: what a run's log says)."""
    sets: dict[str, Any] = measured["sets"]
    tools: dict[str, Any] = measured.get("tools", {})
    facts = "\n".join([f"- {key}: {value}" for key, value in trained.items()]) or "- see the run's log"
    rows = "\n".join(
        [f"| {tool} | {' | '.join([f'{right}/{n}' for right, n in counts])} |" for tool, counts in tools.items()]
    )
    return f"""# {name}

`{name}.gguf` ({size / 1e6:.1f} MB, Q8_0) is a {PURPOSE}. It is **not a capable model**: it knows no facts,
cannot reason or write code, and understands only short English commands of one small family. A program that uses it
should say so and show how to configure a real model. It was made by Windlass's own trainer:
`windlass train run --recipe tiny`.

## What it does

It knows {", ".join([f"`{tool}`" for tool in PARAMETERS])}, all parameters strings.
It makes one call a turn and closes with a short sentence of fixed form that copies the result. With its card its
arguments and answers are held to spans of the conversation (`copy_arguments`): it cannot invent a name. To everything
else it says: "{HONEST}"

## Measured

Real requests through the local provider, temperature 0, one thread, held-out data: arguments are new in every set, and
where the name says so the phrasings are too (about one in eight clauses was never trained on). "Exact": tool and
all arguments equal character by character, for every call of the task. "Finished": all calls exact and then a closing
text. The sets come from the generator that made the training text: they measure this family of commands, nothing else.
The last set was written by hand and shows how far that carries.
Copy-guided decoding: {"on" if measured.get("copying") else "off"}.

{table(sets)}

| tool (one call) | trained phrasings | unseen phrasings |
|---|---|---|
{rows}

## How it was made

{facts}

Synthetic text alone, made on the fly by `windlass.training.recipes.tiny`; see docs/tiny-model.md.

## Known limits

- Wordings far from the trained ones (see the hand-written set) can get the wrong tool: run it with approval.
- Other languages, other tools, other parameter names, requests of more than three steps and long files are not trained.
- Its `shell` calls run whatever the user wrote: offer it a shell only in a sandbox.
"""


def write(model: Path, measured: Mapping[str, Any], trained: Mapping[str, Any]) -> list[Path]:
    """Write both cards beside the model file; return their paths."""
    data, name = model.read_bytes(), model.stem
    digest, size = hashlib.sha256(data).hexdigest(), len(data)
    programs, people = model.with_suffix(".json"), model.with_suffix(".md")
    made = card(name, digest, measured["sets"], size)
    programs.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    people.write_text(model_card(name, measured, trained, size))
    return [programs, people]


def main(args: list[str]) -> int:
    """Run `python -m windlass.training.recipes.tiny.card MODEL.gguf MEASURED.json [KEY=VALUE ...]`."""
    parser = argparse.ArgumentParser(prog="tiny.card", description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("measured", type=Path)
    parser.add_argument("facts", nargs="*", help="what to say of the training, as name=value")
    options = parser.parse_args(args)
    facts = dict([fact.split("=", 1) for fact in options.facts])
    for path in write(options.model, json.loads(options.measured.read_text()), facts):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
