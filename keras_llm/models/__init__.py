"""Functional models from a config, and the cached steps that generation and export run."""

from keras_llm.layers.alibi import Alibi
from keras_llm.layers.rotary import Rotary
from keras_llm.models.causal_lm import (
    causal_lm,
    decode,
    forward_cached,
    init_cache,
    logits_of,
    prefill,
)
from keras_llm.models.config import CausalLMConfig
from keras_llm.models.presets import preset, presets
from keras_llm.models.summary import summarize

__all__ = [
    "Alibi",
    "CausalLMConfig",
    "Rotary",
    "causal_lm",
    "decode",
    "forward_cached",
    "init_cache",
    "logits_of",
    "prefill",
    "preset",
    "presets",
    "summarize",
]
