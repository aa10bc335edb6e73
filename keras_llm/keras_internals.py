"""Access the private names of Keras that this library needs; no other file uses them.

A minor version of Keras may change them: run the tests with it, then add it to `TESTED`.
"""

import contextlib
import dataclasses
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src.backend import AutocastScope, compute_output_spec, get_keras_mask
from keras.src.models.functional import Functional
from keras.src.optimizers.base_optimizer import BaseOptimizer

from keras_llm.errors import InputError
from keras_llm.types import Tensor

TESTED = ("3.15",)
"""Minor versions of Keras that the tests have passed with."""

_Optimizer: Any = object  # for type checkers: `super()` of a mixin is an optimizer


def check_version(version: str) -> None:
    """Warn if a version of Keras is not one of those that the tests have passed with."""
    if ".".join(version.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"keras_llm uses private names of Keras and is tested with Keras {', '.join(TESTED)}; "
            f"this is Keras {version}, which may fail or train differently.",
            stacklevel=2,
        )


check_version(keras.__version__)


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return all layers in a layer or model, at any depth and without itself."""
    return list(layer._flatten_layers(include_self=False))


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights of a layer without those of its sublayers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def implicit_mask(x: Tensor) -> Tensor | None:
    """Return the mask that Keras attached to a tensor, bool (B, T), or None.

    `keras.layers.Masking` and `Embedding(mask_zero=True)` attach masks, and layers with
    `supports_masking` pass them on.
    """
    return get_keras_mask(x)


@contextlib.contextmanager
def adding_weights(layer: keras.layers.Layer) -> Iterator[None]:
    """Allow `add_weight` on a built layer, as Keras does for its own adapters."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def is_allocated(variable: keras.Variable) -> bool:
    """Return whether a variable has a value, or only a shape from a `keras.StatelessScope`."""
    return variable._value is not None


def initialize(variable: keras.Variable, value: Tensor | None = None) -> None:
    """Allocate a variable that has only a shape, with `value` or else by its initializer."""
    if value is not None:
        variable._initializer = lambda shape, dtype: ops.cast(ops.convert_to_tensor(value), dtype)
    variable._deferred_initialize()


def replace_sublayer(owner: keras.layers.Layer, name: str, sublayer: keras.layers.Layer) -> None:
    """Replace an attribute of a built layer that is a sublayer; keep the order of weights."""
    old = getattr(owner, name)
    index = next(i for i, layer in enumerate(owner._layers) if layer is old)
    with adding_weights(owner):
        owner._tracker.untrack(old)
        setattr(owner, name, sublayer)
        owner._layers.insert(index, owner._layers.pop())


def set_path(layer: keras.layers.Layer, path: str | None) -> None:
    """Replace the path of a built layer, and so those of its own weights.

    Keras numbers the names of layers that have none, and takes the layers that are being built into
    paths, so that a rebuilt model may have other paths, or the same for other layers.
    """
    layer._path = path
    for weight in own_weights(layer):
        weight._path = f"{path}/{weight.name}"


def functional_of(model: Any) -> Any:
    """Return a functional model, or the one of a built `keras.Sequential`; None for others.

    A subclass with a `call` of its own is one of the others.
    """
    own_call = getattr(type(model), "call", None)
    if not isinstance(model, keras.Sequential):
        is_plain = isinstance(model, Functional) and own_call is Functional.call
        return model if is_plain else None
    if own_call is not keras.Sequential.call:
        return None
    if model._functional is None:
        raise InputError("`model`: a `keras.Sequential` must be built, e.g. with a `keras.Input`.")
    return model._functional


def graph_nodes(function: Any) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]]:
    """Iterate over the calls of a functional model or `keras.Function` in the order of their runs.

    Yields the operation, its positional and keyword arguments, and its symbolic outputs. Keras
    records `training` as it was when the graph was composed, and replaces it when the model is
    called; it is left out, so that layers follow the layer or model that they are called in.
    """
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            if node.operation and not node.is_input:
                kwargs = dict(node.arguments.kwargs)
                if isinstance(node.operation, keras.layers.Layer):
                    kwargs.pop("training", None)
                yield node.operation, node.arguments.args, kwargs, node.outputs


def flat_inputs(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the inputs of a function in its own order, from the arguments of its call.

    Raises:
        InputError: if there are other arguments, or not one for each input.
    """
    if len(args) == 1 and isinstance(args[0], dict):
        names = input_names(function) or [x.name for x in function.inputs]
        if args[0].keys() >= set(names):
            args = ([args[0][name] for name in names],)
    flat, others = keras.tree.flatten(args), keras.tree.flatten(kwargs)
    is_complete = len(flat) == len(function.inputs) and not any(x is None for x in flat)
    if not is_complete or any(x is not None for x in others):
        raise InputError(
            f"the model {function.name!r} within the model is called with other arguments than its "
            f"{len(function.inputs)} inputs, such as masks or None."
        )
    return flat


def input_names(function: Any) -> list[str] | None:
    """Return the keys of a model's inputs in the order of `inputs`; None if they have no keys."""
    struct = function._inputs_struct
    return sorted(struct) if isinstance(struct, dict) else None


def nodes_before(outputs: Any) -> Iterator[Any]:
    """Iterate over the calls that symbolic outputs were computed with.

    Yields their nodes, with the attributes `operation` and `arguments`.
    """
    pending, seen = list(keras.tree.flatten(outputs)), set()
    while pending:
        history = getattr(pending.pop(), "_keras_history", None)
        if history is None or (key := (id(history.operation), history.node_index)) in seen:
            continue
        seen.add(key)
        node = history.operation._inbound_nodes[history.node_index]
        if not node.is_input:
            yield node
            pending.extend(
                x
                for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
                if isinstance(x, keras.KerasTensor)
            )


def layers_before(x: Tensor) -> list[keras.layers.Layer]:
    """Return the layers that a symbolic tensor was computed with, and all layers in them."""
    operations = [node.operation for node in nodes_before(x)]
    layers = [layer for layer in operations if isinstance(layer, keras.layers.Layer)]
    return [part for layer in layers for part in (layer, *flatten_layers(layer))]


def run_graph(model: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Run the layers of a functional model on symbolic inputs of other shapes."""
    return keras.tree.flatten(model._run_through_graph(inputs, lambda operation: operation))


def autocast(dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    """Return a scope in which weights are read in a dtype, as in the `call` of a layer."""
    return contextlib.nullcontext() if dtype is None else AutocastScope(dtype)


def structure_of(function: Callable[[], Any]) -> Any:
    """Return the nested structure of symbolic tensors that a function would return."""
    return compute_output_spec(function)


@dataclasses.dataclass(frozen=True)
class AttentionHeads:
    """The parts of an attention layer of Keras."""

    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]
    gate: Callable[[Tensor], Tensor] | None
    num_key_value_heads: int
    key_size: int
    value_size: int
    scale: float
    sliding_window: int | None


def attention_heads(layer: Any) -> AttentionHeads:
    """Return the parts of a built `MultiHeadAttention` or `GroupQueryAttention` of Keras.

    Raises:
        InputError: if it attends along more than one axis.
    """
    if isinstance(layer, keras.layers.GroupQueryAttention):
        num_heads, key_size = layer.num_key_value_heads, layer.head_dim
        value_size, gate, window = key_size, layer.use_gate, layer.sliding_window
    else:
        if tuple(layer._attention_axes) != (1,):
            raise InputError(f"layer {layer.name!r}: `attention_axes` must be the second axis.")
        num_heads, key_size, value_size = layer.num_heads, layer.key_dim, layer.value_dim
        gate, window = layer._use_gate, layer._sliding_window
    return AttentionHeads(
        query=layer._query_dense,
        key=layer._key_dense,
        value=layer._value_dense,
        output=layer._output_dense,
        gate=layer._gate_dense if gate else None,
        num_key_value_heads=num_heads,
        key_size=key_size,
        value_size=value_size,
        scale=key_size**-0.5,
        sliding_window=window,
    )


@dataclasses.dataclass(frozen=True)
class KerasHubDecoder:
    """The parts of a `keras_hub.layers.TransformerDecoder`."""

    self_attention: Any
    self_attention_norm: Any
    cross_attention: Any
    cross_attention_norm: Any
    feed_forward: Callable[[Tensor], Tensor]
    feed_forward_norm: Any


def is_keras_hub_decoder(layer: Any) -> bool:
    """Return whether a layer is a `keras_hub.layers.TransformerDecoder`."""
    keras_hub = sys.modules.get("keras_hub")  # if it is not imported, there is no such layer
    return keras_hub is not None and isinstance(layer, keras_hub.layers.TransformerDecoder)


def keras_hub_decoder(layer: Any) -> KerasHubDecoder:
    """Return the parts of a built `keras_hub.layers.TransformerDecoder`."""

    def feed_forward(x):
        return layer._feedforward_output_dense(layer._feedforward_intermediate_dense(x))

    return KerasHubDecoder(
        self_attention=layer._self_attention_layer,
        self_attention_norm=layer._self_attention_layer_norm,
        cross_attention=layer._cross_attention_layer,
        cross_attention_norm=getattr(layer, "_cross_attention_layer_norm", None),
        feed_forward=feed_forward,
        feed_forward_norm=layer._feedforward_layer_norm,
    )


def run_recurrence(
    layer: Any, inputs: Tensor, states: list[Tensor], mask: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run a recurrent layer of Keras from given states.

    Returns the last outputs (B, D), all outputs (B, T, D) and the last states.
    """
    return layer.inner_loop(inputs, initial_state=states, mask=mask, training=False)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Skip the garbage collection that Keras starts for each weight that it deletes.

    In a process with many objects, each takes a second.
    """
    collect = gc.collect
    gc.collect = lambda *_: 0
    try:
        yield
    finally:
        gc.collect = collect


class PostBuildHook(keras.layers.Layer):
    """A layer with a hook that runs whenever it has been built.

    Sublayers that are made in `build` follow the `trainable` of the layer's config.
    """

    def after_build(self) -> None:
        """Do nothing; override to change it."""

    def _post_build(self):
        self.after_build()
        if not self.trainable:  # Keras freezes only the layer's own weights
            for layer in flatten_layers(self):
                layer.trainable = False
        super()._post_build()


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Make the running `fit` start at an epoch, as `keras.callbacks.BackupAndRestore` does."""
    if not hasattr(model, "_initial_epoch"):
        raise InputError(
            f"training.Resume cannot resume with Keras {keras.__version__}; it supports "
            f"{', '.join(TESTED)}."
        )
    model._initial_epoch = epoch


def train_writer(callback: keras.callbacks.TensorBoard) -> Any:
    """Return the writer of a callback's training summaries."""
    return callback._train_writer


class BuildHook(keras.Model):
    """A model with a hook around the build at the start of `fit` and `evaluate`."""

    def build_from(self, build: Callable[..., None], iterator: Any, data_batch: Any) -> None:
        """Call `build(iterator, data_batch)`, one of which is None; override to change it."""
        build(iterator, data_batch)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        self.build_from(super()._maybe_symbolic_build, iterator, data_batch)


class OptimizerHooks(_Optimizer):
    """A mixin of optimizers that runs the code of `BaseOptimizer`, and has a hook for updates.

    On TensorFlow, Keras's code for clipping, accumulation and averages handles replicas; the code
    of `BaseOptimizer`, which the other backends run, does not.
    """

    _backend_update_step = BaseOptimizer._backend_update_step
    _backend_increment_gradient_accumulators = (
        BaseOptimizer._backend_increment_gradient_accumulators
    )
    _overwrite_model_variables_with_average_value = (
        BaseOptimizer._overwrite_model_variables_with_average_value
    )

    def _get_current_learning_rate(self):
        """Evaluate the schedule at the number of updates.

        With gradient accumulation, Keras's own code counts batches instead.
        """
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def apply_update(self, update: Callable[..., None], grads: Any, variables: Any) -> None:
        """Call `update(grads, variables)`; override to change it."""
        update(grads, variables)

    def _backend_apply_gradients(self, grads, trainable_variables):
        self.apply_update(super()._backend_apply_gradients, grads, trainable_variables)


class BaseWeightDecay(_Optimizer):
    """A mixin that runs the weight decay of `BaseOptimizer`; Muon has its own."""

    _apply_weight_decay = BaseOptimizer._apply_weight_decay


def adam_moments(
    optimizer: keras.optimizers.Adam, variable: keras.Variable
) -> tuple[keras.Variable, keras.Variable]:
    """Return Adam's first and second moment of a variable."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


class MuonHooks(_Optimizer):
    """A mixin of Muon with a hook for the variables that it updates as Adam does."""

    def update_with_adam(
        self, update: Callable[..., None], gradient: Tensor, variable: Any, *rest: Any
    ) -> None:
        """Call `update(gradient, variable, learning_rate, m, v)`; override to change it."""
        update(gradient, variable, *rest)

    def _adamw_update_step(self, *arguments):
        self.update_with_adam(super()._adamw_update_step, *arguments)
