"""Build decoder-only language models."""

from typing import Any

import keras

from keras_llm.layers import TransformerDecoder
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.config import CausalLMConfig
from keras_llm.types import JSON


@keras.saving.register_keras_serializable("keras_llm")
class CausalLM(ConfiguredModel):
    """A functional model from token ids (B, T) to next-token logits (B, T, V).

    Its layers are `token_embedding`, `position_embedding` (for learned or sinusoidal positions),
    `relative_bias` (for a shared relative bias), `block_0 .. block_<L-1>`, `final_norm` (unless
    each block ends with a norm) and `logits`; `get_layer(name)` returns each. Use `causal_lm` to
    build one.

    Attributes:
        config: the `CausalLMConfig` it was built from.
        hidden: the symbolic hidden states (B, T, D) that the output head reads.
    """

    config_class = CausalLMConfig
    config: CausalLMConfig

    def __init__(
        self,
        config: CausalLMConfig | JSON,
        name: str = "causal_lm",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.read_config(config)
        layers = [
            *forward_pass.embedding_layers(config, dtype),
            *forward_pass.block_layers(config, dtype, TransformerDecoder, config.num_layers),
            forward_pass.logits_layer(),
        ]
        layer = {layer.name: layer for layer in layers}.get
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        x = forward_pass.embed(layer, config, token_ids)
        hidden = forward_pass.run_decoder(layer, config, x, token_ids, config.num_layers)
        logits = forward_pass.logits(layer, config, hidden)
        super().__init__(config, token_ids, logits, name, dtype, **kwargs)
        self.hidden = hidden


def causal_lm(config: CausalLMConfig, dtype: str | None = None) -> CausalLM:
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
