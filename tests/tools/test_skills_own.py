"""Windlass's own skill: its pages are made from the program's data, and must be those of this version.

`python -m tests.tools.test_skills_own` writes them.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from windlass.agent.hooks import HOOKS
from windlass.apps.cli import COMMANDS
from windlass.core import registry
from windlass.core.events import DURABLE, KINDS, Event
from windlass.tools.skill_files import OWN, check_folder, own_skill, resources
from windlass.tools.skills import catalog_of

_MADE = "Made from the program's own data; do not edit."


def hooks_page() -> str:
    rows = [
        f"| `{name}` | {spec.kind} | {' '.join(spec.fields)} | {' '.join(spec.mutable) or '-'} | {spec.fact} |"
        for name, spec in HOOKS.items()
    ]
    head = "| hook | kind | fields | may be changed | the event with the same fact |\n|---|---|---|---|---|"
    kinds = (
        "A `gate` that fails blocks the call; a `transform` that fails keeps the original; a `before` that fails ends "
        "the run; a `watch` that fails is logged."
    )
    return "\n".join([f"# Hooks\n\n{_MADE}\n\n{kinds}\n\n{head}", *rows]) + "\n"


def events_page() -> str:
    common = ", ".join([f"`{name}`" for name in Event.__struct_fields__])
    out = [f"# Events\n\n{_MADE}\n\nEvery event has {common}. A * marks those that a session keeps.\n"]
    for kind, event in KINDS.items():
        fields = [name for name in event.__struct_fields__ if name not in Event.__struct_fields__]
        first = " ".join((inspect.getdoc(event) or "").split("\n\n")[0].split())
        kept = " *" if event in DURABLE else ""
        out.append(f"- `{kind}`{kept} ({event.__name__}: {', '.join(fields)}): {first}")
    return "\n".join(out) + "\n"


def tools_page() -> str:
    out = [f"# Tools\n\n{_MADE}\n"]
    for name in registry.BUILTIN["tools"]:
        spec = registry.resolve("tools", name).spec
        needed = spec.input_schema.get("required", [])
        args = [key if key in needed else f"{key}?" for key in spec.input_schema.get("properties", {})]
        out.append(f"- `{name}({', '.join(args)})`: {spec.description.strip().splitlines()[0]}")
    out.append("\n## Sets\n")
    for name in registry.BUILTIN["toolsets"]:
        members = ", ".join([tool.spec.name for tool in registry.resolve("toolsets", name)])
        out.append(f"- `{name}`: {members or 'no tools'}")
    return "\n".join(out) + "\n"


def cli_page() -> str:
    rows = [f"- `windlass {name}`: {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join([f"# The command line\n\n{_MADE}\n", *rows]) + "\n"


def pages() -> dict[Path, str]:
    folder = OWN / "windlass" / "references"
    made = {"hooks": hooks_page, "events": events_page, "tools": tools_page, "cli": cli_page}
    return {folder / f"{name}.md": page() for name, page in made.items()}


def test_the_pages_of_windlass_own_skill_are_those_of_this_version() -> None:
    stale = [path.name for path, text in pages().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run: python -m tests.tools.test_skills_own"


def test_windlass_own_skill_is_valid_and_names_its_pages() -> None:
    assert check_folder(OWN / "windlass") == []
    skill = own_skill()
    assert skill.source == "windlass"
    assert resources(skill) == sorted([f"references/{path.name}" for path in pages()])
    assert all(page in skill.body for page in resources(skill))
    # What it costs where it is offered: the reason why it is an option.
    assert len(catalog_of([skill]).encode()) < 400


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
