"""The products of a TFLite file with the matrices that it stores, and what they read."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def load(path):
    """The file's graphs, to be changed."""
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def store(model, path):
    """Write changed graphs."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def readers(model):
    """The tensors that stored matrices multiply.

    Args:
        model: from `load`.

    Returns:
        dict signature -> list of (matrices, tensor, operators): a frozenset of (buffer, shape), the
        index of the tensor in the signature's graph, and the operators that read it.
    """
    return {
        signature.signatureKey.decode(): _readers(model, model.subgraphs[signature.subgraphIndex])
        for signature in model.signatureDefs
    }


def _readers(model, graph):
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


def matrix(model, weights):
    """A stored matrix, float32 (out, in), of (buffer, shape)."""
    buffer, shape = weights
    return np.frombuffer(bytes(model.buffers[buffer].data), "float32").reshape(shape)


def set_matrix(model, weights, values):
    """Replace a stored matrix."""
    data = np.asarray(values, "float32").tobytes()
    model.buffers[weights[0]].data = np.frombuffer(data, "uint8")


def activations(path, rows, manifest, known):
    """What a decoder's products read while it reads texts, in float32.

    A chunk of the longest size is read at a time, with the slow kernels that keep what is between.
    What only the logits need is not computed there, so products of the last block are left out.

    Args:
        path: a `.tflite` file in float32.
        rows: lists of token ids; of an encoder-decoder of its source.
        manifest: as of `DecoderSteps`.
        known: dict signature -> `readers`.

    Yields:
        Pairs of a frozenset of matrices and what they multiply, float32 (tokens, channels).
    """
    from keras_llm.export.decoder_steps import DecoderSteps
    from keras_llm.export.runtime import InterpreterRuntime

    runtime = InterpreterRuntime(path, 0, None, None, xnnpack=False, keep_all=True)
    decoder = DecoderSteps(runtime, manifest)
    length = max(manifest["prefill_lengths"])

    def read(signature, tokens):
        for matrices, source, _ in known[signature]:
            values = runtime.tensor(signature, source)
            yield matrices, values.reshape(-1, values.shape[-1])[:tokens]

    for row in rows:
        if "encoder_length" in manifest:
            row = row[: manifest["encoder_length"]]
            decoder.encode(row)
            yield from read("encode", len(row))
            row = [manifest["start_id"]]
        row = row[: manifest["max_length"]]
        for begin in range(0, len(row), length):
            chunk = row[begin : begin + length]
            decoder.prefill(chunk, begin, length)
            yield from read(f"prefill_{length}", len(chunk))
