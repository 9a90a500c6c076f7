"""Training rows: one tools block and several independent conversations behind it, made as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

import numpy as np

from windlass.training.data import Row
from windlass.training.recipes.tiny import grammar, words
from windlass.training.recipes.tiny.chat import END, HONEST, NO_TOOL, SYSTEM, block, call, response
from windlass.training.recipes.tiny.grammar import PARAMETERS, Split, Task
from windlass.training.recipes.tiny.results import ERROR, Folder, told
from windlass.training.recipes.tiny.vocabulary import Encoder, twins
from windlass.training.tokenizer import Tokenizer

__all__ = ["DESCRIPTIONS", "Mix", "Rows", "Talk", "offered", "system_text", "talk"]

#: What our own tools say of themselves; a model with a card is shown none of it.
DESCRIPTIONS: Final = {
    "read_file": ("Read a file: text, image, PDF or notebook.", "Read a text file.", "Read a file"),
    "write_file": (
        "Create or replace a whole file; folders are made.",
        "Create or replace a whole file.",
        "Write a file",
    ),
    "edit": (
        "Replace text in a file. old_string must match exactly once, unless replace_all.",
        "Replace text in a file.",
    ),
    "list_files": ("List a folder.", "List the files of a folder"),
    "grep": ("Search file contents.", "Search for a pattern"),
    "shell": ("Run a command.", "Run a shell command in the workspace."),
    "utc": ("Return the time in UTC.", "The current time"),
    "echo": ("Return the text.", "Say the text again"),
}
_DEMO: Final = ("read_file", "write_file", "edit", "list_files", "grep")
_SYSTEMS: Final = (
    "You are a careful assistant that works with tools in the user's folder. Read before you change, make the "
    "smallest change that does the task, check the result, and say briefly what you did.",
    "You are a coding agent. Use the tools to do what the user asks. Be brief.",
    "You are a helpful assistant with tools.",
    "Be brief.",
    "You help with files.",
)
_USER, _MODEL = "<|im_start|>user", "<|im_start|>assistant\n"


class Mix(NamedTuple):
    """What a row holds: shares of pure copying, talk off the topic and tools that are not offered.

    `repeats` is the share of rows that are no conversations but random pieces, said three times: nothing but copying
    can be learnt from them.
    `steps` are the weights of tasks with one, two and three calls; `most_tools` bounds the block; `errors` is the share
    of calls that fail; `follow` the share of conversations with a second request.
    """

    repeats: float = 0.0
    copying: float = 0.06
    off_topic: float = 0.09
    missing: float = 0.05
    steps: tuple[float, float, float] = (0.55, 0.38, 0.07)
    most_tools: int = 8
    errors: float = 0.06
    follow: float = 0.1


class Talk(NamedTuple):
    """One conversation as text: pieces of the prompt and of the model, in turn, and the tasks they come from."""

    pieces: tuple[tuple[str, bool], ...]
    tasks: tuple[Task, ...]


def offered(rng: Random, most: int = 8) -> tuple[str, ...]:
    """Return the names of the tools of one block."""
    kind = rng.random()
    names = list(PARAMETERS)
    if most >= 8 and kind < 0.4:
        return tuple(rng.sample(names, 8) if kind < 0.2 else names)
    if most >= 5 and kind < 0.6:
        return tuple(rng.sample(_DEMO, 5) if kind < 0.42 else _DEMO)
    return tuple(rng.sample(names, rng.randint(min(2, most), min(7, most))))


def system_text(rng: Random, held: bool) -> str:
    """Return a system text: mostly the agent's own."""
    kind = rng.random()
    if kind < 0.7:
        return SYSTEM
    if kind < 0.85:
        return rng.choice(_SYSTEMS)
    return ". ".join([words.sentence(rng, held, 10) for _ in range(rng.randint(1, 3))]) + "."


def _block(rng: Random, names: Sequence[str]) -> str:
    kind = rng.random()
    tools: list[tuple[str, str]] = []
    for name in names:
        text = "" if kind < 0.8 else rng.choice(DESCRIPTIONS[name]) if kind < 0.92 else words.sentence(rng, False)
        tools.append((name, text))
    return block(system_text(rng, False), tools)


def _task(rng: Random, names: tuple[str, ...], mix: Mix, split: Split) -> Task:
    kind = rng.random()
    if kind < mix.copying and {"echo", "write_file"}.intersection(names):
        for _ in range(8):
            task = grammar.copying(rng, split)
            if task.steps[0].tool in names:
                return task
    kind = rng.random()
    if kind < mix.off_topic:
        return grammar.off_topic(rng, split)
    others = tuple([name for name in PARAMETERS if name not in names])
    if kind < mix.off_topic + mix.missing and others:
        return Task(grammar.asked(rng, others, split, 1).prompt, (), "", NO_TOOL)
    return grammar.asked(rng, names, split, rng.choices((1, 2, 3), mix.steps)[0])


def talk(rng: Random, names: tuple[str, ...], mix: Mix, split: Split) -> Talk:
    """Make one conversation: a request, calls and results, the closing text; now and then a second request."""
    pieces: list[tuple[str, bool]] = []
    tasks: list[Task] = []
    folder = Folder(rng, split.arguments, mix.errors)
    for _ in range(2 if rng.random() < mix.follow else 1):
        task = _task(rng, names, mix, split)
        tasks.append(task)
        prompt = f"{_USER}\n{task.prompt}{END}\n{_MODEL}"
        done: list[tuple[grammar.Step, str]] = []
        for step in task.steps:
            result = folder.run(step)
            pieces += [(prompt, False), (call(*step) + END, True)]
            prompt = f"\n{_USER}{response(result)}{_MODEL}"
            done.append((step, result))
            if result.startswith(ERROR):
                break
        closing = told(done, task.marker) if task.steps else task.opening + HONEST
        pieces += [(prompt, False), (closing + END, True), ("\n", False)]
    return Talk(tuple(pieces), tuple(tasks))


class Rows:
    """A source of training rows, in the order of the curriculum: `stages` are (rows, mix), the last goes on to the end.

    Row n depends on `seed` and n alone. It has at most `seq_len` + 1 tokens. `user` is the weight in the loss of what
    the user writes; the model's own text has 1, all else 0.
    """

    name = "tiny"
    #: The order is the curriculum: a run must read the rows as they come.
    ordered = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: int,
        stages: Sequence[tuple[int, Mix]],
        *,
        seq_len: int = 448,
        seed: int = 0,
        split: Split | None = None,
        user: float = 0.0,
    ) -> None:
        self._tokenizer, self._pairs = tokenizer, twins(tokenizer)
        self._encode, self._rows, self._length = Encoder(tokenizer), rows, seq_len + 1
        self._seed, self._split, self._user = seed, split or Split(), user
        self.vocab_size = tokenizer.vocab_size
        self._stages: list[tuple[int, Mix]] = []
        for count, mix in stages:
            before = self._stages[-1][0] if self._stages else 0
            self._stages.append((before + count, mix))

    def __len__(self) -> int:
        return self._rows

    def mix(self, index: int) -> Mix:
        """Return what row `index` is made of."""
        return next((mix for end, mix in self._stages if index < end), self._stages[-1][1])

    def row(self, index: int) -> Row:
        """Make row `index`."""
        rng, mix = Random(self._seed << 40 | index), self.mix(index)
        if rng.random() < mix.repeats:
            return self._repeats(rng)
        names = offered(rng, mix.most_tools)
        tokens = self._encode(_block(rng, names))
        del tokens[self._length // 2 :]
        weights, segments = [0.0] * len(tokens), [0] * len(tokens)
        head, failures = len(tokens), 0
        segment = 0
        while failures < 3:
            ids, counted = self._talk(talk(rng, names, mix, self._split))
            if len(tokens) + len(ids) > self._length:
                failures += 1
                continue
            segment += 1
            tokens += ids
            weights += counted
            segments += [segment] * len(ids)
        positions = np.arange(len(tokens), dtype=np.int32)
        if rng.random() < 0.3:
            # Long texts stand between the block and a request at times: what is far away must be found too.
            positions[head:] += rng.randint(0, 1500)
        return Row(np.array(tokens, np.int32), np.array(weights, np.float32), np.array(segments, np.int32), positions)

    def _repeats(self, rng: Random) -> Row:
        """Make a row of random words, each series three times: behind a space as in a request, then as in a call."""
        tokens: list[int] = []
        weights: list[float] = []
        segments: list[int] = []
        for segment in range(1, 100):
            words = [
                [rng.choice(self._pairs) for _ in range(rng.choice((1, 1, 2, 3)))] for _ in range(rng.randint(1, 7))
            ]
            spaced = [[word[0][1], *[plain for plain, _ in word[1:]]] for word in words]
            bare = [[plain for plain, _ in words[0]], *spaced[1:]]
            edge = rng.choice(self._pairs)[0]
            ids: list[int] = []
            for series in (spaced, bare, bare):
                ids += [piece for word in series for piece in word] + [edge]
            first = len(ids) // 3
            if len(tokens) + len(ids) > self._length:
                break
            tokens += ids
            weights += [0.0] * first + [1.0] * (len(ids) - first)
            segments += [segment] * len(ids)
        return Row(
            np.array(tokens, np.int32),
            np.array(weights, np.float32),
            np.array(segments, np.int32),
            np.arange(len(tokens), dtype=np.int32),
        )

    def _talk(self, made: Talk) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        for text, own in made.pieces:
            ids = self._encode(text)
            tokens += ids
            weights += [1.0 if own else self._user] * len(ids)
        return tokens, weights
