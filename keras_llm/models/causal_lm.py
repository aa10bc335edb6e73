"""Decoder-only language models."""

import keras

from keras_llm.layers import TransformerDecoder
from keras_llm.models import stack
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.config import CausalLMConfig


@keras.saving.register_keras_serializable("keras_llm")
class CausalLM(ConfiguredModel):
    """A functional model from token ids (B, T) to next-token logits (B, T, V).

    Its layers are `token_embedding`, `position_embedding` (learned or sinusoidal positions only),
    `relative_bias` (a shared one only), `block_0 .. block_<L-1>`, `final_norm` (unless
    normalised after each block) and `logits`; `get_layer(name)` returns each. Made by `causal_lm`.

    Attributes:
        config: the `CausalLMConfig` it was built from.
        hidden: the symbolic hidden states (B, T, D) that go into the head.
    """

    config_class = CausalLMConfig

    def __init__(self, config, name="causal_lm", dtype=None, **kwargs):
        config = self.read_config(config)
        layers = [
            *stack.embedding_layers(config, dtype),
            *stack.block_layers(config, dtype, TransformerDecoder, config.num_layers),
            stack.logits_layer(),
        ]
        layer = {layer.name: layer for layer in layers}.get
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        x = stack.embed(layer, config, token_ids)
        hidden = stack.decode(layer, config, x, token_ids, config.num_layers)
        logits = stack.logits(layer, config, hidden)
        super().__init__(config, token_ids, logits, name, dtype, **kwargs)
        self.hidden = hidden


def causal_lm(config, dtype=None):
    """Build a decoder-only language model with fresh weights.

    Args:
        config: a `CausalLMConfig`.
        dtype: Keras dtype policy of all layers, e.g. "mixed_bfloat16". Defaults to the
            global policy.

    Returns:
        A `keras.Model` from int token ids (B, T) to float32 logits (B, T, V).

    Raises:
        InputError: if `config` is not a `CausalLMConfig`.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> tuple(model(np.zeros((2, 7), "int32")).shape)
    (2, 7, 512)
    """
    return CausalLM(config, dtype=dtype)
