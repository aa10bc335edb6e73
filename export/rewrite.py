"""Changes to a TFLite graph that the converter does not make, before its weights are quantised.

TensorFlow's converter turns an embedding into GATHER, which has no quantised table; LiteRT has
EMBEDDING_LOOKUP, which has one, and shares it with the head of a model with tied embeddings.
"""

import pathlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.export import products

_INT32 = schema.TensorType.INT32


def name_tables(path):
    """Turn the GATHERs of float tables into EMBEDDING_LOOKUPs, in place.

    In each signature they are called `<signature>/embedding_<i>`, and the product that gives
    `logits` is `<signature>/head`, for the patterns of quantisation rules.
    """
    path = pathlib.Path(path)
    model = products.load(path)
    for signature in model.signatureDefs:
        graph = _Graph(model, model.subgraphs[signature.subgraphIndex], signature)
        graph.replace_gathers()
        graph.name_head()
    products.store(model, path)


class _Graph:
    def __init__(self, model, graph, signature):
        self.model, self.graph, self.signature = model, graph, signature
        self.name = signature.signatureKey.decode()

    def replace_gathers(self):
        operators = []
        for operator in self.graph.operators:
            if self._is_lookup(operator):
                operators += self._lookup(operator, sum(map(_is_new, operators)))
            else:
                operators.append(operator)
        self.graph.operators = operators

    def name_head(self):
        for output in self.signature.outputs:
            if output.name == b"logits":
                index = output.tensorIndex
                self.graph.tensors[index].name = f"{self.name}/head".encode()

    def _is_lookup(self, operator):
        code = self.model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.GATHER:
            return False
        options, table = operator.builtinOptions, self.graph.tensors[operator.inputs[0]]
        return (
            self.model.buffers[table.buffer].data is not None
            and len(table.shape) == 2
            and table.type == schema.TensorType.FLOAT32
            and self.graph.tensors[operator.inputs[1]].type == _INT32
            and (options is None or (options.axis == 0 and options.batchDims == 0))
        )

    def _lookup(self, operator, index):
        """GATHER(table, ids) as EMBEDDING_LOOKUP, whose ids have one axis."""
        table, ids = operator.inputs
        out = operator.outputs[0]
        tensors, name = self.graph.tensors, f"{self.name}/embedding_{index}"
        count, width = int(np.prod(tensors[ids].shape)), int(tensors[table].shape[1])
        flat = self._tensor(f"{name}/ids", (count,), _INT32)
        rows = self._tensor(name, (count, width), tensors[out].type)
        lookup = self._operator(schema.BuiltinOperator.EMBEDDING_LOOKUP, [flat, table], rows)
        lookup.is_new = True
        return [
            self._reshape(ids, flat, (count,), f"{name}/ids_shape"),
            lookup,
            self._reshape(rows, out, tensors[out].shape, f"{name}/shape"),
        ]

    def _reshape(self, source, target, shape, name):
        shape = np.array(shape, "int32")
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(shape.tobytes(), "uint8")
        self.model.buffers.append(buffer)
        constant = self._tensor(name, shape.shape, _INT32, len(self.model.buffers) - 1)
        reshape = self._operator(schema.BuiltinOperator.RESHAPE, [source, constant], target)
        reshape.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
        reshape.builtinOptions = schema.ReshapeOptionsT()
        reshape.builtinOptions.newShape = shape
        return reshape

    def _tensor(self, name, shape, kind, buffer=0):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(shape, "int32")
        tensor.type, tensor.buffer = kind, buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _operator(self, builtin, inputs, output):
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(builtin)
        operator.inputs = np.array(inputs, "int32")
        operator.outputs = np.array([output], "int32")
        return operator

    def _code(self, builtin):
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, builtin, 1
        codes.append(code)
        return len(codes) - 1


def _is_new(operator):
    return getattr(operator, "is_new", False)
