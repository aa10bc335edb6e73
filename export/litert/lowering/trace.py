"""Trace a signature and lower it to a TFLite graph whose weights are inputs.

The converter never sees a weight, so lowering takes the time and memory of the graph alone. What is
computed from weights alone (a reshape, a gain plus one, a cast) is cut out of the graph: its result
becomes the input, and is computed when it is stored.

The lowering itself runs in a process of its own, `lowering_worker`: the converter can take its
process down.
"""

import dataclasses
import functools
import hashlib
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_llm import models
from keras_llm.errors import ExportError
from keras_llm.generation.tensorflow import free_graph
from keras_llm.models.deferred import shapes_only

_SHAPES = ("Shape", "ShapeN", "Size", "Rank")  # read no values


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A tensor that is computed from weights alone.

    Attributes:
        key: str. Equal keys mean equal values, in all traces of one model.
        name: str, the path of the weight, e.g. "block_0/feed_forward/up/kernel".
        shape: tuple of ints.
        compute: function of nothing that returns the array, in the weight's own precision if the
            expression is the weight itself.
    """

    key: str
    name: str
    shape: tuple
    compute: object

    @property
    def layer(self):
        """The path of the layer whose weight it is, e.g. "block_0/feed_forward/up"."""
        return self.name.rpartition("/")[0] or self.name


@dataclasses.dataclass(frozen=True)
class View:
    """A weight as a graph reads it: an expression, transposed or reshaped.

    Attributes:
        expression: an `Expression`.
        steps: tuple of ("transpose", axes) and ("reshape", shape).
    """

    expression: object
    steps: tuple = ()

    @property
    def key(self):
        return (self.expression.key, self.steps)

    @property
    def shape(self):
        shape = self.expression.shape
        for kind, value in self.steps:
            shape = tuple(shape[axis] for axis in value) if kind == "transpose" else value
        return shape

    def transposed(self, axes=(1, 0)):
        *rest, last = self.steps or ((None, None),)
        if last[0] == "transpose":
            axes = tuple(last[1][axis] for axis in axes)
            steps = tuple(rest)
        else:
            steps = self.steps
        if axes == tuple(range(len(axes))):
            return View(self.expression, steps)
        return View(self.expression, (*steps, ("transpose", axes)))

    def reshaped(self, shape):
        if tuple(shape) == self.shape:
            return self
        return View(self.expression, (*self.steps, ("reshape", tuple(shape))))

    def array(self):
        """The values, in the precision in which they are held; no copy if it can be helped."""
        array = self.expression.compute()
        for kind, value in self.steps:
            array = array.transpose(value) if kind == "transpose" else array.reshape(value)
        return array


@dataclasses.dataclass(frozen=True)
class Traced:
    """A signature with weights as inputs.

    Attributes:
        name: str.
        inputs, outputs: lists of str, the names that the signature gives them.
        weights: list of `View`, the inputs that follow those.
        graph: a `tf.compat.v1.WrappedFunction` of inputs and weights.
    """

    name: str
    inputs: list
    outputs: list
    weights: list
    graph: object


class Trace:
    """The graph of a function that reads weights, with what is computed from weights alone found.

    Args:
        function: function of tensors by name that returns a dict of tensors by name.
        inputs: dict of name to `tf.TensorSpec`.
        weights: list of pairs (read, held): the `keras.Variable` that the function reads, and the
            one that holds its value, which may have another precision.

    Attributes:
        consumed: list of `View`, what operations on activations read of the weights.
    """

    def __init__(self, function, inputs, weights):
        self.input_names = list(inputs)
        self._weights = weights
        outputs = {}

        def run(*arguments):
            given = dict(zip(self.input_names, arguments, strict=False))
            values = arguments[len(given) :]
            mapping = [
                (read, tf.cast(value, read.dtype))
                for (read, _), value in zip(weights, values, strict=True)
            ]
            with keras.StatelessScope(state_mapping=mapping, initialize_variables=False):
                outputs.update(function(**given))
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
                raise ExportError(f"the graph reads {tensor.name}, which is no weight of the model")
        self._keys = {}
        self._find()

    def _find(self):
        """Find the tensors that operations on activations read of the weights."""
        from_inputs = {tensor.ref() for tensor in self._inputs}
        from_weights = {*self._held, *self._captured}
        found = {}
        for operation in self._wrapped.graph.get_operations():
            refs = [tensor.ref() for tensor in operation.inputs]
            of_weights = [ref for ref in refs if ref in from_weights]
            if any(ref in from_inputs for ref in refs):
                found.update(dict.fromkeys(of_weights))
                from_inputs.update(tensor.ref() for tensor in operation.outputs)
            elif of_weights and operation.type in _SHAPES:
                found.update(dict.fromkeys(of_weights))
            elif of_weights:
                from_weights.update(tensor.ref() for tensor in operation.outputs)
        self._cut = [ref.deref() for ref in found]
        self.consumed = [self._view(tensor) for tensor in self._cut]

    def signature(self, name):
        """The `Traced` signature, ready to be lowered."""
        feeds = [*self._inputs, *self._cut]
        graph = self._pruned(feeds, list(self._wrapped.outputs))
        return Traced(name, self.input_names, self.output_names, self.consumed, graph)

    def _pruned(self, feeds, fetches):
        function = self._wrapped.prune(feeds, fetches)
        _free_with(function, function.graph)
        return function

    def products(self, keys):
        """What weights multiply.

        Args:
            keys: set of str, keys of expressions.

        Returns:
            A function of the inputs by name that returns the outputs but `logits` by name, and by
            the key of each expression that is a matrix of a product the array that it multiplies.
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
        # No logits: they would take a cast of the whole head.
        state = {name: tensor for name, tensor in outputs.items() if name != "logits"}
        fetches = [*state.values(), *read.values()]
        weights = [ref.deref() for ref in self._held]
        captured = [ref.deref() for ref in self._captured]
        run = self._pruned([*self._inputs, *weights, *captured], fetches)

        def call(inputs):
            given = [tf.constant(inputs[name]) for name in self.input_names]
            held = [held.value.read_value() for _, held in self._weights]
            results = run(*given, *held, *self._captured.values())
            results = [result.numpy() for result in results]
            found = dict(zip(state, results, strict=False))
            return found, dict(zip(read, results[len(found) :], strict=True))

        return call

    def _look_up_first(self, tensor):
        """Let a table be cast after rows of it have been looked up, not before: of a large
        vocabulary the whole is a gigabyte."""
        if tensor.op.type != "Cast":
            return
        for lookup in [c for c in tensor.consumers() if c.type == "GatherV2"]:
            table, indices, axis = lookup.inputs
            if table is not tensor or lookup.get_attr("batch_dims"):
                continue
            with self._wrapped.graph.as_default():
                rows = tf.cast(tf.gather(tensor.op.inputs[0], indices, axis=axis), tensor.dtype)
            found = lookup.outputs[0]
            for reader in found.consumers():
                for i, read in enumerate(reader.inputs):
                    if read is found:
                        reader._update_input(i, rows)

    def _wait(self, tensor):
        """Let a cast of a weight wait for what it is multiplied with: without it all weights would
        be cast at once, which takes memory for a second model."""
        if tensor.op.type != "Cast" or not tensor.consumers():
            return
        for other in tensor.consumers()[0].inputs:
            if other is not tensor and other.op.type != "Placeholder":
                tensor.op._add_control_input(other.op)

    def _view(self, tensor):
        """A transposed weight counts as the weight: a tied table is then stored once."""
        if tensor.op.type == "Transpose":
            axes = tf.get_static_value(tensor.op.inputs[1])
            if axes is not None:
                return self._view(tensor.op.inputs[0]).transposed(tuple(map(int, axes)))
        return View(self._expression(tensor))

    def _expression(self, tensor):
        sources = self._sources(tensor)
        if tensor.op.type == "Cast" and tensor.op.inputs[0].ref() in self._held:
            tensor = tensor.op.inputs[0]  # cast where it is stored, a part at a time
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
        """The weights that a tensor is computed from, as keys of `_held` and `_captured`."""
        found, left = {}, [tensor]
        while left:
            tensor = left.pop()
            if tensor.ref() in self._held or tensor.ref() in self._captured:
                found[tensor.ref()] = None
            else:
                left += tensor.op.inputs
        return list(found)

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
    weakref.finalize(owner, free_graph, graph)


def in_float32(task):
    """A task to trace in float32, and its weights.

    Returns:
        The task itself if it computes in float32, else one whose model has no values; and a list
        of pairs (read, held) as `Trace` takes it.
    """
    if computes_in(task.model, "float32"):
        return task, [(variable, variable) for variable in task.model.variables]
    row = {**models.describe(task.model), "dtype": "float32"}
    model = shapes_only(lambda: models.restore(row))
    twin = type(task)(model, task.tokenizer, metadata=task.metadata)
    return twin, list(zip(model.variables, task.model.variables, strict=True))


def computes_in(model, *dtypes):
    """Whether all layers of a model compute in one of some precisions."""
    return all(layer.compute_dtype in dtypes for layer in layers_of(model))


def layers_of(model):
    """The layers of a model and of the models inside."""
    for layer in model.layers:
        yield from layers_of(layer) if hasattr(layer, "layers") else [layer]
