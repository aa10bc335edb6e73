"""Move the spread of activations into weights, before both are rounded to 8 bits.

What a norm gives has channels that are a hundred times larger than others, and one scale for all of
them leaves the small ones few steps. Multiplying channel j by c_j and dividing column j of each
matrix that reads it changes nothing in exact numbers; with

    c_j = sqrt(max |W_j| / max |x_j|)

neither has to carry the whole spread.

Reference:
    Xiao et al., 2022, "SmoothQuant", eq. 4, with alpha = 1/2.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_ROWS = 8  # texts that are read
_LEAST = 1e-5  # of a channel's largest value: some are never used


def balance(model, groups, calibration):
    """Balance the inputs that several products of a decoder share.

    Args:
        model: a `flatbuffer.Model`, to whose graphs the multiplications are added; its constants
            are divided when they are stored.
        groups: from `calibration.groups_of`.
        calibration: a `calibration.Calibration`.
    """
    groups, largest = [group for group in groups if len(group) > 1], {}
    rows = [row[: calibration.length] for row in calibration.rows[:_ROWS]]
    for i, values in calibration.activations(groups, rows):
        values = np.abs(values).max(0)
        largest[i] = np.maximum(largest.get(i, 0.0), values)
    for i, values in largest.items():
        columns = [np.abs(np.asarray(c.view.array(), "float32")).max(0) for c in groups[i]]
        columns = np.max(columns, axis=0)
        factor = np.sqrt(np.maximum(columns, _LEAST) / np.maximum(values, _LEAST))
        factor = (factor / np.exp(np.log(factor).mean())).astype("float32")
        for constant in groups[i]:
            constant.divisor = factor
        for graph in model.graphs:
            _multiply(model, graph, set(groups[i]), factor)


def _multiply(model, graph, constants, factor):
    """Let the products of some constants in a graph read what they read, times a factor."""
    readers = {}
    for product in model.products:
        if product.graph is graph and product.constant in constants:
            readers.setdefault(int(product.operator.inputs[0]), []).append(product.operator)
    for source, operators in readers.items():
        name = graph.graph.tensors[source].name.decode()
        kind = schema.TensorType.FLOAT32
        buffer = model.buffer(factor.tobytes())
        constant = graph.tensor(f"{name}/balance", factor.shape, kind, buffer)
        balanced = graph.tensor(f"{name}/balanced", graph.graph.tensors[source].shape, kind)
        options, builtin = schema.MulOptionsT(), schema.BuiltinOperator.MUL
        product = graph.operator(builtin, [source, constant], balanced, options)
        graph.insert_before(operators, product)
        for operator in operators:
            operator.inputs = np.array([balanced, *operator.inputs[1:]], "int32")
