"""Print results and import TensorFlow for the commands."""

import importlib
import json
import os

from keras_llm.silence import silent_stderr

PROGRAM = "keras-llm"


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


def import_tensorflow():
    """Import TensorFlow with oneDNN CPU kernels and without its startup messages."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silent_stderr():
        importlib.import_module("tensorflow")
