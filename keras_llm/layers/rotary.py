"""Rotate queries and keys by an angle proportional to position (RoPE)."""

import dataclasses
import math
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_llm.layers._parts import Shape
from keras_llm.types import JSON, Tensor


@dataclasses.dataclass(frozen=True)
class NTKScaling:
    """NTK-aware scaling: stretch the longest wavelengths by `factor` and keep the shortest.

    `base' = base * factor ** (R / (R - 2))`. The variant known as dynamic NTK increases `factor`
    with the length L, `f L / L_0 - (f - 1)`, and so rotates cached keys by other angles than new
    keys. Here the factor is fixed, and the cache stays exact.

    Args:
        factor: float >= 1.

    Reference:
        bloc97, 2023, "NTK-Aware Scaled RoPE".
    """

    factor: float

    def frequencies(self, base: float, size: int) -> tuple[np.ndarray, float]:
        """Return radians per position, float array (size / 2,), and the factor of cos and sin."""
        if size <= 2:
            raise ValueError(f"NTKScaling needs more than 2 rotated features, got {size}.")
        return _plain(base * self.factor ** (size / (size - 2)), size), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN scaling: interpolate low frequencies, keep high ones, and sharpen attention.

    Frequencies with more than `beta_fast` turns within `original_length` are kept, those with fewer
    than `beta_slow` turns are divided by `factor`, with a linear ramp over the feature index
    between. Cosines and sines are multiplied by `attention_factor`.

    Args:
        factor: float >= 1.
        original_length: int > 0, the length the model was trained on.
        beta_fast: float. Number of turns above which a frequency is kept.
        beta_slow: float. Number of turns below which a frequency is divided by `factor`.
        attention_factor: float. Defaults to `0.1 ln(factor) + 1`.
        truncate: bool. Whether the ramp bounds are rounded to whole features.

    Reference:
        Peng et al., 2023, "YaRN: Efficient Context Window Extension of Large Language Models".
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def frequencies(self, base: float, size: int) -> tuple[np.ndarray, float]:
        """Return radians per position, float array (size / 2,), and the factor of cos and sin."""

        def index_that_turns(times):
            turns = self.original_length / (times * 2 * math.pi)
            return size * math.log(turns) / (2 * math.log(base))

        low, high = index_that_turns(self.beta_fast), index_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        ramp = np.clip((np.arange(size // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
        plain = _plain(base, size)
        attention_factor = self.attention_factor
        if attention_factor is None:
            attention_factor = 0.1 * math.log(self.factor) + 1.0
        return plain * (1 - ramp) + plain / self.factor * ramp, attention_factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3 scaling: divide low frequencies by `factor`, keep high ones, and blend between.

    Args:
        factor: float >= 1.
        low_frequency_factor: float. Wavelengths above `original_length / low_frequency_factor`
            are divided.
        high_frequency_factor: float. Wavelengths below `original_length / high_frequency_factor`
            are kept.
        original_length: int > 0, the length the model was trained on.

    Reference:
        Grattafiori et al., 2024, "The Llama 3 Herd of Models"; the formula is that of the
        released Llama 3.1 code.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def frequencies(self, base: float, size: int) -> tuple[np.ndarray, float]:
        """Return radians per position, float array (size / 2,), and the factor of cos and sin."""
        plain = _plain(base, size)
        turns = self.original_length * plain / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return plain * kept + plain / self.factor * (1 - kept), 1.0


_OPTIONS = (NTKScaling, YarnScaling, Llama3Scaling)
_SCALINGS = {scaling.__name__: scaling for scaling in _OPTIONS}


@keras.saving.register_keras_serializable("keras_llm")
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Position option: rotate queries and keys (see `RotaryEmbedding`).

    Args:
        base: float > 0. The longest wavelength is `2 * pi * base`; larger values stretch the
            usable context.
        scaling: float > 0 that divides positions (linear interpolation), or `NTKScaling(...)`,
            `YarnScaling(...)` or `Llama3Scaling(...)`.
        fraction: float in (0, 1]. The share of each head's features that is rotated.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    base: float = 10000.0
    scaling: float | NTKScaling | YarnScaling | Llama3Scaling = 1.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        is_option = type(self.scaling) in _SCALINGS.values()
        if not 0 < self.base < math.inf:
            raise ValueError(f"Rotary: `base` must be > 0 and finite, got {self.base}.")
        is_number = isinstance(self.scaling, (int, float)) and 0 < self.scaling < math.inf
        if not is_option and not is_number:
            raise ValueError(
                f"Rotary: `scaling` must be a number > 0 or one of {', '.join(_SCALINGS)}, "
                f"got {self.scaling!r}."
            )
        if isinstance(self.scaling, _OPTIONS):
            self._check_scaling()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rotary: `fraction` must be in (0, 1], got {self.fraction}.")

    def _check_scaling(self) -> None:
        scaling: Any = self.scaling
        if not 1 <= scaling.factor < math.inf:
            raise ValueError(f"Rotary: `factor` must be >= 1 and finite, got {scaling.factor}.")
        positive: tuple[str, ...] = ()
        if isinstance(scaling, YarnScaling):
            positive = ("original_length", "beta_fast", "beta_slow", "attention_factor")
            if self.base <= 1:
                raise ValueError(f"Rotary: `base` must be > 1 for YarnScaling, got {self.base}.")
        elif isinstance(scaling, Llama3Scaling):
            positive = ("original_length", "low_frequency_factor")
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            if not low < high < math.inf:
                raise ValueError(
                    "Rotary: `high_frequency_factor` must be greater than `low_frequency_factor`, "
                    f"{low}, and finite, got {high}."
                )
        for name in positive:
            value = getattr(scaling, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Rotary: `{name}` must be > 0 and finite, got {value}.")

    def get_config(self) -> JSON:
        return {
            "base": self.base,
            "scaling": _serialize(self.scaling),
            "fraction": self.fraction,
        }

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        return cls(**{**config, "scaling": _deserialize(config.get("scaling", 1.0))})


@keras.saving.register_keras_serializable("keras_llm")
class RotaryEmbedding(keras.layers.Layer):
    """Rotate query or key features by an angle proportional to position.

    With `a = position * max_wavelength ** (-2i / R)` for the first R features, feature `i` and
    feature `i + R/2` become `x[i] cos(a) - x[i + R/2] sin(a)` and
    `x[i + R/2] cos(a) + x[i] sin(a)`, so that `q . k` depends only on the distance.

    Args:
        max_wavelength: float > 0. Base of the wavelengths.
        scaling_factor: float > 0 that divides positions, or `NTKScaling(...)`,
            `YarnScaling(...)` or `Llama3Scaling(...)`, which change the angles by frequency and
            ignore the next five arguments.
        rope_type: how a number as `scaling_factor` is applied, as in keras_nlp: "linear" divides
            positions by it, "dynamic" divides them by its `R / (R - 2)`th power, "yarn" uses
            `YarnScaling` with the next four arguments.
        beta_fast, beta_slow: float, for "yarn".
        original_max_position_embeddings: int > 0, for "yarn". The length the model was trained on.
        truncate: bool, for "yarn".
        sequence_axis: int. The axis of the positions.
        feature_axis: int. The axis that is rotated.
        denominator_dim: int. Replaces R in the exponent of the angle; defaults to R.
        fraction: float in (0, 1]. The share of the H features that is rotated, R = fraction * H;
            the others are unchanged.

    Call arguments:
        inputs: float tensor, e.g. (B, T, N, H). R must be even.
        start_index: int or int scalar tensor. Position of the first element; ignored if
            `positions` is given.
        positions: int tensor (T,), or (B, T) with one position per row (axis 0 is then the
            batch). Defaults to `start_index .. start_index + T - 1`.

    Returns:
        A tensor like `inputs`. Angles are computed in float32 regardless of the dtype.

    Raises:
        ValueError: if R is odd or `rope_type` is unknown.

    References:
        Su et al., 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".
        Chen et al., 2023, "Extending Context Window of Large Language Models via Positional
        Interpolation" (`scaling_factor`).
    """

    def __init__(
        self,
        max_wavelength: float = 10000,
        scaling_factor: float | NTKScaling | YarnScaling | Llama3Scaling = 1.0,
        rope_type: str = "linear",
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        original_max_position_embeddings: int = 4096,
        truncate: bool = True,
        sequence_axis: int = 1,
        feature_axis: int = -1,
        denominator_dim: int | None = None,
        fraction: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        Rotary(max_wavelength, scaling_factor, fraction)  # validates the arguments
        if rope_type not in ("linear", "dynamic", "yarn"):
            raise ValueError(
                f'`rope_type` must be "linear", "dynamic" or "yarn", got {rope_type!r}.'
            )
        self.max_wavelength = max_wavelength
        self.scaling_factor = scaling_factor
        self.rope_type = rope_type
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow
        self.original_max_position_embeddings = original_max_position_embeddings
        self.truncate = truncate
        self.sequence_axis = sequence_axis
        self.feature_axis = feature_axis
        self.denominator_dim = denominator_dim
        self.fraction = fraction
        self.built = True

    def call(
        self, inputs: Tensor, start_index: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        rank = len(inputs.shape)
        feature_axis = self.feature_axis % rank
        sequence_axis = self.sequence_axis % rank
        size = int(inputs.shape[feature_axis] * self.fraction)
        if size % 2:
            raise ValueError(
                f"RotaryEmbedding needs an even number of features to rotate, got {size} in inputs "
                f"of shape {tuple(inputs.shape)}."
            )
        if positions is None:
            positions = ops.arange(ops.shape(inputs)[sequence_axis]) + start_index
        positions = ops.convert_to_tensor(positions)
        per_row = len(positions.shape) == 2
        axes = [a for a in range(rank) if a != sequence_axis and not (per_row and a == 0)]
        frequencies, magnitude = self._frequencies(size)
        shape = [size // 2 if a == feature_axis else 1 for a in range(rank)]
        angles = ops.expand_dims(ops.cast(positions, "float32"), axes)
        angles = angles * frequencies.astype("float32").reshape(shape)

        cos = ops.cast(ops.cos(angles) * magnitude, inputs.dtype)
        sin = ops.cast(ops.sin(angles) * magnitude, inputs.dtype)
        halves = [size // 2, size] if self.fraction < 1 else 2
        first, second, *rest = ops.split(inputs, halves, axis=feature_axis)
        return ops.concatenate(
            [first * cos - second * sin, second * cos + first * sin, *rest], axis=feature_axis
        )

    def _frequencies(self, size: int) -> tuple[np.ndarray, float]:
        """Return the angle per position (R / 2,) and the factor of cosines and sines."""
        # A wavelength is base ** (2i / R), so another denominator amounts to another base.
        base = self.max_wavelength ** (size / (self.denominator_dim or size))
        scaling = self.scaling_factor
        if not isinstance(scaling, (int, float)):
            return scaling.frequencies(base, size)
        if self.rope_type == "yarn":
            yarn = YarnScaling(
                scaling,
                self.original_max_position_embeddings,
                self.beta_fast,
                self.beta_slow,
                truncate=self.truncate,
            )
            return yarn.frequencies(base, size)
        if self.rope_type == "dynamic":
            scaling = scaling ** (size / max(1, size - 2))
        return _plain(base, size) / scaling, 1.0

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "max_wavelength": self.max_wavelength,
            "scaling_factor": _serialize(self.scaling_factor),
            "rope_type": self.rope_type,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "truncate": self.truncate,
            "sequence_axis": self.sequence_axis,
            "feature_axis": self.feature_axis,
            "denominator_dim": self.denominator_dim,
            "fraction": self.fraction,
        }

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        return cls(**{**config, "scaling_factor": _deserialize(config.get("scaling_factor", 1.0))})


def _plain(base: float, size: int) -> np.ndarray:
    """Return the rotation angle per position of each feature pair: float64 (R / 2,)."""
    return base ** (-np.arange(0, size, 2) / size)


def _serialize(scaling):
    if isinstance(scaling, (int, float)):
        return scaling
    return {"name": type(scaling).__name__, **dataclasses.asdict(scaling)}


def _deserialize(config):
    if not isinstance(config, dict):
        return config
    options = dict(config)
    return _SCALINGS[options.pop("name")](**options)
