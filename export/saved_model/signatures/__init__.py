"""Build the graphs of SavedModels, with one module for each kind of task."""

from keras_llm import tasks
from keras_llm.errors import InputError
from keras_llm.export.saved_model.signatures.base import GraphModule, save
from keras_llm.export.saved_model.signatures.heads import (
    TextClassificationModule,
    TextEmbeddingModule,
    TextRegressionModule,
    TokenClassificationModule,
)
from keras_llm.export.saved_model.signatures.masked_language_model import MaskedLanguageModelModule
from keras_llm.export.saved_model.signatures.question_answering import QuestionAnsweringModule
from keras_llm.export.saved_model.signatures.text_generation import TextGenerationModule
from keras_llm.export.saved_model.signatures.translation import TranslationModule
from keras_llm.export.saved_model.signatures.weights import KINDS
from keras_llm.generation.checks import check_count

MODULES = {
    tasks.TextGeneration: TextGenerationModule,
    tasks.Translation: TranslationModule,
    tasks.TextClassification: TextClassificationModule,
    tasks.TokenClassification: TokenClassificationModule,
    tasks.QuestionAnswering: QuestionAnsweringModule,
    tasks.TextEmbedding: TextEmbeddingModule,
    tasks.TextRegression: TextRegressionModule,
    tasks.MaskedLanguageModel: MaskedLanguageModelModule,
}

__all__ = ["MODULES", "TextGenerationModule", "check_whole", "module_of", "save"]


def module_of(
    task: tasks.Task, weights: str | None = None, xla: bool = False, beam_width: int | None = None
) -> GraphModule:
    """Return the `GraphModule` of a task.

    Args:
        task: a task.
        weights: None, or "float16" or "int8" to store matrices in fewer bits.
        xla: bool. Whether to compile the decoding loop of a generative task with XLA.
        beam_width: int or None. Number of beams of its `beam_search`.

    Raises:
        InputError: if an argument is invalid.
    """
    check_whole("saved_model", task)
    kinds = ", ".join(kind.__name__ for kind in MODULES)
    module = next((MODULES[kind] for kind in MODULES if isinstance(task, kind)), None)
    if module is None:
        raise InputError(f"saved_model: `task` must be one of {kinds}, got {type(task)}.")
    if weights not in (None, *KINDS):
        raise InputError(
            f'saved_model: `weights` must be None, "float16" or "int8", got {weights!r}.'
        )
    if module in (TextGenerationModule, TranslationModule):
        if beam_width is not None:
            check_count("saved_model", "beam_width", beam_width)
        return module(task, weights, xla, beam_width)
    for name, value in (("xla", xla), ("beam_width", beam_width)):
        if value:
            raise InputError(
                f"saved_model: `{name}` is only supported for generative tasks, got a "
                f"{type(task).__name__}."
            )
    return module(task, weights)


def check_whole(caller: str, task: tasks.Task) -> None:
    """Raise InputError if an export would silently omit a part of the task."""
    if isinstance(task, tasks.RankedChat):
        raise InputError(
            f"{caller}: a RankedChat cannot be exported as a whole; export its `generator`, which "
            "answers without ranking or filtering, and its classifiers separately."
        )
