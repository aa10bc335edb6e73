"""Keras layers that compose into language models. Only `keras` and `keras.ops` inside."""

from keras_llm.layers.attention import MultiHeadAttention
from keras_llm.layers.cache import empty_cache, update_cache
from keras_llm.layers.embedding import TokenAndPositionEmbedding
from keras_llm.layers.feed_forward import FeedForward
from keras_llm.layers.masks import band_mask, causal_mask, padding_mask
from keras_llm.layers.position import (
    PositionEmbedding,
    Rotary,
    RotaryEmbedding,
    SinePositionEncoding,
)
from keras_llm.layers.transformer import TransformerDecoder, TransformerEncoder

__all__ = [
    "FeedForward",
    "MultiHeadAttention",
    "PositionEmbedding",
    "Rotary",
    "RotaryEmbedding",
    "SinePositionEncoding",
    "TokenAndPositionEmbedding",
    "TransformerDecoder",
    "TransformerEncoder",
    "band_mask",
    "causal_mask",
    "empty_cache",
    "padding_mask",
    "update_cache",
]
