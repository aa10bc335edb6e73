"""Find recipes and corpora, which packages register as entry points.

The group `keras_llm.recipes` names modules, each with:

- `Options`: a dataclass of the options, parsed by tyro. The first line of its docstring describes
  the recipe.
- `run(options)`: train, evaluate and save a model; return a dict with the metrics `held_out` and
  those of a baseline.
- `evaluate(folder, data=None)`: return the held-out metrics of a saved model, or those on the file
  `data`.
- `BASELINE`: str, the key of the baseline's metrics.
- `NEXT`: str, the arguments of the command to try next, such as "predict {out} TEXT"; or a dict
  from `options.kind` to such a str.
- `texts(task)`, optional: return the training and the held-out texts of a saved model, two lists of
  str, for audits and for the quality of quantized exports.

A model names its recipe in `metadata["recipe"]`. The group `keras_llm.corpora` names dicts from the
name of a corpus to an object with a `description`.
"""

import importlib.metadata

from keras_llm.errors import InputError


def recipes():
    """Return the names of all recipes, sorted."""
    return sorted(importlib.metadata.entry_points(group="keras_llm.recipes").names)


def recipe(name):
    """Import a recipe; returns its module.

    Raises:
        InputError: if there is no recipe of this name.
    """
    if name not in recipes():
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(recipes())}.")
    (found, *_) = importlib.metadata.entry_points(group="keras_llm.recipes", name=name)
    return found.load()


def recipe_of(task):
    """Return the recipe that trained a task, or None if it is unknown."""
    name = task.metadata.get("recipe")
    return recipe(name) if name in recipes() else None


def descriptions():
    """Return a dict from the name of each recipe to its description."""
    return {name: recipe(name).Options.__doc__.splitlines()[0] for name in recipes()}


def corpora():
    """Return a dict from the name of each corpus to its description."""
    tables = importlib.metadata.entry_points(group="keras_llm.corpora")
    return {name: corpus.description for table in tables for name, corpus in table.load().items()}
