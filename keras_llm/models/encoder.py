"""Build encoders, which map token ids to one contextual vector per token."""

from typing import Any

import keras

from keras_llm.layers import TransformerEncoder
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.config import EncoderConfig
from keras_llm.types import JSON


@keras.saving.register_keras_serializable("keras_llm")
class Encoder(ConfiguredModel):
    """A functional model from `[token_ids, padding_mask]`, both (B, T), to vectors (B, T, D).

    With `num_segments` there is a third input, `segment_ids` (B, T). Depending on the config, its
    layers are `token_embedding`, `position_embedding`, `segment_embedding`, `embedding_norm`,
    `relative_bias`, `block_0 .. block_<L-1>` and `final_norm`. Use `encoder` to build one.

    Attributes:
        config: the `EncoderConfig` it was built from.
        hidden: the symbolic vectors (B, T, D).
    """

    config_class = EncoderConfig
    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig | JSON,
        name: str = "encoder",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.read_config(config)
        layers = [
            *forward_pass.embedding_layers(config, dtype),
            *forward_pass.block_layers(config, dtype, TransformerEncoder, config.num_layers),
        ]
        layer = {layer.name: layer for layer in layers}.get
        inputs = encoder_inputs(config)
        token_ids, padding_mask, *segment_ids = inputs
        x = forward_pass.embed(layer, config, token_ids, *segment_ids)
        hidden = forward_pass.run_encoder(
            layer, config, x, padding_mask, token_ids, config.num_layers
        )
        super().__init__(config, inputs, hidden, name, dtype, **kwargs)
        self.hidden = hidden


def encoder_inputs(config: EncoderConfig) -> list[keras.KerasTensor]:
    """Return the symbolic inputs of an encoder: token ids, padding mask and any segment ids."""
    inputs = [
        keras.Input((None,), dtype="int32", name="token_ids"),
        keras.Input((None,), dtype="bool", name="padding_mask"),
    ]
    if config.num_segments:
        inputs.append(keras.Input((None,), dtype="int32", name="segment_ids"))
    return inputs


def encoder(config: EncoderConfig, dtype: str | None = None) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        config: an `EncoderConfig`.
        dtype: Keras dtype policy of all layers. Defaults to the global policy.

    Returns:
        A `keras.Model` from int token ids (B, T) and a bool padding mask (B, T), True = a real
        token, to float vectors (B, T, D). With `num_segments`, int segment ids (B, T) are a
        third input. Pass inputs as a list in this order or as a dict by name.

    Raises:
        InputError: if `config` is not an `EncoderConfig`.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.encoder(models.preset("distilbert-tiny"))
    >>> token_ids = np.array([[5, 6, 7], [8, 9, 0]])
    >>> tuple(model([token_ids, token_ids != 0]).shape)
    (2, 3, 64)
    """
    return Encoder(config, dtype=dtype)
