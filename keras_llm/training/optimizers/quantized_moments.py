"""Store optimizer moments in 8 bits."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_llm.types import Tensor

_SMALLEST = 4096  # elements; quantizing smaller variables saves too little


class QuantizedMoment:
    """An optimizer moment with the shape of a variable, as 8-bit codes with a scale per row.

    A signed value (first moment) is `scale * (code / 127) ** 2` with the sign of the code. A second
    moment, whose root Adam divides by, is `scale * ((code - 0.5) / 254.5) ** 4`; code 0 means 0, so
    that positive values never round to 0. Both use most codes for small values.

    Args:
        optimizer: the Keras optimizer that owns the variables of codes and scales.
        variable: `keras.Variable`; rows are along its last axis.
        name: str.
        signed: bool, whether values can be negative.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variable: keras.Variable,
        name: str,
        signed: bool,
    ) -> None:
        self.signed, self.dtype = signed, "int8" if signed else "uint8"
        shape, name = (*variable.shape[:-1], 1), f"{variable.name}_{name}"
        self.codes = optimizer.add_variable(variable.shape, "zeros", self.dtype, name=name)
        self.scale = optimizer.add_variable(shape, "zeros", "float32", name=f"{name}_scale")

    def read(self) -> Tensor:
        """Return the dequantized values, float32."""
        codes = ops.cast(self.codes, "float32")
        if self.signed:
            return codes * ops.abs(codes) * (self.scale / 127.0**2)
        return ops.square(ops.square(ops.maximum(codes - 0.5, 0.0))) * (self.scale / 254.5**4)

    def write(self, numbers: Tensor) -> None:
        """Quantize float32 values to the nearest codes."""
        size = ops.abs(numbers) if self.signed else numbers
        scale = ops.max(size, axis=-1, keepdims=True)
        roots = ops.sqrt(size * (1.0 / ops.where(scale > 0, scale, 1.0)))
        if self.signed:
            codes = ops.sign(numbers) * ops.round(127.0 * roots)
        else:
            codes = ops.round(254.5 * ops.sqrt(roots) + 0.5)
        self.scale.assign(scale)
        self.codes.assign(ops.cast(codes, self.dtype))


def is_coded(shape: Sequence[int]) -> bool:
    """Return whether moments of this shape are quantized: only large matrices are."""
    return len(shape) > 1 and math.prod(shape) >= _SMALLEST and shape[-1] >= 32


def coded_bytes(shape: Sequence[int]) -> int:
    """Return the size of one quantized moment in bytes."""
    return math.prod(shape) + 4 * math.prod(shape[:-1])
