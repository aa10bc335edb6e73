"""Multi-head attention with grouped key-value heads, positions and an explicit cache."""

import keras
from keras import ops

from keras_llm.layers import masks
from keras_llm.layers._parts import dense
from keras_llm.layers.alibi import Alibi, AlibiBias
from keras_llm.layers.cache import update_cache
from keras_llm.layers.rotary import Rotary, RotaryEmbedding

_MASKED = -1e9  # added to a masked score; softmax gives it exactly 0 in float32


@keras.saving.register_keras_serializable("keras_llm")
class MultiHeadAttention(keras.layers.Layer):
    """Attention of several heads over one or two sequences.

    `head_i = softmax(q_i k_j^T / sqrt(H) + bias) v_j`, `output = concat(head_1 .. head_N) W_o`,
    where query head `i` uses key-value head `j = i // (N / K)`. `K = N` is multi-head,
    `K = 1` multi-query, anything between grouped-query attention.

    Args:
        num_heads: int > 0. N query heads.
        head_dim: int > 0. H features a head.
        num_key_value_heads: int. K; must divide N. Defaults to N.
        position: `Rotary(...)`, `Alibi(...)` or None. How attention knows positions.
        sliding_window: int or None. A query sees keys less than this many positions away.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        qk_norm: bool. RMS-normalise each query and key head before positions are applied.
        use_bias: bool. Whether the four projections have a bias.
        dropout: float in [0, 1). Applied to the attention probabilities in training.
        kernel_initializer: Keras initializer of the four kernels.
        bias_initializer: Keras initializer of the four biases.
        layer_norm_epsilon: float. Epsilon of `qk_norm`.

    Call arguments:
        query: float tensor (B, T, D).
        value: float tensor (B, S, D'), the other sequence. Defaults to `query`.
        attention_mask: bool tensor broadcastable to (B, T, S), True = may attend. None
            allows all.
        positions: int tensor (T,) or (B, T), the queries' positions (and the new keys', in
            self-attention). Defaults to `0 .. T - 1`.
        cache: pair of float tensors (B, K, S, H) from `empty_cache`, or None. New keys and
            values are written into it and queries attend to all its slots, slot `s` being
            position `s`; `attention_mask` is then over its S slots.
        cache_update_index: int tensor, scalar or (B,): the slot of the first new key (see
            `update_cache`). None with a cache reads the cache and writes nothing
            (cross-attention).

    Returns:
        Float tensor (B, T, D); with a cache, a pair of that and the updated cache.

    Raises:
        ValueError: if `num_key_value_heads` does not divide `num_heads`.

    References:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2.
        Ainslie et al., 2023, "GQA: Training Generalized Multi-Query Transformer Models".
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        num_key_value_heads=None,
        position=None,
        sliding_window=None,
        logit_soft_cap=None,
        qk_norm=False,
        use_bias=True,
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_key_value_heads = num_key_value_heads or num_heads
        if num_heads < 1 or head_dim < 1:
            raise ValueError(
                "`num_heads` and `head_dim` must be positive, "
                f"got num_heads={num_heads}, head_dim={head_dim}."
            )
        if num_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_key_value_heads` must divide `num_heads`={num_heads}, "
                f"got {num_key_value_heads}."
            )
        if position is not None and not isinstance(position, (Rotary, Alibi)):
            raise ValueError(
                f"`position` must be Rotary(...), Alibi(...) or None, got {position!r}."
            )
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"`sliding_window` must be a positive int, got {sliding_window}.")
        self.position = position
        self.sliding_window = sliding_window
        self.logit_soft_cap = logit_soft_cap
        self.qk_norm = qk_norm
        self.use_bias = use_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.layer_norm_epsilon = layer_norm_epsilon

        self.query_projection = dense(self, num_heads * head_dim, "query")
        self.key_projection = dense(self, self.num_key_value_heads * head_dim, "key")
        self.value_projection = dense(self, self.num_key_value_heads * head_dim, "value")
        self.query_norm = self.key_norm = self.rotary = self.alibi = None
        if qk_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(
                    epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name=name
                )
                for name in ("query_norm", "key_norm")
            )
        if isinstance(position, Alibi):
            self.alibi = AlibiBias(position.max_bias, dtype="float32", name="alibi")
        if isinstance(position, Rotary):
            self.rotary = RotaryEmbedding(
                position.base,
                position.scaling,
                fraction=position.fraction,
                dtype=self.dtype_policy,
                name="rotary",
            )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, query_shape, value_shape=None):
        value_shape = query_shape if value_shape is None else value_shape
        self.query_projection.build(query_shape)
        self.key_projection.build(value_shape)
        self.value_projection.build(value_shape)
        self.output_projection = dense(self, query_shape[-1], "output")
        self.output_projection.build((*query_shape[:-1], self.num_heads * self.head_dim))
        if self.qk_norm:
            self.query_norm.build((None, None, self.num_heads, self.head_dim))
            self.key_norm.build((None, None, self.num_key_value_heads, self.head_dim))
        self.built = True

    def call(
        self,
        query,
        value=None,
        attention_mask=None,
        positions=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        self_attention = value is None
        if positions is None:
            positions = ops.arange(ops.shape(query)[1])
        q = self._heads(query, self.query_projection, self.num_heads, self.query_norm)
        if self.rotary is not None:
            q = self.rotary(q, positions=positions)

        if cache is None or cache_update_index is not None:
            keys, values = self.project_keys_and_values(
                query if self_attention else value, positions if self_attention else None
            )
            if cache is not None:
                cache = (
                    update_cache(cache[0], keys, cache_update_index),
                    update_cache(cache[1], values, cache_update_index),
                )
        if cache is not None:
            keys, values = cache

        new_keys_only = self_attention and cache is None
        key_positions = positions if new_keys_only else ops.arange(ops.shape(keys)[2])
        if self.sliding_window is not None:
            window = masks.band_mask(positions, key_positions, self.sliding_window)
            attention_mask = masks.merge(attention_mask, window)
        output = self._attend(q, keys, values, positions, key_positions, attention_mask, training)
        output = self.output_projection(output)
        return output if cache is None else (output, cache)

    def project_keys_and_values(self, inputs, positions=None):
        """The features that a cache holds.

        Args:
            inputs: float tensor (B, S, D).
            positions: int tensor (S,) or (B, S). Defaults to `0 .. S - 1`.

        Returns:
            Keys and values, float tensors (B, K, S, H).
        """
        keys = self._heads(inputs, self.key_projection, self.num_key_value_heads, self.key_norm)
        if self.rotary is not None:
            keys = self.rotary(keys, positions=positions)
        values = self._heads(inputs, self.value_projection, self.num_key_value_heads)
        return ops.transpose(keys, (0, 2, 1, 3)), ops.transpose(values, (0, 2, 1, 3))

    def _heads(self, inputs, projection, num_heads, norm=None):
        """(B, T, D) -> (B, T, num_heads, H)."""
        batch_size, length = ops.shape(inputs)[:2]
        heads = ops.reshape(projection(inputs), (batch_size, length, num_heads, self.head_dim))
        return heads if norm is None else norm(heads)

    def _attend(self, q, keys, values, positions, key_positions, attention_mask, training):
        """(B, T, N, H), (B, K, S, H) twice -> (B, T, N * H)."""
        batch_size, length = ops.shape(q)[:2]
        size, groups = self.head_dim, self.num_heads // self.num_key_value_heads
        # Fold the query heads that share a key-value head into the time axis: one matmul a
        # key-value head, and keys are never repeated.
        grouped = (batch_size, length, self.num_key_value_heads, groups, size)
        q = ops.transpose(ops.reshape(q * size**-0.5, grouped), (0, 2, 3, 1, 4))
        q = ops.reshape(q, (batch_size, self.num_key_value_heads, groups * length, size))
        keys, values = ops.cast(keys, q.dtype), ops.cast(values, q.dtype)

        scores = ops.cast(ops.matmul(q, ops.swapaxes(keys, -1, -2)), "float32")
        scores = ops.reshape(scores, (batch_size, self.num_heads, length, -1))
        if self.logit_soft_cap is not None:
            scores = self.logit_soft_cap * ops.tanh(scores / self.logit_soft_cap)
        if self.alibi is not None:
            scores = self.alibi(scores, query_positions=positions, key_positions=key_positions)
        if attention_mask is not None:
            bias = (1.0 - ops.cast(attention_mask, "float32")) * _MASKED
            scores = scores + ops.expand_dims(bias, 1)
        probabilities = ops.cast(ops.softmax(scores, axis=-1), q.dtype)
        probabilities = self.dropout_layer(probabilities, training=training)

        folded = (batch_size, self.num_key_value_heads, groups * length, -1)
        output = ops.matmul(ops.reshape(probabilities, folded), values)
        grouped = (batch_size, self.num_key_value_heads, groups, length, size)
        output = ops.transpose(ops.reshape(output, grouped), (0, 3, 1, 2, 4))
        return ops.reshape(output, (batch_size, length, self.num_heads * size))

    def compute_output_shape(self, query_shape, value_shape=None):
        return query_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "position": keras.saving.serialize_keras_object(self.position),
            "sliding_window": self.sliding_window,
            "logit_soft_cap": self.logit_soft_cap,
            "qk_norm": self.qk_norm,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["position"] = keras.saving.deserialize_keras_object(config["position"])
        return cls(**config)
