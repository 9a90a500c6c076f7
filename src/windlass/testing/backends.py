"""Check that an object is a model backend (`windlass.local.backend.Backend`), by what it does.

Use it in a test of your own backend::

    def test_my_backend() -> None:
        check_backend(lambda: MyBackend("model.gguf"), Generation)

The model is really run, some twenty short answers long. `Generation` is passed because this room knows no other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["BACKEND_CHECKS", "BackendUnderTest", "Collected", "check_backend"]

_PATIENCE = 60.0
_LONG = 200


class Collected:
    """A sink that keeps what it is given; `enough` is how many items it takes before it says stop, None: all."""

    def __init__(self, enough: int | None = None) -> None:
        self.items: list[Any] = []
        self.ends: list[Any] = []
        self._enough = enough
        self._done = threading.Event()
        self.begun = threading.Event()

    def put(self, item: Any, /) -> bool:
        """Take one item."""
        _expect(not self.ends, "an item came after the end")
        self.items.append(item)
        if hasattr(item, "token_id"):
            self.begun.set()
        return self._enough is not None and len(self.items) >= self._enough

    def finish(self, end: Any, /) -> None:
        """Take the end."""
        self.ends.append(end)
        self.begun.set()
        self._done.set()

    def wait(self) -> Any:
        """Return the end, once it is there."""
        _expect(self._done.wait(_PATIENCE), f"no end came within {_PATIENCE:g} s")
        return self.ends[0]

    @property
    def pieces(self) -> list[Any]:
        """The tokens."""
        return [item for item in self.items if hasattr(item, "token_id")]

    @property
    def text(self) -> str:
        """Their text."""
        return "".join([piece.text for piece in self.pieces])


class BackendUnderTest:
    """What a check gets: a loaded backend, how to ask it, and what to leave out."""

    def __init__(self, backend: Any, generation: Callable[..., Any], prompt: str, embeds: bool) -> None:
        self.backend, self.generation, self.prompt, self.embeds = backend, generation, prompt, embeds

    def ask(self, **options: Any) -> Any:
        """Return a greedy request of eight tokens, changed by `options`."""
        usual = {"prompt": self.prompt, "max_tokens": 8, "temperature": 0.0, "repetition_penalty": 1.0}
        return self.generation(**{**usual, **options})

    def run(self, enough: int | None = None, **options: Any) -> Collected:
        """Return a whole answer."""
        sink = Collected(enough)
        self.backend.start(self.ask(**options), sink)
        sink.wait()
        return sink


def check_backend(
    make: Callable[[], Any],
    generation: Callable[..., Any],
    *,
    prompt: str = "Once upon a time",
    embeds: bool = True,
) -> list[str]:
    """Run every check on one backend from `make`, close it, and return the checks' names.

    `generation` is `windlass.local.backend.Generation`. `embeds` False leaves embeddings out. The model must write at
    least three tokens after `prompt`. Blocking. Raises AssertionError naming the check and what it saw.
    """
    backend = make()
    under = BackendUnderTest(backend, generation, prompt, embeds)
    try:
        backend.load()
        for name, check in BACKEND_CHECKS.items():
            try:
                check(under)
            except Exception as error:
                raise AssertionError(f"check_backend, {name}: {str(error) or repr(error)}") from error
    finally:
        backend.close()
        backend.close()  # twice does no harm
    return list(BACKEND_CHECKS)


def _info(under: BackendUnderTest) -> None:
    info = under.backend.info
    _expect(bool(info.name), "info.name is empty")
    _expect(info.vocabulary > 0 and info.context > 0, "info says no vocabulary or context")
    _expect(isinstance(under.backend.may_wait, bool), "may_wait must be a bool")


def _order(under: BackendUnderTest) -> None:
    sink = under.run(max_tokens=6)
    _expect(len(sink.ends) == 1, f"it ended with {sink.ends}")
    reason: Any = getattr(sink.ends[0], "reason", None)
    _expect(reason in ("stop", "length"), f"it ended with {sink.ends[0]!r}, not with the reason stop or length")
    _expect(hasattr(sink.items[0], "prompt_tokens"), "the first item does not say that the prompt was read")
    _expect(sum([hasattr(item, "prompt_tokens") for item in sink.items]) == 1, "the prompt was read more than once")
    read = len(under.backend.tokenize(under.prompt, special=True, bos=True))
    _expect(sink.items[0].prompt_tokens == read, f"{sink.items[0].prompt_tokens} tokens were read, not {read}")
    places = [piece.position for piece in sink.pieces]
    _expect(places == sorted(set(places)) and places[-1] < 6, f"tokens stand at {places}")


def _greedy(under: BackendUnderTest) -> None:
    first, second = under.run(), under.run()
    _expect([p.token_id for p in first.pieces] == [p.token_id for p in second.pieces], "greedy answers differ")
    tokens = under.backend.tokenize(under.prompt, special=True, bos=True)
    by_ids = under.run(prompt=tuple(tokens))
    _expect(by_ids.text == first.text, "the prompt's tokens are answered otherwise than its text")


def _seed(under: BackendUnderTest) -> None:
    texts = {under.run(temperature=1.0, top_k=0, top_p=1.0, seed=seed).text for seed in (7, 7)}
    _expect(len(texts) == 1, "the same seed gives another answer")


def _limit(under: BackendUnderTest) -> None:
    sink = under.run(max_tokens=1)
    _expect(len(sink.pieces) <= 1, f"{len(sink.pieces)} tokens came instead of one")


def _logprobs(under: BackendUnderTest) -> None:
    tokens = under.backend.tokenize(under.prompt, special=True, bos=True)
    found = under.backend.logprobs(tokens)
    _expect(len(found) == under.backend.info.vocabulary, f"{len(found)} numbers for the vocabulary")
    total = math.fsum([math.exp(value) for value in found])
    _expect(abs(total - 1) < 1e-3, f"the probabilities add up to {total}")
    best = max(range(len(found)), key=found.__getitem__)
    sink = under.run(max_tokens=1, logprobs=2)
    _expect(sink.pieces[0].token_id == best, "greedy does not take the likeliest token")
    _expect([token for token, _ in sink.pieces[0].top][:1] == [best], "logprobs do not begin with the likeliest")


def _early(under: BackendUnderTest) -> None:
    sink = under.run(enough=3, max_tokens=_LONG)
    _expect(len(sink.items) == 3, f"{len(sink.items)} items came after the third said stop")


def _stopped(under: BackendUnderTest) -> None:
    sink = Collected()
    stop = under.backend.start(under.ask(max_tokens=_LONG), sink)
    _expect(sink.begun.wait(_PATIENCE), "no token came")
    threading.Thread(target=stop).start()
    sink.wait()
    stop()  # once more does no harm
    _expect(len(sink.ends) == 1, f"{len(sink.ends)} ends came")


def _too_long(under: BackendUnderTest) -> None:
    token = under.backend.tokenize(under.prompt, special=True)[0]
    sink = Collected()
    try:
        under.backend.start(under.ask(prompt=(token,) * (under.backend.info.context + 8)), sink)
    except Exception as error:
        sink.finish(error)
    code = getattr(sink.wait(), "code", None)
    _expect(code == "context_length_exceeded", f"a prompt that does not fit ends with {sink.ends[0]!r}")


def _no_token(under: BackendUnderTest) -> None:
    sink = Collected()
    try:
        under.backend.start(under.ask(prompt=(under.backend.info.vocabulary + 1,)), sink)
    except Exception as error:
        sink.finish(error)
    _expect(getattr(sink.wait(), "code", None) == "bad_request", f"what is no token ends with {sink.ends[0]!r}")


def _together(under: BackendUnderTest) -> None:
    sinks = [Collected() for _ in range(4)]
    for sink in sinks:
        under.backend.start(under.ask(), sink)
    for sink in sinks:
        sink.wait()
    _expect(len({sink.text for sink in sinks}) == 1, "answers that are made together differ")


def _tokens(under: BackendUnderTest) -> None:
    text = f"{under.prompt} é€😀"
    tokens = under.backend.tokenize(text)
    _expect(under.backend.detokenize(tokens).strip() == text, "the text of its tokens is another")
    known = under.backend.info.vocabulary
    _expect(all(0 <= token < known for token in tokens), "a token is outside the vocabulary")


def _vectors(under: BackendUnderTest) -> None:
    if not under.embeds:
        return
    found = under.backend.embed([under.prompt, "something else", under.prompt])
    _expect(len(found.vectors) == 3, f"{len(found.vectors)} vectors for three texts")
    lengths = [math.hypot(*vector) for vector in found.vectors]
    _expect(all(abs(length - 1) < 1e-3 for length in lengths), f"vectors have the lengths {lengths}")
    same = sum([a * b for a, b in zip(found.vectors[0], found.vectors[2], strict=True)])
    _expect(same > 0.999, f"the same text has another vector (cosine {same})")
    _expect(found.vectors[0] != found.vectors[1], "different texts have the same vector")
    _expect(found.usage.input_tokens > 0, "no tokens were counted")


BACKEND_CHECKS: dict[str, Callable[[BackendUnderTest], None]] = {
    "says what it runs": _info,
    "tells the prompt, tokens in order, then one end": _order,
    "is greedy at temperature 0, for text and token ids alike": _greedy,
    "gives the same answer for the same seed": _seed,
    "keeps to the number of tokens": _limit,
    "tells log-probabilities over the whole vocabulary": _logprobs,
    "stops when the sink says so": _early,
    "stops from another thread": _stopped,
    "refuses a prompt that does not fit": _too_long,
    "refuses what is no token": _no_token,
    "answers several at once": _together,
    "turns text into tokens and back": _tokens,
    "gives vectors of length 1": _vectors,
}


def _expect(right: bool, problem: str) -> None:
    if not right:
        raise AssertionError(problem)
