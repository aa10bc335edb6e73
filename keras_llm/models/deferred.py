"""Build models whose weights are allocated later, or never.

Checkpoints are loaded into models without weights, which saves drawing random values and
allocating memory twice.
"""

import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

import keras

from keras_llm.errors import InputError
from keras_llm.keras_internals import initialize, is_allocated
from keras_llm.types import PathLike, Tensor

_Result = TypeVar("_Result")


def shapes_only(function: Callable[[], _Result]) -> _Result:
    """Return the result of `function()` with its variables described but not allocated."""

    def measure():
        # Keras initializes such variables at the end of the outermost scope. It keeps them in a
        # thread-local list, which this thread discards when it ends.
        with keras.StatelessScope(initialize_variables=False):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


def described(function: Callable[[], _Result], where: PathLike) -> _Result:
    """Return `shapes_only(function)`, for a function that builds what a file describes.

    Raises:
        InputError: if the function fails because of its values; the message begins with `where`.
    """
    try:
        return shapes_only(function)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{where} does not describe a model: {error!r}.") from error


def allocate(variable: keras.Variable, value: Tensor | None = None) -> None:
    """Allocate a variable of a model from `shapes_only`, or assign an allocated one.

    Args:
        variable: a `keras.Variable`.
        value: array of its shape, or None to use its initializer.
    """
    if not is_allocated(variable):
        initialize(variable, value)
    elif value is not None:
        variable.assign(value)
