"""Provide Keras layers that compose into language models, using only `keras` and `keras.ops`."""

from keras_llm.layers.activations import gelu_tanh, get_activation
from keras_llm.layers.alibi import Alibi, AlibiBias
from keras_llm.layers.attention import MultiHeadAttention
from keras_llm.layers.cache import empty_cache, update_cache
from keras_llm.layers.embedding import TokenAndPositionEmbedding
from keras_llm.layers.feed_forward import FeedForward
from keras_llm.layers.masked_lm_head import MaskedLMHead
from keras_llm.layers.masks import band_mask, causal_mask, padding_mask
from keras_llm.layers.moe import MixtureOfExperts
from keras_llm.layers.position import PositionEmbedding, SinePositionEncoding
from keras_llm.layers.relative import RelativeBias, RelativePositionBias
from keras_llm.layers.rotary import (
    Llama3Scaling,
    NTKScaling,
    Rotary,
    RotaryEmbedding,
    YarnScaling,
)
from keras_llm.layers.transformer import TransformerDecoder, TransformerEncoder

__all__ = [
    "Alibi",
    "AlibiBias",
    "FeedForward",
    "Llama3Scaling",
    "MaskedLMHead",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "NTKScaling",
    "PositionEmbedding",
    "RelativeBias",
    "RelativePositionBias",
    "Rotary",
    "RotaryEmbedding",
    "SinePositionEncoding",
    "TokenAndPositionEmbedding",
    "TransformerDecoder",
    "TransformerEncoder",
    "YarnScaling",
    "band_mask",
    "causal_mask",
    "empty_cache",
    "gelu_tanh",
    "get_activation",
    "padding_mask",
    "update_cache",
]
