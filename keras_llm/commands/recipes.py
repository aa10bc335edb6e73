"""List recipes and corpora: `keras-llm recipes`."""

import dataclasses

from keras_llm.commands.console import as_json, table
from keras_llm.recipes import RECIPES


@dataclasses.dataclass
class Options:
    """List the training recipes and corpora."""

    json: bool = False
    """Print one JSON object."""


def run(options):
    from keras_llm.recipes.corpora.registry import CORPORA

    corpora = {name: corpus.description for name, corpus in CORPORA.items()}
    if not as_json(options, {"recipes": RECIPES, "corpora": corpora}):
        table(["recipe", "description"], [list(row) for row in RECIPES.items()])
        table(["corpus", "description"], [list(row) for row in corpora.items()])
