"""Apply the converter's optimizations of constants to a graph whose weights were inputs."""

from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.flatbuffer import Graph

FLOAT32, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
_BUILTIN, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
_RELU = schema.ActivationFunctionType.RELU


def fold_views(graph: "Graph") -> None:
    """Fold transposes and reshapes of weights into their views."""
    kept = []
    for operator in graph.graph.operators:
        view = graph.views.get(int(operator.inputs[0])) if len(operator.inputs) else None
        builtin, output = graph.builtin(operator), int(operator.outputs[0])
        if view is not None and builtin == _BUILTIN.TRANSPOSE:
            axes = tuple(map(int, graph.values(operator.inputs[1])))
            graph.see(output, view.transposed(axes))
        elif view is not None and builtin == _BUILTIN.RESHAPE:
            graph.see(output, view.reshaped(graph.shape(output)))
        else:
            kept.append(operator)
    graph.graph.operators = kept


def connect(graph: "Graph") -> None:
    """Replace matmuls with a weight matrix by FULLY_CONNECTED."""
    code = graph.model.code(_BUILTIN.FULLY_CONNECTED, 5)
    for operator in graph.graph.operators:
        if graph.builtin(operator) != _BUILTIN.BATCH_MATMUL:
            continue
        x, weights = map(int, operator.inputs)
        view = graph.views.get(weights)
        if view is None or len(view.shape) != 2 or operator.builtinOptions.adjX:
            continue
        if not operator.builtinOptions.adjY:
            view = view.transposed()
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = len(graph.shape(operator.outputs[0])) > 2
        operator.opcodeIndex = code
        operator.builtinOptionsType = _OPTIONS.FullyConnectedOptions
        operator.builtinOptions = options
        operator.inputs = np.array([x, graph.tensor_of(view), -1], "int32")


def fuse(graph: "Graph") -> None:
    """Fuse bias additions and RELU into FULLY_CONNECTED."""
    readers: dict[int, list[Any]] = {}
    for operator in graph.graph.operators:
        for tensor in operator.inputs:
            readers.setdefault(int(tensor), []).append(operator)
    outputs, fused = set(map(int, graph.graph.outputs)), set()
    for operator in graph.graph.operators:
        if graph.builtin(operator) != _BUILTIN.FULLY_CONNECTED:
            continue
        while True:
            output, options = int(operator.outputs[0]), operator.builtinOptions
            after = readers.get(output, [])
            if len(after) != 1 or output in outputs or options.fusedActivationFunction:
                break
            (next_operator,) = after
            bias = _bias_in(graph, next_operator, output)
            if bias is not None and int(operator.inputs[2]) == -1:
                operator.inputs = np.array([*operator.inputs[:2], bias], "int32")
                function = next_operator.builtinOptions.fusedActivationFunction
                options.fusedActivationFunction = function
            elif graph.builtin(next_operator) == _BUILTIN.RELU:
                options.fusedActivationFunction = _RELU
            else:
                break
            operator.outputs = next_operator.outputs
            options.keepNumDims = len(graph.shape(operator.outputs[0])) > 2
            fused.add(id(next_operator))
    graph.graph.operators = [o for o in graph.graph.operators if id(o) not in fused]


def look_up(graph: "Graph") -> None:
    """Replace GATHER from tables by EMBEDDING_LOOKUP."""
    operators, count = [], 0
    for operator in graph.graph.operators:
        if not _is_lookup(graph, operator):
            operators.append(operator)
            continue
        table, ids = map(int, operator.inputs)
        output, name = int(operator.outputs[0]), f"{graph.name}/embedding_{count}"
        rows, width = int(np.prod(graph.shape(ids))), graph.shape(table)[1]
        flat = graph.tensor(f"{name}/ids", (rows,), INT32)
        embeddings = graph.tensor(name, (rows, width), FLOAT32)
        operators += [
            _reshape(graph, ids, flat, f"{name}/ids_shape"),
            graph.operator(_BUILTIN.EMBEDDING_LOOKUP, [flat, table], embeddings),
            _reshape(graph, embeddings, output, f"{name}/shape"),
        ]
        count += 1
    graph.graph.operators = operators


def _bias_in(graph, operator, product):
    """Return the tensor of the bias if an operator adds one to a product, or else None."""
    if graph.builtin(operator) != _BUILTIN.ADD:
        return None
    others = [int(tensor) for tensor in operator.inputs if int(tensor) != product]
    view = graph.views.get(others[0]) if len(others) == 1 else None
    width = graph.shape(product)[-1]
    same = graph.shape(operator.outputs[0]) == graph.shape(product)
    if view is None or not same or np.prod(view.shape) != width:
        return None
    return graph.tensor_of(view.reshaped((width,)))


def _is_lookup(graph, operator):
    if graph.builtin(operator) != _BUILTIN.GATHER:
        return False
    options, view = operator.builtinOptions, graph.views.get(int(operator.inputs[0]))
    return (
        view is not None
        and len(view.shape) == 2
        and graph.graph.tensors[operator.inputs[1]].type == INT32
        and (options is None or (options.axis == 0 and options.batchDims == 0))
    )


def _reshape(graph, source, target, name):
    options = schema.ReshapeOptionsT()
    options.newShape = shape = np.array(graph.shape(target), "int32")
    constant = graph.tensor(name, shape.shape, INT32, graph.model.buffer(shape.tobytes()))
    return graph.operator(_BUILTIN.RESHAPE, [source, constant], target, options)
