"""Check a TFLite model before a runtime, which trusts its contents, loads it.

A runtime follows positions, tensor and buffer indices without checking all of them, so a crafted
file can end the process. Models that the exports of this package do not write are refused: those
with custom ops, variables, strings or external buffers.
"""

import math
import mmap
import pathlib
from typing import Any

import numpy as np

from keras_llm.errors import InputError
from keras_llm.export.litert.runtime.flatbuffer_reader import Field, FlatBuffer, Invalid
from keras_llm.export.litert.runtime.operators import OPERATORS, Operator

_INTS, _TABLES = ["int32"], ["table"]
_MODEL = [
    Field("version", 0, "uint32"),
    Field("operator_codes", 1, _TABLES),
    Field("subgraphs", 2, _TABLES),
    Field("description", 3, "string"),
    Field("buffers", 4, _TABLES),
    Field("metadata_buffer", 5, _INTS),
    Field("metadata", 6, _TABLES),
    Field("signature_defs", 7, _TABLES),
    Field("external_buffer_groups", 8, _TABLES),
    Field("external_buffers", 9, _TABLES),
]
_OPERATOR_CODE = [
    Field("deprecated_builtin_code", 0, "int8"),
    Field("custom_code", 1, "string"),
    Field("version", 2, "int32", 1),
    Field("builtin_code", 3, "int32"),
]
_SUBGRAPH = [
    Field("tensors", 0, _TABLES),
    Field("inputs", 1, _INTS),
    Field("outputs", 2, _INTS),
    Field("operators", 3, _TABLES),
    Field("name", 4, "string"),
]
_TENSOR = [
    Field("shape", 0, _INTS),
    Field("type", 1, "int8"),
    Field("buffer", 2, "uint32"),
    Field("name", 3, "string"),
    Field("quantization", 4, "table"),
    Field("is_variable", 5, "int8"),
    Field("sparsity", 6, "table"),
    Field("shape_signature", 7, _INTS),
    Field("variant_tensors", 9, _TABLES),
    Field("external_buffer", 10, "uint32"),
]
_QUANTIZATION = [
    Field("min", 0, ["float32"]),
    Field("max", 1, ["float32"]),
    Field("scale", 2, ["float32"]),
    Field("zero_point", 3, ["int64"]),
    Field("details_type", 4, "uint8"),
    Field("details", 5, "table"),
    Field("dimension", 6, "int32"),
]
_BLOCKWISE = [
    Field("scales", 0, "int32"),
    Field("zero_points", 1, "int32"),
    Field("block_size", 2, "int32"),
    Field("block_shape", 3, _INTS),
]
_OPERATOR = [
    Field("opcode_index", 0, "uint32"),
    Field("inputs", 1, _INTS),
    Field("outputs", 2, _INTS),
    Field("options_type", 3, "uint8"),
    Field("options", 4, "table"),
    Field("custom_options", 5, ["uint8"]),
    Field("mutating_variable_inputs", 7, ["uint8"]),
    Field("intermediates", 8, _INTS),
    Field("large_custom_options_offset", 9, "uint64"),
    Field("options_2_type", 11, "uint8"),
    Field("options_2", 12, "table"),
]
_BUFFER = [Field("data", 0, ["uint8"]), Field("offset", 1, "uint64"), Field("size", 2, "uint64")]
_SIGNATURE = [
    Field("inputs", 0, _TABLES),
    Field("outputs", 1, _TABLES),
    Field("key", 2, "string"),
    Field("subgraph_index", 4, "uint32"),
]
_NAMED_TENSOR = [Field("name", 0, "string"), Field("tensor_index", 1, "uint32")]
_METADATA = [Field("name", 0, "string"), Field("buffer", 1, "uint32")]
_FUSED = [Field("fused", 0, "int8")]
_COUNT = [Field("count", 0, "int32")]
# Options of operators that are checked, by their type in the schema. Others are only numbers.
_OPTIONS = {
    8: [*_FUSED, Field("quant_spec", 5, ["uint8"])],  # FULLY_CONNECTED
    10: [Field("fused", 1, "int8")],  # CONCATENATION
    **dict.fromkeys((11, 21, 28, 29), _FUSED),  # ADD, MUL, SUB, DIV
    17: [Field("new_shape", 0, _INTS)],  # RESHAPE
    30: [Field("squeeze_dims", 0, _INTS)],  # SQUEEZE
    **dict.fromkeys((35, 59, 64), _COUNT),  # SPLIT, PACK, UNPACK
}
# Types of options with other vectors, which none of the operators has.
_OTHER_OPTIONS = {3, 111, 115}
_BY_CODE = {operator.code: operator for operator in OPERATORS.values()}
_ACTIVATIONS = range(6)
# Bits of an element, by tensor type: numbers of a fixed size. Others are refused.
_BITS = {
    **{0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 12: 64, 15: 32, 16: 16},
    **{17: 4, 18: 16, 19: 2, 20: 4, 21: 8, 22: 8},
}
_LARGEST_TENSOR = 1 << 35  # bits; 4 GB
_BLOCKWISE_DETAILS = 2


def check_model(path: pathlib.Path, begin: int, end: int) -> None:
    """Check the TFLite model in the bytes `begin .. end` of a file.

    Every position, size and index is within its bounds; a constant has as many bytes as its shape
    and type need; an operator reads only what is already computed, and each tensor is written once;
    signatures name the inputs and outputs of their graphs.

    Args:
        path: path of the file.
        begin, end: ints.

    Raises:
        InputError: if the model is not valid.
    """
    size = path.stat().st_size
    if not all(type(place) is int for place in (begin, end)) or not 0 <= begin < end <= size:
        raise InputError(f"{path} has no model in the bytes {begin!r} to {end!r}.")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        _Checker(FlatBuffer(memoryview(data)[begin:end], end - begin)).check()
    except Invalid as error:
        raise InputError(f"{path} has no valid TFLite model: {error}.") from None


class _Checker:
    def __init__(self, buffer: FlatBuffer) -> None:
        self._read = buffer.table
        self._flat = buffer
        self._model = buffer.table(buffer.root(b"TFL3"), _MODEL)

    def check(self) -> None:
        model = self._model
        if model["external_buffer_groups"] or model["external_buffers"]:
            raise Invalid("it has external buffers")
        self._buffers = [self._length(at) for at in model["buffers"]]
        self._codes = [_known(self._read(at, _OPERATOR_CODE)) for at in model["operator_codes"]]
        for at in model["metadata"]:
            if self._read(at, _METADATA)["buffer"] >= len(self._buffers):
                raise Invalid("a metadata buffer does not exist")
        graphs = [self._graph(at) for at in model["subgraphs"]]
        keys = [self._signature(at, graphs) for at in model["signature_defs"]]
        if not keys or len(set(keys)) < len(keys):
            raise Invalid("it needs signatures with different names")

    def _length(self, at):
        """Return the bytes of a buffer, which are in the flatbuffer or after it."""
        buffer = self._read(at, _BUFFER)
        offset, size = buffer["offset"], buffer["size"]
        if offset > 1 or size > 1:  # 0 and 1 mean that the data are in the flatbuffer
            if len(buffer["data"]) or offset + size > self._flat.size:
                raise Invalid("a buffer is outside of the file")
            return size
        return len(buffer["data"])

    def _graph(self, at):
        """Check a graph; return the sets of its inputs and outputs."""
        graph = self._read(at, _SUBGRAPH)
        tensors = [self._read(tensor, _TENSOR) for tensor in graph["tensors"]]
        for tensor in tensors:
            self._check_tensor(tensor)
        for tensor in tensors:
            if tensor["quantization"] >= 0:
                self._check_quantization(tensor, tensors)
        count = len(tensors)
        inputs, outputs = graph["inputs"].tolist(), graph["outputs"].tolist()
        constants = {i for i, tensor in enumerate(tensors) if self._buffers[tensor["buffer"]]}
        if not _all_below(inputs, count) or constants & set(inputs):
            raise Invalid("an input of a graph is not one of its tensors")
        computed = constants | set(inputs)
        for operator in graph["operators"]:
            self._check_operator(self._read(operator, _OPERATOR), tensors, computed)
        if not outputs or not computed.issuperset(outputs):
            raise Invalid("an output of a graph is not computed")
        return set(inputs), set(outputs)

    def _check_tensor(self, tensor):
        if tensor["sparsity"] >= 0 or tensor["variant_tensors"] or tensor["is_variable"]:
            raise Invalid("a tensor is sparse or variable")
        if tensor["external_buffer"] or tensor["buffer"] >= len(self._buffers):
            raise Invalid("the buffer of a tensor does not exist")
        if tensor["type"] not in _BITS:
            raise Invalid(f"a tensor has the type {tensor['type']}, which is not supported")
        shape = tensor["shape"].tolist()
        if not _all_below(shape, 2**31) or len(shape) > 8:
            raise Invalid(f"a tensor has the shape {shape}")
        bits = math.prod(shape) * _BITS[tensor["type"]]
        if bits > _LARGEST_TENSOR:
            raise Invalid(f"a tensor has the shape {shape}")
        stored = self._buffers[tensor["buffer"]]
        if stored and stored != -(-bits // 8):
            raise Invalid(f"a constant of shape {shape} has {stored} bytes")

    def _check_quantization(self, tensor, tensors):
        quantization = self._read(tensor["quantization"], _QUANTIZATION)
        shape, scale = tensor["shape"].tolist(), quantization["scale"]
        axis, zero_points = quantization["dimension"], quantization["zero_point"]
        if not np.isfinite(scale).all() or (scale < 0).any():
            raise Invalid("a scale is not a positive number")
        if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
            raise Invalid(f"a tensor of shape {shape} has {len(scale)} scales")
        if len(zero_points) not in (0, 1, len(scale)) or (np.abs(zero_points) >= 2**31).any():
            raise Invalid("a tensor has wrong zero points")
        if quantization["details"] < 0:
            return
        if quantization["details_type"] != _BLOCKWISE_DETAILS:
            raise Invalid("the quantization of a tensor is not supported")
        blocks = self._read(quantization["details"], _BLOCKWISE)
        size, count = blocks["block_size"], math.prod(shape)
        if not _all_below([blocks["scales"]], len(tensors)) or blocks["zero_points"] > 0:
            raise Invalid("the scales of a tensor do not exist")
        scales = tensors[blocks["scales"]]
        number = math.prod(scales["shape"].tolist())
        if not self._buffers[scales["buffer"]] or size < 1 or number * size != count:
            raise Invalid(f"a tensor of shape {shape} has {number} blocks")

    def _check_operator(self, operator, tensors, computed):
        """Check an operator; add its outputs to the set of computed tensors."""
        inputs, outputs = operator["inputs"].tolist(), operator["outputs"].tolist()
        if operator["opcode_index"] >= len(self._codes):
            raise Invalid("an operator does not exist")
        kind = self._codes[operator["opcode_index"]]
        count = self._check_options(operator, kind)
        if count not in (None, len(inputs if kind is OPERATORS["PACK"] else outputs)):
            raise Invalid(f"the operator {kind.code} has {count} tensors in its options")
        if kind is OPERATORS["FULLY_CONNECTED"] and inputs[2:] == [-1]:  # no bias
            inputs.pop()
        if not computed.issuperset(inputs):
            raise Invalid("an operator reads a tensor that is not computed before")
        is_new = len(set(outputs)) == len(outputs) and computed.isdisjoint(outputs)
        if not outputs or not is_new or not _all_below(outputs, len(tensors)):
            raise Invalid("an operator does not write a tensor of its own")
        types = [[tensors[i]["type"] for i in side] for side in (inputs, outputs)]
        if not kind.takes(*types):
            raise Invalid(f"the operator {kind.code} has tensors of the types {types}")
        computed.update(outputs)

    def _check_options(self, operator, kind):
        """Check the options of an operator; return the number of tensors in them, or None."""
        if (
            len(operator["custom_options"])
            or len(operator["intermediates"])
            or operator["large_custom_options_offset"]
            or operator["options_2"] >= 0
            or operator["options_type"] in _OTHER_OPTIONS
        ):
            raise Invalid("an operator has options that are not supported")
        options = {}
        if operator["options"] >= 0:
            self._flat.check_numbers(operator["options"])
            options = self._read(operator["options"], _OPTIONS.get(operator["options_type"], []))
        if kind.options and (operator["options_type"] != kind.options or not options):
            raise Invalid(f"the operator {kind.code} has the options of another one")
        if options.get("fused", 0) not in _ACTIVATIONS:
            raise Invalid(f"the activation {options['fused']} does not exist")
        return options.get("count") if kind.options else None

    def _signature(self, at, graphs):
        """Check a signature and return its name."""
        signature = self._read(at, _SIGNATURE)
        if not signature["key"] or signature["subgraph_index"] >= len(graphs):
            raise Invalid("the graph of a signature does not exist")
        sides = zip(("inputs", "outputs"), graphs[signature["subgraph_index"]], strict=True)
        for side, tensors in sides:
            rows = [self._read(row, _NAMED_TENSOR) for row in signature[side]]
            names = {row["name"] for row in rows}
            indices = {row["tensor_index"] for row in rows}
            if len(names) < len(rows) or indices != tensors:
                raise Invalid(f"a signature does not name the {side} of its graph")
        return signature["key"]


def _known(code: dict[str, Any]) -> Operator:
    builtin = max(code["builtin_code"], code["deprecated_builtin_code"])
    if builtin not in _BY_CODE or code["custom_code"] or not 0 < code["version"] < 100:
        raise Invalid(f"the operator {builtin} is not supported")
    return _BY_CODE[builtin]


def _all_below(numbers, limit):
    return all(0 <= number < limit for number in numbers)
