"""Take models of texts that a user composed: classifiers, taggers, regressors and embedders."""

from typing import Self

import keras
import numpy as np
from keras import ops

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.composed import (
    DEFAULT_LENGTH,
    LengthOf,
    PadTo,
    deserialized,
    functional_of,
    runs_at_any_length,
    serialized,
    shortest_embedding,
)
from keras_llm.models.config import ComposedConfig
from keras_llm.types import JSON

_SHAPES = {
    "text_classifier": "logits (B, C)",
    "text_regressor": "numbers (B,) or (B, 1)",
    "token_classifier": "logits (B, T, C)",
    "sentence_embedder": "embeddings (B, D)",
}
_RANKS = {"text_classifier": 2, "token_classifier": 3, "sentence_embedder": 2}


@keras.saving.register_keras_serializable("keras_llm")
class ComposedHead(ConfiguredModel):
    """A model of texts that a user composed, with the layers and weights of that model.

    Its inputs are token ids (B, T) and, if the user's model has it, the padding mask (B, T). Use
    `as_head_model` to build one.

    Attributes:
        config: a `ComposedConfig`.
        head: str, the head that its output is one of, e.g. "text_classifier".
        options: dict with `num_classes`.
    """

    config_class = ComposedConfig
    config: ComposedConfig

    def __init__(
        self,
        config: ComposedConfig | JSON,
        model: keras.Model | JSON,
        head: str,
        name: str = "composed_head",
    ) -> None:
        read: ComposedConfig = self.read_config(config)
        if isinstance(model, dict):
            model = deserialized(model)
        super().__init__(read, model.inputs, model.outputs[0], name, None)
        self.head, self.options = head, {"num_classes": model.outputs[0].shape[-1]}

    def get_config(self) -> JSON:
        model = keras.Model(self.inputs, self.outputs[0], name=self.name)
        return {
            "config": self.config.to_dict(),
            "model": serialized(model),
            "head": self.head,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        return cls(**config)


def as_head_model(
    model: keras.Model, head: str | None, vocabulary_size: int, max_length: int | None = None
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

    Returns:
        A `keras.Model` with the same layers and weights.

    Raises:
        InputError: if the model has other inputs or outputs, or its outputs depend on padding.
    """
    if isinstance(model, ConfiguredModel):
        return model
    if head not in _SHAPES:
        raise InputError(f"a composed model cannot be a {head}, only one of {', '.join(_SHAPES)}.")
    functional = functional_of(model)
    sources = functional.inputs
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
        padded = [PadTo(length)(x) for x in cast]
        output = functional(padded if len(padded) > 1 else padded[0])
        if head == "token_classifier":
            output = LengthOf()(output, inputs[0])
    rank = len(output.shape)
    if head == "text_regressor" and rank == 2 and output.shape[-1] == 1:
        output, rank = ops.squeeze(output, -1), 1
    if rank != _RANKS.get(head, 1):
        raise InputError(f"`model` must return {_SHAPES[head]}; it returns {output.shape}.")
    output = ops.cast(output, "float32")
    config = ComposedConfig(
        vocabulary_size, max_length or length or shortest_embedding(functional) or DEFAULT_LENGTH
    )
    composed = ComposedHead(config, keras.Model(inputs, output), head, name=functional.name)
    _check_padding(composed)
    return composed


def _check_padding(model):
    """Raise InputError if outputs for real tokens depend on padding."""
    config = model.config
    count = min(6, config.max_length - 2)
    token_ids = np.random.default_rng(0).integers(1, config.vocabulary_size, (2, count))
    padded = np.pad(token_ids, ((0, 0), (0, 2))).astype("int32")
    masks = [np.ones_like(token_ids, bool), padded > 0]
    whole, longer = (
        ops.convert_to_numpy(model([ids.astype("int32"), mask][: len(model.inputs)]))
        for ids, mask in zip((token_ids, padded), masks, strict=True)
    )
    if model.head == "token_classifier":
        longer = longer[:, :count]
    error = float(np.abs(whole - longer).max())
    is_exact = all(layer.compute_dtype in ("float32", "float64") for layer in model.layers)
    if error > (1e-3 if is_exact else 0.05) * float(np.abs(whole).max()):
        raise InputError(
            f"the outputs of `model` for a text change with its padding (by {error:.2g}): give it "
            "the padding mask as a second input, or use `mask_zero=True` with a padding token of 0."
        )
