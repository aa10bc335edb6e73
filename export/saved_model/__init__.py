"""Export tasks to SavedModels that take and return strings, in TensorFlow Serving's layout."""

from typing import TYPE_CHECKING

from keras_llm.errors import optional_packages
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.tasks import Task


def saved_model(
    task: "Task",
    path: PathLike,
    version: int = 1,
    overwrite: bool = False,
    xla: bool = False,
    weights: str | None = None,
    beam_width: int | None = None,
) -> JSON:
    """Export a task to `<path>/<version>/`, the folder layout of TensorFlow Serving.

    The graph includes the tokenizer, the model and the decoding of its outputs: a signature takes
    and returns strings. docs/serving.md lists the signatures of each task. Before the folder is
    moved to its final path, the SavedModel is loaded in a new process without Keras, and its
    outputs are compared with those of the task. It includes warm-up requests, which TensorFlow
    Serving runs when it loads the model.

    Args:
        task: a `TextGeneration`, `Translation`, `TextClassification`, `TextRegression`,
            `TokenClassification`, `QuestionAnswering`, `TextEmbedding` or `MaskedLanguageModel`.
        path: str or path of the served model, e.g. "serving/stories".
        version: int > 0.
        overwrite: bool. Whether to replace an existing version.
        xla: bool. Whether to compile the decoding loop of a `TextGeneration` or `Translation` with
            XLA. Sizes are padded to buckets, each of which is compiled on first use. The server
            must enable XLA (TensorFlow Serving: `--xla_cpu_compilation_enabled=true`).
        weights: None to store weights in the model's precision; "float16" or "int8" to store
            matrices in fewer bits. They are converted to float32 when the SavedModel is loaded, so
            files and transfers are smaller, memory use is not, and generation is slower.
        beam_width: int or None. If set, a `TextGeneration` or `Translation` has a signature
            `beam_search` with this number of beams, which returns all of them.

    Returns:
        The report, a dict that is also written to `<path>/export_report.json` under the version:
        signatures, bytes of each file, ops outside TensorFlow's core (a server must link the
        library that defines them), differences from Keras and speed.

    Raises:
        InputError: if an argument is invalid or the version exists.
        ExportError: if the SavedModel does not match the task; no folder is left behind.
    """

    # The exporter imports TensorFlow and Keras, which the verification processes must not import.
    with optional_packages("export.saved_model"):
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
