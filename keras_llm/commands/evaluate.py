"""Evaluate a model: `keras-llm evaluate`."""

import dataclasses
import importlib
import json
import pathlib

import tyro

from keras_llm.commands.console import as_json, import_tensorflow, table
from keras_llm.errors import InputError
from keras_llm.recipes import RECIPES


@dataclasses.dataclass
class Options:
    """Evaluate a trained model on its held-out documents, or on other text."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    data: str | None = None
    """Text or JSONL file, or a folder of them, instead of the held-out documents."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    import_tensorflow()
    from keras_llm.files import atomic_file
    from keras_llm.tasks import read_config

    name = read_config(options.run)["metadata"].get("recipe")
    if name is None and options.data:
        name = "text_generation"
    if name not in RECIPES:
        raise InputError(f"{options.run} was not trained with a recipe; pass --data.")
    recipe = importlib.import_module(f"keras_llm.recipes.{name}")
    measures = recipe.evaluate(options.run, options.data)
    path = pathlib.Path(options.run) / "metrics.json"
    metrics = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if options.data:
        metrics.setdefault("other_text", {})[options.data] = measures
    else:
        metrics["held_out"] = measures
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    if not as_json(options, measures):
        table(
            ["metric", "value"],
            [[k, v if isinstance(v, str) else f"{v:,.4g}"] for k, v in measures.items()],
        )
