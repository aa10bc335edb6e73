"""List recipes and corpora: `keras-llm recipes`."""

import dataclasses

from keras_llm.commands import entry_points
from keras_llm.commands.console import as_json, table


@dataclasses.dataclass
class Options:
    """List the training recipes and corpora."""

    json: bool = False
    """Print one JSON object."""


def run(options):
    recipes, (objects, errors) = entry_points.descriptions(), entry_points.corpora()
    corpora = {name: corpus.description for name, corpus in objects.items()} | errors
    if not as_json(options, {"recipes": recipes, "corpora": corpora}):
        table(["recipe", "description"], [list(row) for row in recipes.items()])
        takers = entry_points.recipes_by_kind()
        takers = {name: takers.get(corpus.kind, []) for name, corpus in objects.items()}
        rows = [[name, ", ".join(takers.get(name, [])), text] for name, text in corpora.items()]
        table(["corpus", "recipes", "description"], rows)
