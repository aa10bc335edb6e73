"""Work with the replicas of a `tf.distribute` strategy; other backends have one replica."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_llm.errors import InputError
from keras_llm.types import Tensor


def count() -> int:
    """Return the number of replicas that share a batch; 1 on backends other than TensorFlow."""
    return _tensorflow().num_replicas() if _on_tensorflow() else 1


def is_step() -> bool:
    """Return whether the caller runs in one of several replicas, not in Keras's symbolic build."""
    return count() > 1 and _tensorflow().in_replica()


def total(values: list[Tensor | None], name: str) -> list[Tensor | None]:
    """Return the sums of tensors over all replicas.

    Args:
        values: list of the calling replica's tensors, some of which may be None.
        name: str, the class to name in the error.

    Raises:
        InputError: if the caller does not run in a replica.
    """
    return values if count() == 1 else _tensorflow().total(values, name)


def sharded_by_row(data: Any) -> Any:
    """Return data for `fit` in which each worker takes its rows of every batch.

    By default TensorFlow may give each worker different files of a `tf.data.Dataset` instead.
    """
    is_dataset = hasattr(data, "with_options")
    return _tensorflow().sharded_by_row(data) if is_dataset and count() > 1 else data


def after(values: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context whose operations with side effects wait for a nest of tensors.

    Otherwise, when the data ends, Keras's TensorFlow trainer runs the operations that do not depend
    on a batch once more.
    """
    return _tensorflow().after(values) if _on_tensorflow() else contextlib.nullcontext()


def step_logs(logs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the logs of a step in a shape that Keras can average over replicas."""
    return _tensorflow().step_logs(logs) if count() > 1 else logs


def first_batch(iterator: Any) -> Any:
    """Return a replica's part of the first batch of a Keras iterator."""
    return _tensorflow().first_batch(iterator)


def is_chief() -> bool:
    """Return whether this process writes shared files: worker 0, or the only worker."""
    return _tensorflow().is_chief() if _on_tensorflow() else True


def check_same(number: int, what: str) -> None:
    """Raise InputError if a number is not the same on all workers. All workers must call it.

    Args:
        number: int.
        what: str, the name of the number in the error.
    """
    if _on_tensorflow():
        _tensorflow().check_same(number, what)


def naming_lost_workers() -> contextlib.AbstractContextManager[None]:
    """Return a context that raises InputError naming the worker if training loses one."""
    return _tensorflow().naming_lost_workers() if _on_tensorflow() else contextlib.nullcontext()


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the context of the strategy that a model was created in."""
    if _on_tensorflow() and model.distribute_strategy.num_replicas_in_sync > 1:
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def read(variables: Iterable[keras.Variable]) -> list[np.ndarray]:
    """Return the values of Keras variables, a list of arrays.

    Variables with a separate value per replica (metrics) have a row per replica. All workers must
    call it.
    """
    if _on_tensorflow():
        return _tensorflow().read(variables)
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def write(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Assign the arrays that `read` returned to Keras variables."""
    if _on_tensorflow():
        _tensorflow().write(variables, arrays)
    else:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def shape(variable: keras.Variable) -> list[int]:
    """Return the shape of the array that `read` returns for a variable, a list of ints."""
    return _tensorflow().shape(variable) if _on_tensorflow() else list(variable.shape)


def check_one(name: str) -> None:
    """Raise InputError naming `name` if several replicas share a batch."""
    if count() > 1:
        raise InputError(
            f"training.{name} supports only one replica, and this strategy has {count()}: each "
            "replica would process its part of the batch separately."
        )


def _on_tensorflow():
    return keras.backend.backend() == "tensorflow"


def _tensorflow():
    from keras_llm.training import tensorflow

    return tensorflow
