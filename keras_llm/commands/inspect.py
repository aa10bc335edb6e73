"""Show the layers and size of a model: `keras-llm inspect`."""

import dataclasses
import pathlib

import tyro

from keras_llm import hub
from keras_llm.commands.console import as_json, import_tensorflow, load_task, table, task_kind
from keras_llm.errors import InputError
from keras_llm.preset_names import NAMES, similar_presets


@dataclasses.dataclass
class Options:
    """Show layers, parameters and memory of a trained model or a preset."""

    model: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, hf:OWNER/NAME, or name of a preset."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    path = pathlib.Path(options.model)
    is_foreign = hub.is_name(options.model) or hub.is_checkpoint(path)
    if is_foreign:
        task_kind(options.model)
    elif (path.exists() or len(path.parts) > 1) and not (path / "config.json").is_file():
        raise InputError(
            f"{path} is neither a model folder nor a preset ({path / 'config.json'} is missing)."
        )
    elif not path.exists() and options.model not in NAMES:
        raise InputError(
            f"{options.model} is neither a model folder nor a preset; "
            f"{similar_presets(options.model)}."
        )
    import_tensorflow()
    from keras_llm import models
    from keras_llm.tasks import read_config

    if is_foreign:
        summary = models.summarize(load_task(options.model).model)
    elif path.exists():
        summary = models.summarize(read_config(options.model))
    else:
        summary = models.summarize(models.preset(options.model))
    if not as_json(options, summary):
        table(
            ["layer", "class", "parameters"],
            [[r["name"], r["class"], f"{r['parameters']:,}"] for r in summary["layers"]],
        )
        table(
            ["total", "value"],
            [
                [name.replace("_", " "), f"{summary[name]:,}"]
                for name in summary
                if name not in ("config", "layers")
            ],
        )
