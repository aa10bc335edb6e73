"""Define the options and sublayers shared by encoder and decoder blocks."""

from typing import Any

import keras

from keras_llm.layers._parts import AttentionBase, Initializer, Shape, argument_names, clone
from keras_llm.layers.activations import Activation, get_activation
from keras_llm.layers.alibi import Alibi
from keras_llm.layers.attention import MultiHeadAttention
from keras_llm.layers.feed_forward import FeedForward
from keras_llm.layers.moe import MixtureOfExperts
from keras_llm.layers.relative import RelativeBias
from keras_llm.layers.rotary import Rotary
from keras_llm.types import JSON

BLOCK_ARGS = """
        intermediate_dim: int > 0. F, the feed-forward width.
        num_heads: int > 0. N query heads.
        dropout: float in [0, 1). Applied to the attention probabilities and to the outputs of
            attention and feed-forward before the residual sum.
        activation: Keras activation of the feed-forward network, or "gelu_tanh".
        layer_norm_epsilon: float. Epsilon of the norms.
        kernel_initializer: Keras initializer of all kernels.
        bias_initializer: Keras initializer of all biases.
        normalize_first: bool. True normalizes the inputs of attention and feed-forward
            (pre-norm), False normalizes each residual sum (post-norm).
        num_key_value_heads: int. K; must divide N. Defaults to N.
        head_dim: int. H. Defaults to D / N.
        position: `Rotary(...)`, `Alibi(...)`, `RelativeBias(...)` or None. The position scheme
            of self-attention.
        norm: "layer" (LayerNormalization) or "rms" (RMSNormalization).
        gated: bool. Whether the feed-forward network is gated.
        sliding_window: int or None. Self-attention covers fewer than this many positions.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        qk_norm: bool. RMS-normalize query and key heads.
        use_bias: bool. Whether projections and feed-forward have biases.
        sandwich_norm: bool. With `normalize_first`, also normalize the outputs of attention and
            feed-forward before the residual sum.
        parallel_residual: bool. With `normalize_first`, attention and feed-forward both read
            the block's input, and both outputs are added to it.
        attention_scale: float. Factor of the scores. Defaults to `1 / sqrt(H)`.
        num_sink_tokens: int. First positions that stay visible with a sliding window.
        learned_sinks: bool. See `MultiHeadAttention`.
        num_experts: int. 0 for one dense feed-forward network, more for a `MixtureOfExperts`
            with the next four arguments.
        experts_per_token: int. Experts that each token is routed to.
        num_shared_experts: int. Experts that every token uses.
        load_balance_loss: float >= 0. Weight of the load-balance loss.
        router_z_loss: float >= 0. Weight of the router z loss.
        feed_forward_bias: bool. Whether the feed-forward network has biases. Defaults to
            `use_bias`.
        output_bias: bool. Whether the output projection of attention has a bias. Defaults to
            `use_bias`.
"""

# Arguments that are objects, which `get_config` serializes.
_OBJECTS = ("activation", "kernel_initializer", "bias_initializer", "position")
# Arguments of attention that differ between self-attention and cross-attention.
_SELF_ATTENTION = ("sliding_window", "num_sink_tokens")


class TransformerBlock(AttentionBase):
    """The parts and options that the encoder and the decoder share."""

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0,
        activation: Activation = "relu",
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        normalize_first: bool = False,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        position: Rotary | Alibi | RelativeBias | None = None,
        norm: str = "layer",
        gated: bool = False,
        sliding_window: int | None = None,
        logit_soft_cap: float | None = None,
        qk_norm: bool = False,
        use_bias: bool = True,
        sandwich_norm: bool = False,
        parallel_residual: bool = False,
        attention_scale: float | None = None,
        num_sink_tokens: int = 0,
        learned_sinks: bool = False,
        num_experts: int = 0,
        experts_per_token: int = 2,
        num_shared_experts: int = 0,
        load_balance_loss: float = 0.01,
        router_z_loss: float = 0.001,
        feed_forward_bias: bool | None = None,
        output_bias: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if norm not in ("layer", "rms"):
            raise ValueError(f'`norm` must be "layer" or "rms", got {norm!r}.')
        if (sandwich_norm or parallel_residual) and not normalize_first:
            raise ValueError("`sandwich_norm` and `parallel_residual` need `normalize_first=True`.")
        arguments = locals()
        for name in PLAIN_ARGUMENTS:
            setattr(self, name, arguments[name])
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.position = position
        self.activation = get_activation(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def _build_parts(self, inputs_shape: Shape, cross_shape: Shape | None = None) -> None:
        size = inputs_shape[-1]
        if self.head_dim is None and size % self.num_heads:
            raise ValueError(
                f"`num_heads`={self.num_heads} must divide the width {size} of the inputs "
                "unless `head_dim` is given."
            )
        self.self_attention = self._attention(
            size,
            "self_attention",
            position=self._position(),
            **{name: getattr(self, name) for name in _SELF_ATTENTION},
        )
        self.self_attention.build(inputs_shape)
        parts = ["self_attention", "feed_forward"]
        self.cross_attention = None
        if cross_shape is not None:
            if self.parallel_residual:
                raise ValueError("`parallel_residual` is not supported with cross-attention.")
            self.cross_attention = self._attention(size, "cross_attention")
            self.cross_attention.build(inputs_shape, cross_shape)
            parts.append("cross_attention")
        self.feed_forward = self._feed_forward()
        self.feed_forward.build(inputs_shape)
        for part in parts:
            self._add_norm(f"{part}_norm", inputs_shape)
            if self.sandwich_norm:
                self._add_norm(f"{part}_post_norm", inputs_shape)
        self.residual_dropout = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name="residual_dropout"
        )
        self.built = True

    def _position(self):
        return self.position

    def _attention(self, size, name, **options):
        return MultiHeadAttention(
            self.num_heads,
            self.head_dim or size // self.num_heads,
            kernel_initializer=clone(self.kernel_initializer),
            bias_initializer=clone(self.bias_initializer),
            **{name: getattr(self, name) for name in _SHARED_WITH_ATTENTION},
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def _feed_forward(self):
        shared = {
            "activation": self.activation,
            "gated": self.gated,
            "kernel_initializer": clone(self.kernel_initializer),
            "dtype": self.dtype_policy,
            "name": "feed_forward",
        }
        if not self.num_experts:
            bias = self.feed_forward_bias
            return FeedForward(
                self.intermediate_dim,
                use_bias=self.use_bias if bias is None else bias,
                bias_initializer=clone(self.bias_initializer),
                **shared,
            )
        return MixtureOfExperts(
            self.num_experts,
            self.experts_per_token,
            self.intermediate_dim,
            num_shared_experts=self.num_shared_experts,
            load_balance_loss=self.load_balance_loss,
            router_z_loss=self.router_z_loss,
            **shared,
        )

    def _add_norm(self, name, shape):
        layer_class = {
            "layer": keras.layers.LayerNormalization,
            "rms": keras.layers.RMSNormalization,
        }[self.norm]
        layer = layer_class(epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name)
        layer.supports_masking = True
        layer.build(shape)
        setattr(self, name, layer)

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in PLAIN_ARGUMENTS},
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "position": keras.saving.serialize_keras_object(self.position),
        }


# Arguments that are stored and saved unchanged.
PLAIN_ARGUMENTS = argument_names(TransformerBlock.__init__, *_OBJECTS)
_SHARED_WITH_ATTENTION = tuple(
    name
    for name in argument_names(
        MultiHeadAttention.__init__, "num_heads", "head_dim", *_SELF_ATTENTION
    )
    if name in PLAIN_ARGUMENTS
)
