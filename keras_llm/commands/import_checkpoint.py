"""Import a checkpoint: `keras-llm import`."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from keras_llm.commands.console import PROGRAM, as_json, import_tensorflow, table
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options:
    """Convert a GGUF or Hugging Face checkpoint to a model folder."""

    source: tyro.conf.Positional[Literal["gguf", "hugging_face"]]
    """gguf for a GGUF file, hugging_face for a folder with config.json and safetensors."""
    path: tyro.conf.Positional[str]
    """The file or folder."""
    out: str
    """Folder of the new model."""
    overwrite: bool = False
    """Replace existing output."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    from keras_llm.files import check_free

    check_free(options.out, options.overwrite)  # fail early: importing a large model takes minutes
    is_gguf = options.source == "gguf"
    path = pathlib.Path(options.path) if is_gguf else pathlib.Path(options.path, "config.json")
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    import_tensorflow()
    from keras_llm import checkpoints

    read = {"gguf": checkpoints.from_gguf, "hugging_face": checkpoints.from_hugging_face}
    task = read[options.source](options.path)
    task.save(options.out, options.overwrite)
    config, kind = task.model.config, type(task).__name__
    report = {
        "out": options.out,
        "task": kind,
        "source": task.metadata["source"],
        "parameters": task.model.count_params(),
        "vocabulary_size": config.vocabulary_size,
        "max_length": config.max_length,
        "chat_template": "chat_template" in task.metadata,
    }
    if as_json(options, report):
        return
    words = {True: "yes", False: "no"}
    rows = [
        [name.replace("_", " "), words[v] if isinstance(v, bool) else f"{v:,}"]
        for name, v in report.items()
        if name not in ("out", "task", "source")
    ]
    table([f"{options.out}", ""], [["task", kind], ["source", report["source"]], *rows])
    if kind == "TextGeneration":
        print(f'next: {PROGRAM} generate {options.out} "Once upon a time" --stream')
