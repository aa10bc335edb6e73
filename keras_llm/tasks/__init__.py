"""Tasks: a model, a tokenizer, and what strings go in and come out."""

from keras_llm.tasks.base import Task, load, read_config
from keras_llm.tasks.generative import Generation
from keras_llm.tasks.masked_language_model import Filling, MaskedLanguageModel
from keras_llm.tasks.question_answering import Answer, QuestionAnswering
from keras_llm.tasks.text_classification import Classification, TextClassification
from keras_llm.tasks.text_embedding import TextEmbedding
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tasks.token_classification import TaggedWord, Tagging, TokenClassification
from keras_llm.tasks.translation import Translation
from keras_llm.tasks.word_vectors import WordVectors

__all__ = [
    "Answer",
    "Classification",
    "Filling",
    "Generation",
    "MaskedLanguageModel",
    "QuestionAnswering",
    "TaggedWord",
    "Tagging",
    "Task",
    "TextClassification",
    "TextEmbedding",
    "TextGeneration",
    "TokenClassification",
    "Translation",
    "WordVectors",
    "load",
    "read_config",
]
