"""Build the layers of task heads."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_llm.layers import MaskedLMHead
from keras_llm.models.config import CausalLMConfig, EncoderConfig


class Backbone:
    """The properties of a backbone that heads use."""

    def __init__(
        self, config: CausalLMConfig | EncoderConfig, model: keras.Model, dtype: str | None
    ) -> None:
        self.config, self.model, self.dtype = config, model, dtype
        self.is_encoder = isinstance(config, EncoderConfig)

    def dense(self, units, name, activation=None, dtype=None):
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=self.config.initializer_range
            ),
            dtype=dtype or self.dtype,
            name=name,
        )

    def dropout(self, x, rate):
        return keras.layers.Dropout(rate, dtype=self.dtype, name="dropout")(x) if rate else x

    def pooled(self, hidden, padding_mask, pooling, default):
        """Pool hidden states (B, T, D) over time to (B, D)."""
        pooling = pooling or (default if self.is_encoder else "last")
        if pooling == "first":
            return ops.squeeze(ops.take(hidden, [0], axis=1), 1)
        mask = ops.cast(padding_mask, hidden.dtype)
        if pooling == "mean":
            total = ops.sum(hidden * ops.expand_dims(mask, -1), axis=1)
            return total / ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1.0)
        last = ops.sum(ops.cast(padding_mask, "int32"), axis=1) - 1
        last = ops.expand_dims(ops.maximum(last, 0), (1, 2))
        return ops.squeeze(ops.take_along_axis(hidden, last, axis=1), 1)

    def summary(self, hidden, padding_mask, pooling, dropout, activation="tanh"):
        """Compute the features that classifiers read: pooled and, for encoders, transformed."""
        x = self.pooled(hidden, padding_mask, pooling, "first")
        if self.is_encoder:
            x = self.dense(self.config.hidden_dim, "pooler", activation)(x)
        return self.dropout(x, dropout)


def _masked_lm(hidden, padding_mask, backbone, activation=None):
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    head = MaskedLMHead(
        token_embedding=backbone.model.get_layer("token_embedding"),
        intermediate_activation=activation or backbone.config.activation,
        layer_norm_epsilon=backbone.config.norm_epsilon,
        dtype=backbone.dtype,
        name="masked_lm_head",
    )
    logits = head(hidden, positions)
    return [positions], keras.layers.Activation("linear", dtype="float32", name="logits")(logits)


def _next_sentence(hidden, padding_mask, backbone):
    x = backbone.summary(hidden, padding_mask, "first", 0.0)
    return [], backbone.dense(2, "logits", dtype="float32")(x)


def _text_classifier(
    hidden, padding_mask, backbone, num_classes, pooling, dropout, activation="tanh"
):
    x = backbone.summary(hidden, padding_mask, pooling, dropout, activation)
    return [], backbone.dense(num_classes, "logits", dtype="float32")(x)


def _text_regressor(
    hidden,
    padding_mask,
    backbone,
    pooling,
    dropout,
    activation="tanh",
    output_activation=None,
):
    x = backbone.summary(hidden, padding_mask, pooling, dropout, activation)
    return [], ops.squeeze(backbone.dense(1, "value", output_activation, "float32")(x), -1)


def _reward(hidden, padding_mask, backbone):
    x = backbone.pooled(hidden, padding_mask, "last", "last")
    return [], ops.squeeze(backbone.dense(1, "reward", dtype="float32")(x), -1)


def _token_classifier(hidden, padding_mask, backbone, num_classes, dropout):
    x = backbone.dropout(hidden, dropout)
    return [], backbone.dense(num_classes, "logits", dtype="float32")(x)


def _span_qa(hidden, padding_mask, backbone):
    logits = backbone.dense(2, "span", dtype="float32")(hidden)
    logits = ops.where(ops.expand_dims(padding_mask, -1), logits, -1e9)
    start, end = ops.split(logits, 2, axis=-1)
    return [], {"start": ops.squeeze(start, -1), "end": ops.squeeze(end, -1)}


def _sentence_embedder(hidden, padding_mask, backbone, pooling, normalize, projection_dim):
    x = backbone.pooled(hidden, padding_mask, pooling, "mean")
    if projection_dim:
        x = backbone.dense(projection_dim, "projection")(x)
    x = ops.cast(x, "float32")
    if normalize:
        length = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
        x = x / ops.maximum(length, 1e-12)
    return [], x


HEADS: dict[str, Callable[..., Any]] = {
    "masked_lm": _masked_lm,
    "next_sentence": _next_sentence,
    "text_classifier": _text_classifier,
    "text_regressor": _text_regressor,
    "reward": _reward,
    "token_classifier": _token_classifier,
    "span_qa": _span_qa,
    "sentence_embedder": _sentence_embedder,
}
"""For each head, a function that returns its further inputs and its outputs.

It takes the hidden states (B, T, D), the padding mask (B, T), a `Backbone` and the head's options.
"""
