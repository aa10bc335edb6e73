"""SavedModel -> TFLite, run as a module in a process of its own: the converter leaks memory and
can take its process down.

    python -m keras_llm.export.convert SAVED_MODEL OUT.tflite float32|float16 BYTES SIGNATURE...
"""

import pathlib
import resource
import sys


def convert(saved_model, out, weights, signatures):
    """Convert the signatures of a SavedModel to builtin ops.

    Args:
        saved_model: folder.
        out: path of the `.tflite` file.
        weights: "float32", or "float16" for weights in 16 bits and activations in float32.
        signatures: names to keep.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=signatures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if weights == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    pathlib.Path(out).write_bytes(converter.convert())


def limit_memory(number_of_bytes):
    """Let allocations beyond a bound fail, in this process and what it starts."""
    resource.setrlimit(resource.RLIMIT_DATA, (number_of_bytes, number_of_bytes))


if __name__ == "__main__":
    limit_memory(int(sys.argv[4]))
    convert(*sys.argv[1:4], sys.argv[5:])
