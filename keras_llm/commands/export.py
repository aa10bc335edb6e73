"""`keras-llm export`."""

import dataclasses
from typing import Literal

import tyro

import keras_llm
from keras_llm.commands import saved_model
from keras_llm.commands.console import as_json, import_tensorflow, table
from keras_llm.errors import InputError
from keras_llm.quiet import silent_stderr


@dataclasses.dataclass
class Options:
    """Write a trained model for a server or a device, and prove that it does the same."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    to: Literal["saved_model", "litert"]
    """saved_model for TensorFlow Serving, litert for a .tflite file."""
    out: str
    """Folder of the served model, or path of the .tflite file."""
    version: int | None = None
    """Version of the served model (saved_model only; 1 if not given)."""
    quantization: Literal["int8", "float16"] | None = None
    """Weights in 8 or 16 bits (litert only)."""
    xla: bool = False
    """Compile the loop that generates with XLA (saved_model only)."""
    weights: Literal["float16", "int8"] | None = None
    """Store weights in 16 or 8 bits (saved_model only)."""
    serving_files: bool = False
    """Write the files for TensorFlow Serving's image into the folder above (saved_model only)."""
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print the whole report as JSON."""


def run(options):
    if options.to == "saved_model" and options.quantization:
        raise InputError("--quantization is for --to litert.")
    if options.to == "litert" and options.version is not None:
        raise InputError("--version is for --to saved_model.")
    if options.to != "saved_model":
        for name in ("xla", "weights", "serving_files"):
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')} is for --to saved_model.")
    import_tensorflow()
    from keras_llm import export

    task = keras_llm.load(options.run)
    with silent_stderr():  # SentencePiece tells that it does not normalise
        task.tokenizer.graph_resources()
    if options.to == "saved_model":
        saved_model.run(options, task)
        return
    report = export.litert(task, options.out, options.quantization, overwrite=options.overwrite)
    if as_json(options, report):
        return
    rows = [["bytes", f"{report['bytes']['total']:,}"]]
    for name, value in report["parity"].items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.4g}"
        rows.append([name.replace("_", " "), shown])
    rows += [["tokens per second", f"{report['tokens_per_second']:,.0f}"]]
    rows += [["signatures", ", ".join(report["signatures"])]]
    table([f"{options.out}", "value"], rows)
