"""Predict masked tokens."""

from typing import Any, Self

import keras
from keras import ops

from keras_llm.keras_internals import layers_before, replace_sublayer
from keras_llm.layers._parts import Initializer, Shape, clone
from keras_llm.layers.activations import Activation, get_activation
from keras_llm.layers.quantization import QuantizableLayer
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class MaskedLMHead(QuantizableLayer):
    """Predictions over the vocabulary from the hidden states at masked positions.

    `activation(norm(intermediate_activation(h W + b)) E^T + b_V)`, where E is the token embedding
    or a separate kernel.

    Args:
        vocabulary_size: int. V; optional with `token_embedding`.
        token_embedding: a `keras.layers.ReversibleEmbedding` whose table is reused, or None. In
            a functional model that is loaded or cloned, the head shares the embedding of that
            model with the same name.
        intermediate_activation: Keras activation, or "gelu_tanh".
        activation: Keras activation of the predictions. None gives logits.
        layer_norm_epsilon: float.
        kernel_initializer: Keras initializer of the kernels.
        bias_initializer: Keras initializer of the biases.

    Call arguments:
        inputs: float tensor (B, T, D).
        mask_positions: int tensor (B, M), the positions to predict.

    Returns:
        Float tensor (B, M, V).

    Raises:
        ValueError: if neither `vocabulary_size` nor `token_embedding` is given, or if their
            sizes differ.

    Reference:
        Devlin et al., 2018, "BERT", section 3.1.
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        token_embedding: keras.layers.ReversibleEmbedding | None = None,
        intermediate_activation: Activation = "relu",
        activation: Activation | None = None,
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not vocabulary_size and token_embedding is None:
            raise ValueError("`vocabulary_size` or `token_embedding` must be given.")
        if token_embedding is not None and vocabulary_size not in (None, token_embedding.input_dim):
            raise ValueError(
                f"`vocabulary_size` must equal that of `token_embedding`, "
                f"{token_embedding.input_dim}, got {vocabulary_size}."
            )
        self.vocabulary_size = (
            vocabulary_size if token_embedding is None else token_embedding.input_dim
        )
        self.token_embedding = token_embedding
        self._is_restored = False
        self.intermediate_activation = get_activation(intermediate_activation)
        self.activation = get_activation(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, inputs_shape: Shape, mask_positions_shape: Shape | None = None) -> None:
        size = inputs_shape[-1]
        if self.token_embedding is not None:
            size = self.token_embedding.output_dim
        self.dense = keras.layers.Dense(
            size,
            activation=self.intermediate_activation,
            kernel_initializer=clone(self.kernel_initializer),
            bias_initializer=clone(self.bias_initializer),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build(inputs_shape)
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, None, size))
        if self.token_embedding is None:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(size, self.vocabulary_size),
                initializer=clone(self.kernel_initializer),
            )
        self.bias = self.add_weight(
            name="bias", shape=(self.vocabulary_size,), initializer=clone(self.bias_initializer)
        )
        self.built = True

    def compute_output_spec(self, inputs: Tensor, mask_positions: Tensor) -> Tensor:
        if self._is_restored:
            self._is_restored = False
            self._share_embedding(layers_before(inputs))
        return super().compute_output_spec(inputs, mask_positions)

    def _share_embedding(self, layers):
        """Use the embedding of the model instead of the copy that the config describes.

        The config of the layer that holds the embedding is read separately, as Keras does in
        `clone_model`, or describes only the sizes, as that of `TokenAndPositionEmbedding` does.
        """
        own = self.token_embedding
        for layer in layers:
            if (
                isinstance(layer, keras.layers.ReversibleEmbedding)
                and layer.name == own.name
                and (layer.input_dim, layer.output_dim) == (own.input_dim, own.output_dim)
            ):
                if layer is not own:
                    replace_sublayer(self, "token_embedding", layer)
                return

    def states(self, inputs: Tensor, mask_positions: Tensor) -> Tensor:
        """Compute the inputs of the output projection: float tensor (B, M, D)."""
        x = ops.take_along_axis(inputs, ops.expand_dims(mask_positions, -1), axis=1)
        return self.norm(self.dense(x))

    def call(self, inputs: Tensor, mask_positions: Tensor) -> Tensor:
        x = self.states(inputs, mask_positions)
        if self.token_embedding is None:
            logits = ops.matmul(x, self.kernel)
        else:
            logits = self.token_embedding(x, reverse=True)
        return self.activation(ops.cast(logits, self.compute_dtype) + self.bias)

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Return None: the mask of the inputs is not that of the M predictions."""

    def compute_output_shape(self, inputs_shape: Shape, mask_positions_shape: Shape) -> Shape:
        return (*mask_positions_shape, self.vocabulary_size)

    def get_config(self) -> JSON:
        embedding = self.token_embedding
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "token_embedding": None if embedding is None else keras.layers.serialize(embedding),
            "intermediate_activation": keras.activations.serialize(self.intermediate_activation),
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        config = dict(config)
        if config.get("token_embedding") is not None:
            config["token_embedding"] = keras.layers.deserialize(config["token_embedding"])
        head = super().from_config(config)
        head._is_restored = head.token_embedding is not None
        return head
