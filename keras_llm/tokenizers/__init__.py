"""Tokenizers that train, save, run in Python, in tf.data and inside a SavedModel."""

from keras_llm.tokenizers.base import Tokenizer, load
from keras_llm.tokenizers.byte_pair import BytePair
from keras_llm.tokenizers.sentencepiece import SentencePiece

__all__ = ["BytePair", "SentencePiece", "Tokenizer", "load"]
