"""`keras-llm predict`: tasks that read a text and do not go on with it."""

import dataclasses
import json

import tyro

import keras_llm
from keras_llm.commands.console import import_tensorflow
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options:
    """Sort a text, rate it, tag its words, fill its gaps, or answer from it; or list a word's
    neighbours."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    text: tyro.conf.Positional[str]
    """The text; for question answering the question."""
    context: str | None = None
    """Where the answer is looked for (of models that answer questions)."""
    json: bool = False
    """Print everything that is known of the result as one JSON object."""


def run(options):
    import_tensorflow()
    task = keras_llm.load(options.run)
    if isinstance(task, keras_llm.WordVectors):
        found = task.nearest(options.text)
        print(json.dumps(found) if options.json else "\n".join(f"{c:.3f} {w}" for w, c in found))
        return
    is_answering = isinstance(task, keras_llm.QuestionAnswering)
    takes_context = is_answering or "context_separator" in task.metadata
    reads = (
        keras_llm.TextClassification,
        keras_llm.TextRegression,
        keras_llm.TokenClassification,
        keras_llm.MaskedLanguageModel,
    )
    if not is_answering and not isinstance(task, reads):
        raise InputError(f"{options.run} is a {type(task).__name__}; see keras-llm generate.")
    if takes_context != (options.context is not None):
        wanted = "is missing" if takes_context else "is for question answering"
        raise InputError(f"--context {wanted}.")
    texts = [options.text, options.context] if takes_context else [options.text]
    found = task(*texts, truncate=True, return_details=options.json)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        print(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))
