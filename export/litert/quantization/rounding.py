"""Quantize weights: rules that select layers, and rounding of their matrices.

A weight w is stored as an integer q and a scale s, w = q s:

    s = max |w| / Q,    q = round(w / s),    Q = 127 for 8 bits, 7 for 4,

with one scale for each output channel, or for each block of weights of a channel. The scale of a
block is rounded to bfloat16, as LiteRT's kernels require.

Reference:
    LiteRT 8-bit quantization specification; `litert-quantizer` (formerly ai-edge-quantizer), which
    computes the same integers and scales.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.errors import InputError

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.flatbuffer import Constant, Model

from keras_llm.export.litert.quantization.rules import QuantizationRule, rule_for

_LEAST = np.float32(1e-9)  # lower bound of scale times Q, for channels of zeros
_LARGEST_SCALE = 65280.0  # of a block: the largest bfloat16 value that float16 can represent
_INT8, _INT32 = schema.TensorType.INT8, schema.TensorType.INT32


@dataclasses.dataclass(frozen=True)
class Storage:
    """The storage format of a weight.

    Attributes:
        bits: 4 or 8 for integers, 16 for float16.
        block: number of weights of a row that share a scale; None means all.
    """

    bits: int
    block: int | None = None

    def quantize(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantize rows of a matrix, float32 (rows, in).

        Returns:
            Integers, int8 (rows, in), and scales, float32 (rows, in / block).
        """
        largest = np.float32(127 if self.bits == 8 else 7)
        blocks = rows.reshape(len(rows), -1, self.block or rows.shape[1])
        scales = np.maximum(np.abs(blocks).max(-1), _LEAST) / largest
        if self.block:
            scales = np.minimum(scales, _LARGEST_SCALE)
            scales = scales.astype(ml_dtypes.bfloat16).astype("float16").astype("float32")
        # A block of values that are too small for a float16 scale has the scale 0 and becomes 0.
        steps = np.rint(blocks / np.where(scales == 0, np.inf, scales)[..., None])
        smallest = -largest if self.bits == 8 else -largest - 1
        return np.clip(steps, smallest, largest).astype("int8").reshape(rows.shape), scales


@dataclasses.dataclass(frozen=True)
class BiasStorage:
    """The storage format of the bias of an integer matmul: int32 with the scale of its result.

    Attributes:
        input_scale: float32, the scale of the matmul's input.
        weights: the `flatbuffer.Constant` of the matmul's matrix.
    """

    input_scale: np.float32
    weights: "Constant"

    def quantize(self, bias: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantize a bias, given the scales (out,) of the matrix.

        Returns:
            Int32 (out,) and its float32 scales (out,).
        """
        scales = self.input_scale * scales
        return np.rint(bias.astype("float64") / scales).astype("int32"), scales


def pack_int4(values: np.ndarray) -> np.ndarray:
    """Pack pairs of int8 values in -8 .. 7 into bytes, the first one in the low 4 bits."""
    values = values.reshape(-1)
    if len(values) % 2:
        values = np.append(values, np.int8(0))
    return (values[0::2] & 0x0F | (values[1::2] << 4)).astype("uint8")


def apply(
    model: "Model",
    rules: Sequence[QuantizationRule],
    ranges: Mapping[Any, Sequence[tuple[float, float]]] | None = None,
) -> None:
    """Set the storage of each weight of a model and change the graphs to match.

    Args:
        model: a `flatbuffer.Model`.
        rules: `QuantizationRule`s.
        ranges: dict from a constant's key to ((min, max) of the matmul's input, (min, max) of its
            output), required by "static" rules.

    Raises:
        InputError: if matmuls that share a matrix have different rules.
    """
    formats: dict[Any, tuple[str, tuple[int, int | None] | None]] = {}
    for product in model.products:
        rule = rule_for(rules, product.name, product.constant.view.shape[1])
        bits_and_block = None if rule is None else (rule.bits, rule.block)
        other, first = formats.setdefault(product.constant.view.key, (product.name, bits_and_block))
        if first != bits_and_block:
            raise InputError(
                f"{other} and {product.name} share one table and must have the same rule; got "
                f"{first} and {bits_and_block} (bits, block)."
            )
    readers: dict[Any, list[Any]] = {}
    for product in model.products:
        readers.setdefault(product.constant.view.key, []).append(product)
    for key, products in readers.items():
        constant, (_, bits_and_block) = products[0].constant, formats[key]
        if bits_and_block is None or not _only_read_by(constant, products):
            continue
        constant.storage = Storage(*bits_and_block)
        for graph, tensor in constant.places:
            _describe(model, graph, tensor, constant)
        for product in products:
            rule = rule_for(rules, product.name, constant.view.shape[1])
            assert rule is not None  # because of its bits and block
            if product.is_lookup or rule.kind == "dynamic":
                continue  # a lookup is not a matmul: its kernel dequantizes the rows
            if rule.kind == "weight_only":
                _widen(product)
            else:
                assert ranges is not None  # "static" rules require them
                _fix_ranges(model, product, *ranges[key])


def in_float16(model: "Model") -> None:
    """Store all float weights of a model in float16 and dequantize them before use."""
    for constant in model.constants.values():
        constant.storage = Storage(16)
        for graph, tensor in constant.places:
            whole = graph.graph.tensors[tensor]
            wide = graph.tensor(f"{whole.name.decode()}/float32", whole.shape, whole.type)
            whole.type = schema.TensorType.FLOAT16
            for operator in graph.graph.operators:
                operator.inputs = np.where(operator.inputs == tensor, wide, operator.inputs)
            options = schema.DequantizeOptionsT()
            builtin = schema.BuiltinOperator.DEQUANTIZE
            graph.graph.operators.insert(0, graph.operator(builtin, [tensor], wide, options, 3))


def _only_read_by(constant, products):
    """Return whether only the products in `products` read a weight."""
    readers = {id(product.operator) for product in products}
    return all(
        id(operator) in readers
        for graph, tensor in constant.places
        for operator in graph.graph.operators
        if tensor in operator.inputs
    )


def _describe(model, graph, tensor, constant):
    """Set the quantization parameters of a tensor; scales are filled in with the weights."""
    tensor, storage = graph.graph.tensors[tensor], constant.storage
    tensor.type = _INT8 if storage.bits == 8 else schema.TensorType.INT4
    rows, width = constant.view.shape
    tensor.quantization = quantization = schema.QuantizationParametersT()
    if storage.block is None:
        quantization.scale = np.ones(rows, "float32")
        quantization.zeroPoint = np.zeros(rows, "int64")
        return
    details = schema.BlockwiseQuantizationT()
    details.zeroPoints, details.blockSize = -1, storage.block
    name = f"{tensor.name.decode()}/scales"
    details.scales = graph.tensor(name, (rows, width // storage.block), schema.TensorType.FLOAT16)
    quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    quantization.details = details


def _widen(product):
    graph, operator = product.graph, product.operator
    weights = int(operator.inputs[1])
    whole = graph.graph.tensors[weights]
    wide = graph.tensor(f"{whole.name.decode()}/float32", whole.shape, schema.TensorType.FLOAT32)
    operator.inputs = np.array([operator.inputs[0], wide, *operator.inputs[2:]], "int32")
    options, builtin = schema.DequantizeOptionsT(), schema.BuiltinOperator.DEQUANTIZE
    graph.insert_before([operator], graph.operator(builtin, [weights], wide, options, 2))


def _fix_ranges(model, product, input_range, output_range):
    """Quantize the input and output of a matmul to 8 bits with static ranges."""
    graph, operator = product.graph, product.operator
    x, output = int(operator.inputs[0]), int(operator.outputs[0])
    scale, _ = _affine(input_range)
    small = _quantized_tensor(graph, x, input_range)
    if small is None:
        small = _small_tensor(graph, x, input_range)
        options, builtin = schema.QuantizeOptionsT(), schema.BuiltinOperator.QUANTIZE
        # Matmuls that share the input may come before this one.
        readers = [o for o in graph.graph.operators if x in o.inputs]
        graph.insert_before(readers, graph.operator(builtin, [x], small, options))
    bias = int(operator.inputs[2])
    if bias != -1:
        bias = _bias_constant(model, graph, bias, scale, product.constant)
    out = _small_tensor(graph, output, output_range)
    operator.inputs = np.array([small, operator.inputs[1], bias], "int32")
    operator.outputs = np.array([out], "int32")
    options, builtin = schema.DequantizeOptionsT(), schema.BuiltinOperator.DEQUANTIZE
    widened = graph.operator(builtin, [out], output, options, 2)
    place = next(i for i, o in enumerate(graph.graph.operators) if o is operator)
    graph.graph.operators.insert(place + 1, widened)


def _quantized_tensor(graph, x, value_range):
    """Return the tensor with `x` already quantized for another matmul, or None."""
    scale, zero = _affine(value_range)
    for operator in graph.graph.operators:
        if graph.builtin(operator) == schema.BuiltinOperator.QUANTIZE and operator.inputs[0] == x:
            quantization = graph.graph.tensors[operator.outputs[0]].quantization
            if quantization.scale[0] == scale and quantization.zeroPoint[0] == zero:
                return int(operator.outputs[0])
    return None


def _small_tensor(graph, like, value_range):
    whole = graph.graph.tensors[like]
    scale, zero = _affine(value_range)
    small = graph.tensor(f"{whole.name.decode()}/int8", whole.shape, _INT8)
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.array([scale], "float32")
    quantization.zeroPoint = np.array([zero], "int64")
    graph.graph.tensors[small].quantization = quantization
    return small


def _affine(value_range):
    """Return the 8-bit scale and zero point for a range of values, extended to include 0."""
    least, largest = min(value_range[0], 0.0), max(value_range[1], 0.0)
    scale = np.float32(max(largest - least, _LEAST) / 255)
    return scale, int(np.clip(np.rint(-128 - least / scale), -128, 127))


def _bias_constant(model, graph, bias, input_scale, weights):
    """Add the integer tensor of a bias to a graph and return its index."""
    plain = next(
        constant for constant in model.constants.values() if (graph, bias) in constant.places
    )
    key = ("bias", plain.view.key, weights.view.key, float(input_scale))
    constant = model.constants.get(key)
    if constant is None:
        storage = BiasStorage(input_scale, weights)
        constant = model.constants[key] = type(plain)(plain.view, storage=storage)
    whole = graph.graph.tensors[bias]
    tensor = graph.tensor(f"{whole.name.decode()}/int32", whole.shape, _INT32)
    graph.graph.tensors[tensor].quantization = quantization = schema.QuantizationParametersT()
    quantization.scale = np.ones(whole.shape, "float32")
    quantization.zeroPoint = np.zeros(whole.shape, "int64")
    constant.places.append((graph, tensor))
    return tensor
