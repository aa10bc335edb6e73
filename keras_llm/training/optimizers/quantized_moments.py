"""The averages that an optimizer keeps, in 8 bits."""

import math

from keras import ops

_SMALLEST = 4096  # numbers; of fewer it is not worth it


class QuantizedMoment:
    """An average of the shape of a variable as codes of 8 bits with a scale for each row.

    A number with a sign is `scale * (code / 127) ** 2` with the sign of the code; a square, whose
    root is what counts, is `scale * ((code - 0.5) / 254.5) ** 4`, so that nothing that is divided
    by becomes 0, which is code 0. So most codes are for small numbers.

    Args:
        optimizer: a Keras optimizer, whose variables the codes and scales become.
        variable: `keras.Variable`, whose last axis is the row.
        name: str.
        signed: bool, whether numbers are below 0 too.
    """

    def __init__(self, optimizer, variable, name, signed):
        self.signed, self.dtype = signed, "int8" if signed else "uint8"
        shape, name = (*variable.shape[:-1], 1), f"{variable.name}_{name}"
        self.codes = optimizer.add_variable(variable.shape, "zeros", self.dtype, name=name)
        self.scale = optimizer.add_variable(shape, "zeros", "float32", name=f"{name}_scale")

    def read(self):
        """The numbers, float32."""
        codes = ops.cast(self.codes, "float32")
        if self.signed:
            return codes * ops.abs(codes) * (self.scale / 127.0**2)
        return ops.square(ops.square(ops.maximum(codes - 0.5, 0.0))) * (self.scale / 254.5**4)

    def write(self, numbers):
        """Take float32 numbers, each as the nearest code."""
        size = ops.abs(numbers) if self.signed else numbers
        scale = ops.max(size, axis=-1, keepdims=True)
        roots = ops.sqrt(size * (1.0 / ops.where(scale > 0, scale, 1.0)))
        if self.signed:
            codes = ops.sign(numbers) * ops.round(127.0 * roots)
        else:
            codes = ops.round(254.5 * ops.sqrt(roots) + 0.5)
        self.scale.assign(scale)
        self.codes.assign(ops.cast(codes, self.dtype))


def is_coded(shape):
    """Whether it is worth it for variables of a shape: they have rows, and are large."""
    return len(shape) > 1 and math.prod(shape) >= _SMALLEST and shape[-1] >= 32


def coded_bytes(shape):
    """What one average takes."""
    return math.prod(shape) + 4 * math.prod(shape[:-1])
