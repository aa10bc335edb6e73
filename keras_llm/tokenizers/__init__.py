"""Provide tokenizers that train, save, and run in Python, tf.data and SavedModels."""

from keras_llm.tokenizers.base import Tokenizer, load
from keras_llm.tokenizers.byte_pair import BytePair
from keras_llm.tokenizers.chat_template import ChatTemplate
from keras_llm.tokenizers.gguf import from_gguf_metadata
from keras_llm.tokenizers.hugging_face.reading import (
    chat_template_from_hugging_face,
    from_hugging_face,
)
from keras_llm.tokenizers.hugging_face.writing import to_hugging_face
from keras_llm.tokenizers.infilling import INFILLING_TOKENS, infilling_tokens
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.tokenizers.spelling import spelling
from keras_llm.tokenizers.word_piece import WordPiece

__all__ = [
    "INFILLING_TOKENS",
    "BytePair",
    "ChatTemplate",
    "SentencePiece",
    "Tokenizer",
    "WordPiece",
    "chat_template_from_hugging_face",
    "from_gguf_metadata",
    "from_hugging_face",
    "infilling_tokens",
    "load",
    "spelling",
    "to_hugging_face",
]
