"""Trace a signature as a graph whose weights are inputs, for lowering to TFLite.

The converter sees no weight values, so the time and memory of lowering depend only on the graph.
Tensors that are computed from weights alone (a reshape, a gain plus one, a cast) are cut out of the
graph: they become inputs, and are computed when they are stored.

`lowering.worker` lowers the graphs in a separate process, because the converter can crash its
process.
"""

import dataclasses
import functools
import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_llm import models
from keras_llm.errors import ExportError
from keras_llm.generation.tensorflow import free_graph
from keras_llm.models.deferred import shapes_only
from keras_llm.types import Tensor

if TYPE_CHECKING:
    from keras_llm.tasks import Task

_SHAPES = ("Shape", "ShapeN", "Size", "Rank")  # ops that read only shapes, not values


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A tensor that is computed from weights alone.

    Attributes:
        key: str. Equal keys mean equal values, in all traces of one model.
        name: str, the path of the weight, e.g. "block_0/feed_forward/up/kernel".
        shape: tuple of ints.
        compute: function without arguments that returns the array, in the precision of the weight
            if the expression is the weight itself.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]

    @property
    def layer(self) -> str:
        """The path of the layer that has the weight, e.g. "block_0/feed_forward/up"."""
        return self.name.rpartition("/")[0] or self.name


@dataclasses.dataclass(frozen=True)
class View:
    """An expression as a graph reads it, transposed or reshaped.

    Attributes:
        expression: an `Expression`.
        steps: tuple of ("transpose", axes) and ("reshape", shape).
    """

    expression: Expression
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.expression.key, self.steps)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.expression.shape
        for kind, value in self.steps:
            shape = tuple(shape[axis] for axis in value) if kind == "transpose" else value
        return shape

    def transposed(self, axes: tuple[int, ...] = (1, 0)) -> "View":
        *rest, last = self.steps or ((None, None),)
        if last[0] == "transpose":
            axes = tuple(last[1][axis] for axis in axes)
            steps = tuple(rest)
        else:
            steps = self.steps
        if axes == tuple(range(len(axes))):
            return View(self.expression, steps)
        return View(self.expression, (*steps, ("transpose", axes)))

    def reshaped(self, shape: Sequence[int]) -> "View":
        if tuple(shape) == self.shape:
            return self
        return View(self.expression, (*self.steps, ("reshape", tuple(shape))))

    def array(self) -> np.ndarray:
        """Return the values in their stored precision, without a copy if possible."""
        array = self.expression.compute()
        for kind, value in self.steps:
            array = array.transpose(value) if kind == "transpose" else array.reshape(value)
        return array


@dataclasses.dataclass(frozen=True)
class Traced:
    """A signature with weights as inputs.

    Attributes:
        name: str.
        inputs, outputs: lists of str, their names in the signature.
        weights: list of `View`, the inputs of the graph after `inputs`.
        graph: a `tf.compat.v1.WrappedFunction` of inputs and weights.
    """

    name: str
    inputs: list[str]
    outputs: list[str]
    weights: list[View]
    graph: Any


class Trace:
    """A traced graph, split into operations on weights alone and operations on activations.

    Args:
        function: function that takes tensors by name and returns a dict of tensors by name.
        inputs: dict of name to `tf.TensorSpec`.
        weights: list of pairs (read, held): the `keras.Variable` that the function reads, and the
            one that has its value, which may have another precision.

    Attributes:
        consumed: list of `View`, the inputs from weights of the operations on activations.
    """

    def __init__(
        self,
        function: Callable[..., dict[str, Tensor]],
        inputs: dict[str, tf.TensorSpec],
        weights: list[tuple[keras.Variable, keras.Variable]],
    ) -> None:
        self.input_names = list(inputs)
        self._weights = weights
        outputs = {}

        def run(*arguments):
            named = dict(zip(self.input_names, arguments, strict=False))
            values = arguments[len(named) :]
            mapping = [
                (read, tf.cast(value, read.dtype))
                for (read, _), value in zip(weights, values, strict=True)
            ]
            with keras.StatelessScope(state_mapping=mapping, initialize_variables=False):
                outputs.update(function(**named))
            return list(outputs.values())

        specs = [*inputs.values(), *(tf.TensorSpec(v.shape, v.dtype) for _, v in weights)]
        self._wrapped = tf.compat.v1.wrap_function(run, specs)
        _free_with(self, self._wrapped.graph)
        self.output_names = list(outputs)
        tensors = self._wrapped.inputs
        count = len(inputs)
        self._inputs = tensors[:count]
        self._held = {t.ref(): i for i, t in enumerate(tensors[count : count + len(weights)])}
        self._captured = {inside.ref(): outside for outside, inside in self._wrapped.graph.captures}
        for tensor in self._captured.values():
            if tensor.dtype == tf.resource:
                raise ExportError(
                    f"the graph reads {tensor.name}, which is not a weight of the model."
                )
        self._keys: dict[Any, Any] = {}
        self._find()

    def _find(self):
        """Find the tensors from weights alone that operations on activations read."""
        from_inputs = {tensor.ref() for tensor in self._inputs}
        from_weights = {*self._held, *self._captured}
        consumed = {}
        for operation in self._wrapped.graph.get_operations():
            refs = [tensor.ref() for tensor in operation.inputs]
            of_weights = [ref for ref in refs if ref in from_weights]
            if any(ref in from_inputs for ref in refs):
                consumed.update(dict.fromkeys(of_weights))
                from_inputs.update(tensor.ref() for tensor in operation.outputs)
            elif of_weights and operation.type in _SHAPES:
                consumed.update(dict.fromkeys(of_weights))
            elif of_weights:
                from_weights.update(tensor.ref() for tensor in operation.outputs)
        self._cut = [ref.deref() for ref in consumed]
        self.consumed = [self._view(tensor) for tensor in self._cut]

    def signature(self, name: str) -> Traced:
        """Return the `Traced` signature for lowering."""
        feeds = [*self._inputs, *self._cut]
        graph = self._pruned(feeds, list(self._wrapped.outputs))
        return Traced(name, self.input_names, self.output_names, self.consumed, graph)

    def _pruned(self, feeds, fetches):
        function = self._wrapped.prune(feeds, fetches)
        _free_with(function, function.graph)
        return function

    def products(
        self, keys: set[str]
    ) -> Callable[[dict[str, np.ndarray]], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Return a function that records the inputs of matmuls.

        Args:
            keys: set of str, keys of expressions.

        Returns:
            A function that takes the inputs by name and returns two dicts: the outputs by name,
            without `logits`; and for the key of each expression that is the matrix of a matmul,
            the array that it multiplies.
        """
        read = {}
        for tensor, view in zip(self._cut, self.consumed, strict=True):
            if view.expression.key in keys:
                for consumer in tensor.consumers():
                    if "MatMul" in consumer.type and consumer.inputs[1] is tensor:
                        read[view.expression.key] = consumer.inputs[0]
            self._look_up_first(tensor)
            self._wait(tensor)
        outputs = dict(zip(self.output_names, self._wrapped.outputs, strict=True))
        # Logits would need a cast of the whole head.
        state = {name: tensor for name, tensor in outputs.items() if name != "logits"}
        fetches = [*state.values(), *read.values()]
        weights = [ref.deref() for ref in self._held]
        captured = [ref.deref() for ref in self._captured]
        run = self._pruned([*self._inputs, *weights, *captured], fetches)

        def call(inputs):
            arguments = [tf.constant(inputs[name]) for name in self.input_names]
            values = [held.value.read_value() for _, held in self._weights]
            results = run(*arguments, *values, *self._captured.values())
            results = [result.numpy() for result in results]
            outputs = dict(zip(state, results, strict=False))
            return outputs, dict(zip(read, results[len(outputs) :], strict=True))

        return call

    def _look_up_first(self, tensor):
        """Cast the rows of an embedding table after the lookup, because a whole table of a large
        vocabulary takes a gigabyte.
        """
        if tensor.op.type != "Cast":
            return
        for lookup in [c for c in tensor.consumers() if c.type == "GatherV2"]:
            table, indices, axis = lookup.inputs
            if table is not tensor or lookup.get_attr("batch_dims"):
                continue
            with self._wrapped.graph.as_default():
                rows = tf.cast(tf.gather(tensor.op.inputs[0], indices, axis=axis), tensor.dtype)
            looked_up = lookup.outputs[0]
            for reader in looked_up.consumers():
                for i, read in enumerate(reader.inputs):
                    if read is looked_up:
                        reader._update_input(i, rows)

    def _wait(self, tensor):
        """Delay the cast of a weight until its other operand is computed.

        Otherwise all weights are cast at the same time, which takes the memory of a second model.
        """
        if tensor.op.type != "Cast" or not tensor.consumers():
            return
        for other in tensor.consumers()[0].inputs:
            if other is not tensor and other.op.type != "Placeholder":
                tensor.op._add_control_input(other.op)

    def _view(self, tensor):
        """Return the `View` of a tensor; a transposed weight shares storage with the weight."""
        if tensor.op.type == "Transpose":
            axes = tf.get_static_value(tensor.op.inputs[1])
            if axes is not None:
                return self._view(tensor.op.inputs[0]).transposed(tuple(map(int, axes)))
        return View(self._expression(tensor))

    def _expression(self, tensor):
        sources = self._sources(tensor)
        if tensor.op.type == "Cast" and tensor.op.inputs[0].ref() in self._held:
            tensor = tensor.op.inputs[0]  # cast when it is stored, in parts
        if tensor.ref() in self._held:
            _, variable = self._weights[self._held[tensor.ref()]]
            compute = functools.partial(np.asarray, variable)
        elif tensor.ref() in self._captured:
            compute = self._captured[tensor.ref()].numpy
        else:
            compute = functools.partial(self._compute, tensor, sources)
        first = min((self._held[ref] for ref in sources if ref in self._held), default=None)
        path = "constant" if first is None else self._weights[first][0].path
        return Expression(self._key(tensor), path, tuple(tensor.shape.as_list()), compute)

    def _compute(self, tensor, sources):
        run = self._pruned([ref.deref() for ref in sources], [tensor])
        values = [
            self._captured[ref]
            if ref in self._captured
            else self._weights[self._held[ref]][1].value.read_value()
            for ref in sources
        ]
        return run(*values)[0].numpy()

    def _sources(self, tensor):
        """Return the weights that a tensor is computed from, as keys of `_held` or `_captured`."""
        sources, left = {}, [tensor]
        while left:
            tensor = left.pop()
            if tensor.ref() in self._held or tensor.ref() in self._captured:
                sources[tensor.ref()] = None
            else:
                left += tensor.op.inputs
        return list(sources)

    def _key(self, tensor):
        ref = tensor.ref()
        if ref in self._held:
            return f"weight_{self._held[ref]}"
        if ref not in self._keys:
            digest = hashlib.sha256()
            if ref in self._captured:
                digest.update(self._captured[ref].numpy().tobytes())
            else:
                digest.update(f"{tensor.op.type}:{tensor.value_index}".encode())
                for name, attribute in sorted(tensor.op.node_def.attr.items()):
                    digest.update(name.encode() + attribute.SerializeToString(deterministic=True))
                for source in tensor.op.inputs:
                    digest.update(self._key(source).encode())
            self._keys[ref] = digest.hexdigest()
        return self._keys[ref]


def _free_with(owner, graph):
    """Free a graph when its owner is freed."""
    weakref.finalize(owner, free_graph, graph).atexit = False


def in_float32(task: "Task") -> "tuple[Task, list[tuple[keras.Variable, keras.Variable]]]":
    """Return a task to trace in float32, and its weights.

    Returns:
        The task itself if it computes in float32, or else a copy whose model has no values; and
        the `weights` argument of `Trace`, a list of pairs (read, held).
    """
    if computes_in(task.model, "float32"):
        return task, [(variable, variable) for variable in task.model.variables]
    row = {**models.describe(task.model), "dtype": "float32"}
    model = shapes_only(lambda: models.restore(row))
    twin = type(task)(model, task.tokenizer, metadata=task.metadata)
    return twin, list(zip(model.variables, task.model.variables, strict=True))


def computes_in(model: keras.Model, *dtypes: str) -> bool:
    """Return whether all layers of a model compute in one of the given dtypes."""
    return all(layer.compute_dtype in dtypes for layer in layers_of(model))


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Iterate over the layers of a model and of nested models."""
    for layer in model.layers:
        yield from layers_of(layer) if hasattr(layer, "layers") else [layer]
