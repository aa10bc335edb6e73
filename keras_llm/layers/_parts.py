"""Create the sublayers and initializers that several layers share."""

import inspect
from collections.abc import Callable
from typing import Any, Self, TypeAlias

import keras

from keras_llm.layers.quantization import QuantizableLayer
from keras_llm.types import JSON, Tensor

# What `keras.initializers.get` reads.
Initializer: TypeAlias = str | JSON | keras.initializers.Initializer | Callable[..., Tensor]
Shape: TypeAlias = tuple[int | Any, ...]  # `Any` is None where a size is unknown


def argument_names(function: Callable[..., Any], *excluded: str) -> tuple[str, ...]:
    """Return the names of a constructor's arguments, without `self`, `kwargs` and `excluded`."""
    names = inspect.signature(function).parameters
    return tuple(name for name in names if name not in ("self", "kwargs", *excluded))


class AttentionBase(QuantizableLayer):
    """The base class of attention and blocks, whose calls may return caches and scores too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Describe the outputs of a symbolic call; `compute_output_shape` knows only the first."""
        arguments = inspect.signature(self.call).bind(*args, **kwargs).arguments
        has_cache = any(
            name.endswith("cache") and value is not None for name, value in arguments.items()
        )
        if has_cache or arguments.get("return_attention_scores"):
            return super(keras.layers.Layer, self).compute_output_spec(*args, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        position = keras.saving.deserialize_keras_object(config.get("position"))
        return super().from_config({**config, "position": position})


def clone(initializer: Initializer | None) -> Initializer | None:
    """Copy an initializer, so that no two weights draw from the same random seed."""
    if initializer is None or not hasattr(initializer, "clone"):
        return initializer
    return initializer.clone()


def dense(
    owner: keras.layers.Layer, units: int, name: str, use_bias: bool | None = None
) -> keras.layers.Dense:
    """Create a dense layer with the biases, initializers and dtype policy of its owner."""
    return keras.layers.Dense(
        units,
        use_bias=owner.use_bias if use_bias is None else use_bias,
        kernel_initializer=clone(owner.kernel_initializer),
        bias_initializer=clone(owner.bias_initializer),
        dtype=owner.dtype_policy,
        name=name,
    )
