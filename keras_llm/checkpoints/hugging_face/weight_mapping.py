"""What ties the weights of a model to tensors of a checkpoint, both ways."""

import dataclasses
import re
from collections.abc import Callable

import keras
import numpy as np

from keras_llm.errors import InputError
from keras_llm.models.deferred import allocate


@dataclasses.dataclass(frozen=True)
class Link:
    """Some weights of a model and the tensors that hold the same numbers.

    Attributes:
        ours: dict of the paths of weights to their shapes.
        theirs: dict of the names of tensors to their shapes.
        read: function from the list of tensors to the list of weights.
        write: function from the list of weights to the list of tensors.
    """

    ours: dict
    theirs: dict
    read: Callable
    write: Callable


def same(path, name, shape, their_shape=None):
    """The same numbers in the same order, in a shape of their own if that is given."""
    their_shape = shape if their_shape is None else their_shape
    return Link(
        {path: shape},
        {name: their_shape},
        lambda tensors: [tensors[0].reshape(shape)],
        lambda weights: [weights[0].reshape(their_shape)],
    )


def transposed(path, name, shape):
    """A matrix (in, out) that is stored as (out, in)."""
    return Link({path: shape}, {name: shape[::-1]}, _transpose, _transpose)


def moved(path, name, shape, offset):
    """A weight that is stored as its distance from `offset`."""
    return Link(
        {path: shape},
        {name: shape},
        lambda tensors: [np.asarray(tensors[0], "float32") + np.float32(offset)],
        lambda weights: [np.asarray(weights[0], "float32") - np.float32(offset)],
    )


def fused(paths, name, shapes):
    """Several weights that are stored side by side, along the last axis."""
    bounds = np.cumsum([shape[-1] for shape in shapes])
    return Link(
        dict(zip(paths, shapes, strict=True)),
        {name: (*shapes[0][:-1], int(bounds[-1]))},
        lambda tensors: np.split(tensors[0], bounds[:-1], axis=-1),
        lambda weights: [np.concatenate(weights, axis=-1)],
    )


def stacked(path, names, shape):
    """Matrices (count, in, out) that are stored one by one as (out, in)."""
    return Link(
        {path: shape},
        dict.fromkeys(names, shape[:0:-1]),
        lambda tensors: [np.stack([tensor.T for tensor in tensors])],
        lambda weights: [np.ascontiguousarray(matrix.T) for matrix in weights[0]],
    )


def interleaved(path, name, shape, heads):
    """A matrix (in, out), stored as (out, in), whose heads have the pairs of features that turn
    together side by side, where ours have them half a head apart."""
    apart, together = (heads, 2, -1, shape[0]), (heads, -1, 2, shape[0])

    def reorder(matrix, order):
        return matrix.reshape(order).swapaxes(1, 2).reshape(shape[::-1])

    return Link(
        {path: shape},
        {name: shape[::-1]},
        lambda tensors: [reorder(tensors[0], together).T],
        lambda weights: [reorder(np.ascontiguousarray(weights[0].T), apart)],
    )


def _transpose(arrays):
    return [np.ascontiguousarray(arrays[0].T)]


def check(links, tensors, ignored=(), copies=None, what="model"):
    """Compare the names and shapes of a checkpoint with those that are wanted.

    Args:
        links: list of `Link`.
        tensors: a `Tensors`.
        ignored: regular expressions of names that may be there besides.
        copies: dict of names to the names of tensors that they may repeat.
        what: str, what the checkpoint is said to be, for messages.

    Raises:
        InputError: naming the first tensor that is missing, of another shape, unknown, or unlike
            the one that it should repeat.
    """
    wanted = {name: shape for link in links for name, shape in link.theirs.items()}
    problems = []
    for name, shape in wanted.items():
        if name not in tensors:
            problems.append(f"tensor {name!r} of shape {shape} is missing")
        elif tensors.shape(name) != shape:
            problems.append(f"tensor {name!r} has shape {tensors.shape(name)}, expected {shape}")
    for name in tensors:
        copied = (copies or {}).get(name)
        if name in wanted:
            continue
        if copied in wanted and copied in tensors:
            if not same_tensor(tensors, name, copied):
                problems.append(
                    f"tensor {name!r} differs from {copied!r}, to which config.json ties it"
                )
        elif not any(re.fullmatch(pattern, name) for pattern in ignored):
            problems.append(
                f"tensor {name!r} of shape {tensors.shape(name)} is not part of such a {what}"
            )
    if problems:
        more = f" ({len(problems) - 1} more such problems)" if problems[1:] else ""
        raise InputError(f"{tensors.where}: {problems[0]}{more}.")


def same_tensor(tensors, first, second):
    """Whether two tensors of a checkpoint hold the same numbers."""
    return tensors.shape(first) == tensors.shape(second) and np.array_equal(
        tensors[first], tensors[second]
    )


def assign(model, links, tensors):
    """Fill a model from tensors, one link at a time; names and shapes have been checked."""
    variables = {variable.path: variable for variable in model.variables}
    for link in links:
        weights = link.read([tensors[name] for name in link.theirs])
        for path, weight in zip(link.ours, weights, strict=True):
            allocate(variables.pop(path), np.asarray(weight, "float32"))
    left = [path for path in variables if "seed_generator" not in path]
    assert not left, left  # a weight of ours that no table of parts knows
    for variable in variables.values():
        allocate(variable)


def collect(model, links):
    """The tensors of a model: dict of name to NumPy array, in the dtype of the weights."""
    variables = {variable.path: variable for variable in model.variables}
    tensors = {}
    for link in links:
        weights = [to_numpy(variables[path]) for path in link.ours]
        for name, tensor in zip(link.theirs, link.write(weights), strict=True):
            tensors[name] = np.ascontiguousarray(tensor, dtype=weights[0].dtype)
    return tensors


def to_numpy(variable):
    """The value of a Keras variable as a NumPy array of its own dtype."""
    return np.asarray(keras.ops.convert_to_numpy(variable))
