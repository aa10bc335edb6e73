"""Compute the position-wise feed-forward network of a Transformer block."""

from typing import Any

import keras
from keras import ops

from keras_llm.layers._parts import Initializer, Shape, dense
from keras_llm.layers.activations import Activation, activate, gelu_tanh, get_activation, slope_of
from keras_llm.layers.quantization import QuantizableLayer
from keras_llm.types import JSON, Tensor

# Elementwise activations that map zero to zero.
_ELEMENTWISE = (keras.activations.gelu, gelu_tanh, keras.activations.relu, keras.activations.silu)


@keras.saving.register_keras_serializable("keras_llm")
class FeedForward(QuantizableLayer):
    """Two dense layers around an activation, optionally gated.

    Plain: `activation(x W_up) W_down`. Gated: `(activation(x W_gate) * x W_up) W_down`, which is
    SwiGLU with `"silu"`, GEGLU with `"gelu"` and GLU with `"sigmoid"`.

    Args:
        intermediate_dim: int > 0. F.
        activation: Keras activation, as a name or a callable, or "gelu_tanh".
        gated: bool. Whether a second projection multiplies the activation.
        use_bias: bool. Whether the dense layers have a bias.
        dropout: float in [0, 1). Applied to the output in training.
        kernel_initializer: Keras initializer of the kernels.
        bias_initializer: Keras initializer of the biases.

    Call arguments:
        inputs: float tensor (..., D).

    Returns:
        Float tensor (..., D).

    References:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.3.
        Shazeer, 2020, "GLU Variants Improve Transformer".
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: Activation = "gelu",
        gated: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if intermediate_dim < 1:
            raise ValueError(f"`intermediate_dim` must be a positive int, got {intermediate_dim}.")
        self.intermediate_dim = intermediate_dim
        self.activation = get_activation(activation)
        self.gated = gated
        self.use_bias = use_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.up = dense(self, intermediate_dim, "up")
        self.gate = dense(self, intermediate_dim, "gate") if gated else None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, inputs_shape: Shape) -> None:
        self.up.build(inputs_shape)
        if self.gate is not None:
            self.gate.build(inputs_shape)
        self.down = dense(self, inputs_shape[-1], "down")
        self.down.build((*inputs_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        extra = 16 if training and self._is_padded_in_training(inputs.shape[-1]) else 0
        # Flatten to two axes: with unknown sizes, a three-axis matmul takes about twenty more
        # operations.
        shape = ops.shape(inputs)
        inputs = ops.reshape(inputs, (-1, shape[-1]))
        features = [_project(self.up, inputs, columns=extra)]
        if self.gated:
            features = [_project(self.gate, inputs, columns=extra), *features]
        slope = slope_of(self.activation) if training and _is_plain(self.down) else None
        if slope is not None:
            outputs = self._lean_down(slope, features, rows=extra)
        else:
            hidden = activate(self.activation, features[0], training)
            for feature in features[1:]:
                hidden = hidden * feature
            outputs = _project(self.down, hidden, rows=extra)
        outputs = ops.reshape(outputs, shape)
        return self.dropout_layer(outputs, training=training)

    def _lean_down(self, slope, features, rows):
        """Apply the activation, the gate and `down` with less memory in training.

        TensorFlow would keep the output of the activation as well as its input for the gradient
        of the kernel. This method recomputes the output instead.
        """
        from keras_llm.layers.tensorflow import activated_product

        kernel = self.down.kernel
        if rows:
            kernel = ops.pad(kernel, ((0, rows), (0, 0)))
        outputs = activated_product(self.activation, slope, features, kernel)
        return outputs if self.down.bias is None else outputs + self.down.bias

    def _is_padded_in_training(self, width: int) -> bool:
        """Return whether padding the features with zeros makes training faster.

        oneDNN reads the inputs of narrow matmuls in place. For the gradient of a kernel it reads
        them by columns, at half the speed if the row stride is a multiple of 2 KiB
        (docs/training_benchmark.md).
        """
        return (
            keras.backend.backend() == "tensorflow"
            and self.compute_dtype == "float32"
            and width <= 256
            and self.intermediate_dim % 512 == 0
            and self.activation in _ELEMENTWISE
            and all(_is_plain(layer) for layer in (self.up, self.gate, self.down) if layer)
        )

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "gated": self.gated,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def _is_plain(layer: keras.layers.Layer) -> bool:
    """Return whether a layer computes as `Dense` does, without LoRA or quantization."""
    return (
        type(layer) is keras.layers.Dense
        and not layer.lora_enabled
        and layer.quantization_mode is None
    )


def _project(layer, inputs, rows=0, columns=0):
    """Apply a dense layer, with rows or columns of zeros added to its kernel."""
    if not rows and not columns:
        return layer(inputs)
    outputs = ops.matmul(inputs, ops.pad(layer.kernel, ((0, rows), (0, columns))))
    if layer.bias is None:
        return outputs
    return outputs + ops.pad(layer.bias, ((0, columns),))
