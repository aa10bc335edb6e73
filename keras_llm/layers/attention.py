"""Compute multi-head attention with grouped key-value heads, positions and an explicit cache."""

from typing import Any, Self

import keras
from keras import ops

from keras_llm.layers import cache as caches
from keras_llm.layers import masks
from keras_llm.layers._parts import Initializer, Shape, clone, dense
from keras_llm.layers.alibi import Alibi, AlibiBias
from keras_llm.layers.relative import RelativeBias, RelativePositionBias
from keras_llm.layers.rotary import Rotary, RotaryEmbedding
from keras_llm.types import JSON, Tensor

_MASKED = -1e9  # added to a masked score; its softmax is exactly 0 in float32


@keras.saving.register_keras_serializable("keras_llm")
class MultiHeadAttention(keras.layers.Layer):
    """Multi-head attention within one sequence or from one to another.

    `head_i = softmax(q_i k_j^T / sqrt(H) + bias) v_j`, `output = concat(head_1 .. head_N) W_o`,
    where query head `i` uses key-value head `j = i // (N / K)`. `K = N` is multi-head,
    `K = 1` multi-query and anything between grouped-query attention.

    Args:
        num_heads: int > 0. N query heads.
        head_dim: int > 0. H features per head.
        num_key_value_heads: int. K; must divide N. Defaults to N.
        position: `Rotary(...)`, `Alibi(...)`, `RelativeBias(...)` or None. The position scheme.
        sliding_window: int or None. A query sees keys less than this many positions away.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        qk_norm: bool. RMS-normalize each query and key head before positions are applied.
        use_bias: bool. Whether the four projections have a bias.
        dropout: float in [0, 1). Applied to the attention probabilities in training.
        kernel_initializer: Keras initializer of the four kernels.
        bias_initializer: Keras initializer of the four biases.
        layer_norm_epsilon: float. Epsilon of `qk_norm`.
        attention_scale: float. Factor of the scores. Defaults to `1 / sqrt(H)`.
        num_sink_tokens: int. With a sliding window, this many first positions stay visible.
        learned_sinks: bool. Whether each head has a learned logit that takes part in the softmax
            but has no value, so that a head may attend to almost nothing.

    Call arguments:
        query: float tensor (B, T, D).
        value: float tensor (B, S, D'), the sequence to attend to. Defaults to `query`.
        attention_mask: bool tensor broadcastable to (B, T, S), True = may attend. None
            allows all.
        positions: int tensor (T,) or (B, T), the queries' positions (and the new keys', in
            self-attention). Defaults to `0 .. T - 1`.
        cache: pair of float tensors (B, K, S, H) from `empty_cache`, or None. New keys and
            values are written into it and queries attend to all its slots; slot `s` holds
            position `s`. `attention_mask` then covers the S slots, or only the first of them (at
            least two), in which case the remaining slots are ignored.
        cache_update_index: int tensor, scalar or (B,): the slot of the first new key (see
            `update_cache`). None with a cache reads the cache and writes nothing
            (cross-attention).
        use_causal_mask: bool. Whether queries see only keys at their own and earlier positions.
            With a sliding window the cache is then a ring (see `ring_positions`): its S slots
            may be as few as `sliding_window + num_sink_tokens`, and `attention_mask` must be
            None.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first. Selects the new
            keys that a ring cache keeps. None keeps all.
        attention_bias: float tensor broadcastable to (B, N, T, S), added to the scores.
        return_attention_scores: bool. Whether to return the attention probabilities too.

    Returns:
        Float tensor (B, T, D); with `return_attention_scores`, the probabilities (B, N, T, S);
        with a cache, the updated cache. A tuple if there is more than one. With a ring cache and
        T > 1, the probabilities cover the S slots before the update, then the T new keys.

    Raises:
        ValueError: if `num_key_value_heads` does not divide `num_heads`, or an argument is out
            of range.

    References:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2.
        Ainslie et al., 2023, "GQA: Training Generalized Multi-Query Transformer Models".
        Child et al., 2019, "Generating Long Sequences with Sparse Transformers" and Beltagy et
        al., 2020, "Longformer" (`sliding_window`).
        Xiao et al., 2023, "Efficient Streaming Language Models with Attention Sinks"
        (`num_sink_tokens`); OpenAI, 2025, "gpt-oss model card" (`learned_sinks`).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_key_value_heads: int | None = None,
        position: Rotary | Alibi | RelativeBias | None = None,
        sliding_window: int | None = None,
        logit_soft_cap: float | None = None,
        qk_norm: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        layer_norm_epsilon: float = 1e-6,
        attention_scale: float | None = None,
        num_sink_tokens: int = 0,
        learned_sinks: bool = False,
        **kwargs: Any,
    ) -> None:
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
        if position is not None and not isinstance(position, (Rotary, Alibi, RelativeBias)):
            raise ValueError(
                "`position` must be Rotary(...), Alibi(...), RelativeBias(...) or None, "
                f"got {position!r}."
            )
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"`sliding_window` must be a positive int, got {sliding_window}.")
        if num_sink_tokens < 0 or (num_sink_tokens and sliding_window is None):
            raise ValueError(
                "`num_sink_tokens` must be 0, or positive with a `sliding_window`, "
                f"got {num_sink_tokens}."
            )
        self.position = position
        self.sliding_window = sliding_window
        self.logit_soft_cap = logit_soft_cap
        self.qk_norm = qk_norm
        self.use_bias = use_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.attention_scale = attention_scale
        self.num_sink_tokens = num_sink_tokens
        self.learned_sinks = learned_sinks

        self.query_projection = dense(self, num_heads * head_dim, "query")
        self.key_projection = dense(self, self.num_key_value_heads * head_dim, "key")
        self.value_projection = dense(self, self.num_key_value_heads * head_dim, "value")
        self.query_norm = self.key_norm = self.rotary = self.score_bias = self.sinks = None
        if qk_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(
                    epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name=name
                )
                for name in ("query_norm", "key_norm")
            )
        if isinstance(position, Alibi):
            self.score_bias = AlibiBias(position.max_bias, dtype="float32", name="alibi")
        if isinstance(position, RelativeBias):
            self.score_bias = RelativePositionBias(
                **position.get_config(),
                embeddings_initializer=clone(self.kernel_initializer),
                dtype="float32",
                name="relative_bias",
            )
        if isinstance(position, Rotary):
            self.rotary = RotaryEmbedding(
                position.base,
                position.scaling,
                fraction=position.fraction,
                dtype=self.dtype_policy,
                name="rotary",
            )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, query_shape: Shape, value_shape: Shape | None = None) -> None:
        value_shape = query_shape if value_shape is None else value_shape
        self.query_projection.build(query_shape)
        self.key_projection.build(value_shape)
        self.value_projection.build(value_shape)
        self.output_projection = dense(self, query_shape[-1], "output")
        self.output_projection.build((*query_shape[:-1], self.num_heads * self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            self.query_norm.build((None, None, self.num_heads, self.head_dim))
            self.key_norm.build((None, None, self.num_key_value_heads, self.head_dim))
        if self.score_bias is not None and not self.score_bias.built:
            self.score_bias.build((None, self.num_heads, None, None))
        if self.learned_sinks:
            self.sinks = self.add_weight(
                name="sinks",
                shape=(self.num_heads,),
                initializer=clone(self.kernel_initializer),
            )
        self.built = True

    def call(
        self,
        query: Tensor,
        value: Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        cache_update_index: int | Tensor | None = None,
        use_causal_mask: bool = False,
        padding_mask: Tensor | None = None,
        attention_bias: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Tensor | tuple[Any, ...]:
        self_attention = value is None
        if positions is None:
            positions = ops.arange(ops.shape(query)[1])
        q = self._heads(query, self.query_projection, self.num_heads, self.query_norm)
        if self.rotary is not None:
            q = self.rotary(q, positions=positions)

        if cache is None or cache_update_index is not None:
            new = self.project_keys_and_values(
                query if self_attention else value, positions if self_attention else None
            )
        if cache is None:
            keys, values = new
            key_positions = positions if self_attention else ops.arange(ops.shape(keys)[2])
        elif cache_update_index is not None and use_causal_mask and self.sliding_window:
            if attention_mask is not None:
                raise ValueError(
                    "`attention_mask` is not supported with a ring cache; use "
                    "`use_causal_mask=False` for a cache in which slot s holds position s."
                )
            (keys, values), key_positions, cache = self._ring(cache, new, positions, padding_mask)
            attention_mask = ops.expand_dims(key_positions >= 0, 1)
        else:
            if cache_update_index is not None:
                cache = tuple(
                    caches.update_cache(old, features, cache_update_index)
                    for old, features in zip(cache, new, strict=True)
                )
            keys, values = (_first_slots(entry, attention_mask) for entry in cache)
            key_positions = ops.arange(ops.shape(keys)[2])

        if use_causal_mask:
            causal = masks.causal_mask(positions, key_positions)
            attention_mask = masks.merge(attention_mask, causal)
        if self.sliding_window is not None:
            window = masks.band_mask(
                positions, key_positions, self.sliding_window, self.num_sink_tokens
            )
            attention_mask = masks.merge(attention_mask, window)
        scores = self._scores(q, keys)
        if self.score_bias is not None:
            scores = self.score_bias(scores, query_positions=positions, key_positions=key_positions)
        if attention_bias is not None:
            scores = scores + ops.cast(attention_bias, "float32")
        probabilities = self._probabilities(scores, attention_mask)
        output = self._attend(probabilities, values, training)
        outputs = [output]
        if return_attention_scores:
            outputs.append(probabilities)
        if cache is not None:
            outputs.append(cache)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def project_keys_and_values(
        self, inputs: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that a cache holds.

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
        """Project (B, T, D) to heads (B, T, num_heads, H)."""
        batch_size, length, width = ops.shape(inputs)
        # Flatten to two axes: with unknown sizes, a three-axis matmul takes twenty more operations.
        features = projection(ops.reshape(inputs, (-1, width)))
        heads = ops.reshape(features, (batch_size, length, num_heads, self.head_dim))
        return heads if norm is None else norm(heads)

    def _ring(self, cache, new, positions, padding_mask):
        """Write into a ring cache.

        Returns the keys and values that the queries attend to, each (B, K, S or S + T, H); their
        positions (B, S or S + T), -1 for empty slots; and the updated cache.
        """
        batch_size, num_slots = ops.shape(new[0])[0], ops.shape(cache[0])[2]
        if len(positions.shape) == 1:
            positions = ops.expand_dims(positions, 0)
        positions = ops.broadcast_to(
            ops.cast(positions, "int32"), (batch_size, ops.shape(positions)[1])
        )
        first = positions[:, :1]
        if new[0].shape[2] == 1 and padding_mask is None:
            slot = caches.ring_slot(first[:, 0], num_slots, self.num_sink_tokens)
            cache = tuple(
                caches.update_cache(old, features, slot)
                for old, features in zip(cache, new, strict=True)
            )
            held = caches.ring_positions(first, num_slots, self.num_sink_tokens)
            return cache, held, cache
        # The chunk may be longer than the ring: attend to old slots and new keys side by side.
        before = caches.ring_positions(first - 1, num_slots, self.num_sink_tokens)
        attended = tuple(
            ops.concatenate([old, ops.cast(features, old.dtype)], axis=2)
            for old, features in zip(cache, new, strict=True)
        )
        count = ops.shape(positions)[1]
        if padding_mask is not None:
            count = ops.sum(ops.cast(padding_mask, "int32"), axis=1, keepdims=True)
        held = caches.ring_positions(first + count - 1, num_slots, self.num_sink_tokens)
        cache = tuple(
            caches.update_ring(old, features, first, held)
            for old, features in zip(cache, new, strict=True)
        )
        return attended, ops.concatenate([before, positions], axis=1), cache

    def _scores(self, q, keys):
        """Compute float32 scores (B, N, T, S) from q (B, T, N, H) and keys (B, K, S, H)."""
        batch_size, length = ops.shape(q)[:2]
        size, groups = self.head_dim, self.num_heads // self.num_key_value_heads
        scale = size**-0.5 if self.attention_scale is None else self.attention_scale
        # Fold the query heads that share a key-value head into the time axis: one matmul per
        # key-value head, without repeating keys.
        grouped = (batch_size, length, self.num_key_value_heads, groups, size)
        q = ops.transpose(ops.reshape(q * scale, grouped), (0, 2, 3, 1, 4))
        q = ops.reshape(q, (batch_size, self.num_key_value_heads, groups * length, size))
        keys = ops.cast(keys, q.dtype)
        scores = ops.cast(ops.matmul(q, ops.swapaxes(keys, -1, -2)), "float32")
        scores = ops.reshape(scores, (batch_size, self.num_heads, length, -1))
        if self.logit_soft_cap is not None:
            scores = self.logit_soft_cap * ops.tanh(scores / self.logit_soft_cap)
        return scores

    def _probabilities(self, scores, attention_mask):
        """Compute the softmax over the unmasked scores, in float32."""
        if attention_mask is not None:
            bias = (1.0 - ops.cast(attention_mask, "float32")) * _MASKED
            scores = scores + ops.expand_dims(bias, 1)
        if self.sinks is None:
            return ops.softmax(scores, axis=-1)
        sinks = ops.reshape(ops.cast(self.sinks, "float32"), (1, self.num_heads, 1, 1))
        largest = ops.maximum(ops.max(scores, axis=-1, keepdims=True), sinks)
        weights = ops.exp(scores - largest)
        return weights / (ops.sum(weights, axis=-1, keepdims=True) + ops.exp(sinks - largest))

    def _attend(self, probabilities, values, training):
        """Combine probabilities (B, N, T, S) and values (B, K, S, H) to outputs (B, T, D)."""
        batch_size, _, length = ops.shape(probabilities)[:3]
        size, groups = self.head_dim, self.num_heads // self.num_key_value_heads
        probabilities = ops.cast(probabilities, self.compute_dtype)
        probabilities = self.dropout_layer(probabilities, training=training)
        folded = (batch_size, self.num_key_value_heads, groups * length, -1)
        output = ops.matmul(
            ops.reshape(probabilities, folded), ops.cast(values, self.compute_dtype)
        )
        grouped = (batch_size, self.num_key_value_heads, groups, length, size)
        output = ops.transpose(ops.reshape(output, grouped), (0, 3, 1, 2, 4))
        output = self.output_projection(ops.reshape(output, (-1, self.num_heads * size)))
        return ops.reshape(output, (batch_size, length, output.shape[-1]))

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape | None = None) -> Shape:
        return query_shape

    def get_config(self) -> JSON:
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
            "attention_scale": self.attention_scale,
            "num_sink_tokens": self.num_sink_tokens,
            "learned_sinks": self.learned_sinks,
        }

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        config = dict(config)
        config["position"] = keras.saving.deserialize_keras_object(config["position"])
        return cls(**config)


def _first_slots(entry, attention_mask):
    """Return the cache slots (B, K, S, H) that a mask covers.

    A mask narrower than the cache saves the work on the remaining slots.
    """
    width = None if attention_mask is None else attention_mask.shape[-1]
    if width in (None, 1) or entry.shape[2] is None or width >= entry.shape[2]:
        return entry
    return entry[:, :, :width]
