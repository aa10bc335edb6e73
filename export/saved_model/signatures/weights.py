"""Weights stored in fewer bits, and spelled out once, when the SavedModel is loaded.

A file with 16 or 8 bits a weight is a half or a quarter as large. What runs is float32: the loader
restores the stored weights, and then the initialisers of these resources fill variables from them,
as those of lookup tables do. So neither speed nor graph know of it.
"""

import math

import numpy as np
import tensorflow as tf

_LEAST = 1024  # smaller weights stay as they are, and so do vectors
KINDS = ("float16", "int8")


def is_stored_small(variable):
    """Whether a `keras.Variable` is stored in fewer bits: matrices of float32 are."""
    shape = tuple(variable.shape)
    return variable.dtype == "float32" and len(shape) >= 2 and math.prod(shape) >= _LEAST


class SmallWeight(tf.saved_model.experimental.TrackableResource):
    """A float32 matrix whose SavedModel holds fewer bits of it.

    "float16" rounds. "int8" keeps a whole number in -127 .. 127 for each weight, and for each
    output (for each row of an embedding table) a float32 scale, the largest weight over 127.

    Args:
        variable: a `keras.Variable`.
        kind: "float16" or "int8".
        name: str, no other weight's.

    Attributes:
        stored: list of `tf.Variable`s, which the SavedModel must hold.
    """

    def __init__(self, variable, kind, name):
        super().__init__()
        self._shape, self._name = tuple(variable.shape), name
        values = np.asarray(variable, "float32")
        if kind == "float16":
            self.stored = [tf.Variable(values.astype("float16"), trainable=False)]
            return
        axis = -1 if variable.name == "embeddings" else -2
        scale = np.abs(values).max(axis=axis, keepdims=True) / 127.0
        rounded = np.rint(values / np.where(scale == 0.0, 1.0, scale))
        self.stored = [
            tf.Variable(rounded.astype("int8"), trainable=False),
            tf.Variable(scale, trainable=False),
        ]

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=self._shape, shared_name=self._name, container=""
        )

    def _initialize(self):
        value = tf.cast(self.stored[0], tf.float32)
        for scale in self.stored[1:]:
            value = value * scale
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)

    def value(self):
        """The float32 tensor, in a graph."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(value, self._shape)
