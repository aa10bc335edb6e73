"""Map the weights of a model to tensors of a checkpoint and back."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np

from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.errors import InputError
from keras_llm.models import TransformerConfig
from keras_llm.models.deferred import allocate

# Models up to these sizes are built, and their missing tensors named, whatever a file has.
_FEW_LAYERS, _FEW_WEIGHTS = 100, 1 << 24


@dataclasses.dataclass(frozen=True)
class Link:
    """A link between weights of a model and the tensors that store them.

    Attributes:
        weights: dict of weight paths to shapes.
        tensors: dict of tensor names to shapes.
        read: function from the list of tensors to the list of weights.
        write: function from the list of weights to the list of tensors; None for a link that can
            only be read.
    """

    weights: dict[str, tuple[int, ...]]
    tensors: dict[str, tuple[int, ...]]
    read: Callable[[list[np.ndarray]], list[np.ndarray]]
    write: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None


def same(
    path: str, name: str, shape: tuple[int, ...], tensor_shape: tuple[int, ...] | None = None
) -> Link:
    """Link a weight to a tensor with the same values in the same order, optionally reshaped."""
    tensor_shape = shape if tensor_shape is None else tensor_shape
    return Link(
        {path: shape},
        {name: tensor_shape},
        lambda tensors: [tensors[0].reshape(shape)],
        lambda weights: [weights[0].reshape(tensor_shape)],
    )


def transposed(path: str, name: str, shape: tuple[int, ...]) -> Link:
    """Link a matrix (in, out) that is stored as (out, in)."""
    return Link({path: shape}, {name: shape[::-1]}, _transpose, _transpose)


def moved(path: str, name: str, shape: tuple[int, ...], offset: float) -> Link:
    """Link a weight that is stored as its difference from `offset`."""
    return Link(
        {path: shape},
        {name: shape},
        lambda tensors: [np.asarray(tensors[0], "float32") + np.float32(offset)],
        lambda weights: [np.asarray(weights[0], "float32") - np.float32(offset)],
    )


def fused(paths: list[str], name: str, shapes: list[tuple[int, ...]]) -> Link:
    """Link several weights that are stored concatenated along the last axis."""
    bounds = np.cumsum([shape[-1] for shape in shapes])
    return Link(
        dict(zip(paths, shapes, strict=True)),
        {name: (*shapes[0][:-1], int(bounds[-1]))},
        lambda tensors: np.split(tensors[0], bounds[:-1], axis=-1),
        lambda weights: [np.concatenate(weights, axis=-1)],
    )


def fused_transposed(paths: list[str], name: str, shapes: list[tuple[int, ...]]) -> Link:
    """Link matrices (in, out) that are stored as (out, in), concatenated along the first axis."""
    bounds = np.cumsum([shape[-1] for shape in shapes])
    return Link(
        dict(zip(paths, shapes, strict=True)),
        {name: (int(bounds[-1]), shapes[0][0])},
        lambda tensors: [part.T for part in np.split(tensors[0], bounds[:-1])],
        lambda weights: [np.concatenate([weight.T for weight in weights])],
    )


def fused_by_head(paths: list[str], name: str, shapes: list[tuple[int, ...]], heads: int) -> Link:
    """Link kernels (in, N H) or biases (N H,) of one shape that are stored together by head.

    The tensor is (N C H, in) or (N C H,), where C is their number.
    """
    shape, count = shapes[0], len(paths)
    size, rest = shape[-1] // heads, shape[:-1]

    def read(tensors):
        parts = tensors[0].reshape(heads, count, size, *rest)
        return [parts[:, i].reshape(shape[::-1]).T for i in range(count)]

    def write(weights):
        parts = [weight.T.reshape(heads, 1, size, *rest) for weight in weights]
        return [np.concatenate(parts, axis=1).reshape(-1, *rest)]

    stored = (count * shape[-1], *rest)
    return Link(dict(zip(paths, shapes, strict=True)), {name: stored}, read, write)


def stacked(path: str, names: list[str], shape: tuple[int, ...]) -> Link:
    """Link matrices (count, in, out) that are stored as separate tensors (out, in)."""
    return Link(
        {path: shape},
        dict.fromkeys(names, shape[:0:-1]),
        lambda tensors: [np.stack([tensor.T for tensor in tensors])],
        lambda weights: [np.ascontiguousarray(matrix.T) for matrix in weights[0]],
    )


def interleaved(path: str, name: str, shape: tuple[int, ...], heads: int) -> Link:
    """Link a matrix (in, out), stored as (out, in), with interleaved rotary features.

    Each head stores the features that rotate together next to each other; the model has them half
    a head apart.
    """
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


def check(
    links: list[Link],
    tensors: Tensors,
    ignored: Sequence[str] = (),
    copies: dict[str, str] | None = None,
    what: str = "model",
) -> None:
    """Compare the names and shapes of a checkpoint with the expected ones.

    Args:
        links: list of `Link`.
        tensors: a `Tensors`.
        ignored: regular expressions of additional names that are allowed.
        copies: dict of names to the names of tensors that they may duplicate.
        what: str, the kind of checkpoint, for messages.

    Raises:
        InputError: if a tensor is missing, unknown, has a wrong shape, or differs from the tensor
            that it should duplicate; the message names the first one.
    """
    expected = {name: shape for link in links for name, shape in link.tensors.items()}
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"tensor {name!r} of shape {shape} is missing")
        elif tensors.shape(name) != shape:
            problems.append(f"tensor {name!r} has shape {tensors.shape(name)}, expected {shape}")
    for name in tensors:
        copied = (copies or {}).get(name)
        if name in expected:
            continue
        if copied in expected and copied in tensors:
            if not same_tensor(tensors, name, copied):
                problems.append(
                    f"tensor {name!r} differs from {copied!r}, to which config.json ties it"
                )
        elif not any(re.fullmatch(pattern, name) for pattern in ignored):
            problems.append(
                f"tensor {name!r} of shape {tensors.shape(name)} is not part of a {what}"
            )
    if problems:
        more = f" ({len(problems) - 1} more such problems)" if problems[1:] else ""
        raise InputError(f"{tensors.where}: {problems[0]}{more}.")


def check_sizes(config: TransformerConfig, tensors: Tensors) -> None:
    """Check that a checkpoint can have the weights of a config, before its model is built.

    Raises:
        InputError: if the config describes more layers or larger ones than the tensors.
    """
    layers = config.num_layers * max(config.num_experts, 1)
    weights = sum(math.prod(tensors.shape(name)) for name in tensors)
    heads = config.num_heads * (config.head_dim or 1)
    width = max(config.vocabulary_size, heads, config.intermediate_dim)
    is_deep = layers > max(len(tensors), _FEW_LAYERS)
    if is_deep or width * config.hidden_dim > max(weights, _FEW_WEIGHTS):
        raise InputError(
            f"{tensors.where}: {len(tensors)} tensors with {weights} values are too few for a "
            f"model of {config.num_layers} layers, `hidden_dim` {config.hidden_dim}, "
            f"`vocabulary_size` {config.vocabulary_size} and `intermediate_dim` "
            f"{config.intermediate_dim}."
        )


def same_tensor(tensors: Tensors, first: str, second: str) -> bool:
    """Return whether two tensors of a checkpoint have the same values."""
    return (
        second in tensors
        and tensors.shape(first) == tensors.shape(second)
        and np.array_equal(tensors[first], tensors[second])
    )


def assign(model: keras.Model, links: Iterable[Link], tensors: Tensors) -> None:
    """Fill a model from tensors, one link at a time; names and shapes must be checked before."""
    variables = {variable.path: variable for variable in model.variables}
    for link in links:
        weights = link.read([tensors[name] for name in link.tensors])
        for path, weight in zip(link.weights, weights, strict=True):
            allocate(variables.pop(path), np.asarray(weight, "float32"))
    for variable in variables.values():  # the states of seed generators
        allocate(variable)


def collect(model: keras.Model, links: Iterable[Link]) -> dict[str, np.ndarray]:
    """Return the tensors of a model: dict of name to NumPy array, in the dtype of the weights."""
    variables = {variable.path: variable for variable in model.variables}
    tensors = {}
    for link in links:
        weights = [to_numpy(variables[path]) for path in link.weights]
        assert link.write is not None  # only families that can be written are
        for name, tensor in zip(link.tensors, link.write(weights), strict=True):
            tensors[name] = np.ascontiguousarray(tensor, dtype=weights[0].dtype)
    return tensors


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """Return the value of a Keras variable as a NumPy array of the same dtype."""
    return np.asarray(keras.ops.convert_to_numpy(variable))
