"""Take models of texts that a user composed: classifiers, taggers, regressors and embedders."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.composed import (
    ComposedModel,
    LengthOf,
    PadTo,
    checked_length,
    functional_of,
    require_same,
    runs_at_any_length,
)
from keras_llm.models.config import ComposedConfig
from keras_llm.models.incremental_check import require_logits
from keras_llm.types import JSON

_SHAPES = {
    "text_classifier": "logits (B, C)",
    "text_regressor": "numbers (B,) or (B, 1)",
    "token_classifier": "logits (B, T, C)",
    "sentence_embedder": "embeddings (B, D)",
}
_RANKS = {"text_classifier": 2, "token_classifier": 3, "sentence_embedder": 2}


@keras.saving.register_keras_serializable("keras_llm")
class ComposedHead(ComposedModel):
    """A model of texts that a user composed, with the layers and weights of that model.

    Its inputs are token ids (B, T) and, if the user's model has it, the padding mask (B, T). Use
    `as_head_model` to build one.

    Attributes:
        config: a `ComposedConfig`.
        head: str, the head that its output is one of, e.g. "text_classifier".
        options: dict with `num_classes`.
    """

    _takes_tensor = False

    def __init__(
        self, config: ComposedConfig | JSON, model: keras.Model | JSON, head: str, **kwargs: Any
    ) -> None:
        super().__init__(config, model, **kwargs)
        self.head, self.options = head, {"num_classes": self.outputs[0].shape[-1]}

    def get_config(self) -> JSON:
        return {**super().get_config(), "head": self.head}


def as_head_model(
    model: keras.Model,
    head: str | None,
    vocabulary_size: int,
    max_length: int | None = None,
    pad_id: int = 0,
) -> ConfiguredModel:
    """Return a composed model of texts in the form that tasks and exports take.

    Args:
        model: a functional or `Sequential` `keras.Model`, or a subclass whose `call` can be traced,
            from int token ids (B, T) or a pair of these and the padding mask (B, T), 1 or True at
            real tokens, to the output of the head. A model of this library is returned as it is.
        head: "text_classifier" (logits (B, C)), "token_classifier" (logits (B, T, C)),
            "text_regressor" (numbers (B,) or (B, 1)) or "sentence_embedder" (vectors (B, D)).
        vocabulary_size: int > 1, the number of tokens.
        max_length: int > 1. Maximum sequence length. Defaults to the length of the model's input
            or to the smallest `sequence_length` of its layers, otherwise to 1024.
        pad_id: int. Padding of the token ids.

    Returns:
        A `keras.Model` with the same layers and weights.

    Raises:
        InputError: if the model has other inputs or outputs, or its outputs depend on padding.
    """
    if isinstance(model, ConfiguredModel):
        return model
    if head not in _SHAPES:
        raise InputError(f"a composed model cannot be a {head}, only one of {', '.join(_SHAPES)}.")
    functional = _functional(model)
    sources = functional.inputs
    if len(functional.outputs) != 1:
        raise InputError(f"`model` must have one output; it has {len(functional.outputs)}.")
    if len(sources) not in (1, 2) or any(len(x.shape) != 2 for x in sources):
        raise InputError(
            "`model` must have the inputs token ids (B, T) and, optionally, the padding mask "
            f"(B, T); it has {[x.shape for x in sources]}."
        )
    inputs = [
        keras.Input((None,), dtype=dtype, name=name)
        for name, dtype in (("token_ids", "int32"), ("padding_mask", "bool"))
    ][: len(sources)]
    cast = [ops.cast(x, source.dtype) for x, source in zip(inputs, sources, strict=True)]
    length = sources[0].shape[1]
    if length is None or runs_at_any_length(functional):
        (output,) = keras_internals.run_graph(functional, cast)
    else:
        padded = [PadTo(length, fill)(x) for x, fill in zip(cast, (pad_id, 0), strict=False)]
        output = functional(padded if len(padded) > 1 else padded[0])
        if head == "token_classifier":
            output = LengthOf()(output, inputs[0])
    rank = len(output.shape)
    if head == "text_regressor" and rank == 2 and output.shape[-1] == 1:
        output, rank = ops.squeeze(output, -1), 1
    if rank != _RANKS.get(head, 1):
        raise InputError(f"`model` must return {_SHAPES[head]}; it returns {output.shape}.")
    output = ops.cast(output, "float32")
    config = ComposedConfig(vocabulary_size, checked_length(functional, length, max_length))
    composed = ComposedHead(config, keras.Model(inputs, output), head, name=functional.name)
    _check_padding(composed, pad_id)
    return composed


def _functional(model):
    """Return a functional model from token ids, or from these and the padding mask."""
    if isinstance(model, keras.Model) and keras_internals.functional_of(model) is None:
        with contextlib.suppress(InputError):
            return functional_of(model)
    return functional_of(model, ("token_ids", "padding_mask"))


def _check_padding(model, pad_id):
    """Raise InputError if outputs for real tokens depend on padding."""
    count = min(6, model.config.max_length - 2)
    drawn = np.random.default_rng(0).integers(0, model.config.vocabulary_size - 1, (2, count))
    token_ids = (drawn + (drawn >= pad_id)).astype("int32")  # without padding
    padded = np.pad(token_ids, ((0, 0), (0, 2)), constant_values=pad_id)
    whole, longer = (
        model([ids, ids != pad_id][: len(model.inputs)]) for ids in (token_ids, padded)
    )
    if model.head.endswith("classifier"):
        require_logits(ops.convert_to_numpy(whole))
    if model.head == "token_classifier":
        longer = longer[:, :count]
    require_same(
        whole,
        longer,
        model.layers,
        "the outputs of `model` for a text change with its padding (by {error}): give it the "
        f"padding mask as a second input, or mask the token {pad_id}, e.g. with `mask_zero=True` "
        "if that is 0.",
    )
