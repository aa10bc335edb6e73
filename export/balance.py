"""Move the spread of activations into weights, before both are rounded to 8 bits.

What a norm gives has channels that are a hundred times larger than others, and one scale for all of
them leaves the small ones few steps. Multiplying channel j by c_j and dividing column j of each
matrix that reads it changes nothing in exact numbers; with

    c_j = sqrt(max |W_j| / max |x_j|)

neither has to carry the whole spread.

Reference:
    Xiao et al., 2022, "SmoothQuant", eq. 4, with alpha = 1/2.
"""

import pathlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.export import products

_ROWS = 8  # texts that are read
_LEAST = 1e-5  # of a channel's largest value: some are never used


def balance(path, rows, manifest):
    """Balance the inputs that several products of a decoder share, in place.

    Args:
        path: a `.tflite` file in float32.
        rows: lists of token ids that show the activations; of an encoder-decoder of its source.
        manifest: as of `DecoderSteps`.
    """
    path = pathlib.Path(path)
    model = products.load(path)
    known = products.readers(model)
    # A prefill leaves out what only the logits need, so `decode` knows all that share an input.
    groups = [weights for weights, _, _ in known["decode"] if len(weights) > 1]
    largest = {}
    rows = [row[: max(manifest["prefill_lengths"])] for row in rows[:_ROWS]]
    for some, values in products.activations(path, rows, manifest, known):
        weights = next((group for group in groups if some <= group), None)
        if weights is not None:
            values = np.abs(values).max(0)
            largest[weights] = np.maximum(largest.get(weights, 0.0), values)
    for weights, values in largest.items():
        columns = np.max([np.abs(products.matrix(model, w)).max(0) for w in weights], axis=0)
        factor = np.sqrt(np.maximum(columns, _LEAST) / np.maximum(values, _LEAST))
        factor = (factor / np.exp(np.log(factor).mean())).astype("float32")
        for matrix in weights:
            products.set_matrix(model, matrix, products.matrix(model, matrix) / factor)
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            for some, source, operators in known[signature.signatureKey.decode()]:
                if some <= weights:
                    _multiply(model, graph, source, operators, factor)
    products.store(model, path)


def _multiply(model, graph, source, readers, factor):
    """Let the readers read `source * factor`."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(factor.tobytes(), "uint8")
    model.buffers.append(buffer)
    constant = _tensor(graph, source, f"balance_{source}", factor.shape, len(model.buffers) - 1)
    product = _tensor(graph, source, f"balanced_{source}", graph.tensors[source].shape, 0)
    operator = schema.OperatorT()
    operator.opcodeIndex = next(
        i
        for i, code in enumerate(model.operatorCodes)
        if code.builtinCode == schema.BuiltinOperator.MUL
    )
    operator.inputs = np.array([source, constant], "int32")
    operator.outputs = np.array([product], "int32")
    operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
    operator.builtinOptions = schema.MulOptionsT()
    first = min(i for i, o in enumerate(graph.operators) if any(o is r for r in readers))
    graph.operators.insert(first, operator)
    for reader in readers:
        reader.inputs = np.array([product, *reader.inputs[1:]], "int32")


def _tensor(graph, like, name, shape, buffer):
    tensor = schema.TensorT()
    tensor.name = graph.tensors[like].name + b"/" + name.encode()
    tensor.shape, tensor.buffer = np.array(shape, "int32"), buffer
    tensor.type = schema.TensorType.FLOAT32
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
