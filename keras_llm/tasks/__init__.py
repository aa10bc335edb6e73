"""Tasks: a model, a tokenizer, and what strings go in and come out."""

from keras_llm.tasks.base import Task, load, read_config
from keras_llm.tasks.text_generation import Generation, TextGeneration

__all__ = ["Generation", "Task", "TextGeneration", "load", "read_config"]
