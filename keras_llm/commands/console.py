"""Check input, print results and import TensorFlow for the commands."""

import importlib
import json
import os
import pathlib

import keras_llm
from keras_llm import hub
from keras_llm.commands import entry_points
from keras_llm.errors import InputError
from keras_llm.json_files import read_json
from keras_llm.silence import silent_stderr

PROGRAM = "keras-llm"
_TASKS = {
    "MaskedLanguageModel",
    "NextSentence",
    "QuestionAnswering",
    "RankedChat",
    "TextClassification",
    "TextEmbedding",
    "TextGeneration",
    "TextRegression",
    "TokenClassification",
    "Translation",
    "WordVectors",
}


def as_json(options, value):
    """Print `value` as JSON if `options.json` is set; return whether it is."""
    if options.json:
        print(json.dumps(value, ensure_ascii=False))
    return options.json


def table(head, rows):
    """Print a table to stdout."""
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(*head, box=rich.box.SIMPLE)
    for row in rows:
        table.add_row(*map(str, row))
    rich.console.Console().print(table, markup=False)


def shown(value):
    """Format a value for a table: an int in full, a float with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    is_large = isinstance(value, int) or 1000 <= abs(value) < 1e15
    return f"{value:,.0f}" if is_large else f"{value:.4g}"


def task_kind(folder):
    """Check a folder or checkpoint, or download a model by name, without importing TensorFlow.

    Returns:
        The class name of its task, a str, or None if that is unknown, or not a class of
        `keras_llm`: it may be a subclass, see `kind_of`; else `load_task` reports what is wrong.

    Raises:
        InputError: if a file of the folder is missing, config.json is not a JSON object, or the
            model cannot be downloaded.
    """
    if hub.is_name(folder):
        hub.fetch(folder)
        return None
    if hub.is_checkpoint(folder):
        return None
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a model folder ({path} is missing).")
    weights = path.with_name("model.weights.h5")
    if not weights.is_file():
        raise InputError(f"{weights} is missing.")
    kind = read_json(path).get("task")
    return kind if isinstance(kind, str) and kind in _TASKS else None


def load_task(folder):
    """Load a task; if another package defines its class, with the recipe that trained it."""
    is_run = not hub.is_name(folder) and not hub.is_checkpoint(folder)
    if task_kind(folder) is None and is_run:
        metadata = read_json(pathlib.Path(folder) / "config.json").get("metadata")
        name = metadata.get("recipe") if isinstance(metadata, dict) else None
        if isinstance(name, str) and name in entry_points.recipes():
            entry_points.recipe(name)  # importing it defines the class
    return keras_llm.load(folder)


def kind_of(task):
    """Return the name of the class of `keras_llm` that a task is an instance of, a str."""
    names = [kind.__name__ for kind in type(task).__mro__]
    return next((name for name in names if name in _TASKS), names[0])


def check_data(path, suffixes=None):
    """Raise InputError if a file or folder of texts or rows does not exist; names pass.

    Args:
        path: str, or None for no data.
        suffixes: tuple of str, without ".gz"; a file must have one of them. None for any.
    """
    if path is None or path.startswith(("hf:", "tfds:")):
        return
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist.")
    if suffixes and os.path.isfile(path) and not path.removesuffix(".gz").endswith(suffixes):
        raise InputError(f"{path}: the name must end in {', '.join(suffixes)}, or .gz.")


def quiet_tensorflow():
    """Turn off TensorFlow's log of this process and its children, unless it is configured."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_tensorflow():
    """Import TensorFlow with oneDNN CPU kernels and without its startup messages."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    quiet_tensorflow()
    with silent_stderr():
        importlib.import_module("tensorflow")
