"""Take encoder-decoders that a user composed from Keras layers."""

import keras
import numpy as np

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.composed import (
    ComposedModel,
    check_mask_zero,
    checked_length,
    functional_of,
    require_same,
)
from keras_llm.models.config import ComposedSeq2SeqConfig
from keras_llm.models.incremental_check import check_composed


@keras.saving.register_keras_serializable("keras_llm")
class ComposedSeq2Seq(ComposedModel):
    """An encoder-decoder that a user composed, with the layers and weights of that model.

    Its inputs are `[encoder_token_ids, decoder_token_ids]`, (B, S) and (B, T), its output logits
    (B, T, V). Use `as_seq2seq` to build one.

    Attributes:
        config: a `ComposedSeq2SeqConfig`.
    """

    config_class = ComposedSeq2SeqConfig
    config: ComposedSeq2SeqConfig


def as_seq2seq(
    model: keras.Model, pad_id: int = 0, start_id: int = 0, max_length: int | None = None
) -> ConfiguredModel:
    """Return a composed encoder-decoder in the form that tasks and exports take.

    Args:
        model: a functional `keras.Model`, or a subclass whose `call` can be traced, from a list of
            int token ids of the encoder (B, S) and of the decoder (B, T), of any lengths, to float
            logits (B, T, V). It masks `pad_id` in the encoder's ids itself. A model of this library
            is returned as it is.
        pad_id: int. Padding of the encoder's token ids.
        start_id: int. The decoder's first token.
        max_length: int > 1. Maximum length of both sequences. Defaults to the smallest
            `sequence_length` of its layers, or to 1024.

    Returns:
        A `keras.Model` with the same layers and weights.

    Raises:
        InputError: if the model has other inputs or outputs, its logits depend on later tokens of
            the decoder or on padding of the encoder's ids, or a layer gives other outputs with a
            cache; the message names the layer.
    """
    if isinstance(model, ConfiguredModel):
        return model
    functional = functional_of(model, ("encoder_token_ids", "decoder_token_ids"))
    shapes = [x.shape for x in (*functional.inputs, *functional.outputs)]
    if [len(shape) for shape in shapes] != [2, 2, 3] or shapes[-1][-1] is None:
        raise InputError(
            "`model` must map the token ids of the encoder (B, S) and of the decoder (B, T) to "
            f"logits (B, T, V); it maps {shapes[: len(functional.inputs)]} to "
            f"{shapes[len(functional.inputs) :]}."
        )
    if any(x.shape[1] is not None for x in functional.inputs):
        raise InputError("`model`: the inputs of an encoder-decoder must be of any length.")
    inputs = [
        keras.Input((None,), dtype=x.dtype, name=f"{side}_token_ids")
        for x, side in zip(functional.inputs, ("encoder", "decoder"), strict=True)
    ]
    check_mask_zero(functional, pad_id)
    (logits,) = keras_internals.run_graph(functional, inputs)
    length = checked_length(functional, None, max_length)
    config = ComposedSeq2SeqConfig(shapes[-1][-1], length, pad_id=pad_id, start_id=start_id)
    composed = ComposedSeq2Seq(config, keras.Model(inputs, logits), name=functional.name)
    _check_padding(composed)
    check_composed(composed)
    return composed


def _check_padding(model):
    """Raise InputError if logits depend on padding of the encoder's token ids."""
    config = model.config
    drawn = np.random.default_rng(0).integers(0, config.vocabulary_size - 1, (2, 5))
    source = (drawn + (drawn >= config.pad_id)).astype("int32")  # without padding
    padded = np.pad(source, ((0, 0), (0, 2)), constant_values=config.pad_id)
    ids = source[:, :3]
    require_same(
        model([source, ids]),
        model([padded, ids]),
        model.layers,
        "the logits of `model` change with padding of the encoder's token ids (by {error}): mask "
        f"the id {config.pad_id}, e.g. with `padding_mask` or `mask_zero`.",
    )
