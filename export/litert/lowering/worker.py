"""Lower graphs to TFLite in a separate process, because the converter can crash its process.

python -m keras_llm.export.litert.lowering.worker FOLDER
"""

import pathlib
import sys

from keras_llm.export import children


def _warm_up():
    import tensorflow.lite.python.convert  # noqa: F401


def _run(folder, request):
    """Lower each graph of a request from `<name>.pb` to `<name>.tflite`."""
    import tensorflow as tf
    from tensorflow.lite.python.convert import convert_graphdef

    children.limit_memory(request["memory"])
    for row in request["graphs"]:
        graph = tf.compat.v1.GraphDef.FromString((folder / f"{row['name']}.pb").read_bytes())
        with tf.Graph().as_default() as imported:
            tf.import_graph_def(graph, name="")
        inputs, outputs = (
            [imported.as_graph_element(name) for name in row[kind]]
            for kind in ("inputs", "outputs")
        )
        # Do not use `tf.lite.TFLiteConverter`: it optimizes the graph first, for which TensorFlow
        # allocates an array for each input, and here all weights are inputs.
        content = convert_graphdef(
            graph,
            inputs,
            outputs,
            enable_mlir_converter=True,
            target_ops={tf.lite.OpsSet.TFLITE_BUILTINS},
            allow_custom_ops=False,
        )
        (folder / f"{row['name']}.tflite").write_bytes(content)
    return {}, {}


if __name__ == "__main__":
    children.serve(pathlib.Path(sys.argv[1]), _run, _warm_up)
