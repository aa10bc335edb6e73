"""SavedModel -> TFLite, run as a module in a process of its own: the converter leaks memory and
can take its process down.

    python -m keras_llm.export.convert SAVED_MODEL OUT.tflite none|int8|float16 SIGNATURE...
"""

import pathlib
import sys

import tensorflow as tf


def convert(saved_model, out, quantization, signatures):
    """Convert the signatures of a SavedModel to builtin ops.

    Args:
        saved_model: folder.
        out: path of the `.tflite` file.
        quantization: "none"; "int8" for weights in 8 bits and activations in float32 (dynamic
            range); "float16" for weights in 16 bits.
        signatures: names to keep.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=signatures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    pathlib.Path(out).write_bytes(converter.convert())


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
