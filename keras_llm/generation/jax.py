"""Compile the functions of `compiled.CompiledGenerator` with JAX; see `tensorflow.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras


def compiled(
    model: keras.Model, function: Callable[..., Any], like: Sequence[Any], jit_compile: bool
) -> Callable[..., Any]:
    """Compile a function of tensors for their shapes, always with XLA."""
    return _compiled(model, function)


def of_any_size(
    model: keras.Model, function: Callable[..., Any], ranks: Sequence[int]
) -> Callable[..., Any]:
    """Compile a function of tensors once for each shape."""
    return _compiled(model, function)


def call_python(
    function: Callable[..., Any], arguments: Sequence[Any], shape: Sequence[int], dtype: str
) -> Any:
    """Call a Python function of arrays, in eager mode or compiled code; see `tensorflow.py`."""
    if not any(isinstance(argument, jax.core.Tracer) for argument in arguments):
        return jax.numpy.asarray(function(*arguments))
    return jax.pure_callback(function, jax.ShapeDtypeStruct(shape, dtype), *arguments)


def _compiled(model, function):
    """Compile a function and pass it the model's current weights in each call.

    The weights are arguments because JAX compiles values that a function closes over as constants.
    """

    @jax.jit
    def pure(weights, *arguments):
        with keras.StatelessScope(zip(model.variables, weights, strict=True)):
            return function(*arguments)

    return lambda *arguments: pure([variable.value for variable in model.variables], *arguments)
