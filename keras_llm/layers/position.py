"""Encode token positions as learned or sinusoidal vectors."""

from typing import Any

import keras
from keras import ops

from keras_llm.layers._parts import Initializer, Shape
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class PositionEmbedding(keras.layers.Layer):
    """A learned vector for each position.

    Args:
        sequence_length: int > 0. Maximum sequence length; positions beyond it use the last
            vector.
        initializer: Keras initializer of the (sequence_length, D) table.

    Call arguments:
        inputs: float tensor (B, T, D); only its shape is used.
        start_index: int or int scalar tensor. Position of the first element; ignored if
            `positions` is given.
        positions: int tensor (T,) or (B, T). Defaults to `start_index ..`.

    Returns:
        Float tensor (B, T, D), to be added to `inputs`.

    Raises:
        ValueError: if T is known and greater than `sequence_length`.

    Reference:
        Devlin et al., 2018, "BERT"; Radford et al., 2018, "GPT".
    """

    def __init__(
        self, sequence_length: int, initializer: Initializer = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if sequence_length is None or sequence_length < 1:
            raise ValueError(f"`sequence_length` must be a positive int, got {sequence_length}.")
        self.sequence_length = int(sequence_length)
        self.initializer = keras.initializers.get(initializer)

    def build(self, inputs_shape: Shape) -> None:
        self.position_embeddings = self.add_weight(
            name="embeddings",
            shape=(self.sequence_length, inputs_shape[-1]),
            initializer=self.initializer,
        )
        self.built = True

    def call(
        self, inputs: Tensor, start_index: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        if positions is None:
            length = inputs.shape[-2]
            if length is not None and length > self.sequence_length:
                raise ValueError(
                    f"PositionEmbedding has {self.sequence_length} positions "
                    f"(`sequence_length`), got a sequence of {length}."
                )
            positions = ops.arange(ops.shape(inputs)[-2]) + start_index
        positions = ops.minimum(positions, self.sequence_length - 1)
        table = ops.convert_to_tensor(self.position_embeddings)
        return ops.broadcast_to(ops.take(table, positions, axis=0), ops.shape(inputs))

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("keras_llm")
class SinePositionEncoding(keras.layers.Layer):
    """Sinusoidal position encoding.

    `PE[p, 2i] = sin(p / max_wavelength ** (2i / D))`,
    `PE[p, 2i + 1] = cos(p / max_wavelength ** (2i / D))`.

    Args:
        max_wavelength: float > 0. Base of the wavelengths.

    Call arguments:
        inputs: float tensor (B, T, D); only its shape and dtype are used.
        start_index: int or int scalar tensor. Position of the first element; ignored if
            `positions` is given.
        positions: int tensor (T,) or (B, T). Defaults to `start_index ..`.

    Returns:
        Float tensor (B, T, D), to be added to `inputs`.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.5.
    """

    def __init__(self, max_wavelength: float = 10000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.max_wavelength = max_wavelength
        self.built = True

    def call(
        self, inputs: Tensor, start_index: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        size = inputs.shape[-1]
        if positions is None:
            positions = ops.arange(ops.shape(inputs)[-2]) + start_index
        index = ops.arange(size)
        exponent = ops.cast(index - index % 2, "float32") / -size
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * self.max_wavelength**exponent
        encoding = ops.where(index % 2 == 0, ops.sin(angles), ops.cos(angles))
        return ops.broadcast_to(ops.cast(encoding, inputs.dtype), ops.shape(inputs))

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> JSON:
        return {**super().get_config(), "max_wavelength": self.max_wavelength}
