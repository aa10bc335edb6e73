"""Find out what a symbolic call of a layer leaves out: weights, losses and training."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_llm import keras_internals


def trace(layer: Any, call: Callable[[], Any]) -> tuple[Any, bool]:
    """Run a symbolic call of a layer with its own weights and with others.

    Returns:
        The outputs of the call, and whether it is the same with other weights. It is not if it
        computes something from weights alone, which becomes a constant of the graph.
    """
    outputs = call()
    constants = _constants(outputs)
    if not constants:
        return outputs, True
    changed = [(w, ops.convert_to_tensor(w) * 2 + 1) for w in layer.trainable_weights]
    with keras.StatelessScope(changed):
        others = _constants(call())
    pairs = zip(constants, others, strict=True)
    same = all(bool(ops.all(ops.equal(*pair))) for pair in pairs)
    return outputs, same


@contextlib.contextmanager
def noting_losses(layer: keras.layers.Layer) -> Iterator[list[Any]]:
    """Collect what a layer and its sublayers pass to `add_loss`, which refuses symbolic tensors."""
    noted: list[Any] = []
    layers = [layer, *keras_internals.flatten_layers(layer)]
    try:
        for one in layers:
            one.add_loss = noted.append
        yield noted
    finally:
        for one in layers:
            del one.add_loss


def trains_alike(layer: Any, call: Callable[..., Any]) -> bool:
    """Return whether a symbolic call of a layer runs the same operations in training.

    Args:
        layer: a layer or model whose `call` may have an argument `training`.
        call: function with the keyword argument `training`, if `call` has it.
    """
    if "training" not in inspect.signature(layer.call).parameters:
        return True
    plain, training = (_operations(call(training=is_on)) for is_on in (False, True))
    return [kind for kind, _ in plain] == [kind for kind, _ in training] and not any(
        is_on is False for _, is_on in training
    )


def _operations(outputs):
    """Return what the operations of symbolic outputs are, and the `training` of each layer."""
    found = []
    for node in keras_internals.nodes_before(outputs):
        operation, arguments = node.operation, node.arguments
        is_layer = isinstance(operation, keras.layers.Layer)
        others = [x for x in keras.tree.flatten(arguments.args) if isinstance(x, (int, float))]
        kind = id(operation) if is_layer else (type(operation).__name__, *others)
        found.append((kind, arguments.kwargs.get("training") if is_layer else None))
    return found


def _constants(outputs: Any) -> list[Any]:
    """Return the tensors of floats in the arguments of the calls that compute symbolic outputs."""
    return [
        x
        for node in keras_internals.nodes_before(outputs)
        for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if _is_constant(x)
    ]


def _is_constant(x):
    if isinstance(x, keras.Variable) or not ops.is_tensor(x):
        return False
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
