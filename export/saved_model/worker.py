"""Run a SavedModel in a process without Keras and report its outputs.

python -m keras_llm.export.saved_model.worker FOLDER
"""

import concurrent.futures
import functools
import importlib.util
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_llm.export import children
from keras_llm.types import PathLike

_loaded: dict[str, Any] = {}


def _run_saved_model(folder, request):
    del folder
    return {"load": _load, "call": _call, "time": _time}[request["what"]](request)


def _load(request):
    import tensorflow as tf

    _loaded.clear()
    ops, (core, text) = ops_of(request["path"]), _known_ops()
    libraries = {
        "TensorFlow Text": [op for op in ops if op in text],
        "a library that is not known": [op for op in ops if op not in core | text],
    }
    _loaded["model"] = tf.saved_model.load(request["path"])
    return {
        "signatures": {
            name: {
                "inputs": _rows(function.structured_input_signature[1]),
                "outputs": _rows(function.structured_outputs),
            }
            for name, function in _loaded["model"].signatures.items()
        },
        "ops": ops,
        "non_core_ops": [op for op in ops if op not in core],
        "libraries": {name: names for name, names in libraries.items() if names},
    }, {}


def _call(request):
    """Run calls; return floats of two or more axes, such as logits, as arrays, the rest as JSON."""
    signatures, arrays = _loaded["model"].signatures, {}
    outputs = run_calls(signatures, request["calls"], request["at_a_time"])
    for i, row in enumerate(outputs):
        for name in [name for name, value in row.items() if not isinstance(value, list)]:
            arrays[f"{i}/{name}"] = row.pop(name)
    return {"outputs": outputs}, arrays


def joined(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of each call from the answer to "call"."""
    for key in [key for key in answer if "/" in key]:
        i, _, name = key.partition("/")
        answer["outputs"][int(i)][name] = answer.pop(key)
    return answer["outputs"]


def _time(request):
    signatures, call = _loaded["model"].signatures, request["timed"]
    run_calls(signatures, [call])  # the first call with these shapes is slower
    begin = time.perf_counter()
    (outputs,) = run_calls(signatures, [call])
    seconds = time.perf_counter() - begin
    numbers = {name: value for name, value in outputs.items() if isinstance(value, list)}
    return {"seconds": seconds, "outputs": numbers}, {}


def ops_of(path: PathLike) -> list[str]:
    """Return the ops in the graph of a SavedModel, a sorted list of str."""
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(path)).meta_graphs[0].graph_def
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return sorted({node.op for node in nodes} - functions)


@functools.cache
def _known_ops():
    """Return the ops of TensorFlow and those of TensorFlow Text.

    The libraries of TensorFlow Text are loaded without its Python package, which imports Keras.
    """
    import tensorflow as tf

    core = _registered_ops()
    found = importlib.util.find_spec("tensorflow_text")
    if found is None or found.origin is None:
        return core, set()
    package = pathlib.Path(found.origin).parent
    for library in sorted((package / "python" / "ops").glob("*.so")):
        tf.load_op_library(str(library))
    return core, _registered_ops() - core


def _registered_ops():
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    content = session.TF_GetBuffer(session.TF_GetAllOpList())
    return {op.name for op in op_def_pb2.OpList.FromString(content).op}


def run_calls(
    signatures: Mapping[str, Callable[..., Any]],
    calls: Sequence[tuple[str, dict[str, Any]]],
    at_a_time: int = 2,
) -> list[dict[str, Any]]:
    """Call signatures.

    Args:
        signatures: dict of name to function.
        calls: list of pairs (name, inputs), from `SavedModelVerification.calls`.
        at_a_time: int. Number of concurrent calls. The first call of a signature optimizes its
            graph on one core.

    Returns:
        A list of the outputs of each call, a dict of arrays for floats of two or more axes, and
        of lists otherwise. Bytes are decoded to str.
    """
    import tensorflow as tf

    outputs: list[concurrent.futures.Future[Any]] = []

    def call(name, inputs):
        return signatures[name](**_tensors(tf, inputs, outputs))

    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        for name, inputs in calls:
            outputs.append(pool.submit(call, name, inputs))
    return [
        {name: _plain(value.numpy()) for name, value in row.result().items()} for row in outputs
    ]


def _tensors(tf, inputs, outputs):
    """Convert inputs to tensors: [dtype, values], or ["output", call, name] of an earlier call."""
    tensors = {}
    for name, (kind, *rest) in inputs.items():
        if kind == "output":
            call, output = rest
            tensors[name] = outputs[call].result()[output]
        else:
            tensors[name] = tf.constant(rest[0], getattr(tf, kind))
    return tensors


def _plain(array):
    """Convert an array to lists and bytes to str; keep floats of two or more axes as arrays."""
    if array.dtype.kind == "O":
        return [_text(row) for row in array.tolist()]
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
        array = array.astype("float32")
    return array if array.dtype.kind == "f" and array.ndim > 1 else array.tolist()


def _text(value):
    if isinstance(value, list):
        return [_text(row) for row in value]
    return value.decode("utf-8", "replace")


def _rows(specs):
    return {name: f"{spec.dtype.name}{_shape(spec)}" for name, spec in sorted(specs.items())}


def _shape(spec):
    return "<any rank>" if spec.shape.rank is None else list(spec.shape)


if __name__ == "__main__":
    children.serve(sys.argv[1], _run_saved_model, warm_up=_known_ops)
