"""The graphs that a server runs: one module for each kind of task."""

from keras_llm import tasks
from keras_llm.errors import InputError
from keras_llm.export.signatures.base import save
from keras_llm.export.signatures.heads import (
    TextClassificationModule,
    TextEmbeddingModule,
    TokenClassificationModule,
)
from keras_llm.export.signatures.masked_language_model import MaskedLanguageModelModule
from keras_llm.export.signatures.question_answering import QuestionAnsweringModule
from keras_llm.export.signatures.text_generation import TextGenerationModule
from keras_llm.export.signatures.translation import TranslationModule

MODULES = {
    tasks.TextGeneration: TextGenerationModule,
    tasks.Translation: TranslationModule,
    tasks.TextClassification: TextClassificationModule,
    tasks.TokenClassification: TokenClassificationModule,
    tasks.QuestionAnswering: QuestionAnsweringModule,
    tasks.TextEmbedding: TextEmbeddingModule,
    tasks.MaskedLanguageModel: MaskedLanguageModelModule,
}

__all__ = ["MODULES", "TextGenerationModule", "module_of", "save"]


def module_of(task):
    """The graphs of a task; InputError if it is of no kind that can be served."""
    for kind, module in MODULES.items():
        if isinstance(task, kind):
            return module(task)
    known = ", ".join(kind.__name__ for kind in MODULES)
    raise InputError(f"saved_model: `task` must be one of {known}, got {type(task)}.")
