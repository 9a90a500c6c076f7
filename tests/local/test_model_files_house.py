"""S108: nothing in the sources can load what runs code, held by a look at every call and import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "windlass"
#: Modules that unpickle, or load what is pickled.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "hickle", "pandas",
           "zipfile", "tarfile"}  # fmt: skip
#: Archives are no models, but a skill's or a session's export may be one: where they are allowed.
ARCHIVES = {"zipfile", "tarfile"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.package", "torch.hub.load", "numpy.fromregex"}
LOADERS = {"numpy.load", "np.load", "numpy.lib.npyio.load", "np.lib.format.read_array", "numpy.lib.format.read_array"}
#: A file without any of these words has none of the problems.
WORTH_PARSING = re.compile(
    rf"\b({'|'.join(MODULES)}|load|save|package|fromregex|read_array|import_module|__import__|allow_pickle|weights_only)\b"
)
SWITCHES = {"allow_pickle", "weights_only"}


def problems(source: str, *, model_room: bool = True) -> list[str]:
    """Return what a module does that S108 forbids."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found: list[str] = []
    banned = MODULES if model_room else MODULES - ARCHIVES
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                found += [f"import {alias.name}"] if alias.name.split(".")[0] in banned else []
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"from {node.module}"] if node.module.split(".")[0] in banned else []
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call | ast.Attribute | ast.Name):
            text = _dotted(node.func if isinstance(node, ast.Call) else node)
            first, _, rest = text.partition(".")
            full = f"{names.get(first, first)}.{rest}" if rest else names.get(first, first)
            if full in CALLS:
                found.append(full)
            if isinstance(node, ast.Call):
                keywords = {
                    keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg in SWITCHES
                }
                if full in LOADERS and keywords.get("allow_pickle") != "False":
                    found.append(f"{full} without allow_pickle=False")
                if keywords.get("allow_pickle", "False") != "False" or keywords.get("weights_only", "True") != "True":
                    found.append(f"{full} with pickle")
                if text == "__import__" or (full == "importlib.import_module" and _names_a_banned_one(node)):
                    found.append(full)
    return found


def _dotted(node: ast.AST) -> str:
    """Return `a.b.c` for names and attributes of names, else an empty text."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _names_a_banned_one(node: ast.Call) -> bool:
    first = node.args[0] if node.args else None
    return isinstance(first, ast.Constant) and str(first.value).split(".")[0] in MODULES


def test_s108_no_source_can_load_what_runs_code() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(SRC.rglob("*.py"))}
    assert len(sources) > 100
    found = {
        str(path.relative_to(SRC)): bad
        for path, source in sources.items()
        if WORTH_PARSING.search(source)
        and (bad := problems(source, model_room=path.parts[len(SRC.parts)] in ("local", "training")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import cloudpickle as c", "import joblib", "import shelve",
        "import marshal", "import tarfile", "from zipfile import ZipFile", "import pandas",
        "import torch\ntorch.load('a')", "import torch as t\nt.load('a', weights_only=True)",
        "from torch import load\nload('a')", "from torch import load as get\nget('a')",
        "import torch\nget = torch.load",
        "import torch\ntorch.save({}, 'a')", "import numpy as np\nnp.load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)", "from numpy import load\nload('a')",
        "import numpy\nnumpy.load('a', mmap_mode='r')", "x.load('a', weights_only=False)",
        "import importlib\nimportlib.import_module('pickle')", "__import__('pickle')",
        "def f():\n    import torch\n    return torch.jit.load('a')",
    ],
)  # fmt: skip
def test_s108_the_look_finds_each_way(source: str) -> None:
    assert problems(source) != []
    assert WORTH_PARSING.search(source)


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.load(open('a'))",
        "import numpy as np\nnp.load('a', allow_pickle=False)",
        "import torch\ntorch.frombuffer",
    ],
)
def test_s108_the_look_finds_nothing_where_nothing_is(source: str) -> None:
    assert problems(source) == []
