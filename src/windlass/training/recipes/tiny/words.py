"""What arguments and results are made of: words, names, paths, commands, sentences; all invented or common.

Every generator takes the random numbers to draw from and `held`, which tells the split: a word belongs either to the
training text or to the held-out sets, by a checksum of its letters, so that no held-out argument occurs in training.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Final
from zlib import crc32

__all__ = [
    "code",
    "command",
    "content",
    "file_path",
    "folder",
    "is_held",
    "marker",
    "name",
    "needle",
    "sentence",
    "strange",
]


def _listed(text: str) -> list[str]:
    return text.split()


_NOUNS: Final = _listed("""
apple bread milk egg cheese butter sugar salt pepper rice pasta tomato potato onion carrot lemon orange banana grape
water coffee tea juice soup salad cake pie cookie honey garden flower tree leaf river lake ocean island mountain valley
forest desert beach stone sand cloud rain snow storm wind sun moon star planet rocket engine wheel bridge road street
house door window roof wall floor table chair bed lamp clock mirror carpet curtain kitchen basement attic garage fence
cat dog horse cow sheep goat pig duck goose chicken rabbit mouse fox wolf bear tiger lion monkey eagle owl crow fish
shark whale spider bee ant frog snake turtle book page letter paper pencil ink brush paint color picture music song
drum piano guitar violin dance theater movie camera radio phone screen keyboard button cable battery signal network
server client packet socket token cache buffer stack queue array string number value index table column record field
module package library function method class object variable constant loop branch commit merge patch release version
build test deploy script shell kernel driver thread process memory disk folder archive backup report invoice budget
salary contract meeting agenda schedule calendar deadline project task ticket issue comment review draft summary
doctor nurse teacher student farmer baker driver pilot sailor soldier painter writer singer actor lawyer judge king
queen prince knight castle tower village city country border market shop store bank hotel school museum church office
mother father sister brother uncle cousin friend neighbor guest winter summer spring autumn morning evening night noon
monday tuesday friday sunday january march april june july august october london paris berlin tokyo madrid oslo cairo
red green blue yellow purple silver golden black white gray small large quick slow bright dark warm cold soft hard
""")
_GLUE: Final = _listed(
    "the a my our this that is are was has of on in at by from for with and or but not very some two"
)
_VERBS: Final = _listed("""
buy call meet visit clean fix paint sell send pay cook bake wash plant water feed walk ride drive fly swim climb draw
sing learn teach study finish start plan pack move carry lift push pull open close lock count measure compare sort
""")
#: What people and programs use so often that every split may hold it.
_SHARED: Final = _listed("""
hello world foo bar baz test done todo notes data main readme config hi ok yes no name value item list total error
""")
_STEMS: Final = _listed("""
notes todo hello test main data config readme report log draft list ideas plan index app utils setup demo example
output input result story poem letter memo diary shopping settings users items summary script page style
""")
_EXTENSIONS: Final = _listed(
    "txt txt txt txt md md py py json csv log yaml toml html js css sh ini xml ts rs go c h cfg"
)
_FOLDERS: Final = _listed(
    "src docs tests lib data build scripts notes assets config app bin tmp public images logs pkg"
)
#: Words of requests, which no invented word may be.
_TAKEN: Final = frozenset(
    _listed("time date utc clock hour day here there files file folder it ls dir you me all done")
)
_ONSETS: Final = _listed("b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gr pl pr sh sk sl sn sp st th tr qu")
_VOWELS: Final = _listed("a e i o u a e i o u ai ea ee io oa ou")
_CODAS: Final = ["", "", "", "", *_listed("n r l s t m d k p x ck ng nd rt st lt")]
_TYPES: Final = _listed("int str float bool list dict")
_TOKENS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKERS: Final = _listed("""
DONE OK FINISHED READY COMPLETE END BYE YES STOP FIN CHECK OVER PASS GOOD ALLDONE EOF Done Ok finished done ok ready
DONE DONE DONE OK Bye complete over COMPLETED SUCCESS
""")


@cache
def is_held(word: str) -> bool:
    """Tell which split a word belongs to: about one in eight is held out."""
    return crc32(word.lower().encode()) % 8 == 0


def _in_split(word: str, held: bool) -> bool:
    return is_held(word) == held and not (held and word in _COMMON)


# What training may use anywhere is no word of the held-out sets.
_COMMON: Final = frozenset((*_SHARED, *_STEMS, *_FOLDERS))
_NOUNS_OF = {held: tuple(sorted({word for word in _NOUNS if _in_split(word, held)})) for held in (False, True)}
_VERBS_OF = {held: tuple(sorted({word for word in _VERBS if _in_split(word, held)})) for held in (False, True)}


def _syllables(rng: Random, held: bool) -> str:
    """Return a made-up word of the split."""
    while True:
        parts = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
        ]
        word = "".join(parts)
        if is_held(word) == held and word not in _TAKEN:
            return word


def _letters(rng: Random, held: bool) -> str:
    """Return random letters and digits of the split."""
    alphabet = rng.choice((_TOKENS, _TOKENS[10:36], _TOKENS[:10], _TOKENS[:36]))
    while True:
        word = "".join(rng.choices(alphabet, k=rng.randint(2, 8)))
        if is_held(word) == held:
            return word


def _number(rng: Random, held: bool, most: int) -> int:
    while is_held(str(number := rng.randint(1, most))) != held:
        pass
    return number


def _shaped(rng: Random, word: str) -> str:
    """Return the word in one of the shapes that names have."""
    kind = rng.random()
    if kind < 0.72:
        return word
    return word.capitalize() if kind < 0.9 else word.upper()


def name(rng: Random, held: bool) -> str:
    """Return one word: a common one, a made-up one, or letters and digits."""
    kind = rng.random()
    if kind < 0.06 and not held:
        return _shaped(rng, rng.choice(_SHARED))
    if kind < 0.5:
        return _shaped(rng, rng.choice(_NOUNS_OF[held]))
    if kind < 0.88:
        return _shaped(rng, _syllables(rng, held))
    return _letters(rng, held)


def strange(rng: Random, held: bool) -> str:
    """Return a word that nobody has seen: what can only be copied."""
    return _letters(rng, held) if rng.random() < 0.2 else _shaped(rng, _syllables(rng, held))


def _stem(rng: Random, held: bool) -> str:
    kind = rng.random()
    if kind < 0.3 and not held:
        return rng.choice(_STEMS)
    first = name(rng, held)
    first = first if rng.random() < 0.2 else first.lower()
    if kind < 0.72:
        return first
    if kind < 0.82:
        return f"{first}{rng.choice('_-.')}{name(rng, held).lower()}"
    return (
        f"{first}{rng.choice(('', '_', '-'))}{rng.randint(0, 99)}" if kind < 0.95 else f"{first}_{_letters(rng, held)}"
    )


def folder(rng: Random, held: bool) -> str:
    """Return a folder's path of one to three parts."""
    parts = [
        rng.choice(_FOLDERS) if not held and rng.random() < 0.45 else name(rng, held).lower()
        for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3)))
    ]
    start = rng.choices(("", "./", "../", "/", "~/"), (86, 4, 3, 5, 2))[0]
    return start + "/".join(parts) + ("/" if rng.random() < 0.15 else "")


def file_path(rng: Random, held: bool) -> str:
    """Return a file's path: mostly a bare name."""
    if not held and rng.random() < 0.03:
        return rng.choice(("README.md", "Makefile", "LICENSE", "Dockerfile", ".gitignore", ".env", "package.json"))
    own = f"{_stem(rng, held)}.{rng.choice(_EXTENSIONS)}"
    if rng.random() < 0.27:
        return f"{folder(rng, held).rstrip('/')}/{own}"
    return own


def sentence(rng: Random, held: bool, most: int = 8) -> str:
    """Return a few words that look like a note."""
    words: list[str] = []
    for _ in range(rng.randint(2, most)):
        kind = rng.random()
        if kind < 0.22 and words:
            words.append(rng.choice(_GLUE))
        elif kind < 0.36:
            words.append(rng.choice(_VERBS_OF[held]))
        elif kind < 0.4:
            words.append(str(rng.randint(0, 2000)))
        else:
            words.append(name(rng, held) if rng.random() < 0.3 else rng.choice(_NOUNS_OF[held]))
    if words[-1] in _GLUE or all(word in _GLUE for word in words):
        words.append(rng.choice(_NOUNS_OF[held]))
    kind = rng.random()
    text = " ".join(words)
    if kind < 0.25:
        text = text[0].upper() + text[1:]
    if kind < 0.12:
        text += rng.choice(".!?")
    elif kind > 0.93:
        text = text.replace(" ", ", ", 1)
    return text


def code(rng: Random, held: bool) -> str:
    """Return a short piece of code or of a settings file."""
    a, b, number = name(rng, held), name(rng, held), _number(rng, held, 999)
    low, other = a.lower(), b.lower()
    return rng.choice(
        (
            f"{low} = {number}", f"{low} = {other}", f"{low}: {other}", f"{low}={other}", f"def {low}():", f"{low}()",
            f"{low}({other})", f"import {low}", f"return {low}", f"print({low})", f"{low}.{other}()", f"<{low}>",
            f"if {low}:", f"{a}.{b}", f"#{low}", f"# {low} {other}", f"- {low}", f"* {low} {other}", f"{low}[{number}]",
            f"{low} + {other}", f"{low} == {number}", f"let {low} = {number};", f"const {low} = {other};", f"@{low}",
            f"{low}_{other}", f"{low}-{other}", f"{a}{b}", f"{low}@{other}.com", f"https://{low}.com/{other}",
            f"{low}/{other}", f"${low}", f"{number}%", f"{number}.{rng.randint(0, 99)}",
            f"v{number}.{rng.randint(0, 9)}",
            f"{low}: {rng.choice(_TYPES)}", f"[{low}]", f"({low} {other})", f"{low} -> {other}", f"{low}!", f"{low}?",
            f"{{{low}}}", f"{low};", f"{low} & {other}", f"{low}|{other}", f"{low},{other},{number}", f"C:\\{low}",
        )
    )  # fmt: skip


def command(rng: Random, held: bool) -> str:
    """Return a shell command."""
    a, b, path = name(rng, held), name(rng, held).lower(), file_path(rng, held)
    place, number = folder(rng, held), _number(rng, held, 99)
    own = (
        f"ls {place}", f"cat {path}", f"echo {a}", f"echo {a} {b}", f"mkdir {place}", f"mkdir -p {place}", f"rm {path}",
        f"touch {path}", f"wc -l {path}", f"head -n {number} {path}", f"tail -n {number} {path}", f"python {path}",
        f"python3 {path}", f"git checkout {b}", f"git log -n {number}", f"git add {path}", f"cp {path} {place}",
        f"mv {path} {place}", f"cd {place}", f"cd {place} && ls", f"sort {path}", f"grep {a} {path}", f"du -sh {place}",
        f"sleep {number}", f"node {path}", f"make {b}", f"npm run {b}", f"pip install {b}", f"find {place}", f"{b}",
        f"cat {path} | wc -l", f"ls -l {place}", f"{b} --version", f"{b} --{a.lower()}", f"bash {path}", f"which {b}",
        f"git commit -m '{b}'", f"chmod +x {path}", f"{b} -v", f"cargo {b}", f"python -m {b}", f"seq {number}",
        f"date -r {path}", f"kill {number}", f"ping {b}.com", f"curl {b}.com", f"./{b}.sh", f"echo \"{a}\" > {path}",
    )  # fmt: skip
    common = """ls;ls -l;ls -la;pwd;date;whoami;uname -a;git status;git log;git diff;make;make test;df -h;ps aux;env
        uptime;hostname;pytest;npm install;npm test;python --version;cargo build;go test ./...;free -m;id;tree;ls -a"""
    if not held and rng.random() < 0.25:
        return rng.choice([part.strip() for part in common.replace("\n", ";").split(";")])
    return rng.choice(own)


def content(rng: Random, held: bool) -> str:
    """Return what a file is to hold or a tool is to say."""
    kind = rng.random()
    if kind < 0.3:
        return name(rng, held)
    if kind < 0.45:
        return f"{name(rng, held)} {name(rng, held)}"
    if kind < 0.85:
        return sentence(rng, held)
    return code(rng, held)


def needle(rng: Random, held: bool) -> str:
    """Return what is searched for or replaced: mostly one word."""
    kind = rng.random()
    if kind < 0.68:
        return name(rng, held)
    if kind < 0.84:
        return sentence(rng, held, 3)
    return code(rng, held)


def marker(rng: Random, held: bool) -> str:
    """Return the word that an answer is to end with."""
    if rng.random() < (0.0 if held else 0.7):
        return rng.choice(_MARKERS)
    return name(rng, held).upper()
