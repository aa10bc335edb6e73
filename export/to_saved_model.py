"""A SavedModel that takes strings and returns strings, in TensorFlow Serving's layout."""

import pathlib

from keras_llm.errors import InputError
from keras_llm.export import parity
from keras_llm.export.report import folder_sizes, write_report
from keras_llm.export.signatures import TextGenerationModule, save
from keras_llm.files import atomic_folder
from keras_llm.tasks import TextGeneration

_TOLERANCE = 1e-3  # nats, on sums of log-probabilities


def saved_model(task, path, version=1, overwrite=False):
    """Write a task as `<path>/<version>/`, the layout TensorFlow Serving reads.

    The signatures are `serving_default` (= `generate`) and `score`; tokenizer, decode loop and
    sampling are in the graph. Before the folder gets its name, the SavedModel is loaded in a
    fresh process without Keras, and its greedy texts and log-likelihoods are compared with the
    task's.

    Args:
        task: a `TextGeneration`.
        path: str or path of the served model, e.g. "serving/stories".
        version: int > 0.
        overwrite: bool. Whether to replace that version.

    Returns:
        The report, a dict that is also kept in `<path>/export_report.json` under the version:
        signatures, bytes of each file, ops outside TensorFlow's core (a server must link the
        library that has them), errors against Keras and tokens per second.

    Raises:
        InputError: if an argument is wrong or the version exists.
        ExportError: if the SavedModel does not match the task; nothing is left behind.
    """
    if not isinstance(task, TextGeneration):
        raise InputError(f"saved_model: `task` must be a TextGeneration, got {type(task)}.")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"saved_model: `version` must be a positive int, got {version!r}.")
    path = pathlib.Path(path)
    with atomic_folder(path / str(version), overwrite) as folder:
        save(TextGenerationModule(task), folder)
        report = {"format": "saved_model", "version": version, "bytes": folder_sizes(folder)}
        report |= _verify(task, folder)
    write_report(path, str(version), report)
    return report


def _verify(task, folder):
    prompts = parity.probe_prompts(task)
    answer = parity.run_child("saved_model", folder, {"prompts": prompts})
    expected = task(
        prompts, max_new_tokens=parity.NEW_TOKENS, temperature=0.0, seed=0, return_details=True
    )
    parity.require_same_texts(answer["texts"], [row.text for row in expected])
    return {
        "signatures": answer["signatures"],
        "ops": answer["ops"],
        "non_core_ops": answer["non_core_ops"],
        "parity": {
            "prompts": len(prompts),
            "greedy_texts_equal": True,
            "max_log_probability_error": parity.require_same(
                "log-probabilities",
                answer["log_probabilities"],
                [row.log_probability for row in expected],
                _TOLERANCE,
            ),
            "max_score_error": parity.require_same(
                "scores", answer["scores"], task.score(prompts), _TOLERANCE
            ),
        },
        "tokens_per_second": answer["tokens_per_second"],
    }
