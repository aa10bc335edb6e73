"""SavedModels that take strings and return strings, in TensorFlow Serving's layout."""


def saved_model(task, path, version=1, overwrite=False, xla=False, weights=None, beam_width=None):
    """Write a task as `<path>/<version>/`, the layout TensorFlow Serving reads.

    Tokenizer, model and what comes out of it are in the graph: a signature takes strings and gives
    strings. docs/serving.md lists the signatures of each task. Before the folder gets its name, the
    SavedModel is loaded in a fresh process without Keras, and what it answers is compared with the
    task. It brings requests that TensorFlow Serving runs when it loads it.

    Args:
        task: a `TextGeneration`, `Translation`, `TextClassification`, `TextRegression`,
            `TokenClassification`, `QuestionAnswering`, `TextEmbedding` or `MaskedLanguageModel`.
        path: str or path of the served model, e.g. "serving/stories".
        version: int > 0.
        overwrite: bool. Whether to replace that version.
        xla: bool. Whether the loop of a `TextGeneration` or `Translation` is compiled by XLA, in
            buckets of sizes, each when it first comes. The server must have XLA switched on
            (TensorFlow Serving: `--xla_cpu_compilation_enabled=true`).
        weights: None to store weights as they are; "float16" or "int8" to store matrices in fewer
            bits. They are spelled out in float32 when the SavedModel is loaded: files and
            transfers get smaller, memory does not, and text comes slower.
        beam_width: int or None. With a width, a `TextGeneration` or `Translation` has a signature
            `beam_search` with so many beams, all of which come back.

    Returns:
        The report, a dict that is also kept in `<path>/export_report.json` under the version:
        signatures, bytes of each file, ops outside TensorFlow's core (a server must link the
        library that has them), errors against Keras and speed.

    Raises:
        InputError: if an argument is wrong or the version exists.
        ExportError: if the SavedModel does not match the task; nothing is left behind.
    """

    # The exporter needs TensorFlow and Keras, which processes that verify do not import.
    from keras_llm.export.saved_model.export import write_saved_model

    return write_saved_model(
        task,
        path,
        version,
        overwrite,
        xla,
        weights,
        beam_width,
    )
