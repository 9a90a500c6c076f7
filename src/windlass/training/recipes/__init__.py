"""Recipes: everything a run needs, by name.

A recipe is a module with `make(config) -> (model, source, eval_source, tokenizer)` and, if it likes, `defaults(said)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["RECIPES", "with_defaults"]

#: Name -> the module that holds `make`; imported when it is asked for.
RECIPES: Final[dict[str, str]] = {"tiny": "windlass.training.recipes.tiny.recipe"}


def with_defaults(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run that names a recipe: what was said, else what the recipe has found right."""
    module = RECIPES.get(said.get("recipe") or "")
    own: Any = getattr(importlib.import_module(module), "defaults", None) if module else None
    return dict(said) if own is None else own(said)
