"""Create the sublayers and initializers that several layers share."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_llm.types import JSON, Tensor

# What `keras.initializers.get` reads.
Initializer: TypeAlias = str | JSON | keras.initializers.Initializer | Callable[..., Tensor]
Shape: TypeAlias = tuple[int | Any, ...]  # `Any` is None where a size is unknown


def argument_names(function: Callable[..., Any], *excluded: str) -> tuple[str, ...]:
    """Return the names of a constructor's arguments, without `self`, `kwargs` and `excluded`."""
    names = inspect.signature(function).parameters
    return tuple(name for name in names if name not in ("self", "kwargs", *excluded))


def clone(initializer: Initializer | None) -> Initializer | None:
    """Copy an initializer, so that no two weights draw from the same random seed."""
    if initializer is None or not hasattr(initializer, "clone"):
        return initializer
    return initializer.clone()


def dense(owner: keras.layers.Layer, units: int, name: str) -> keras.layers.Dense:
    """Create a dense layer with the biases, initializers and dtype policy of its owner."""
    return keras.layers.Dense(
        units,
        use_bias=owner.use_bias,
        kernel_initializer=clone(owner.kernel_initializer),
        bias_initializer=clone(owner.bias_initializer),
        dtype=owner.dtype_policy,
        name=name,
    )
