"""Recipes: everything a run needs, by name.

A recipe is a module with `make(config) -> (model, source, eval_source, tokenizer)`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RECIPES"]

#: Name -> the module that holds `make`; imported when it is asked for.
RECIPES: Final[dict[str, str]] = {"tiny": "windlass.training.recipes.tiny.recipe"}
