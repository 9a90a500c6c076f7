"""Make a task: what a user writes, in one of very many ways, and the calls that are right.

Clauses are expanded from the patterns of `phrases`. An expansion without its arguments ("skeleton") belongs either to
the training text or to the held-out sets, by a checksum: about one in eight is never seen in training, while its words
and its frame occur there in other company.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import product
from random import Random
from typing import Final, NamedTuple
from zlib import crc32

from windlass.training.recipes.tiny import words
from windlass.training.recipes.tiny.phrases import AFTER, CLAUSES, CONNECTORS, ENDINGS, FORE, HIND, OFF, POLITE

__all__ = ["PARAMETERS", "Split", "Step", "Task", "asked", "copying", "off_topic", "skeletons"]

#: The default tool family and its string parameters, in order.
PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "read_file": ("path",),
    "write_file": ("path", "content"),
    "edit": ("path", "old_string", "new_string"),
    "list_files": ("path",),
    "grep": ("pattern", "path"),
    "shell": ("command",),
    "utc": (),
    "echo": ("text",),
}
_SLOTS: Final = {"P": "path", "D": "path", "G": "path", "X": "", "A": "old_string", "B": "new_string", "C": "command"}
_TEXT: Final = {"write_file": "content", "grep": "pattern", "echo": "text"}
_PART: Final = re.compile(r"\[([^]]*)\]|([^[]+)")
_SLOT: Final = re.compile(r"\{(\w)\}")
_BARE: Final = re.compile(r"[\w./~-]*[\w/]")
_WORDS: Final = re.compile(r"[A-Za-z0-9]+( [A-Za-z0-9]+)*")
_STOP: Final = frozenset(
    str.split("a an the my our this that is are was has of on in at by from for with and or but not to into then")
)
_QUOTES: Final = ('""', '""', '""', "''", "''", "``", "“”", "‘’", "«»")


class Split(NamedTuple):
    """Which half the phrases and the arguments are drawn from; in training neither is held out."""

    phrases: bool = False
    arguments: bool = False


class Step(NamedTuple):
    """One right call."""

    tool: str
    arguments: dict[str, str]


class Task(NamedTuple):
    """What the user writes, the calls that answer it (none: the honest sentence), the last line asked for.

    `opening` stands before the honest sentence.
    """

    prompt: str
    steps: tuple[Step, ...]
    marker: str = ""
    opening: str = ""


def _expand(pattern: str) -> Iterable[str]:
    parts = [(found[1].split("|") if found[1] is not None else [found[2]]) for found in _PART.finditer(pattern)]
    for choice in product(*parts):
        yield re.sub(r"  +", " ", "".join(choice)).strip()


def _is_held(skeleton: str) -> bool:
    return crc32(re.sub(r"[^a-z{}]", "", skeleton.lower()).encode()) % 8 == 1


@cache
def _of(pattern: str, held: bool) -> tuple[str, ...]:
    return tuple([text for text in dict.fromkeys(_expand(pattern)) if _is_held(text.lstrip("~'")) == held])


@cache
def skeletons(tool: str, held: bool, after: bool = False) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Return a tool's clauses of one split, by pattern, each with its weight: larger patterns come more often."""
    patterns = (AFTER if after else CLAUSES)[tool]
    return tuple([(made, len(made) ** 0.4) for pattern in patterns if (made := _of(pattern, held))])


def _skeleton(rng: Random, tool: str, held: bool, after: bool = False) -> str:
    groups = skeletons(tool, held, after)
    (group,) = rng.choices([made for made, _ in groups], [weight for _, weight in groups])
    return rng.choice(group)


def _pick(rng: Random, patterns: tuple[str, ...], held: bool) -> str:
    while not (found := _of(rng.choice(patterns), held)):
        pass
    return rng.choice(found)


def _quoted(rng: Random, text: str, bare: float, *, loose: bool) -> str:
    """Write an argument as people do: bare where it can be told apart, else in quotes that do not occur in it."""
    if rng.random() < bare and (
        _BARE.fullmatch(text) or (loose and _WORDS.fullmatch(text) and not _STOP.intersection(text.lower().split()))
    ):
        return text
    usable = [quotes for quotes in _QUOTES if quotes[0] not in text and quotes[1] not in text]
    left, right = rng.choice(usable)
    return f"{left}{text}{right}"


def _argument(rng: Random, slot: str, tool: str, held: bool) -> str:
    if slot == "P":
        return words.file_path(rng, held)
    if slot == "D":
        return words.folder(rng, held)
    if slot == "G":
        return words.file_path(rng, held) if rng.random() < 0.6 else words.folder(rng, held)
    if slot == "C":
        return words.command(rng, held)
    return words.content(rng, held) if tool in ("write_file", "echo") else words.needle(rng, held)


def _clause(rng: Random, tool: str, split: Split, before: Step | None = None) -> tuple[str, Step]:
    """Return a clause and its call; with `before` it speaks of that call's file as "it"."""
    skeleton = _skeleton(rng, tool, split.phrases, before is not None)
    strict, order = skeleton.startswith("'"), not skeleton.lstrip("'").startswith("~")
    skeleton = _typo(rng, skeleton.lstrip("~'"))
    slots: list[str] = _SLOT.findall(skeleton)
    values: dict[str, str] = {}
    for slot in slots:
        values[slot] = _argument(rng, slot, tool, split.arguments)
        while slot == "B" and values["A"] == values["B"] if "A" in values else False:
            values[slot] = _argument(rng, slot, tool, split.arguments)

    def fill(found: re.Match[str]) -> str:
        slot = found[1]
        if slot in "PDG":
            return _quoted(rng, values[slot], 0.82, loose=False)
        if slot == "C" and not strict and found.end() == len(skeleton):
            return values[slot] if rng.random() < 0.6 else _quoted(rng, values[slot], 0.0, loose=False)
        return _quoted(rng, values[slot], 0.0 if strict or slot == "C" else 0.4, loose=slot == "X")

    text = _SLOT.sub(fill, skeleton)
    named = {(_SLOTS[slot] or _TEXT[tool]): value for slot, value in values.items()}
    if "path" in PARAMETERS[tool] and "path" not in named:
        known = before is not None and tool != "list_files"
        named["path"] = before.arguments["path"] if known and before else "."
    if order and before is None and rng.random() < 0.33:
        text = rng.choice(POLITE) + text
    return text, Step(tool, {key: named[key] for key in PARAMETERS[tool]})


def _typo(rng: Random, skeleton: str) -> str:
    """Now and then drop or swap letters of one word that is no argument."""
    if rng.random() > 0.03:
        return skeleton
    spots = [found.start() for found in re.finditer(r"(?<![{\w])\w{4,}", skeleton)]
    if not spots:
        return skeleton
    at = rng.choice(spots) + rng.randint(1, 2)
    if rng.random() < 0.5:
        return skeleton[:at] + skeleton[at + 1 :]
    return skeleton[:at] + skeleton[at + 1] + skeleton[at] + skeleton[at + 2 :]


def _finish(rng: Random, text: str, *, question: bool, hind: bool) -> str:
    """Capital letter, greeting before it, a word after it, full stop."""
    text = text.strip()
    if not question and hind and rng.random() < 0.1:
        text += rng.choice(HIND)
    if rng.random() < 0.1:
        text = rng.choice(FORE) + text
    kind = rng.random()
    # The first word may be a name, which is not to be changed.
    if kind < 0.5 and text[:1].islower() and re.match(r"[a-z']+[ ,:]", text):
        text = text[0].upper() + text[1:]
    if text[-1] not in ".?!" and rng.random() < 0.4:
        text += "?" if question else rng.choice("....!")
    return text


_FIRST: Final = ("write_file", "edit", "read_file", "list_files", "grep", "shell", "utc", "echo")
_FOLLOW: Final[dict[str, tuple[str, ...]]] = {
    "write_file": ("read_file", "read_file", "read_file", "read_file", "list_files", "list_files", "edit", "grep"),
    "edit": ("read_file", "read_file", "read_file", "edit", "list_files", "grep"),
    "read_file": ("edit", "edit", "grep"),
    "list_files": (),
    "grep": (),
    "shell": ("list_files",),
    "utc": (),
    "echo": (),
}


def asked(rng: Random, tools: tuple[str, ...], split: Split, steps: int) -> Task:
    """Return a task of so many steps for the tools offered."""
    for _ in range(20):
        made = _tasked(rng, tools, split, steps)
        if made is not None:
            return made
    return asked(rng, tools, split, 1)


def _tasked(rng: Random, tools: tuple[str, ...], split: Split, steps: int) -> Task | None:
    weights = [3 if tool in ("write_file", "edit") and steps > 1 else 1 if tool == "utc" else 2 for tool in tools]
    (first,) = rng.choices(tools, weights)
    text, step = _clause(rng, first, split)
    done, parts = [step], [text]
    for _ in range(steps - 1):
        last = done[-1]
        follow = [tool for tool in _FOLLOW[last.tool] if tool in tools]
        known = bool(follow) and rng.random() < 0.72
        # "and then say DONE" asks for the last line, not for a call.
        own = rng.choice(follow if known else [tool for tool in tools if tool != "echo"] or ["echo"])
        if own == "echo":
            return None
        # What follows a question or an unquoted command would be taken for a part of it.
        if parts[-1].endswith("?") or (last.tool == "shell" and parts[-1].endswith(last.arguments["command"])):
            return None
        if not known and (loose := last.arguments.get(_TEXT.get(last.tool, ""), "")) and parts[-1].endswith(loose):
            return None
        text, step = _clause(rng, own, split, last if known else None)
        if step in done and own != "read_file":
            return None
        parts.append(text)
        done.append(step)
    return _joined(rng, parts, done, split)


def _joined(rng: Random, parts: list[str], done: list[Step], split: Split) -> Task:
    text = parts[0]
    for number, part in enumerate(parts[1:], 1):
        last = number == len(parts) - 1
        between = rng.choice(CONNECTORS) if last else rng.choice((", ", ", then ", "; ", ". Then ", ". ", " and then "))
        if between.endswith(". ") and part[0].islower() and not done[number].tool.startswith(part[:4]):
            part = part[0].upper() + part[1:] if re.match(r"[a-z]+ ", part) else part
        text += between + part
    last_step, question = done[-1], text.endswith("?")
    open_end = last_step.tool == "shell" and text.endswith(last_step.arguments["command"])
    marker = ""
    if not question and not open_end and rng.random() < 0.24:
        marker = words.marker(rng, split.arguments)
        ending = _pick(rng, ENDINGS, split.phrases).replace("{M}", _quoted(rng, marker, 0.75, loose=False))
        text += ("" if ending[0] in ".," else rng.choice((" ", " ", ", "))) + ending
    if open_end:
        return Task(text if rng.random() < 0.5 else text[0].upper() + text[1:], tuple(done))
    bare = bool(parts) and text.endswith(tuple([value for value in last_step.arguments.values() if value]))
    return Task(_finish(rng, text, question=question, hind=not bare and not marker), tuple(done), marker)


_HELLO: Final = (
    "[hello|hi|hey|good morning|good evening|good day|greetings|howdy|hello there|hi there|hey there|yo|hiya|"
    "good afternoon|hello again|welcome|hallo|morning|evening][|!|.| everyone| friend| tiny model| there| assistant|"
    " you|, nice to meet you|, how are you?|, how is it going?|! How are you?]",
)  # fmt: skip


def off_topic(rng: Random, split: Split) -> Task:
    """Return a greeting or a question that no tool answers."""
    if rng.random() < 0.12:
        return Task(_finish(rng, _pick(rng, _HELLO, split.phrases), question=False, hind=False), (), "", "Hello! ")
    skeleton = _typo(rng, _pick(rng, OFF, split.phrases))
    question = skeleton.endswith("?")
    text = skeleton.lstrip("~")
    text = re.sub(r"\{T\}", lambda _: words.name(rng, split.arguments).lower(), text)
    text = re.sub(r"\{N\}", lambda _: str(rng.randint(0, 999)), text)
    if not skeleton.startswith("~") and rng.random() < 0.3:
        text = rng.choice(POLITE) + text
    return Task(_finish(rng, text, question=question, hind=True), ())


def copying(rng: Random, split: Split) -> Task:
    """Return a task that is nothing but copying: a plain request with long, random words."""
    kind = rng.random()
    # Common words could be guessed, and what can be guessed is not copied.
    text = " ".join([words.strange(rng, split.arguments) for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 5, 7, 9)))])
    if kind < 0.1:
        text = words.code(rng, split.arguments)
    path = words.file_path(rng, split.arguments)
    if kind < 0.6:
        return Task(
            f"{rng.choice(('echo', 'say', 'repeat'))} {_quoted(rng, text, 0.3, loose=True)}",
            (Step("echo", {"text": text}),),
        )
    prompt = f"{rng.choice(('write', 'save', 'put'))} {_quoted(rng, text, 0.3, loose=True)} to {path}"
    return Task(prompt, (Step("write_file", {"path": path, "content": text}),))
