"""Store weights in 16 or 8 bits and convert them to float32 when the SavedModel is loaded.

The file is a half or a quarter as large. The graph computes in float32: the loader restores the
stored weights, and then the initializers of these resources fill float32 variables from them, like
the initializers of lookup tables. The graph of the model is unchanged.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from keras_llm.types import Tensor

if TYPE_CHECKING:
    import keras

_LEAST = 1024  # smaller weights, and vectors, are stored in float32
KINDS = ("float16", "int8")


def is_stored_small(variable: "keras.Variable") -> bool:
    """Return whether a `keras.Variable` is stored in fewer bits, as large float32 matrices are."""
    shape = tuple(variable.shape)
    return variable.dtype == "float32" and len(shape) >= 2 and math.prod(shape) >= _LEAST


class SmallWeight(tf.saved_model.experimental.TrackableResource):
    """A float32 matrix that is stored in fewer bits in a SavedModel.

    "float16" rounds the weights. "int8" stores an integer in -127 .. 127 for each weight, and for
    each output (for each row of an embedding table) a float32 scale, the largest absolute weight
    divided by 127.

    Args:
        variable: a `keras.Variable`.
        kind: "float16" or "int8".
        name: str. A unique name.

    Attributes:
        stored: list of `tf.Variable`s that the SavedModel must contain.
    """

    def __init__(self, variable: "keras.Variable", kind: str, name: str) -> None:
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

    def value(self) -> Tensor:
        """Return the float32 tensor, in a graph."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(value, self._shape)
