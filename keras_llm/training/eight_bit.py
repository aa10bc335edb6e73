"""The averages that an optimizer keeps, in 8 bits."""

import math

from keras import ops

_SMALLEST = 4096  # numbers; of fewer it is not worth it


class Coded:
    """An average of the shape of a variable as codes of 8 bits with a scale for each row.

    A number is `scale * (code / most) ** power`, with the sign of the code. A power above 1 spends
    more of the codes on small numbers; 0 is exact.

    Args:
        optimizer: a Keras optimizer, whose variables the codes and scales become.
        variable: `keras.Variable`, whose last axis is the row.
        name: str.
        power: int. 2 for what has a sign, 4 for squares, whose roots are what counts.
        signed: bool, whether numbers are below 0 too.
    """

    def __init__(self, optimizer, variable, name, power, signed):
        self.power = power
        self.most, self.dtype = (127, "int8") if signed else (255, "uint8")
        shape, name = (*variable.shape[:-1], 1), f"{variable.name}_{name}"
        self.codes = optimizer.add_variable(variable.shape, "zeros", self.dtype, name=name)
        self.scale = optimizer.add_variable(shape, "zeros", "float32", name=f"{name}_scale")

    def read(self):
        """The numbers, float32."""
        share = ops.cast(self.codes, "float32") / self.most
        return self.scale * ops.sign(share) * ops.abs(share) ** self.power

    def write(self, numbers):
        """Take float32 numbers, each as the nearest code; a square above 0, which is divided by,
        does not become 0."""
        size = ops.abs(numbers)
        scale = ops.max(size, axis=-1, keepdims=True)
        share = (size / ops.where(scale > 0, scale, 1.0)) ** (1 / self.power)
        codes = ops.sign(numbers) * ops.round(self.most * share)
        if self.dtype == "uint8":
            codes = ops.where(numbers > 0, ops.maximum(codes, 1.0), codes)
        self.scale.assign(scale)
        self.codes.assign(ops.cast(codes, self.dtype))


def is_coded(shape):
    """Whether it is worth it for variables of a shape: they have rows, and are large."""
    return len(shape) > 1 and math.prod(shape) >= _SMALLEST and shape[-1] >= 32


def coded_bytes(shape):
    """What one average takes."""
    return math.prod(shape) + 4 * math.prod(shape[:-1])
