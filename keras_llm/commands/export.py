"""`keras-llm export`."""

import dataclasses
import sys
from typing import Literal

import tyro

import keras_llm
from keras_llm.commands import saved_model
from keras_llm.commands.console import as_json, import_tensorflow, table
from keras_llm.errors import InputError
from keras_llm.silence import silent_stderr


@dataclasses.dataclass
class Options:
    """Write a trained model for a server or a device, and prove that it does the same."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    to: Literal["saved_model", "litert", "litert_lm"]
    """saved_model for TensorFlow Serving, litert for a .tflite file, litert_lm for a .litertlm
    bundle."""
    out: str
    """Folder of the served model, or path of the .tflite or .litertlm file."""
    version: int | None = None
    """Version of the served model (saved_model only; 1 if not given)."""
    xla: bool = False
    """Compile the loop that generates with XLA (saved_model only)."""
    weights: Literal["float16", "int8"] | None = None
    """Store weights in 16 or 8 bits (saved_model only)."""
    beam_width: int | None = None
    """Add a signature that searches with so many beams (saved_model only)."""
    serving_files: bool = False
    """Write the files for TensorFlow Serving's image into the folder above (saved_model only)."""
    quantization: Literal["float16", "int8", "int8_weight_only", "int8_static", "int4"] | None = (
        None
    )
    """Weights in fewer bits (devices only)."""
    cache_length: int | None = None
    """Most tokens of a prompt with its continuation (devices only; the model's max_length if not
    given)."""
    max_quality_loss: float | None = None
    """Refuse a quantised file that is worse by more than this share, 0.02 for 2 % (devices
    only)."""
    held_out: str | None = None
    """Text or JSONL file, or a folder of them, on which that is measured; of a
    text_generation run the held-out documents if not given."""
    calibration: str | None = None
    """The same, of the kind that will be read: int8_static needs it, int4 loses less with it."""
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print the whole report as JSON."""


_DOCUMENTS = 64  # that are read for a measurement
_ON_DEVICES = ("quantization", "cache_length", "max_quality_loss", "held_out", "calibration")


def run(options):
    if options.to == "saved_model":
        for name in _ON_DEVICES:
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is for --to litert and --to litert_lm.")
    elif options.version is not None:
        raise InputError("--version is for --to saved_model.")
    if options.to != "saved_model":
        for name in ("xla", "weights", "beam_width", "serving_files"):
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')} is for --to saved_model.")
    import_tensorflow()
    from keras_llm import export

    task = keras_llm.load(options.run)
    if isinstance(task, keras_llm.RankedChat):
        print("without the classifiers: what is exported does not rank or filter", file=sys.stderr)
        task = task.generator
    with silent_stderr():  # SentencePiece tells that it does not normalise
        task.tokenizer.graph_resources()
    if options.to == "saved_model":
        saved_model.run(options, task)
        return
    write = export.litert if options.to == "litert" else export.litert_lm
    report = write(
        task,
        options.out,
        options.quantization,
        overwrite=options.overwrite,
        cache_length=options.cache_length,
        max_quality_loss=options.max_quality_loss,
        held_out=_held_out(options, task),
        calibration=_texts(options.calibration),
    )
    if as_json(options, report):
        return
    rows = [["bytes", f"{report['bytes']['total']:,}"]]
    for name, value in report["parity"].items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.4g}"
        rows.append([name.replace("_", " "), shown])
    for name, value in report.get("quality", {}).items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        rows.append([f"quality: {name.replace('_', ' ')}", shown])
    if report.get("cache_bytes_per_token"):
        rows.append(["cache bytes per token", f"{report['cache_bytes_per_token']:,}"])
    if "tokens_per_second" in report:
        rows += [["tokens per second", f"{report['tokens_per_second']:,.0f}"]]
    rows += [["signatures", ", ".join(report["signatures"])]]
    table([f"{options.out}", "value"], rows)


def _held_out(options, task):
    """Texts that show what quantisation costs; None leaves it to the export."""
    if options.quantization is None:
        return None
    if options.held_out is not None:
        return _texts(options.held_out)
    if task.metadata.get("recipe") != "text_generation":
        return None
    from keras_llm.recipes import text_generation
    from keras_llm.recipes.common import corpus, runs

    try:
        _, held_out = corpus.documents(runs.model_options(text_generation.Options, task))
    except InputError:  # the corpus is not here any more
        return None
    return [text for text in held_out if text.strip()][:_DOCUMENTS] or None


def _texts(path):
    if path is None:
        return None
    from keras_llm import data

    return data.read_texts(path)[:_DOCUMENTS]
