"""`keras-llm export`."""

import dataclasses
from typing import Literal

import tyro

import keras_llm
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
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print the whole report as JSON."""


def run(options):
    if options.to == "saved_model" and options.quantization:
        raise InputError("--quantization is for --to litert.")
    if options.to == "litert" and options.version is not None:
        raise InputError("--version is for --to saved_model.")
    import_tensorflow()
    from keras_llm import export

    task = keras_llm.load(options.run)
    with silent_stderr():  # SentencePiece tells that it does not normalise
        task.tokenizer.graph_resources()
    if options.to == "saved_model":
        version = 1 if options.version is None else options.version
        report = export.saved_model(task, options.out, version, options.overwrite)
    else:
        report = export.litert(task, options.out, options.quantization, overwrite=options.overwrite)
    if as_json(options, report):
        return
    rows = [["bytes", f"{report['bytes']['total']:,}"]]
    for name, value in report["parity"].items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.4g}"
        rows.append([name.replace("_", " "), shown])
    rows += [["tokens per second", f"{report['tokens_per_second']:,.0f}"]]
    rows += [["signatures", ", ".join(report["signatures"])]]
    if report.get("non_core_ops"):
        rows += [["ops outside TensorFlow's core", ", ".join(report["non_core_ops"])]]
    table([f"{options.out}", "value"], rows)
