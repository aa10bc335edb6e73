"""Where a token stands: learned and sinusoidal embeddings, and rotary features."""

import dataclasses

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_llm")
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Position option: rotate queries and keys (see `RotaryEmbedding`).

    Args:
        base: float > 0. The longest wavelength is `2 * pi * base`; larger values
            stretch the usable context.
        scaling: float > 0. Positions are divided by this (linear interpolation).
    """

    base: float = 10000.0
    scaling: float = 1.0

    def __post_init__(self):
        for field in ("base", "scaling"):
            if getattr(self, field) <= 0:
                raise ValueError(f"Rotary: `{field}` must be > 0, got {getattr(self, field)}.")

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_llm")
class RotaryEmbedding(keras.layers.Layer):
    """Rotate query or key features by an angle proportional to position.

    With `a = position / scaling_factor * max_wavelength ** (-2i / H)`, feature `i` and
    feature `i + H/2` become `x[i] cos(a) - x[i + H/2] sin(a)` and
    `x[i + H/2] cos(a) + x[i] sin(a)`, so that `q . k` depends on the distance only.

    Args:
        max_wavelength: float > 0. Base of the wavelengths.
        scaling_factor: float > 0. Positions are divided by it.
        sequence_axis: int. The axis of the positions.
        feature_axis: int. The axis that is rotated.

    Call arguments:
        inputs: float tensor, e.g. (B, T, N, H). H must be even.
        start_index: int or int scalar tensor. Position of the first element; ignored
            when `positions` is given.
        positions: int tensor (T,), or (B, T) with a position for each row (the batch is
            then axis 0). Defaults to `start_index .. start_index + T - 1`.

    Returns:
        A tensor like `inputs`. Angles are computed in float32 whatever the dtype.

    Raises:
        ValueError: if H is odd.

    Reference:
        Su et al., 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".
    """

    def __init__(
        self, max_wavelength=10000, scaling_factor=1.0, sequence_axis=1, feature_axis=-1, **kwargs
    ):
        super().__init__(**kwargs)
        self.max_wavelength = max_wavelength
        self.scaling_factor = scaling_factor
        self.sequence_axis = sequence_axis
        self.feature_axis = feature_axis
        self.built = True

    def call(self, inputs, start_index=0, positions=None):
        rank = len(inputs.shape)
        feature_axis = self.feature_axis % rank
        sequence_axis = self.sequence_axis % rank
        size = inputs.shape[feature_axis]
        if size % 2:
            raise ValueError(
                f"RotaryEmbedding needs an even feature size, got {size} in axis "
                f"{self.feature_axis} of inputs of shape {tuple(inputs.shape)}."
            )
        if positions is None:
            positions = ops.arange(ops.shape(inputs)[sequence_axis]) + start_index
        positions = ops.convert_to_tensor(positions)
        per_row = len(positions.shape) == 2
        axes = [a for a in range(rank) if a != sequence_axis and not (per_row and a == 0)]
        angles = ops.expand_dims(ops.cast(positions, "float32"), axes)

        exponent = ops.arange(0, size, 2, dtype="float32") / -size
        frequency = self.max_wavelength**exponent / self.scaling_factor
        angles = angles * ops.expand_dims(frequency, [a for a in range(rank) if a != feature_axis])

        cos = ops.cast(ops.cos(angles), inputs.dtype)
        sin = ops.cast(ops.sin(angles), inputs.dtype)
        first, second = ops.split(inputs, 2, axis=feature_axis)
        return ops.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=feature_axis
        )

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "max_wavelength": self.max_wavelength,
            "scaling_factor": self.scaling_factor,
            "sequence_axis": self.sequence_axis,
            "feature_axis": self.feature_axis,
        }


@keras.saving.register_keras_serializable("keras_llm")
class PositionEmbedding(keras.layers.Layer):
    """A learned vector for each position.

    Args:
        sequence_length: int > 0. The longest sequence; positions past its end take the
            last vector.
        initializer: Keras initializer of the (sequence_length, D) table.

    Call arguments:
        inputs: float tensor (B, T, D); only its shape is used.
        start_index: int or int scalar tensor. Position of the first element; ignored
            when `positions` is given.
        positions: int tensor (T,) or (B, T). Defaults to `start_index ..`.

    Returns:
        Float tensor (B, T, D), to be added to `inputs`.

    Raises:
        ValueError: if T is known and greater than `sequence_length`.

    Reference:
        Devlin et al., 2018, "BERT"; Radford et al., 2018, "GPT".
    """

    def __init__(self, sequence_length, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if sequence_length is None or sequence_length < 1:
            raise ValueError(f"`sequence_length` must be a positive int, got {sequence_length}.")
        self.sequence_length = int(sequence_length)
        self.initializer = keras.initializers.get(initializer)

    def build(self, inputs_shape):
        self.position_embeddings = self.add_weight(
            name="embeddings",
            shape=(self.sequence_length, inputs_shape[-1]),
            initializer=self.initializer,
        )
        self.built = True

    def call(self, inputs, start_index=0, positions=None):
        if positions is None:
            length = inputs.shape[-2]
            if length is not None and length > self.sequence_length:
                raise ValueError(
                    f"PositionEmbedding holds {self.sequence_length} positions "
                    f"(`sequence_length`), got a sequence of {length}."
                )
            positions = ops.arange(ops.shape(inputs)[-2]) + start_index
        positions = ops.minimum(positions, self.sequence_length - 1)
        table = ops.convert_to_tensor(self.position_embeddings)
        return ops.broadcast_to(ops.take(table, positions, axis=0), ops.shape(inputs))

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("keras_llm")
class SinePositionEncoding(keras.layers.Layer):
    """Fixed sines and cosines of position.

    `PE[p, 2i] = sin(p / max_wavelength ** (2i / D))`,
    `PE[p, 2i + 1] = cos(p / max_wavelength ** (2i / D))`.

    Args:
        max_wavelength: float > 0. Base of the wavelengths.

    Call arguments:
        inputs: float tensor (B, T, D); only its shape and dtype are used.
        start_index: int or int scalar tensor. Position of the first element; ignored
            when `positions` is given.
        positions: int tensor (T,) or (B, T). Defaults to `start_index ..`.

    Returns:
        Float tensor (B, T, D), to be added to `inputs`.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.5.
    """

    def __init__(self, max_wavelength=10000, **kwargs):
        super().__init__(**kwargs)
        self.max_wavelength = max_wavelength
        self.built = True

    def call(self, inputs, start_index=0, positions=None):
        size = inputs.shape[-1]
        if positions is None:
            positions = ops.arange(ops.shape(inputs)[-2]) + start_index
        index = ops.arange(size)
        exponent = ops.cast(index - index % 2, "float32") / -size
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * self.max_wavelength**exponent
        encoding = ops.where(index % 2 == 0, ops.sin(angles), ops.cos(angles))
        return ops.broadcast_to(ops.cast(encoding, inputs.dtype), ops.shape(inputs))

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "max_wavelength": self.max_wavelength}
