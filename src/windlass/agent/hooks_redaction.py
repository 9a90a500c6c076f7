"""Secrets in what tools say, taken out before a model, a session's file or a screen sees them.

Known shapes of keys, and the keys of the configuration. Every pattern takes time linear in the text: it starts at a
boundary, and its repeats are possessive.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from windlass.agent.builtin_hooks import Ranked
from windlass.agent.hooks import Handler, HookContext
from windlass.core.config import Config
from windlass.core.messages import Text, Uri
from windlass.core.settings import PROVIDERS, SAME_ACCOUNT
from windlass.core.text import strip_escapes

__all__ = ["KINDS", "Redactor", "redaction_hooks"]


class Kind(Struct, frozen=True):
    """A kind of secret: texts of which one must occur, and a pattern whose last group (else all of it) is the secret.

    Without `near` the pattern is always tried.
    """

    name: str
    near: tuple[str, ...]
    pattern: re.Pattern[str]


def _kind(name: str, near: str, pattern: str, flags: int = 0) -> Kind:
    return Kind(name, tuple(near.split()), re.compile(pattern, flags))


_ANY_CASE = re.IGNORECASE
_WORD = r"[A-Za-z0-9_-]"
#: The start of a word, also behind `\\n` in JSON text and `%3D` in a URL. Neither can stand in a key, so no key is
#: looked at from two starts.
_START = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
#: Sources: the vendors' pages on keys, and github.com/gitleaks/gitleaks (config/gitleaks.toml), July 2026.
KINDS: tuple[Kind, ...] = (
    _kind("api-key", "sk-", rf"{_START}(?:c?sk)-(?=[A-Za-z_-]*+[0-9]){_WORD}{{20,}}+"),
    _kind("anthropic", "sk-ant-", rf"{_START}sk-ant-{_WORD}{{8,}}+"),
    _kind("github", "ghp_ gho_ ghu_ ghs_ ghr_", rf"{_START}gh[pousr]_[A-Za-z0-9]{{30,}}+"),
    _kind("github", "github_pat_", rf"{_START}github_pat_[A-Za-z0-9_]{{22,}}+"),
    _kind("gitlab", "glpat-", rf"{_START}glpat-{_WORD}{{20,}}+"),
    _kind("aws", "AKIA ASIA", r"(?<![A-Za-z0-9])A[KS]IA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _kind("slack", "xox xapp-", rf"{_START}(?:xox[abceoprs]|xapp)-[A-Za-z0-9-]{{10,}}+"),
    _kind("slack", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,}+)"),
    _kind("google", "AIza", rf"{_START}AIza{_WORD}{{35}}"),
    _kind("google", "ya29. GOCSPX-", rf"{_START}(?:ya29\.|GOCSPX-){_WORD}{{20,}}+"),
    _kind("stripe", "_live_ _test_ whsec_", rf"{_START}(?:[srp]k_(?:live|test)_|whsec_)[A-Za-z0-9]{{16,}}+"),
    _kind("huggingface", "hf_", rf"{_START}hf_[A-Za-z0-9]{{30,}}+"),
    _kind("groq", "gsk_", rf"{_START}gsk_[A-Za-z0-9]{{20,}}+"),
    _kind("xai", "xai-", rf"{_START}xai-[A-Za-z0-9]{{20,}}+"),
    _kind("perplexity", "pplx-", rf"{_START}pplx-[A-Za-z0-9]{{20,}}+"),
    _kind("nvidia", "nvapi-", rf"{_START}nvapi-{_WORD}{{20,}}+"),
    _kind("replicate", "r8_", rf"{_START}r8_[A-Za-z0-9]{{30,}}+"),
    _kind("npm", "npm_", rf"{_START}npm_[A-Za-z0-9]{{36}}"),
    _kind("pypi", "pypi-", rf"{_START}pypi-{_WORD}{{50,}}+"),
    _kind("sendgrid", "SG.", rf"{_START}SG\.{_WORD}{{16,}}+\.{_WORD}{{16,}}+"),
    _kind("digitalocean", "do", rf"{_START}do[opr]_v1_[a-f0-9]{{64}}"),
    _kind("databricks", "dapi", rf"{_START}dapi[a-f0-9]{{32}}"),
    _kind("telegram", ":AA", rf"(?<![0-9])[0-9]{{8,10}}:AA{_WORD}{{33}}"),
    _kind("age", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    _kind("jwt", "eyJ", rf"{_START}eyJ{_WORD}{{8,}}+\.eyJ{_WORD}{{4,}}+\.{_WORD}*+"),
    _kind(
        "bearer", "",
        r"(?<![a-z])authorization[\"']?\s*+[:=]\s*+[\"']?(?:(?:bearer|basic|token)\s++)?([a-z0-9._~+/=-]{8,}+)",
        _ANY_CASE,
    ),
    _kind("bearer", "", r"(?<![a-z])bearer\s++([a-z0-9._~+/=-]{20,}+)", _ANY_CASE),
    _kind(
        "api-key", "",
        r"(?<![a-z])(?:x-)?(?:goog-)?api[-_]?key[\"']?\s*+[:=]\s*+[\"']?([^\s\"'\[\],;&<>]{16,}+)",
        _ANY_CASE,
    ),
    _kind("password", "://", r"(?<=://)[^\s/:@\[\]]{0,200}+:([^\s/@\[\]]{1,200}+)@"),
)  # fmt: skip
_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END [A-Z0-9 ]{0,80}+-----")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\[nr])*+")
_DENSE = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{24,200}+(?![A-Za-z0-9+/_=-])")
#: Bits of a character from which on a long word is taken for random; hexadecimal digits have four at most.
_BITS = 4.2
_SHORTEST = 8
_SECRET_FIELDS = ("key_id", "access_key", "token")


class Redactor:
    """Takes secrets out of texts: `redact(text)`; `counts` says how many of each kind it took.

    `values` are secrets by themselves (at least 8 characters), found as they are and percent-encoded. `config` adds
    the keys of its providers. `entropy` also takes out long words that look random: it finds unknown kinds, and takes
    what is no secret with them. `kinds` replaces the table of known shapes.
    """

    def __init__(
        self,
        *,
        config: Config | None = None,
        values: Iterable[str] = (),
        entropy: bool = False,
        kinds: Iterable[Kind] = KINDS,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._kinds, self._entropy = tuple(kinds), entropy
        known = {value for value in (*values, *_configured(config)) if len(value) >= _SHORTEST}
        forms = sorted({form for value in known for form in (value, quote(value, safe=""))}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, forms))) if forms else None

    def redact(self, text: str) -> str:
        """Return the text with `[redacted:KIND]` in place of each secret.

        Terminal commands, which could stand within or right before a secret, are taken out too.
        """
        if "\x1b" in text or "\x9b" in text:
            text = strip_escapes(text)
        if self._known is not None:
            text = self._known.sub(self._taken("key"), text)
        if "-----BEGIN " in text:
            text = self._blocks(text)
        for kind in self._kinds:
            if not kind.near or any(word in text for word in kind.near):
                text = kind.pattern.sub(self._taken(kind.name), text)
        if self._entropy:
            text = _DENSE.sub(self._random, text)
        return text

    def _taken(self, name: str) -> Callable[[re.Match[str]], str]:
        def put(match: re.Match[str]) -> str:
            self.counts[name] += 1
            if not match.re.groups:
                return f"[redacted:{name}]"
            start, end = match.start(), match.end()
            return (
                f"{match[0][: match.start(1) - start]}[redacted:{name}]{match[0][match.end(1) - start : end - start]}"
            )

        return put

    def _blocks(self, text: str) -> str:
        """Take out private keys: to their end line, or what looks like one where that is missing."""
        out: list[str] = []
        at, end = 0, _END.search(text)
        while (begin := _BEGIN.search(text, at)) is not None:
            while end is not None and end.start() < begin.end():
                end = _END.search(text, end.end())
            body = _BASE64.match(text, begin.end())
            stop = body.end() if body else begin.end()
            if end is not None and end.start() - begin.end() <= 65536 and "-----BEGIN" not in text[stop : end.start()]:
                stop = end.end()
            out += (text[at : begin.start()], "[redacted:private-key]")
            self.counts["private-key"] += 1
            at = stop
        return "".join([*out, text[at:]])

    def _random(self, match: re.Match[str]) -> str:
        word = match[0]
        count = Counter(word)
        bits = -sum(n / len(word) * math.log2(n / len(word)) for n in count.values())
        mixed = any(c.isdigit() for c in word) and any(c.islower() for c in word) and any(c.isupper() for c in word)
        if bits < _BITS or not mixed:
            return word
        self.counts["random"] += 1
        return "[redacted:random]"


def _configured(config: Config | None) -> Iterable[str]:
    if config is None:
        return
    for name in (*PROVIDERS, *SAME_ACCOUNT, *config.user_providers):
        found = config.provider_settings(name)
        if found.api_key:
            yield found.api_key
        yield from [value for field, value in found.extra.items() if field.endswith(_SECRET_FIELDS)]


def redaction_hooks(
    config: Config | None = None,
    *,
    values: Iterable[str] = (),
    entropy: bool = False,
    redactor: Redactor | None = None,
) -> Mapping[str, Handler]:
    """Make hooks that take secrets out of what tools answer, in its texts and addresses; see `Redactor`.

    They come after other transforms. What a tool reports while it runs (`tool.progress`) and what it was called with
    are not answers, and stay as they are; so do pictures and documents.
    """
    taker = redactor or Redactor(config=config, values=values, entropy=entropy)

    def redact(ctx: HookContext) -> None:
        ctx.result = _redacted(ctx.result, taker)

    return {"tool:transform": Ranked(redact, 900)}


def _redacted(result: Any, taker: Redactor) -> Any:
    if isinstance(result, str):
        return taker.redact(result)
    if not isinstance(result, tuple):
        return result
    parts: list[Any] = []
    for part in result:
        if isinstance(part, Text):
            part = replace(part, content=taker.redact(part.content))
        elif isinstance(part, Uri):
            part = replace(part, uri=taker.redact(part.uri))
        parts.append(part)
    return tuple(parts)
