"""Functional models from a config, and the cached steps that generation and export run."""

from keras_llm.layers.alibi import Alibi
from keras_llm.layers.relative import RelativeBias
from keras_llm.layers.rotary import Rotary
from keras_llm.models.base import ConfiguredModel, config_from_dict, config_to_dict
from keras_llm.models.cached import decode, forward_cached, init_cache, logits_of, prefill
from keras_llm.models.causal_lm import CausalLM, causal_lm
from keras_llm.models.config import CausalLMConfig, EncoderConfig, Seq2SeqConfig, TransformerConfig
from keras_llm.models.encoder import Encoder, encoder
from keras_llm.models.presets import preset, presets
from keras_llm.models.seq2seq import Seq2Seq, encode, seq2seq
from keras_llm.models.summary import build, summarize

__all__ = [
    "Alibi",
    "CausalLM",
    "CausalLMConfig",
    "ConfiguredModel",
    "Encoder",
    "EncoderConfig",
    "RelativeBias",
    "Rotary",
    "Seq2Seq",
    "Seq2SeqConfig",
    "TransformerConfig",
    "build",
    "causal_lm",
    "config_from_dict",
    "config_to_dict",
    "decode",
    "encode",
    "encoder",
    "forward_cached",
    "init_cache",
    "logits_of",
    "prefill",
    "preset",
    "presets",
    "seq2seq",
    "summarize",
]
