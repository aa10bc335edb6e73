"""The Transformer block: one set of parts, in an encoder and a decoder arrangement."""

import keras
from keras import ops

from keras_llm.layers import masks
from keras_llm.layers._parts import clone
from keras_llm.layers.attention import MultiHeadAttention
from keras_llm.layers.feed_forward import FeedForward

_BLOCK_ARGS = """
        intermediate_dim: int > 0. F, the feed-forward width.
        num_heads: int > 0. N query heads.
        dropout: float in [0, 1). On attention probabilities, and on what attention and
            feed-forward add to the residual stream.
        activation: Keras activation of the feed-forward part.
        layer_norm_epsilon: float. Epsilon of the norms.
        kernel_initializer: Keras initializer of all kernels.
        bias_initializer: Keras initializer of all biases.
        normalize_first: bool. True normalises what goes into attention and feed-forward
            (pre-norm), False what comes out of each residual sum (post-norm).
        num_key_value_heads: int. K; must divide N. Defaults to N.
        head_dim: int. H. Defaults to D / N.
        position: `Rotary(...)`, `Alibi(...)` or None, for the self-attention.
        norm: "layer" (LayerNormalization) or "rms" (RMSNormalization).
        gated: bool. Whether the feed-forward part is gated.
        sliding_window: int or None. Self-attention reaches less than this many positions.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        qk_norm: bool. RMS-normalise query and key heads.
        use_bias: bool. Whether projections and feed-forward have biases.
"""


class _TransformerBlock(keras.layers.Layer):
    """The parts and options that the encoder and the decoder share."""

    def __init__(
        self,
        intermediate_dim,
        num_heads,
        dropout=0,
        activation="relu",
        layer_norm_epsilon=1e-05,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        normalize_first=False,
        num_key_value_heads=None,
        head_dim=None,
        position=None,
        norm="layer",
        gated=False,
        sliding_window=None,
        logit_soft_cap=None,
        qk_norm=False,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in ("layer", "rms"):
            raise ValueError(f'`norm` must be "layer" or "rms", got {norm!r}.')
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.head_dim = head_dim
        self.position = position
        self.norm = norm
        self.gated = gated
        self.sliding_window = sliding_window
        self.logit_soft_cap = logit_soft_cap
        self.qk_norm = qk_norm
        self.use_bias = use_bias

    def _build_parts(self, inputs_shape, cross_shape=None):
        size = inputs_shape[-1]
        if self.head_dim is None and size % self.num_heads:
            raise ValueError(
                f"`num_heads`={self.num_heads} must divide the width {size} of the inputs, "
                "or `head_dim` be given."
            )
        self.self_attention = self._attention(
            size, "self_attention", position=self.position, sliding_window=self.sliding_window
        )
        self.self_attention.build(inputs_shape)
        self.self_attention_norm = self._norm("self_attention_norm", inputs_shape)
        self.cross_attention = None
        if cross_shape is not None:
            self.cross_attention = self._attention(size, "cross_attention")
            self.cross_attention.build(inputs_shape, cross_shape)
            self.cross_attention_norm = self._norm("cross_attention_norm", inputs_shape)
        self.feed_forward = FeedForward(
            self.intermediate_dim,
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            kernel_initializer=clone(self.kernel_initializer),
            bias_initializer=clone(self.bias_initializer),
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.feed_forward.build(inputs_shape)
        self.feed_forward_norm = self._norm("feed_forward_norm", inputs_shape)
        self.residual_dropout = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name="residual_dropout"
        )
        self.built = True

    def _attention(self, size, name, **options):
        return MultiHeadAttention(
            self.num_heads,
            self.head_dim or size // self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            logit_soft_cap=self.logit_soft_cap,
            qk_norm=self.qk_norm,
            use_bias=self.use_bias,
            dropout=self.dropout,
            kernel_initializer=clone(self.kernel_initializer),
            bias_initializer=clone(self.bias_initializer),
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def _norm(self, name, shape):
        layer_class = {
            "layer": keras.layers.LayerNormalization,
            "rms": keras.layers.RMSNormalization,
        }[self.norm]
        layer = layer_class(epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name)
        layer.build(shape)
        return layer

    def _residual(self, x, norm, part, training):
        """`x + part(norm(x))` or `norm(x + part(x))`, and what else `part` returns."""
        output, *rest = part(norm(x) if self.normalize_first else x)
        x = x + self.residual_dropout(output, training=training)
        return (x if self.normalize_first else norm(x)), *rest

    def _add_feed_forward(self, x, training):
        (x,) = self._residual(
            x,
            self.feed_forward_norm,
            lambda h: (self.feed_forward(h, training=training),),
            training,
        )
        return x

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "normalize_first": self.normalize_first,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "position": keras.saving.serialize_keras_object(self.position),
            "norm": self.norm,
            "gated": self.gated,
            "sliding_window": self.sliding_window,
            "logit_soft_cap": self.logit_soft_cap,
            "qk_norm": self.qk_norm,
            "use_bias": self.use_bias,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["position"] = keras.saving.deserialize_keras_object(config["position"])
        return cls(**config)


@keras.saving.register_keras_serializable("keras_llm")
class TransformerEncoder(_TransformerBlock):
    __doc__ = f"""A Transformer block in which every position sees every other.

    Self-attention, then feed-forward, each inside a residual sum with a norm.

    Args:{_BLOCK_ARGS}
    Call arguments:
        inputs: float tensor (B, T, D).
        padding_mask: bool tensor (B, T), True = a real token.
        attention_mask: bool tensor (B, T, T) or (1, T, T), True = may attend.
        positions: int tensor (T,) or (B, T). Defaults to `0 .. T - 1`.

    Returns:
        Float tensor (B, T, D).

    Raises:
        ValueError: if `num_heads` does not divide D and `head_dim` is not given.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need".

    Example:
    >>> import numpy as np
    >>> block = TransformerEncoder(intermediate_dim=32, num_heads=2)
    >>> tuple(block(np.zeros((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def build(self, inputs_shape):
        self._build_parts(inputs_shape)

    def call(self, inputs, padding_mask=None, attention_mask=None, positions=None, training=None):
        mask = masks.merge(
            None if padding_mask is None else masks.padding_mask(padding_mask), attention_mask
        )
        (x,) = self._residual(
            inputs,
            self.self_attention_norm,
            lambda h: (
                self.self_attention(h, attention_mask=mask, positions=positions, training=training),
            ),
            training,
        )
        return self._add_feed_forward(x, training)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape


@keras.saving.register_keras_serializable("keras_llm")
class TransformerDecoder(_TransformerBlock):
    __doc__ = f"""A Transformer block in which a position sees itself and those before it.

    Causal self-attention, cross-attention if it is built or first called with an encoder
    sequence, then feed-forward, each inside a residual sum with a norm.

    Args:{_BLOCK_ARGS}
    Call arguments:
        decoder_sequence: float tensor (B, T, D).
        encoder_sequence: float tensor (B, S, D'), or None for a decoder-only block.
        decoder_padding_mask: bool tensor (B, T), True = a real token. Without a cache.
        decoder_attention_mask: bool tensor (B, T, S), True = may attend.
        encoder_padding_mask: bool tensor (B, S), True = a real token.
        encoder_attention_mask: bool tensor (B, T, S), True = may attend.
        self_attention_cache: pair of float tensors (B, K, S, H), or None.
        self_attention_cache_update_index: int tensor, scalar or (B,): the slot of the
            first new token (see `update_cache`).
        cross_attention_cache: pair of float tensors (B, K, S, H), or None.
        cross_attention_cache_update_index: int tensor, or None to read the cache alone.
        use_causal_mask: bool. False leaves masking to `decoder_attention_mask`.
        positions: int tensor (T,) or (B, T). Defaults to `update index + 0 .. T - 1`.

    Returns:
        Float tensor (B, T, D). With a self-attention cache, a pair of that and the updated
        cache; with a cross-attention cache too, a triple.

    Raises:
        ValueError: if `num_heads` does not divide D and `head_dim` is not given, or an
            encoder sequence is passed to a block that was built without one.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need".

    Example:
    >>> import numpy as np
    >>> block = TransformerDecoder(intermediate_dim=32, num_heads=2)
    >>> tuple(block(np.zeros((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def build(self, decoder_sequence_shape, encoder_sequence_shape=None):
        self._build_parts(decoder_sequence_shape, encoder_sequence_shape)

    def call(
        self,
        decoder_sequence,
        encoder_sequence=None,
        decoder_padding_mask=None,
        decoder_attention_mask=None,
        encoder_padding_mask=None,
        encoder_attention_mask=None,
        self_attention_cache=None,
        self_attention_cache_update_index=None,
        cross_attention_cache=None,
        cross_attention_cache_update_index=None,
        use_causal_mask=True,
        positions=None,
        training=None,
    ):
        has_cross_inputs = encoder_sequence is not None or cross_attention_cache is not None
        if has_cross_inputs != (self.cross_attention is not None):
            raise ValueError(
                "`encoder_sequence` must be given exactly when the block was built with one: "
                f"built {'with' if self.cross_attention else 'without'}, "
                f"called {'with' if has_cross_inputs else 'without'}."
            )
        if positions is None:
            positions = ops.arange(ops.shape(decoder_sequence)[1])
            if self_attention_cache_update_index is not None:
                start = ops.convert_to_tensor(self_attention_cache_update_index, "int32")
                positions = positions + (ops.expand_dims(start, -1) if len(start.shape) else start)

        mask = decoder_attention_mask
        if decoder_padding_mask is not None:
            mask = masks.merge(mask, masks.padding_mask(decoder_padding_mask))
        if use_causal_mask:
            keys = positions
            if self_attention_cache is not None:
                keys = ops.arange(ops.shape(self_attention_cache[0])[2])
            mask = masks.merge(mask, masks.causal_mask(positions, keys))

        def self_attention(h):
            return _as_tuple(
                self.self_attention(
                    h,
                    attention_mask=mask,
                    positions=positions,
                    cache=self_attention_cache,
                    cache_update_index=self_attention_cache_update_index,
                    training=training,
                )
            )

        x, *caches = self._residual(
            decoder_sequence, self.self_attention_norm, self_attention, training
        )
        if self.cross_attention is not None:
            cross_mask = masks.merge(
                None if encoder_padding_mask is None else masks.padding_mask(encoder_padding_mask),
                encoder_attention_mask,
            )

            def cross_attention(h):
                return _as_tuple(
                    self.cross_attention(
                        h,
                        encoder_sequence,
                        attention_mask=cross_mask,
                        cache=cross_attention_cache,
                        cache_update_index=cross_attention_cache_update_index,
                        training=training,
                    )
                )

            x, *cross_cache = self._residual(
                x, self.cross_attention_norm, cross_attention, training
            )
            caches += cross_cache
        x = self._add_feed_forward(x, training)
        return (x, *caches) if caches else x

    def compute_output_shape(self, decoder_sequence_shape, encoder_sequence_shape=None):
        return decoder_sequence_shape


def _as_tuple(output):
    return output if isinstance(output, tuple) else (output,)
