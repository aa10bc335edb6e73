"""Route each token to a few of several feed-forward experts."""

from typing import Any

import keras
from keras import ops

from keras_llm.layers._parts import Initializer, Shape, clone, dense
from keras_llm.layers.activations import Activation, activate, get_activation
from keras_llm.layers.feed_forward import FeedForward
from keras_llm.layers.quantization import QuantizableLayer
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class MixtureOfExperts(QuantizableLayer):
    """The weighted sum of the k feed-forward networks that a router ranks highest for each token.

    `p = softmax(x W_router)`, `output = sum_(e in top k) p_e / sum_top_k(p) FFN_e(x)`, plus the
    shared experts, which every token uses. No token is ever dropped, so the output of a token does
    not depend on other tokens.

    In training, two losses are added (`add_loss`): `load_balance_loss E sum_e f_e P_e`, where
    `f_e` is the share of routes to expert e and `P_e` its mean probability (the sum times E is 1
    when balanced), and `router_z_loss mean(logsumexp(x W_router)^2)`.

    Args:
        num_experts: int > 1. E.
        top_k: int in `1 .. E`. k, the number of experts per token.
        intermediate_dim: int > 0. F, the width of each expert.
        activation: Keras activation, as a name or a callable, or "gelu_tanh".
        gated: bool. Whether the experts are gated (see `FeedForward`).
        num_shared_experts: int. Number of experts that every token uses, computed as one network
            with `num_shared_experts * F` features.
        normalize_weights: bool. Whether the k weights are scaled to sum to 1.
        load_balance_loss: float >= 0. Weight of the load-balance loss.
        router_z_loss: float >= 0. Weight of the router z loss.
        kernel_initializer: Keras initializer of the kernels; experts have no biases.

    Call arguments:
        inputs: float tensor (B, T, D).

    Returns:
        Float tensor (B, T, D).

    Raises:
        ValueError: if an argument is out of range.

    References:
        Fedus et al., 2021, "Switch Transformers" (the load-balance loss).
        Zoph et al., 2022, "ST-MoE" (the z loss).
        Jiang et al., 2024, "Mixtral of Experts".
        Dai et al., 2024, "DeepSeekMoE" (shared experts).
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        intermediate_dim: int,
        activation: Activation = "silu",
        gated: bool = True,
        num_shared_experts: int = 0,
        normalize_weights: bool = True,
        load_balance_loss: float = 0.01,
        router_z_loss: float = 0.001,
        kernel_initializer: Initializer = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if num_experts < 2:
            raise ValueError(f"`num_experts` must be at least 2, got {num_experts}.")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"`top_k` must be in 1 .. num_experts={num_experts}, got {top_k}.")
        if intermediate_dim < 1 or num_shared_experts < 0:
            raise ValueError(
                "`intermediate_dim` must be positive and `num_shared_experts` not negative, "
                f"got {intermediate_dim} and {num_shared_experts}."
            )
        self.num_experts = num_experts
        self.top_k = top_k
        self.intermediate_dim = intermediate_dim
        self.activation = get_activation(activation)
        self.gated = gated
        self.num_shared_experts = num_shared_experts
        self.normalize_weights = normalize_weights
        self.load_balance_loss = load_balance_loss
        self.router_z_loss = router_z_loss
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.use_bias, self.bias_initializer = False, None  # for `dense`
        self.router = dense(self, num_experts, "router")
        self.shared = None
        if num_shared_experts:
            self.shared = FeedForward(
                num_shared_experts * intermediate_dim,
                activation=self.activation,
                gated=gated,
                use_bias=False,
                kernel_initializer=clone(self.kernel_initializer),
                dtype=self.dtype_policy,
                name="shared",
            )

    def build(self, inputs_shape: Shape) -> None:
        experts, size, width = self.num_experts, inputs_shape[-1], self.intermediate_dim
        self.router.build(inputs_shape)

        def kernel(name, rows, columns):
            return self.add_weight(
                name=name,
                shape=(experts, rows, columns),
                initializer=clone(self.kernel_initializer),
            )

        self.gate = kernel("gate", size, width) if self.gated else None
        self.up = kernel("up", size, width)
        self.down = kernel("down", width, size)
        if self.shared is not None:
            self.shared.build(inputs_shape)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        logits = ops.cast(self.router(inputs), "float32")
        probabilities = ops.softmax(logits, axis=-1)
        weights, chosen = ops.top_k(probabilities, self.top_k)
        routes = ops.one_hot(chosen, self.num_experts, dtype="float32")  # (B, T, k, E)
        if training:
            self._add_losses(logits, probabilities, routes)
        if self.normalize_weights:
            weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        weights = ops.sum(routes * ops.expand_dims(weights, -1), axis=-2)  # (B, T, E)

        size = inputs.shape[-1]
        x = ops.reshape(inputs, (1, -1, size))
        hidden = ops.matmul(x, self.up)  # (E, B * T, F)
        if self.gated:
            hidden = activate(self.activation, ops.matmul(x, self.gate), training) * hidden
        else:
            hidden = activate(self.activation, hidden, training)
        # Apply the weights before the second matmul, whose sum over F then also sums over experts.
        weights = ops.transpose(ops.reshape(weights, (-1, self.num_experts, 1)), (1, 0, 2))
        hidden = ops.transpose(hidden * ops.cast(weights, hidden.dtype), (1, 0, 2))
        hidden = ops.reshape(hidden, (-1, self.num_experts * self.intermediate_dim))
        output = ops.matmul(
            hidden,
            ops.reshape(
                ops.cast(self.down, hidden.dtype), (self.num_experts * self.intermediate_dim, size)
            ),
        )
        output = ops.reshape(output, ops.shape(inputs))
        return output if self.shared is None else output + self.shared(inputs, training=training)

    def _add_losses(self, logits: Tensor, probabilities: Tensor, routes: Tensor) -> None:
        share = ops.mean(routes, axis=(0, 1, 2))
        balance = self.num_experts * ops.sum(share * ops.mean(probabilities, axis=(0, 1)))
        z = ops.mean(ops.square(ops.logsumexp(logits, axis=-1)))
        self.add_loss(self.load_balance_loss * balance + self.router_z_loss * z)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "gated": self.gated,
            "num_shared_experts": self.num_shared_experts,
            "normalize_weights": self.normalize_weights,
            "load_balance_loss": self.load_balance_loss,
            "router_z_loss": self.router_z_loss,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
