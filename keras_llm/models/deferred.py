"""Build models whose weights are allocated later, or never.

A checkpoint is loaded into a model without weights, so no random value is drawn and no memory is
filled twice.
"""

import concurrent.futures

import keras
from keras import ops


def shapes_only(function):
    """What `function()` returns, its variables described but not allocated."""

    def measure():
        # Keras keeps variables without a value for the end of the outermost scope; its list of
        # them belongs to this thread and ends with it.
        with keras.StatelessScope(initialize_variables=False):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


def allocate(variable, value=None):
    """Allocate a variable of a model from `shapes_only`; others are assigned.

    Args:
        variable: a `keras.Variable`.
        value: array of its shape, or None for what its initializer draws.
    """
    if variable._value is not None:
        if value is not None:
            variable.assign(value)
        return
    if value is not None:
        variable._initializer = lambda shape, dtype: ops.cast(ops.convert_to_tensor(value), dtype)
    variable._deferred_initialize()
