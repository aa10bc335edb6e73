"""Evaluate a model: `keras-llm evaluate`."""

import dataclasses
import json
import pathlib

import tyro

import keras_llm
from keras_llm.commands import entry_points
from keras_llm.commands.console import (
    as_json,
    check_data,
    import_tensorflow,
    load_task,
    shown,
    table,
    task_kind,
)
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options:
    """Evaluate a trained model on its held-out data, or on other data."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    data: str | None = None
    """Text or JSONL file, or a folder of them, instead of the held-out documents; for a recipe on
    rows, a file as for its --data. A classifier or regression model without a recipe needs a table
    with the columns text and label, and context if it reads one with each text."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    task_kind(options.run)
    check_data(options.data)
    import_tensorflow()
    from keras_llm.files import atomic_file
    from keras_llm.json_files import read_json

    measures = _measures(options)
    path = pathlib.Path(options.run) / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    if options.data:
        metrics.setdefault("other_text", {})[options.data] = measures
    else:
        metrics["held_out"] = measures
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    if not as_json(options, measures):
        table(["metric", "value"], [[name, shown(value)] for name, value in measures.items()])


def _measures(options):
    from keras_llm import data
    from keras_llm.tasks import read_config

    name = read_config(options.run)["metadata"].get("recipe")
    if name in entry_points.recipes():
        return entry_points.recipe(name).evaluate(options.run, options.data)
    if options.data is None:
        raise InputError(f"{options.run} was not trained with an installed recipe; pass --data.")
    task = load_task(options.run)
    if isinstance(task, keras_llm.TextGeneration):
        texts = data.read_texts(options.data)
        return task.evaluate(texts, sequence_length=task.model.config.max_length)
    if isinstance(task, keras_llm.MaskedLanguageModel):
        return task.evaluate(data.read_texts(options.data))
    if isinstance(task, (keras_llm.TextClassification, keras_llm.TextRegression)):
        context = ["context"] if "context_separator" in task.metadata else []
        return task.evaluate(data.read_records(options.data, ["text", *context, "label"]))
    raise InputError(
        "--data supports text generators, masked language models, classifiers and regression "
        f"models, and {options.run} is a {type(task).__name__}; call `evaluate` in Python."
    )
