"""Merge lowered signatures into one TFLite model whose weights are constants.

A lowered signature has weights as inputs, so the converter could not apply its optimizations of
constants. `rewrites` applies them: matmuls become FULLY_CONNECTED with a fused bias and activation,
and transposes and reshapes of a weight are applied when the weight is stored. A weight that several
signatures read is stored once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.errors import ExportError
from keras_llm.export.litert.lowering import rewrites

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.trace import Traced, View
    from keras_llm.export.litert.quantization.rounding import BiasStorage, Storage

_BUILTIN, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
# Operator options that refer to other graphs of a file.
_GRAPHS = ("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex")


@dataclasses.dataclass(eq=False)
class Product:
    """A FULLY_CONNECTED with a stored matrix, or an EMBEDDING_LOOKUP in a stored table.

    Attributes:
        graph: the `Graph` that contains it.
        operator: its `OperatorT`.
        name: str, the layer name for quantization rules.
        constant: the `Constant` of its matrix (out, in) or table.
    """

    graph: "Graph"
    operator: schema.OperatorT
    name: str
    constant: "Constant"

    @property
    def is_lookup(self) -> bool:
        return self.graph.builtin(self.operator) == _BUILTIN.EMBEDDING_LOOKUP


@dataclasses.dataclass(eq=False)
class Constant:
    """A stored weight.

    Attributes:
        view: its `lowering.trace.View`.
        places: list of pairs (graph, tensor), the tensors that have it as their value.
        storage: a `Storage` or `BiasStorage` (see `quantization.rules`); None is float32.
        divisor: None, or float32 (in,), the divisors of the columns of a matrix.
        factor: None, or a function without arguments that returns the factor for `gptq.on_grid`.
    """

    view: "View"
    places: "list[tuple[Graph, int]]" = dataclasses.field(default_factory=list)
    storage: "Storage | BiasStorage | None" = None
    divisor: np.ndarray | None = None
    factor: Callable[[], np.ndarray] | None = None


class Model:
    """The graphs of a TFLite file.

    Args:
        signatures: list of pairs (`lowering.trace.Traced`, bytes), the graphs from the converter.
        tables: bool. Whether lookups in matrices become EMBEDDING_LOOKUPs, which have quantized
            kernels and can share a table with a product.

    Attributes:
        model: the `schema.ModelT`.
        graphs: list of `Graph`, one for each signature.
        constants: dict from the key of a view to its `Constant`.
        products: list of `Product`.
    """

    def __init__(self, signatures: "Iterable[tuple[Traced, bytes]]", tables: bool) -> None:
        self.model = schema.ModelT()
        self.graphs: list[Graph] = []
        self.constants: dict[Any, Constant] = {}
        self.products: list[Product] = []
        self._contents: dict[bytes, int] = {}
        for traced, content in signatures:
            self._add(traced, schema.ModelT.InitFromPackedBuf(content, 0), tables)

    def buffer(self, data: bytes | bytearray | np.ndarray) -> int:
        """Return the index of the buffer with some content, adding it if it is missing."""
        content = bytes(data)
        if content not in self._contents:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, "uint8")
            self.model.buffers.append(buffer)
            self._contents[content] = len(self.model.buffers) - 1
        return self._contents[content]

    def code(self, builtin: int, version: int = 1) -> int:
        """Return the index of an operator code, adding it if it is missing."""
        for index, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == builtin and code.version >= version:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, 127)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def constant(self, view: "View") -> Constant:
        return self.constants.setdefault(view.key, Constant(view))

    def biases(self) -> dict[Constant, np.ndarray]:
        """Return a dict from the constant of a matmul's matrix to the array of its bias."""
        constants = {
            (graph, tensor): constant
            for constant in self.constants.values()
            for graph, tensor in constant.places
        }
        return {
            product.constant: constants[product.graph, product.operator.inputs[2]].view.array()
            for product in self.products
            if not product.is_lookup and product.operator.inputs[2] != -1
        }

    def finish(self) -> None:
        """Remove unused tensors."""
        for graph in self.graphs:
            graph.compact()

    def pack(self) -> bytearray:
        """Return the flatbuffer, a bytearray, without the weights, which follow it in the file."""
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return builder.Output()

    def _add(self, traced, other, tables):
        model, first = self.model, len(self.model.subgraphs or [])
        if not self.graphs:
            model.version, model.description = other.version, b"keras_llm"
            model.operatorCodes, model.subgraphs, model.signatureDefs = [], [], []
            model.buffers = [schema.BufferT()]  # buffer 0 means no buffer
            self._keep_metadata(other)
        codes = [self._code_like(code) for code in other.operatorCodes]
        for graph in other.subgraphs:
            for operator in graph.operators:
                operator.opcodeIndex = codes[operator.opcodeIndex]
                for name in _GRAPHS:
                    index = getattr(operator.builtinOptions, name, None)
                    if index is not None:
                        setattr(operator.builtinOptions, name, first + index)
            for tensor in graph.tensors:
                data = other.buffers[tensor.buffer].data
                tensor.buffer = 0 if data is None or not len(data) else self.buffer(data)
            model.subgraphs.append(graph)
        self.graphs.append(Graph(self, other.subgraphs[0], traced, first, tables))

    def _code_like(self, code):
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        for index, existing in enumerate(self.model.operatorCodes):
            if (existing.builtinCode, existing.customCode) == (builtin, code.customCode):
                existing.version = max(existing.version, code.version)
                return index
        code.builtinCode = builtin
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _keep_metadata(self, other):
        self.model.metadata = []
        for entry in other.metadata or []:
            if entry.name == b"min_runtime_version":
                entry.buffer = self.buffer(other.buffers[entry.buffer].data)
                self.model.metadata.append(entry)


class Graph:
    """The graph of a signature.

    Attributes:
        name: str, the name of the signature.
        graph: the `schema.SubGraphT`.
        model: the `Model` that contains it.
        views: dict from a tensor to the `lowering.trace.View` that is its value.
    """

    def __init__(
        self, model: Model, graph: schema.SubGraphT, traced: "Traced", index: int, tables: bool
    ) -> None:
        self.model, self.graph, self.name = model, graph, traced.name
        count = len(traced.inputs)
        self.views: dict[Any, Any] = {}
        self._tensors: dict[Any, Any] = {}
        for tensor, view in zip(graph.inputs[count:], traced.weights, strict=True):
            self.see(int(tensor), view)
        graph.inputs = graph.inputs[:count]
        graph.name = traced.name.encode()
        self._sign(traced, index)
        rewrites.fold_views(self)
        rewrites.connect(self)
        rewrites.fuse(self)
        if tables:
            rewrites.look_up(self)
        self._store()

    def builtin(self, operator: schema.OperatorT) -> int:
        return self.model.model.operatorCodes[operator.opcodeIndex].builtinCode

    def tensor(self, name: str, shape: Sequence[int], kind: int, buffer: int = 0) -> int:
        """Add a tensor and return its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(shape, "int32")
        tensor.type, tensor.buffer = kind, buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self,
        builtin: int,
        inputs: Sequence[int],
        output: int,
        options: Any = None,
        version: int = 1,
    ) -> schema.OperatorT:
        """Return a new operator; `options` is a schema object or None."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self.model.code(builtin, version)
        operator.inputs = np.array(inputs, "int32")
        operator.outputs = np.array([output], "int32")
        if options is not None:
            operator.builtinOptionsType = getattr(_OPTIONS, type(options).__name__[:-1])
            operator.builtinOptions = options
        return operator

    def output_name(self, operator: schema.OperatorT) -> str:
        return self.graph.tensors[operator.outputs[0]].name.decode()

    def insert_before(self, operators: Sequence[schema.OperatorT], new: schema.OperatorT) -> None:
        """Insert a new operator before the first one of `operators`."""
        first = min(i for i, o in enumerate(self.graph.operators) if any(o is x for x in operators))
        self.graph.operators.insert(first, new)

    def compact(self) -> None:
        """Remove unused tensors and renumber the rest."""
        graph = self.graph
        used: set[int] = set()
        for operator in graph.operators:
            used.update(map(int, [*operator.inputs, *operator.outputs]))
        used.update(map(int, [*graph.inputs, *graph.outputs]))
        for tensor in sorted(used - {-1}):
            details = getattr(graph.tensors[tensor].quantization, "details", None)
            if details is not None:
                used.add(int(details.scales))
        kept = sorted(used - {-1})
        new = {-1: -1, **{tensor: i for i, tensor in enumerate(kept)}}
        graph.tensors = [graph.tensors[tensor] for tensor in kept]
        for tensor in graph.tensors:
            details = getattr(tensor.quantization, "details", None)
            if details is not None:
                details.scales = new[int(details.scales)]

        def renumbered(tensors):
            return np.array([new[int(tensor)] for tensor in tensors], "int32")

        for operator in graph.operators:
            operator.inputs = renumbered(operator.inputs)
            operator.outputs = renumbered(operator.outputs)
        graph.inputs, graph.outputs = renumbered(graph.inputs), renumbered(graph.outputs)
        for rows, tensors in (
            (self._signature.inputs, graph.inputs),
            (self._signature.outputs, graph.outputs),
        ):
            for row, tensor in zip(rows, tensors, strict=True):
                row.tensorIndex = int(tensor)

    def _sign(self, traced, index):
        graph, signature = self.graph, schema.SignatureDefT()
        if len(graph.outputs) != len(traced.outputs):
            raise ExportError(
                f"the graph of {traced.name} has {len(graph.outputs)} outputs instead of "
                f"{len(traced.outputs)}."
            )
        signature.signatureKey, signature.subgraphIndex = traced.name.encode(), index
        signature.inputs, signature.outputs = [], []
        for names, tensors, rows in (
            (traced.inputs, graph.inputs, signature.inputs),
            (traced.outputs, graph.outputs, signature.outputs),
        ):
            for name, tensor in zip(names, tensors, strict=True):
                row = schema.TensorMapT()
                row.name, row.tensorIndex = name.encode(), int(tensor)
                rows.append(row)
        for row in signature.inputs:
            graph.tensors[row.tensorIndex].name = f"{traced.name}_{row.name.decode()}".encode()
        self.model.model.signatureDefs.append(signature)
        self._signature = signature

    def _store(self):
        """Add a constant for each weight that is read, and name the matmuls that read them."""
        for operator in self.graph.operators:
            for tensor in set(map(int, operator.inputs)) & set(self.views):
                constant = self.model.constant(self.views[tensor])
                constant.places.append((self, tensor))
                self.graph.tensors[tensor].name = constant.view.expression.name.encode()
                del self.views[tensor]
        stored = {
            tensor: constant
            for constant in self.model.constants.values()
            for graph, tensor in constant.places
            if graph is self
        }
        for operator in self.graph.operators:
            if self.builtin(operator) == _BUILTIN.FULLY_CONNECTED:
                constant = stored.get(int(operator.inputs[1]))
                if constant is not None:
                    self._name_product(operator, constant)
            elif self.builtin(operator) == _BUILTIN.EMBEDDING_LOOKUP:
                constant = stored[int(operator.inputs[1])]
                name = self.output_name(operator)
                self.model.products.append(Product(self, operator, name, constant))

    def _name_product(self, operator, constant):
        output, name = int(operator.outputs[0]), constant.view.expression.layer
        for row in self._signature.outputs:
            if row.name == b"logits" and row.tensorIndex == output:
                name = f"{self.name}/head"
        self.graph.tensors[output].name = name.encode()
        self.model.products.append(Product(self, operator, name, constant))

    def tensor_of(self, view: "View") -> int:
        """Return the tensor whose value is a view, adding it if it is missing."""
        if view.key not in self._tensors:
            self.see(self.tensor(view.expression.name, view.shape, rewrites.FLOAT32), view)
        return self._tensors[view.key]

    def see(self, tensor: int, view: "View") -> None:
        """Note that the value of a tensor is a view."""
        self.views[tensor] = view
        self._tensors.setdefault(view.key, tensor)

    def shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.graph.tensors[int(tensor)].shape
        return () if shape is None else tuple(map(int, shape))

    def values(self, tensor: int) -> np.ndarray:
        """Return the int32 values of a constant tensor."""
        return np.frombuffer(
            bytes(self.model.model.buffers[self.graph.tensors[int(tensor)].buffer].data), "int32"
        )
