"""Export a model: `keras-llm export`."""

import dataclasses
import pathlib
import sys
from typing import Literal

import tyro

import keras_llm
from keras_llm.commands import entry_points, saved_model
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
from keras_llm.files import check_free


@dataclasses.dataclass
class Options:
    """Export a trained model for a server or a device and verify its outputs."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, or a name such as hf:OWNER/NAME."""
    to: Literal["saved_model", "litert", "litert_lm"]
    """saved_model for TensorFlow Serving, litert for a .tflite file, litert_lm for a .litertlm
    bundle."""
    out: str
    """Folder of the served model, or path of the .tflite or .litertlm file."""
    version: int | None = None
    """Version of the served model (saved_model only). Defaults to 1."""
    xla: bool = False
    """Compile the decode loop with XLA (saved_model only)."""
    weights: Literal["float16", "int8"] | None = None
    """Store weights in 16 or 8 bits (saved_model only)."""
    beam_width: int | None = None
    """Add a beam search signature with this many beams (saved_model only)."""
    serving_files: bool = False
    """Write files for TensorFlow Serving's Docker image to the parent folder (saved_model only)."""
    quantization: Literal["float16", "int8", "int8_weight_only", "int8_static", "int4"] | None = (
        None
    )
    """Quantization of the weights (litert and litert_lm only)."""
    cache_length: int | None = None
    """Maximum number of tokens of a prompt with its continuation (litert and litert_lm only).
    Defaults to the model's max_length."""
    max_quality_loss: float | None = None
    """Reject a quantized file whose quality is worse by more than this share, e.g. 0.02 for 2 %
    (litert and litert_lm only)."""
    held_out: str | None = None
    """Text or JSONL file, or a folder of them, to measure the quality on. Defaults to the held-out
    documents of a text_generation or code_generation run."""
    calibration: str | None = None
    """Text or JSONL file, or a folder of them, similar to the expected inputs. Required for
    int8_static; improves the quality of int4."""
    overwrite: bool = False
    """Replace existing output."""
    json: bool = False
    """Print the full report as JSON."""


_DOCUMENTS = 64  # used to measure quality and to calibrate
_SUFFIXES = {"litert": ".tflite", "litert_lm": ".litertlm"}
_ON_DEVICES = ("quantization", "cache_length", "max_quality_loss", "held_out", "calibration")


def run(options):
    if options.to == "saved_model":
        for name in _ON_DEVICES:
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} requires --to litert or --to litert_lm.")
    elif options.version is not None:
        raise InputError("--version requires --to saved_model.")
    if options.to != "saved_model":
        for name in ("xla", "weights", "beam_width", "serving_files"):
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')} requires --to saved_model.")
    task_kind(options.run)
    suffix = _SUFFIXES.get(options.to, "")
    if not options.out.endswith(suffix):
        raise InputError(f"--out must end in {suffix}, got {options.out}.")
    version = "" if suffix else str(1 if options.version is None else options.version)
    check_free(pathlib.Path(options.out, version), options.overwrite)
    check_data(options.held_out)
    check_data(options.calibration)
    import_tensorflow()
    from keras_llm import export

    task = load_task(options.run)
    if isinstance(task, keras_llm.RankedChat):
        print("the export has no classifiers: it does not rank or filter answers", file=sys.stderr)
        task = task.generator
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
        rows.append([name.replace("_", " "), shown(value)])
    for name, value in report.get("quality", {}).items():
        rows.append([f"quality: {name.replace('_', ' ')}", shown(value)])
    if report.get("cache_bytes_per_token"):
        rows.append(["cache bytes per token", f"{report['cache_bytes_per_token']:,}"])
    if "tokens_per_second" in report:
        rows += [["tokens per second", f"{report['tokens_per_second']:,.0f}"]]
    rows += [["signatures", ", ".join(report["signatures"])]]
    table([f"{options.out}", "value"], rows)


def _held_out(options, task):
    """Return texts to measure the quality of quantization, or None to use the export's default."""
    if options.quantization is None:
        return None
    if options.held_out is not None:
        return _texts(options.held_out)
    recipe = entry_points.recipe_of(task)
    if not isinstance(task, keras_llm.TextGeneration) or not hasattr(recipe, "texts"):
        return None
    try:
        _, held_out = recipe.texts(task)
    except InputError:  # the corpus is no longer available
        return None
    return [text for text in held_out if text.strip()][:_DOCUMENTS] or None


def _texts(path):
    if path is None:
        return None
    from keras_llm import data

    return data.read_texts(path)[:_DOCUMENTS]
