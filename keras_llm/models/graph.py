"""Read the graph of a functional model as a list of calls, which can be run one by one."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import incremental
from keras_llm.layers._handler import IS_CROSS, Rows
from keras_llm.models import tracing

_PROJECTIONS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph, in the arguments of a call."""

    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer or operation, whose arguments contain `Value` objects.

    Attributes:
        operation: the layer or other function that is called.
        args, kwargs: its arguments.
        outputs: the indices of its outputs, flattened.
        dtype: the dtype that weights are cast to, for operations of a layer; or None.
    """

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    dtype: str | None = None

    @property
    def inputs(self) -> set[int]:
        """The indices of the values among its arguments."""
        flat = tree.flatten((self.args, self.kwargs))
        return {item.index for item in flat if isinstance(item, Value)}

    @property
    def name(self) -> str:
        """The name of the layer or operation, for error messages."""
        return str(getattr(self.operation, "name", None) or self.operation)

    def filled(self, values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with tensors in the place of `Value` objects, None if missing."""

        def value(item):
            return values.get(item.index) if isinstance(item, Value) else item

        return tree.map_structure(value, self.args), tree.map_structure(value, self.kwargs)

    def run(self, values: dict[int, Any]) -> None:
        """Call the operation and store its outputs in `values`."""
        args, kwargs = self.filled(values)
        with keras_internals.autocast(self.dtype):
            self.store(values, self.operation(*args, **kwargs))

    def store(self, values: dict[int, Any], outputs: Any) -> None:
        """Store the outputs of the operation in `values`."""
        values.update(zip(self.outputs, tree.flatten(outputs), strict=True))


class Graph:
    """The calls of a functional model, with those of nested models in their place.

    Layers that are composed of layers which mix positions are replaced by the calls of their
    `call`, if it can be traced.

    Args:
        model: a functional model or a `keras.Function`.
        whole: None, or a tuple of classes: all layers of layers are replaced except recurrent ones
            and those of these classes. Sizes must then be known, see `sized`.

    Attributes:
        calls: the calls in an order in which they can be run.
        inputs, outputs: the indices of the model's inputs and outputs, flattened.
        specs: dict from the index of a value to a symbolic tensor with its shape and dtype.
        divided: the layers that are replaced by the calls of their `call`, and their arguments.
    """

    def __init__(
        self, model: keras.Model | keras.Function, whole: tuple[type, ...] | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.divided: list[tuple[keras.layers.Layer, Any, Any]] = []
        self.specs: dict[int, Any] = {}
        self._whole = whole
        function = keras_internals.functional_of(model)
        if function is None and isinstance(model, keras.Function):
            function = model
        if function is None:
            kind = type(model).__name__
            raise InputError(f"`model` must be a functional `keras.Model`, got {kind}.")
        places: dict[int, Value] = {}
        for x in function.inputs:
            places[id(x)] = self._new(x)
        self.inputs = tuple(places[id(x)].index for x in function.inputs)
        outputs = self._add(function, places)
        self.outputs = tuple(value.index for value in outputs)

    def _new(self, spec):
        index = len(self.specs)
        self.specs[index] = spec
        return Value(index)

    def _add(self, function, places, dtype=None):
        """Append the calls of a function whose inputs have `places`; return its outputs."""
        for operation, args, kwargs, outputs in keras_internals.graph_nodes(function):

            def place(x):
                return places[id(x)] if isinstance(x, keras.KerasTensor) else x

            symbolic = (args, kwargs)
            args, kwargs = tree.map_structure(place, args), tree.map_structure(place, kwargs)
            inner = self._inner(operation, symbolic)
            if inner is None:
                new = [self._new(x) for x in outputs]
                indices = tuple(value.index for value in new)
                self.calls.append(Call(operation, args, kwargs, indices, dtype))
            else:
                body, inner_dtype = inner
                if inner_dtype is None:  # a model
                    flat = keras_internals.flat_inputs(body, args, kwargs)
                else:
                    flat = [x for x in tree.flatten((args, kwargs)) if isinstance(x, Value)]
                inner_places = {}
                for x, value in zip(body.inputs, flat, strict=True):
                    inner_places[id(x)] = self._cast(value, x.dtype)
                new = self._add(body, inner_places, inner_dtype)
            places.update((id(x), value) for x, value in zip(outputs, new, strict=True))
        return [places[id(x)] for x in function.outputs]

    def _cast(self, value, dtype):
        spec = self.specs[value.index]
        if spec.dtype == dtype:
            return value
        new = self._new(keras.KerasTensor(spec.shape, dtype))
        self.calls.append(Call(ops.cast, (value, dtype), {}, (new.index,)))
        return new

    def _inner(self, operation, symbolic):
        """Return the function of a nested model or composed layer and its dtype, or None."""
        args, kwargs = symbolic
        function = keras_internals.functional_of(operation)
        if function is not None:
            return function, None
        if not isinstance(operation, keras.layers.Layer) or not self._is_divided(operation):
            return None
        function = traced(operation, args, kwargs)
        if function is None:
            return None
        self.divided.append((operation, args, kwargs))
        return function, operation.compute_dtype

    def _is_divided(self, layer):
        inner = keras_internals.flatten_layers(layer)
        if self._whole is not None:
            return bool(inner) and not isinstance(layer, (keras.layers.RNN, *self._whole))
        return not _is_handled(layer) and any(map(incremental.depends_on_positions, inner))

    def check_training(self) -> None:
        """Raise InputError if a layer does in training what its traced `call` does not."""
        for layer, args, kwargs in self.divided:
            call = functools.partial(layer.call, *args, **kwargs)
            with tracing.noting_losses(layer) as losses:
                call()
                is_alike = tracing.trains_alike(layer, call)
            if losses or not is_alike or layer.activity_regularizer is not None:
                raise InputError(
                    f"layer {layer.name!r} ({type(layer).__name__}) does not support packed rows "
                    "with attention within segments: it does something else in training."
                )

    def run(
        self, calls: Iterable[Call], values: dict[int, Any], rows: Rows | None = None
    ) -> dict[int, Any]:
        """Run some calls; `values` has the inputs and receives the outputs.

        Args:
            calls: calls of the graph, in its order.
            values: dict from the index of a value to a tensor.
            rows: how layers run on packed rows or return attention probabilities, or None.
        """
        for call in calls:
            handler = None if rows is None else incremental.handler_of(call.operation)
            if rows is None or handler is None:
                call.run(values)
                continue
            arguments = self.arguments(call, values)
            with keras_internals.autocast(call.dtype):
                call.store(values, handler.run_rows(call.operation, arguments, rows))
        return values

    def arguments(self, call: Call, values: dict[int, Any]) -> dict[str, Any]:
        """Return the arguments of a layer by name, from `values`, None for what is not in it.

        If `query` and `value` of an attention layer differ, there is `IS_CROSS` too: whether
        `value` does not depend on the last input, the tokens of a decoder.
        """
        arguments = incremental.bound(call.operation, *call.filled(values))
        named = incremental.bound(call.operation, call.args, call.kwargs)
        query, value = named.get("query"), named.get("value")
        if isinstance(query, Value) and isinstance(value, Value) and query != value:
            own = self._of_last_input
            arguments[IS_CROSS] = query.index in own and value.index not in own
        return arguments

    @functools.cached_property
    def _of_last_input(self):
        return self.depending_on(self.inputs[-1:])

    def leading_to(self, index: int) -> list[Call]:
        """Return the calls that a value is computed with."""
        needed: set[int] = {index}
        calls: list[Call] = []
        for call in reversed(self.calls):
            if needed.intersection(call.outputs):
                needed |= call.inputs
                calls.insert(0, call)
        return calls

    def depending_on(self, inputs: Sequence[int]) -> set[int]:
        """Return the indices of all values that are computed from some of the inputs."""
        found = set(inputs)
        for call in self.calls:
            if call.inputs & found:
                found.update(call.outputs)
        return found


_graphs: weakref.WeakKeyDictionary[keras.Model, Graph] = weakref.WeakKeyDictionary()
_whole: weakref.WeakKeyDictionary[keras.Model, Graph] = weakref.WeakKeyDictionary()


def graph_of(model: keras.Model) -> Graph:
    """Return the graph of a functional model, which is read once.

    Raises:
        InputError: if the model is not functional.
    """
    if model not in _graphs:
        _graphs[model] = Graph(model)
    return _graphs[model]


def undivided_graph_of(model: keras.Model) -> Graph:
    """Return the graph of a functional model in which all layers are called whole.

    In training, a layer may do what its traced `call` does not, such as adding losses, and what its
    code has after `if training`.
    """
    if model not in _whole:
        _whole[model] = Graph(model, whole=(keras.layers.Layer,))
    return _whole[model]


def split_head(graph: Graph, calls: Sequence[Call]) -> tuple[int, list[Call]]:
    """Find the hidden states that logits are computed from.

    Going back from the logits, these are the inputs of the first projection to the vocabulary, if
    each call on the way has one input.

    Returns:
        The index of the hidden states and the list of calls from these to the logits.
    """
    producers = {index: call for call in calls for index in call.outputs}
    (output,) = graph.outputs
    size, current = graph.specs[output].shape[-1], output
    head: list[Call] = []
    while current in producers:
        call = producers[current]
        if len(call.inputs) != 1 or isinstance(call.operation, keras.layers.RNN):
            break
        if incremental.handler_of(call.operation) is not None:
            break
        (source,) = call.inputs
        head.insert(0, call)
        is_projection = isinstance(call.operation, _PROJECTIONS)
        if graph.specs[source].shape[-1] != size or is_projection:
            if len(graph.specs[source].shape) != 3:
                break
            return source, head
        current = source
    return output, []


def traced(layer: keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the `keras.Function` of the `call` of a layer on symbolic inputs.

    None if it cannot be traced, or computes something from weights alone, which would be a constant
    of the function.
    """
    inputs = []

    def fresh(x):
        if not isinstance(x, keras.KerasTensor):
            return x
        is_cast = layer.autocast and keras.backend.is_float_dtype(x.dtype)
        dtype = layer.compute_dtype if is_cast else x.dtype
        inputs.append(keras.Input(batch_shape=x.shape, dtype=dtype))
        return inputs[-1]

    args, kwargs = tree.map_structure(fresh, args), tree.map_structure(fresh, kwargs)
    try:
        with (
            keras_internals.autocast(layer.compute_dtype),
            tracing.noting_losses(layer),
        ):
            outputs, same = tracing.trace(layer, lambda: layer.call(*args, **kwargs))
        return keras.Function(inputs, outputs) if same else None
    except Exception:  # the code of `call` may raise anything on symbolic tensors
        return None


def sized(model: keras.Model, batch_size: int, length: int) -> Any:
    """Return a functional model with the same layers, for inputs (B, T) of a fixed size."""
    inputs = [keras.Input(batch_shape=(batch_size, length), dtype=x.dtype) for x in model.inputs]
    return keras.Model(inputs, keras_internals.run_graph(model, inputs))


def _is_handled(layer):
    """Return whether a layer runs with a cache as a whole, so that its calls are not needed."""
    handler = incremental.handler_of(layer)
    return handler is not None and bool(handler.group)
