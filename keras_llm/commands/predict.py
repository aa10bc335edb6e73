"""Run tasks that do not generate text: `keras-llm predict`."""

import dataclasses
import json

import tyro

import keras_llm
from keras_llm.commands.console import import_tensorflow, kind_of, load_task, task_kind
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options:
    """Classify, rate or tag a text, fill its masks, answer a question, or list similar words."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, or a name such as hf:OWNER/NAME."""
    text: tyro.conf.Positional[str]
    """The text; for question answering the question."""
    context: str | None = None
    """Text that contains the answer (question answering only)."""
    json: bool = False
    """Print all details of the result as one JSON object."""


_SUPPORTED = (
    "QuestionAnswering",
    "TextClassification",
    "TextRegression",
    "TokenClassification",
    "MaskedLanguageModel",
    "WordVectors",
)


def run(options):
    _check(options, task_kind(options.run))
    import_tensorflow()
    task = load_task(options.run)
    _check(options, kind_of(task))
    if isinstance(task, keras_llm.WordVectors):
        neighbors = task.nearest(options.text)
        lines = (f"{cosine:.3f} {word}" for word, cosine in neighbors)
        print(json.dumps(neighbors) if options.json else "\n".join(lines))
        return
    is_answering = isinstance(task, keras_llm.QuestionAnswering)
    takes_context = is_answering or "context_separator" in task.metadata
    if takes_context != (options.context is not None):
        reason = "is missing" if takes_context else "is only for models that read a context"
        raise InputError(f"--context {reason}.")
    texts = [options.text, options.context] if takes_context else [options.text]
    result = task(*texts, truncate=True, return_details=options.json)
    if options.json:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    else:
        print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))


def _check(options, kind):
    if kind not in (*_SUPPORTED, None):
        raise InputError(
            f"{options.run} is a {kind}, which predict does not support; see keras-llm generate."
        )
    if kind == "QuestionAnswering" and options.context is None:
        raise InputError("--context is missing.")
