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

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_ROWS = 8  # texts that are read, with the slow kernels that keep what is between
_LEAST = 1e-5  # of a channel's largest value: some are never used


def balance(path, rows, manifest):
    """Balance the inputs that several products of a decoder share, in place.

    Args:
        path: a `.tflite` file in float32.
        rows: lists of token ids that show the activations; of an encoder-decoder of its source.
        manifest: as of `DecoderSteps`.
    """
    path = pathlib.Path(path)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    readers = {s.signatureKey.decode(): _readers(model, s) for s in model.signatureDefs}
    # A prefill leaves out what only the logits need, so `decode` knows all that share an input.
    groups = [weights for weights, _, _ in readers["decode"] if len(weights) > 1]
    longest = f"prefill_{max(manifest['prefill_lengths'])}"
    largest = _largest(path, rows, manifest, longest, groups, readers[longest])
    for weights, values in largest.items():
        columns = np.max([np.abs(_matrix(model, w)).max(0) for w in weights], axis=0)
        factor = np.sqrt(np.maximum(columns, _LEAST) / np.maximum(values, _LEAST))
        factor = (factor / np.exp(np.log(factor).mean())).astype("float32")
        for buffer, shape in weights:
            data = (_matrix(model, (buffer, shape)) / factor).astype("float32")
            model.buffers[buffer].data = np.frombuffer(data.tobytes(), "uint8")
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            for some, source, operators in readers[signature.signatureKey.decode()]:
                if some <= weights:
                    _multiply(model, graph, source, operators, factor)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def _readers(model, signature):
    """For each tensor that stored matrices multiply: the matrices, a frozenset of (buffer, shape);
    the tensor's index; and the operators."""
    graph = model.subgraphs[signature.subgraphIndex]
    found = {}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
            weights = graph.tensors[operator.inputs[1]]
            if model.buffers[weights.buffer].data is not None:
                matrix = int(weights.buffer), tuple(map(int, weights.shape))
                found.setdefault(int(operator.inputs[0]), []).append((matrix, operator))
    return [
        (frozenset(matrix for matrix, _ in rows), source, [operator for _, operator in rows])
        for source, rows in found.items()
    ]


def _largest(path, rows, manifest, signature, groups, readers):
    """For each group of matrices the largest absolute value of each channel of its input."""
    from keras_llm.export.decoder_steps import DecoderSteps
    from keras_llm.export.runtime import InterpreterRuntime

    runtime = InterpreterRuntime(path, 0, None, None, xnnpack=False, keep_all=True)
    decoder = DecoderSteps(runtime, manifest)
    length, found = max(manifest["prefill_lengths"]), {}
    for row in rows[:_ROWS]:
        if "encoder_length" in manifest:
            decoder.encode(row[: manifest["encoder_length"]])
            row = [manifest["start_id"]]
        row = row[:length]
        decoder.prefill(row, 0, length)
        for some, source, _ in readers:
            weights = next((group for group in groups if some <= group), None)
            if weights is not None:
                values = runtime.tensor(signature, source)
                values = np.abs(values.reshape(-1, values.shape[-1])[: len(row)]).max(0)
                found[weights] = np.maximum(found.get(weights, 0.0), values)
    return found


def _matrix(model, weights):
    buffer, shape = weights
    return np.frombuffer(bytes(model.buffers[buffer].data), "float32").reshape(shape)


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
