"""Add task heads to backbones.

A backbone is an encoder or a decoder-only model, or the config of one; a backbone model is reused
with its weights. Every head model takes `[token_ids, padding_mask]`, and `segment_ids` if the
backbone does, and keeps its backbone as a layer, `get_layer("backbone")`.
"""

import numbers
from typing import Any, TypeAlias

import keras

from keras_llm.errors import InputError
from keras_llm.models.base import ConfiguredModel, config_from_dict, config_to_dict
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.config import CausalLMConfig, EncoderConfig
from keras_llm.models.encoder import Encoder, encoder_inputs
from keras_llm.models.head_layers import HEADS, Backbone
from keras_llm.types import JSON

_Backbone: TypeAlias = CausalLM | Encoder | CausalLMConfig | EncoderConfig
_POOLINGS = ("first", "mean", "last")


@keras.saving.register_keras_serializable("keras_llm")
class HeadModel(ConfiguredModel):
    """A functional model of a backbone and a head, built by the functions of this module.

    Attributes:
        config: the config of the backbone.
        head: str, the name of the head.
        options: dict, the options of the head.
        hidden: the symbolic hidden states (B, T, D) that the head reads.
    """

    config: CausalLMConfig | EncoderConfig

    def __init__(
        self,
        config: CausalLMConfig | EncoderConfig | JSON,
        head: str,
        options: JSON | None = None,
        backbone: CausalLM | Encoder | None = None,
        name: str | None = None,
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = config_from_dict(config) if isinstance(config, dict) else config
        if backbone is None:
            backbone = (
                CausalLM(config, dtype=dtype)
                if isinstance(config, CausalLMConfig)
                else Encoder(config, dtype=dtype)
            )
        is_encoder = isinstance(backbone, Encoder)
        token_ids = backbone.inputs[0]
        inputs = (
            encoder_inputs(backbone.config) if isinstance(backbone, Encoder) else _decoder_inputs()
        )
        padding_mask = inputs[1]
        body = keras.Model(
            backbone.inputs if is_encoder else token_ids, backbone.hidden, name="backbone"
        )
        hidden = body(inputs if is_encoder else inputs[0])
        extra_inputs, outputs = HEADS[head](
            hidden, padding_mask, Backbone(config, backbone, dtype), **(options or {})
        )
        super().__init__(config, inputs + extra_inputs, outputs, name or head, dtype, **kwargs)
        self.head, self.options = head, dict(options or {})
        self.hidden = hidden

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "config": config_to_dict(self.config),
            "head": self.head,
            "options": self.options,
        }


def masked_lm(
    backbone: Encoder | EncoderConfig, dtype: str | None = None, activation: str | None = None
) -> HeadModel:
    """Build a model that predicts masked tokens.

    Args:
        backbone: an encoder or its `EncoderConfig`.
        dtype: Keras dtype policy of the new layers.
        activation: name of the activation of the head's dense layer. Defaults to that of the
            backbone; RoBERTa's head has "gelu" with any backbone.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ..., mask_positions]`, the last an int
        tensor (B, M), to float32 logits (B, M, V). The head shares the token embedding.

    Raises:
        InputError: if `backbone` is neither an encoder nor its config.

    Reference:
        Devlin et al., 2018, "BERT".

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = masked_lm(models.preset("distilbert-tiny"))
    >>> ids = np.ones((2, 7), "int32")
    >>> tuple(model([ids, ids > 0, np.array([[1, 3], [2, 6]])]).shape)
    (2, 2, 512)
    """
    options = None if activation is None else {"activation": activation}
    return _make("masked_lm", backbone, dtype, options, only_encoders=True)


def next_sentence(backbone: Encoder | EncoderConfig, dtype: str | None = None) -> HeadModel:
    """Build a model that predicts whether the second segment follows the first.

    Args:
        backbone: an encoder or its `EncoderConfig`, with segments.
        dtype: Keras dtype policy of the new layers.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, segment_ids]` to float32 logits (B, 2)
        for "follows" and "does not follow".

    Raises:
        InputError: if `backbone` is not an encoder with at least two segments.

    Reference:
        Devlin et al., 2018, "BERT".
    """
    config = backbone if isinstance(backbone, EncoderConfig) else getattr(backbone, "config", None)
    if getattr(config, "num_segments", 0) < 2:
        raise InputError("next_sentence: `backbone` must be an encoder with `num_segments` >= 2.")
    return _make("next_sentence", backbone, dtype, only_encoders=True)


def text_classifier(
    backbone: _Backbone,
    num_classes: int,
    pooling: str | None = None,
    dropout: float = 0.1,
    dtype: str | None = None,
    activation: str = "tanh",
) -> HeadModel:
    """Build a model that classifies texts.

    Args:
        backbone: an encoder or a `causal_lm` model, or its config.
        num_classes: int > 1. C.
        pooling: "first" token, "mean" of the real tokens, or "last" real token. Defaults to
            "first" for an encoder and "last" for a decoder.
        dropout: float in [0, 1). Dropout rate before the last layer.
        dtype: Keras dtype policy of the new layers.
        activation: "tanh" (BERT) or "relu" (DistilBERT). Activation of the dense layer that
            follows the pooling of an encoder.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to float32 logits (B, C).

    Raises:
        InputError: if an argument is invalid; the message names it.
    """
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(
            f"text_classifier: `num_classes` must be an int >= 2, got {num_classes!r}."
        )
    _check_activation("text_classifier", activation)
    options: JSON = {"num_classes": num_classes, "pooling": pooling, "dropout": dropout}
    if activation != "tanh":
        options["activation"] = activation
    return _make("text_classifier", backbone, dtype, options)


def text_regressor(
    backbone: _Backbone,
    pooling: str | None = None,
    dropout: float = 0.1,
    dtype: str | None = None,
    activation: str = "tanh",
    output_activation: str | None = None,
) -> HeadModel:
    """Build a model that predicts a number for a text, trained with the mean squared error.

    Args:
        backbone: an encoder or a `causal_lm` model, or its config.
        pooling, dropout, dtype, activation: see `text_classifier`.
        output_activation: "sigmoid" for a number in (0, 1), or None.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to float32 values (B,).

    Raises:
        InputError: if an argument is invalid; the message names it.
    """
    _check_activation("text_regressor", activation)
    if output_activation not in ("sigmoid", None):
        raise InputError(
            'text_regressor: `output_activation` must be "sigmoid" or None, got '
            f"{output_activation!r}."
        )
    options: JSON = {"pooling": pooling, "dropout": dropout}
    if activation != "tanh":
        options["activation"] = activation
    if output_activation is not None:
        options["output_activation"] = output_activation
    return _make("text_regressor", backbone, dtype, options)


def reward(backbone: _Backbone, dtype: str | None = None) -> HeadModel:
    """Build a reward model: one linear layer on the last real token.

    Args:
        backbone: a `causal_lm` model or an encoder, or its config.
        dtype: Keras dtype policy of the new layer.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to float32 rewards (B,). Train it on
        pairs with `-log sigmoid(chosen - rejected)`.

    Raises:
        InputError: if `backbone` is neither an encoder nor a `causal_lm` model, nor a config.

    Reference:
        Ouyang et al., 2022, "Training language models to follow instructions with human feedback".
    """
    return _make("reward", backbone, dtype)


def token_classifier(
    backbone: _Backbone, num_classes: int, dropout: float = 0.1, dtype: str | None = None
) -> HeadModel:
    """Build a model that classifies each token.

    Args:
        backbone: an encoder or a `causal_lm` model, or its config.
        num_classes: int > 1. C.
        dropout: float in [0, 1). Dropout rate before the last layer.
        dtype: Keras dtype policy of the new layers.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to float32 logits (B, T, C).

    Raises:
        InputError: if an argument is invalid; the message names it.
    """
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(
            f"token_classifier: `num_classes` must be an int >= 2, got {num_classes!r}."
        )
    options = {"num_classes": num_classes, "dropout": dropout}
    return _make("token_classifier", backbone, dtype, options)


def span_qa(backbone: Encoder | EncoderConfig, dtype: str | None = None) -> HeadModel:
    """Build a model that predicts the start and end of the answer span.

    Args:
        backbone: an encoder or its `EncoderConfig`.
        dtype: Keras dtype policy of the new layer.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to a dict of float32 logits (B, T),
        `start` and `end`; padding has the logit -1e9.

    Raises:
        InputError: if `backbone` is neither an encoder nor its config.
    """
    return _make("span_qa", backbone, dtype, only_encoders=True)


def sentence_embedder(
    backbone: _Backbone,
    pooling: str | None = None,
    normalize: bool = True,
    projection_dim: int | None = None,
    dtype: str | None = None,
) -> HeadModel:
    """Build a model that embeds texts as vectors.

    Args:
        backbone: an encoder or a `causal_lm` model, or its config.
        pooling: "mean" of the real tokens, "first" token or "last" real token. Defaults to
            "mean" for an encoder and "last" for a decoder.
        normalize: bool. Whether vectors are scaled to unit length.
        projection_dim: int or None. E, the size of a linear layer after pooling.
        dtype: Keras dtype policy of the new layers.

    Returns:
        A `keras.Model` from `[token_ids, padding_mask, ...]` to float32 vectors (B, D) or
        (B, E).

    Raises:
        InputError: if an argument is invalid; the message names it.

    Reference:
        Reimers and Gurevych, 2019, "Sentence-BERT".
    """
    options = {"pooling": pooling, "normalize": normalize, "projection_dim": projection_dim}
    return _make("sentence_embedder", backbone, dtype, options)


def _check_activation(head, activation):
    if activation not in ("tanh", "relu"):
        raise InputError(f'{head}: `activation` must be "tanh" or "relu", got {activation!r}.')


def _make(head, backbone, dtype, options=None, only_encoders=False):
    model_classes = (Encoder,) if only_encoders else (Encoder, CausalLM)
    config_classes = (EncoderConfig,) if only_encoders else (EncoderConfig, CausalLMConfig)
    expected = "an encoder" if only_encoders else "an encoder or a causal_lm model"
    pooling = (options or {}).get("pooling")
    if pooling is not None and pooling not in _POOLINGS:
        raise InputError(f"{head}: `pooling` must be one of {_POOLINGS}, got {pooling!r}.")
    dropout = (options or {}).get("dropout", 0.0)
    if not isinstance(dropout, numbers.Real) or not 0 <= dropout < 1:
        raise InputError(f"{head}: `dropout` must be in [0, 1), got {dropout!r}.")
    if isinstance(backbone, model_classes):
        dtype = backbone.dtype_config if dtype is None else dtype
        return HeadModel(backbone.config, head, options, backbone, dtype=dtype)
    if isinstance(backbone, config_classes):
        return HeadModel(backbone, head, options, dtype=dtype)
    raise InputError(f"{head}: `backbone` must be {expected}, or its config, got {type(backbone)}.")


def _decoder_inputs():
    return [
        keras.Input((None,), dtype="int32", name="token_ids"),
        keras.Input((None,), dtype="bool", name="padding_mask"),
    ]
