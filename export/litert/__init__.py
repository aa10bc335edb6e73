"""Export tasks to TFLite files and LiteRT-LM bundles that use only builtin ops."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_llm.errors import optional_packages
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.export.litert.quantization.rules import QuantizationRule
    from keras_llm.tasks import Task


def litert(
    task: "Task",
    path: PathLike,
    quantization: "str | Sequence[QuantizationRule] | None" = None,
    prefill_lengths: Sequence[int] | None = None,
    overwrite: bool = False,
    cache_length: int | None = None,
    held_out: Sequence[str] | Sequence[tuple[str, str]] | None = None,
    max_quality_loss: float | None = None,
    calibration: Sequence[str] | None = None,
) -> JSON:
    """Export a task to a `.tflite` file.

    Generative models have `prefill_<T>` and `decode` signatures with the names and shapes that
    LiteRT-LM expects (see `decoder_graphs`); encoders have one signature, named after the task
    (see `head_graphs.signatures`). The tokenizer is appended to the model as a zip archive, so
    `LiteRTModel(path)` needs no other file. Before the file is moved to `path`, it runs in a new
    process without Keras and TensorFlow, and its outputs are compared with those of the task.

    Args:
        task: a task: `TextGeneration`, `Translation`, `TextClassification`,
            `TextRegression`, `TokenClassification`, `QuestionAnswering`, `TextEmbedding` or
            `MaskedLanguageModel`. A model in another precision is exported in float32.
        path: str or path that ends in `.tflite`.
        quantization: None for float32, or the name of a recipe: "float16" (16-bit weights);
            "int8" (8-bit weights with a scale for each output channel, activations dynamically
            quantized to 8 bits); "int8_weight_only" (matmuls in float32); "int8_static" (in the
            blocks, activation ranges fixed from `calibration`); "int4" (blocks of 32 weights share
            a scale; the embedding and the head have 8 bits). Or a list of `QuantizationRule`; if
            several rules match a layer, the last one applies.
        prefill_lengths: list of int. Chunk sizes in which a prompt can be processed. Defaults to
            16 and 128, at most `cache_length`.
        overwrite: bool. Whether to replace an existing file.
        cache_length: int. Maximum number of tokens of a prompt and its continuation together; the
            cache takes memory for all of them. For an encoder, the maximum number of tokens of a
            text. Defaults to the model's `max_length`.
        held_out: list of str that the model was not trained on, to measure the quality loss of
            quantization; for a `Translation`, pairs (text, translation); for a
            `QuestionAnswering`, pairs (question, context). Defaults to samples of the model, or to
            built-in sentences.
        max_quality_loss: float or None. Maximum quality loss of a quantized file: the relative
            increase of the perplexity on `held_out` (0.02 is 2 %); for an encoder, the share of
            decisions that change; for embeddings, 1 minus the mean cosine similarity. A file with
            a higher loss is not written.
        calibration: list of str similar to the expected inputs, to record activations:
            "int8_static" requires it; "int8" and especially "int4" lose less quality with it. Up
            to 4,096 tokens are used.

    Returns:
        The report, a dict that is also written to `export_report.json` in the same folder, under
        the file's name: signatures, bytes by part, ops, differences from Keras, quality loss of
        quantization, memory and speed.

    Raises:
        InputError: if an argument is invalid or the file exists.
        ExportError: if the model cannot be converted to builtin ops, does not match the task, or
            loses more quality than `max_quality_loss`; no file is left behind.
    """
    arguments = locals()
    # The exporter imports TensorFlow and Keras, which the verification processes must not import.
    with optional_packages("export.litert"):
        from keras_llm.export.litert.export import write_litert

    return write_litert(**arguments)


def litert_lm(
    task: "Task",
    path: PathLike,
    quantization: "str | Sequence[QuantizationRule] | None" = None,
    prefill_lengths: Sequence[int] | None = None,
    overwrite: bool = False,
    cache_length: int | None = None,
    held_out: Sequence[str] | None = None,
    max_quality_loss: float | None = None,
    calibration: Sequence[str] | None = None,
) -> JSON:
    """Export a task to a `.litertlm` bundle.

    The bundle has the TFLite model of `litert`, the tokenizer, the chat template, and the start
    and stop tokens. `litert-lm run FILE`, the LiteRT-LM libraries for Kotlin and Swift, and
    `LiteRTModel(path)` can run it. Before the file is moved to `path`, `LiteRTModel` runs it in a
    new process, as for `litert`, and LiteRT-LM runs it in another if it is installed.

    Args:
        task: a `TextGeneration`. Its `metadata["chat_template"]` is stored in the bundle.
        path: str or path that ends in `.litertlm`.
        quantization, prefill_lengths, overwrite, cache_length, held_out, max_quality_loss,
        calibration: as in `litert`.

    Returns:
        The report, as in `litert`. Its entry `litert_lm` has the number of prompts for which
        LiteRT-LM and `LiteRTModel` generate the same greedy text; it is None if LiteRT-LM is not
        installed.

    Raises:
        InputError: if an argument is invalid or the file exists.
        ExportError: as in `litert`, or if LiteRT-LM generates another text; no file is left
            behind.
    """
    arguments = locals()
    # The exporter imports TensorFlow and Keras, which the verification processes must not import.
    with optional_packages("export.litert_lm"):
        from keras_llm.export.litert.bundle import write_litert_lm

    return write_litert_lm(**arguments)
