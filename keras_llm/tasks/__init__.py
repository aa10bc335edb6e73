"""Run models on strings: generation, chat, classification, question answering and more."""

from keras_llm.tasks.audit import (
    TERMS,
    canary_exposure,
    continuation_swaps,
    memorization,
    term_swaps,
)
from keras_llm.tasks.base import Task, load, read_config
from keras_llm.tasks.by_name import from_preset
from keras_llm.tasks.explanation import Explanation, explain, nearest_tokens, summarize_heads
from keras_llm.tasks.generative import Generation
from keras_llm.tasks.masked_language_model import Filling, MaskedLanguageModel
from keras_llm.tasks.next_sentence import NextSentence
from keras_llm.tasks.question_answering import Answer, QuestionAnswering
from keras_llm.tasks.ranked_chat import RankedAnswer, RankedChat, Ranking, Reply
from keras_llm.tasks.text_classification import Classification, TextClassification
from keras_llm.tasks.text_embedding import TextEmbedding
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tasks.text_regression import Score, TextRegression
from keras_llm.tasks.token_classification import TaggedWord, Tagging, TokenClassification
from keras_llm.tasks.translation import Translation
from keras_llm.tasks.word_vectors import WordVectors

__all__ = [
    "TERMS",
    "Answer",
    "Classification",
    "Explanation",
    "Filling",
    "Generation",
    "MaskedLanguageModel",
    "NextSentence",
    "QuestionAnswering",
    "RankedAnswer",
    "RankedChat",
    "Ranking",
    "Reply",
    "Score",
    "TaggedWord",
    "Tagging",
    "Task",
    "TextClassification",
    "TextEmbedding",
    "TextGeneration",
    "TextRegression",
    "TokenClassification",
    "Translation",
    "WordVectors",
    "canary_exposure",
    "continuation_swaps",
    "explain",
    "from_preset",
    "load",
    "memorization",
    "nearest_tokens",
    "read_config",
    "summarize_heads",
    "term_swaps",
]
