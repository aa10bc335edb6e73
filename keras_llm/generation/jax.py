"""How JAX compiles what `compiled.CompiledGenerator` runs: as `tensorflow.py`."""

import jax
import keras


def compiled(model, function, like, jit_compile):
    """A function of tensors compiled for their shapes, always by XLA."""
    return _compiled(model, function)


def of_any_size(model, function, ranks):
    """The same, compiled anew for each shape."""
    return _compiled(model, function)


def _compiled(model, function):
    """The weights are arguments, so that those of the moment count: what a function of JAX reads
    from elsewhere stays as it was when it was compiled."""

    @jax.jit
    def pure(weights, *arguments):
        with keras.StatelessScope(zip(model.variables, weights, strict=True)):
            return function(*arguments)

    return lambda *arguments: pure([variable.value for variable in model.variables], *arguments)
