"""A TFLite file that a phone's LiteRT runtime runs, builtin ops only."""

import pathlib

from keras_llm.errors import InputError
from keras_llm.export import device_file, device_model
from keras_llm.export.planning import check_room
from keras_llm.export.progress import Progress
from keras_llm.export.report import disk_errors, write_report
from keras_llm.files import atomic_file


def litert(
    task,
    path,
    quantization=None,
    prefill_lengths=None,
    overwrite=False,
    cache_length=None,
    held_out=None,
    max_quality_loss=None,
    calibration=None,
):
    """Write a task as a `.tflite` file.

    Models that write text have `prefill_<T>` and `decode` signatures with the names and shapes that
    LiteRT-LM expects (see `device_graphs`); encoders have one, named for the task (see
    `head_graphs.signatures`). The tokenizer rides behind the model's bytes as a zip archive, so
    `LiteRTModel(path)` needs this one file. Before the file gets its name it is run in a fresh
    process without Keras and TensorFlow, and its numbers and texts are compared with the task's.

    Args:
        task: a task: `TextGeneration`, `Translation`, `TextClassification`,
            `TextRegression`, `TokenClassification`, `QuestionAnswering`, `TextEmbedding` or
            `MaskedLanguageModel`. A model in another precision is exported in float32.
        path: str or path that ends in `.tflite`.
        quantization: None for float32, or the name of a recipe: "float16" (weights in 16 bits);
            "int8" (weights in 8 bits with a scale for each output channel, activations rounded
            to 8 bits as they come); "int8_weight_only" (products in float32); "int8_static" (in
            the blocks, ranges of activations fixed from `calibration`); "int4" (blocks of 32
            weights share a scale; the embedding and the head in 8 bits). Or a list of
            `QuantizationRule`, the last that fits a layer counts.
        prefill_lengths: ints, the chunk sizes in which a prompt can be read. Defaults to 16
            and 128, at most `cache_length`.
        overwrite: bool. Whether to replace the file.
        cache_length: int, the most tokens that a prompt and its continuation have together; the
            cache takes memory for all of them. Of an encoder, the most tokens of a text. Defaults
            to the model's `max_length`.
        held_out: list of str that the model was not trained on, for the cost of quantisation; of
            a `Translation` pairs (text, translation), of a `QuestionAnswering` pairs (question,
            context). Defaults to samples of the model itself, or to sentences of ours.
        max_quality_loss: float, or None. A quantised file is refused whose perplexity on
            `held_out` is higher than the task's by more than this share (0.02 is 2 %); of an
            encoder, if more than this share of its decisions change, or for embeddings if the mean
            cosine is less than 1 by more.
        calibration: list of str of the kind that will be read, which shows the activations:
            "int8_static" needs it, "int8" and above all "int4" lose less with it. Up to 4,096
            tokens are read.

    Returns:
        The report, a dict that is also kept in `export_report.json` beside the file, under its
        name: signatures, bytes by part, ops, errors against Keras, what quantisation costs,
        memory, and speed.

    Raises:
        InputError: if an argument is wrong or the file exists.
        ExportError: if it cannot be converted to builtin ops, does not match the task, or is worse
            than `max_quality_loss`; nothing is left behind.
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise InputError(f"litert: `path` must end in .tflite, got {path}.")
    plan = device_model.plan(
        "litert", task, quantization, prefill_lengths, cache_length, calibration
    )
    proof = plan.proof("litert", held_out, max_quality_loss)
    check_room("litert", task, "litert", quantization, plan.manifest["max_length"])
    with (
        disk_errors(path),
        atomic_file(path, overwrite) as partial,
        device_model.processes() as (lowering, running),
        Progress(path.name, task.model.count_params()) as progress,
    ):
        request = device_model.build(plan, partial, lowering, progress, proof.request)
        ops = device_file.op_census(partial)
        parts = device_file.parts(partial)
        parts["tokenizer"] = device_file.append(partial, plan.task.tokenizer, plan.manifest)
        with progress.phase("verify"):
            verified = proof.of(partial, request, running)
        report = {
            "format": "litert",
            "quantization": plan.weights,
            **plan.manifest,
            "bytes": {**parts, "total": partial.stat().st_size},
            "ops": ops,
            **verified,
            "seconds": progress.seconds,
        }
    write_report(path.parent, path.name, report)
    return report
