"""Run a SavedModel as a server does, and tell what came out.

python -m keras_llm.export.server_parity FOLDER
"""

import concurrent.futures
import sys
import time

from keras_llm.export import children

_loaded = {}


def _run_saved_model(folder, request):
    del folder
    if request["what"] == "time":
        return _time(request["timed"]), {}
    import tensorflow as tf

    path = request["path"]
    ops = ops_of(path)
    non_core = non_core_ops(ops)  # before TF Text registers its own

    import tensorflow_text  # noqa: F401

    missing = set(non_core_ops(ops))
    libraries = {
        "TensorFlow Text": [op for op in non_core if op not in missing],
        "a library that is not known": sorted(missing),
    }
    _loaded["model"] = tf.saved_model.load(path)
    signatures = _loaded["model"].signatures
    outputs = run_calls(signatures, request["calls"])
    return {
        "signatures": {
            name: {
                "inputs": _rows(function.structured_input_signature[1]),
                "outputs": _rows(function.structured_outputs),
            }
            for name, function in signatures.items()
        },
        "ops": ops,
        "non_core_ops": non_core,
        "libraries": {name: found for name, found in libraries.items() if found},
        "outputs": outputs,
    }, {}


def _time(call):
    signatures = _loaded["model"].signatures
    run_calls(signatures, [call])  # what the first call of these shapes costs is not counted
    begin = time.perf_counter()
    (outputs,) = run_calls(signatures, [call])
    return {"seconds": time.perf_counter() - begin, "outputs": outputs}


def ops_of(path):
    """The operations that the graph of a SavedModel is made of, a sorted list of str."""
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(path)).meta_graphs[0].graph_def
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return sorted({node.op for node in nodes} - functions)


def non_core_ops(ops):
    """Those that TensorFlow does not know as long as no other library is loaded."""
    from tensorflow.python.framework import op_def_registry

    return [op for op in ops if op_def_registry.get(op) is None]


def run_calls(signatures, calls):
    """Call signatures.

    Args:
        signatures: dict of name to function.
        calls: list of pairs (name, inputs) as a proof makes them.

    Returns:
        The outputs of each, a dict of JSON values; bytes as strs.
    """
    import tensorflow as tf

    outputs = []

    def call(name, inputs):
        return signatures[name](**_tensors(tf, inputs, outputs))

    # Two at a time: the first call of a signature optimizes its graph, on one core.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, inputs in calls:
            outputs.append(pool.submit(call, name, inputs))
    return [
        {name: _plain(value.numpy()) for name, value in row.result().items()} for row in outputs
    ]


def _tensors(tf, inputs, outputs):
    """JSON values as tensors: [dtype, values]; or ["output", call, name], of an earlier call."""
    tensors = {}
    for name, (kind, *rest) in inputs.items():
        if kind == "output":
            call, output = rest
            tensors[name] = outputs[call].result()[output]
        else:
            tensors[name] = tf.constant(rest[0], getattr(tf, kind))
    return tensors


def _plain(array):
    """An array as JSON values; bytes as strs."""
    if array.dtype.kind == "O":
        return [_text(row) for row in array.tolist()]
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
        array = array.astype("float32")
    return array.tolist()


def _text(value):
    if isinstance(value, list):
        return [_text(row) for row in value]
    return value.decode("utf-8", "replace")


def _rows(specs):
    return {name: f"{spec.dtype.name}{_shape(spec)}" for name, spec in sorted(specs.items())}


def _shape(spec):
    return "<any rank>" if spec.shape.rank is None else list(spec.shape)


if __name__ == "__main__":
    children.serve(sys.argv[1], _run_saved_model, warm_up=lambda: __import__("tensorflow"))
