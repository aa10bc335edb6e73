"""Tasks: a model, a tokenizer, and what strings go in and come out."""

from keras_llm.tasks.base import Task, load, read_config
from keras_llm.tasks.generative import Generation
from keras_llm.tasks.text_embedding import TextEmbedding
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tasks.translation import Translation

__all__ = [
    "Generation",
    "Task",
    "TextEmbedding",
    "TextGeneration",
    "Translation",
    "load",
    "read_config",
]
