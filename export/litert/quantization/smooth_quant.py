"""Balance activations and weights with SmoothQuant before both are quantized to 8 bits.

The output of a norm layer has channels that are a hundred times larger than others, so one scale
for all channels leaves few steps for the small ones. Multiplying channel j by c_j and dividing
column j of each matrix that reads it does not change the result in exact arithmetic; with

    c_j = sqrt(max |W_j| / max |x_j|)

activations and weights share the difficulty of quantization.

Reference:
    Xiao et al., 2022, "SmoothQuant", eq. 4, with alpha = 1/2.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.flatbuffer import Constant, Model
    from keras_llm.export.litert.quantization.calibration import Calibration

_ROWS = 8  # calibration texts
_LEAST = 1e-5  # lower bound of a channel's largest value, because some channels are never used


def balance(
    model: "Model", groups: "Sequence[Sequence[Constant]]", calibration: "Calibration"
) -> None:
    """Balance the inputs that several matmuls of a decoder share.

    Args:
        model: a `flatbuffer.Model`. The multiplications are added to its graphs; its constants
            are divided when they are stored.
        groups: from `calibration.groups_of`.
        calibration: a `calibration.Calibration`.
    """
    groups = [group for group in groups if len(group) > 1]
    largest: dict[int, np.ndarray] = {}
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
    """Multiply the inputs of the matmuls with some constants in a graph by a factor."""
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
