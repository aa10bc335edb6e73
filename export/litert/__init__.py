"""TFLite files and LiteRT-LM bundles, with builtin ops only."""


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
    LiteRT-LM expects (see `decoder_graphs`); encoders have one, named for the task (see
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

    # The exporter needs TensorFlow and Keras, which processes that verify do not import.
    from keras_llm.export.litert.export import write_litert

    return write_litert(
        task,
        path,
        quantization,
        prefill_lengths,
        overwrite,
        cache_length,
        held_out,
        max_quality_loss,
        calibration,
    )


def litert_lm(
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
    """Write a task as a `.litertlm` bundle: the TFLite model of `litert`, the tokenizer, the chat
    template, begin and stop tokens.

    `litert-lm run FILE` and the LiteRT-LM libraries for Kotlin and Swift take it, and so does
    `LiteRTModel(path)`. Before the file gets its name it is run by `LiteRTModel` in a fresh
    process, as `litert` does, and by LiteRT-LM in another, where that is installed.

    Args:
        task: a `TextGeneration`. Its `metadata["chat_template"]` goes into the bundle.
        path: str or path that ends in `.litertlm`.
        quantization, prefill_lengths, overwrite, cache_length, held_out, max_quality_loss,
        calibration: as of `litert`.

    Returns:
        The report, as of `litert`. `litert_lm` in it says how many of its prompts' greedy texts
        in LiteRT-LM are those of `LiteRTModel`; it is None if LiteRT-LM is not installed.

    Raises:
        InputError: if an argument is wrong or the file exists.
        ExportError: as of `litert`, or if LiteRT-LM gives another text; nothing is left behind.
    """

    # The exporter needs TensorFlow and Keras, which processes that verify do not import.
    from keras_llm.export.litert.bundle import write_litert_lm

    return write_litert_lm(
        task,
        path,
        quantization,
        prefill_lengths,
        overwrite,
        cache_length,
        held_out,
        max_quality_loss,
        calibration,
    )
