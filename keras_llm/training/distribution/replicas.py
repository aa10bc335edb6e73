"""The replicas of a `tf.distribute` strategy, which share each batch; elsewhere there is one."""

import contextlib

import keras
import numpy as np

from keras_llm.errors import InputError


def count():
    """How many replicas share a batch here, an int; 1 on other backends than TensorFlow."""
    return _tensorflow().num_replicas() if _on_tensorflow() else 1


def is_step():
    """Whether this is run by one of several replicas, and not by Keras to look at shapes."""
    return count() > 1 and _tensorflow().in_replica()


def total(values, name):
    """The sums over all replicas of a list of tensors, of which some may be None.

    Args:
        values: list of tensors, those of the replica that calls.
        name: str, what is told to need them.

    Raises:
        InputError: where a step is not run by each replica.
    """
    return values if count() == 1 else _tensorflow().total(values, name)


def sharded_by_row(data):
    """Data of `fit`: of a `tf.data.Dataset` each worker takes its rows of every batch, also where
    TensorFlow would rather give each other files."""
    is_dataset = hasattr(data, "with_options")
    return _tensorflow().sharded_by_row(data) if is_dataset and count() > 1 else data


def after(values):
    """A context whose operations with effects wait for a nest of tensors: where the data ends,
    Keras's trainer for TensorFlow would else do what does not depend on a batch once more."""
    return _tensorflow().after(values) if _on_tensorflow() else contextlib.nullcontext()


def step_logs(logs):
    """What a step returns, in a shape that Keras can take the mean of over replicas."""
    return _tensorflow().step_logs(logs) if count() > 1 else logs


def first_batch(iterator):
    """What a replica gets of the first batch of an iterator of Keras."""
    return _tensorflow().first_batch(iterator)


def is_chief():
    """Whether this process writes what all workers would write: worker 0, or the only one."""
    return _tensorflow().is_chief() if _on_tensorflow() else True


def check_same(number, what):
    """Raise InputError if a number is not the same on all workers; all must call it.

    Args:
        number: int.
        what: str, told if it differs.
    """
    if _on_tensorflow():
        _tensorflow().check_same(number, what)


def naming_lost_workers():
    """A context in which the error of a training that lost a worker becomes an InputError naming
    the worker."""
    return _tensorflow().naming_lost_workers() if _on_tensorflow() else contextlib.nullcontext()


def scope_of(model):
    """The context of the strategy that a model was made for."""
    if _on_tensorflow() and model.distribute_strategy.num_replicas_in_sync > 1:
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def read(variables):
    """The values of Keras variables, a list of arrays; of those that replicas keep apart, metrics,
    a row for each replica. All workers must call it."""
    if _on_tensorflow():
        return _tensorflow().read(variables)
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def write(variables, arrays):
    """Set Keras variables to what `read` gave."""
    if _on_tensorflow():
        _tensorflow().write(variables, arrays)
    else:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def shape(variable):
    """The shape of what `read` gives of a variable, a list of ints."""
    return _tensorflow().shape(variable) if _on_tensorflow() else list(variable.shape)


def check_one(name):
    """Raise InputError where several replicas share a batch, naming `name`."""
    if count() > 1:
        raise InputError(
            f"training.{name} is for one replica, and this strategy has {count()}: each would "
            "weigh or count its part of the batch by itself."
        )


def _on_tensorflow():
    return keras.backend.backend() == "tensorflow"


def _tensorflow():
    from keras_llm.training import tensorflow

    return tensorflow
