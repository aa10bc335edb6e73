"""`keras-llm recipes`."""

import dataclasses

from keras_llm.commands.console import as_json, table
from keras_llm.recipes import RECIPES


@dataclasses.dataclass
class Options:
    """The recipes and the corpora they can be trained on."""

    json: bool = False
    """Print one JSON object."""


def run(options):
    from keras_llm.recipes.corpora.registry import CORPORA

    corpora = {name: corpus.description for name, corpus in CORPORA.items()}
    if not as_json(options, {"recipes": RECIPES, "corpora": corpora}):
        table(["recipe", "what it does"], [list(row) for row in RECIPES.items()])
        table(["corpus", "what it is"], [list(row) for row in corpora.items()])
