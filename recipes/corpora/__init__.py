"""Named corpora, downloaded from a package index when they are first used."""

import importlib

__all__ = ["CORPORA", "load"]


def __getattr__(name):
    # Imported late: options of recipes are read before anything heavy is.
    if name in __all__:
        return getattr(importlib.import_module("keras_llm.recipes.corpora.registry"), name)
    raise AttributeError(f"module 'keras_llm.recipes.corpora' has no attribute {name!r}")
