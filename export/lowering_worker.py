"""Lower graphs to TFLite, as a process of its own: the converter can take its process down.

python -m keras_llm.export.lowering_worker FOLDER
"""

import pathlib
import sys

from keras_llm.export import children


def _run(folder, request):
    """Lower each graph of a request: `<name>.pb` becomes `<name>.tflite`."""
    import tensorflow as tf

    children.limit_memory(request["memory"])
    for row in request["graphs"]:
        graph = tf.compat.v1.GraphDef.FromString((folder / f"{row['name']}.pb").read_bytes())
        function = _function(tf, graph, row["inputs"], row["outputs"])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        (folder / f"{row['name']}.tflite").write_bytes(converter.convert())
    return {}, {}


def _function(tf, graph, inputs, outputs):
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    found = wrapped.graph.as_graph_element
    return wrapped.prune([found(name) for name in inputs], [found(name) for name in outputs])


if __name__ == "__main__":
    children.serve(pathlib.Path(sys.argv[1]), _run, warm_up=lambda: __import__("tensorflow.lite"))
