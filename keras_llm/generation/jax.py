"""Compile the functions of `compiled.CompiledGenerator` with JAX; see `tensorflow.py`."""

import jax
import keras


def compiled(model, function, like, jit_compile):
    """Compile a function of tensors for their shapes, always with XLA."""
    return _compiled(model, function)


def of_any_size(model, function, ranks):
    """Compile a function of tensors once for each shape."""
    return _compiled(model, function)


def _compiled(model, function):
    """Compile a function and pass it the model's current weights in each call.

    The weights are arguments because JAX compiles values that a function closes over as constants.
    """

    @jax.jit
    def pure(weights, *arguments):
        with keras.StatelessScope(zip(model.variables, weights, strict=True)):
            return function(*arguments)

    return lambda *arguments: pure([variable.value for variable in model.variables], *arguments)
